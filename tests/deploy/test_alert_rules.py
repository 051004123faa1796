"""The alert rules: their form, their runbook, their metrics, and what promtool says of them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from serve.metrics import GRADES, OUTCOMES, RESULTS, TABLE, Row
from tests.deploy.alert_rules import RUNBOOK, alerts, rules_file, rules_of, shortened

UNIT_TESTS = Path(__file__).parent / "alert_rules_test.yaml"
VALUES = {"outcome": OUTCOMES, "result": RESULTS, "grade": GRADES}


def samples_of(row: Row) -> dict[str, Row]:
    """The names under which a metric is scraped."""
    endings = ("_bucket", "_sum", "_count") if row.kind == "histogram" else ("",)
    return {row.name + ending: row for ending in endings}


SCRAPED = {name: row for metric in TABLE for name, row in samples_of(metric).items()}


def promtool(*arguments: str | Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def plain_rules(tmp_path: Path) -> Path:
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rules_file()))
    return file


def test_every_alert_has_severity_summary_description_and_the_address_of_its_section() -> None:
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    sections = re.findall(r"^## (Phiserve\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sections == list(alerts())


def test_each_section_of_the_runbook_says_what_it_means_and_begins_with_a_command_that_is_tested() -> None:
    for section in re.split(r"^## ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]:
        parts = re.findall(r"^\*\*(Means|First|Causes and remedies)\.\*\*", section, re.MULTILINE)
        assert parts == ["Means", "First", "Causes and remedies"], section
        first = section.partition("**First.**")[2]
        assert re.search(r"^```sh (\w+)$", first, re.MULTILINE).group(1) in ("server", "prometheus"), section


def test_the_rules_ask_only_for_metrics_and_label_values_that_the_server_has() -> None:
    recorded = {rule["record"] for rule in rules_of(rules_file()) if "record" in rule}
    for rule in rules_of(rules_file()):
        asked = set(re.findall(r"\b(?:phiserve|gen_ai)[\w:]*(?=[{\[ )])", rule["expr"])) - {"gen_ai_request_model"}
        assert asked <= SCRAPED.keys() | recorded, rule
        assert asked or "up{" in rule["expr"], rule
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', rule["expr"]):
            if label in VALUES:
                assert set(values.split("|")) <= set(VALUES[label]), rule


def test_the_first_token_objective_is_a_bucket_of_the_histogram() -> None:
    bounds = {float(le) for rule in rules_of(rules_file()) for le in re.findall(r'le="([\d.]+)"', rule["expr"])}
    assert bounds == {1.0}
    assert bounds <= set(SCRAPED["gen_ai_server_time_to_first_token_seconds_bucket"].buckets)


def test_shortened_rules_differ_in_durations_only() -> None:
    rules = {"groups": [{"rules": [{"expr": "a:rate5m > 14.4 and b[1h] > 30 * rate(c[1d] offset 2h)", "for": "15m"}]}]}
    short = rules_of(shortened(rules, 60))[0]
    assert short == {
        "expr": "a:rate5m > 14.4 and b[60000ms] > 30 * rate(c[1440000ms] offset 120000ms)",
        "for": "15000ms",
    }


def test_each_alert_fires_in_a_unit_test() -> None:
    said = UNIT_TESTS.read_text()
    assert set(re.findall(r'alertname="(\w+)"', said)) == set(alerts())


def test_promtool_finds_no_fault_in_the_rules(plain_rules: Path) -> None:
    promtool("check", "rules", plain_rules)


@pytest.mark.slow
def test_each_alert_fires_when_it_should_and_only_then(plain_rules: Path) -> None:
    file = plain_rules.with_name(UNIT_TESTS.name)
    shutil.copy(UNIT_TESTS, file)
    promtool("test", "rules", file)
