"""The alert rules as the manifest has them, as a plain rules file, with shorter durations; the runbook's commands."""

import copy
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "k8s" / "monitoring" / "prometheus_rule.yaml"
RUNBOOK = ROOT / "docs" / "runbook.md"

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# A range, an offset. Names of recorded series hold durations too and stay as they are.
_IN_EXPRESSION = re.compile(r"(?<=\[)\d+[smhd](?=\])|(?<=offset )\d+[smhd]")


def rules_file() -> dict[str, Any]:
    """What `promtool check rules` and Prometheus' rule_files take."""
    manifest = yaml.safe_load(MANIFEST.read_text())
    spec: dict[str, Any] = manifest["spec"]
    return spec


def rules_of(file: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in file["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """By name."""
    return {rule["alert"]: rule for rule in rules_of(rules_file()) if "alert" in rule}


def shortened(file: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same rules in a world whose clock runs `factor` times faster: every duration divided by it."""

    def short(duration: str) -> str:
        return f"{round(1000 * int(duration[:-1]) * SECONDS[duration[-1]] / factor)}ms"

    made = copy.deepcopy(file)
    for rule in rules_of(made):
        rule["expr"] = _IN_EXPRESSION.sub(lambda found: short(found.group()), rule["expr"])
        if "for" in rule:
            rule["for"] = short(rule["for"])
    return made


def runbook_commands() -> list[tuple[str, str]]:
    """(server or prometheus, command) of each block that a test can run."""
    return re.findall(r"^```sh (server|prometheus)\n(.*?)^```$", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
