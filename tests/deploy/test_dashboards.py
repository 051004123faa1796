"""The Grafana dashboards: what they ask for exists, and a real Prometheus that watches a real server or run answers."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from serve.metrics import TABLE
from serve.quality.features import DOCUMENT_FEATURES, TEXT_FEATURES
from serve.quality.surprise import SURPRISE_FEATURES
from tests.http.server_process import ServerProcess, free_port, wait_until
from tests.train_loop.runs import flags, write_text
from training import live_metrics

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "render_dashboard.py"
SERVING = ROOT / "k8s" / "monitoring" / "dashboards" / "serving.json"
TRAINING = SERVING.with_name("training.json")
DASHBOARDS = sorted(SERVING.parent.glob("*.json"))
CHOSEN = {SERVING: {"datasource", "namespace", "job", "model"}, TRAINING: {"datasource", "namespace", "job", "run"}}
LABELS = {label for row in TABLE for label in row.labels}
PARTS = {"histogram": ("_bucket", "_sum", "_count")}
SERIES = {row.name + part: row.name for row in TABLE for part in PARTS.get(row.kind, ("",))}

each_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def panels_of(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["panels"])


def queries_of(path: Path) -> list[str]:
    return [target["expr"] for panel in panels_of(path) for target in panel.get("targets", [])]


def asked_of(path: Path) -> set[str]:
    """Names of all series in a dashboard's queries."""
    return set(re.findall(r"\b(?:phiserve|gen_ai)_\w+", " ".join(queries_of(path)))) - LABELS


@pytest.fixture(scope="module")
def render() -> ModuleType:
    """scripts/render_dashboard.py, which is no package."""
    spec = importlib.util.spec_from_file_location("render_dashboard", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_serving_dashboard_asks_for_every_metric_of_the_server_and_no_other() -> None:
    asked = asked_of(SERVING)
    assert asked <= SERIES.keys()
    assert {SERIES[name] for name in asked} == {row.name for row in TABLE}


def test_the_training_dashboard_asks_for_every_metric_of_a_run_and_no_other() -> None:
    assert asked_of(TRAINING) == {row.name for row in live_metrics.TABLE}


def test_every_dashboard_comes_with_the_monitoring_of_the_cluster() -> None:
    (generator,) = yaml.safe_load((SERVING.parents[1] / "kustomization.yaml").read_text())["configMapGenerator"]
    assert generator["files"] == [f"dashboards/{path.name}" for path in DASHBOARDS]


def test_every_feature_of_the_score_is_in_one_panel() -> None:
    patterns = [found for query in queries_of(SERVING) for found in re.findall(r'feature=~"([^"]+)"', query)]
    features = [feature.name for feature in (*TEXT_FEATURES, *DOCUMENT_FEATURES, *SURPRISE_FEATURES)]
    panels = {name: sum(bool(re.fullmatch(pattern, name)) for pattern in patterns) for name in features}
    assert panels == dict.fromkeys(features, 1)


@each_dashboard
def test_every_panel_has_a_title_and_a_unit(path: Path) -> None:
    for panel in panels_of(path):
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["description"]
            assert panel["targets"]


@each_dashboard
def test_no_two_panels_lie_on_one_another(path: Path) -> None:
    panels = panels_of(path)
    places = [panel["gridPos"] for panel in panels]
    cells = Counter(
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert set(cells.values()) == {1}
    assert {x for x, _ in cells} == set(range(24))
    assert len({panel["id"] for panel in panels}) == len(panels)


@each_dashboard
def test_data_source_and_what_is_watched_are_variables(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["schemaVersion"] == 39
    assert {one["name"] for one in dashboard["templating"]["list"]} == CHOSEN[path]
    for panel in panels_of(path):
        for asking in (panel, *panel["targets"]) if panel["type"] != "row" else ():
            assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.json"], "missing.json is no dashboard"),
        ([str(SERVING), "--variable", "colour=red"], "--variable colour=red: give NAME=VALUE with one of namespace"),
        ([str(SERVING), "--prometheus", "localhost:9090"], "give an address that begins with http://"),
        ([str(SERVING), "--minutes", "0"], "--minutes 0.0: give a number above 0"),
    ],
)
def test_bad_input_names_the_remedy(
    render: ModuleType, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = ["--prometheus", f"http://127.0.0.1:{free_port()}", "--output", str(tmp_path / "picture.png")]
    try:
        code = render.main([*defaults, *arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_grafanas_variables_get_grafanas_values(render: ModuleType) -> None:
    source = render.Source("http://127.0.0.1", 0.0, 3600.0, 15.0, {"model": "m"})
    filled = source.filled('rate(a{model=~"$model"}[$__rate_interval]) + b[${__range}]')
    assert filled == 'rate(a{model=~"m"}[60000ms]) + b[3600000ms]'
    with pytest.raises(render.InputError, match=r"variable \$job has no value"):
        source.filled('a{job="$job"}')


@pytest.mark.parametrize(
    ("seconds", "text"), [(129600, "1.5 days"), (5400, "1.5 hours"), (90, "1.5 mins"), (1.5, "1.5 s"), (0.015, "15 ms")]
)
def test_seconds_are_written_in_the_unit_that_fits(render: ModuleType, seconds: float, text: str) -> None:
    assert render.shown(seconds, "s") == text


# -- a real Prometheus ------------------------------------------------------------------------------------------------


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """The address of a Prometheus that asks the target every second."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing: apt-get install prometheus")
    jobs = [{"job_name": "phiserve", "static_configs": [{"targets": [target]}]}]
    config = folder / "prometheus.yaml"
    config.write_text(
        yaml.safe_dump({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs})
    )
    port = free_port()
    flags = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        command = ["prometheus", f"--web.listen-address=127.0.0.1:{port}", *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_ready(address), "Prometheus to be ready")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def value(address: str, query: str) -> float:
    """The first value of an instant query; 0 if there is none."""
    with urllib.request.urlopen(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}") as answer:
        found = json.load(answer)["data"]["result"]
    return float(found[0]["value"][1]) if found else 0.0


def drawn(dashboard: Path, address: str, picture: Path, minutes: float, *more: str) -> subprocess.CompletedProcess[str]:
    asked = ["--prometheus", address, "--output", str(picture), "--minutes", str(minutes), "--scrape-seconds", "1"]
    return subprocess.run(
        [sys.executable, SCRIPT, dashboard, *asked, *more], capture_output=True, text=True, check=False
    )


def pictured(dashboard: Path, address: str, picture: Path, minutes: float) -> None:
    """Every query has data."""
    done = drawn(dashboard, address, picture, minutes)
    assert (done.returncode, done.stderr) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_every_query_of_the_serving_dashboard_has_data(tmp_path: Path) -> None:
    server = ServerProcess("tiny_iit", ("--step-timing", "--quality-budget", "1")).start()
    try:
        with prometheus(tmp_path, f"127.0.0.1:{server.port}") as address:

            def drift_seen_for_long() -> bool:
                # Of the same beginning, so that the prefix cache has something to find.
                prompt = "The old man closed the door behind him and looked out over the wet street, and then he said"
                assert server.generate(prompt=prompt, n=8, max_new_tokens=48, quality=True).status == 200
                return value(address, "count_over_time(phiserve_quality_drift_psi[1m])") >= 6

            wait_until(drift_seen_for_long, "drift in Prometheus")
            pictured(SERVING, address, tmp_path / "serving.png", 0.5)
            none = drawn(SERVING, address, tmp_path / "none.png", 0.5, "--variable", "model=another")
            assert none.returncode == 1
            assert "no data: Scores: " in none.stderr
    finally:
        server.stop()


@pytest.mark.slow
def test_every_query_of_the_training_dashboard_has_data(tmp_path: Path) -> None:
    # More steps than it takes to see enough: the run is stopped as Ctrl-C does, and its endpoint goes with it.
    port = free_port()
    text = write_text(tmp_path / "text")
    arguments = flags(text, tmp_path / "run", max_steps=100_000, eval_every=20, metrics_port=port)
    with (tmp_path / "run.log").open("wb") as log:
        run = subprocess.Popen(
            [sys.executable, "-m", "training.train", *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    try:
        with prometheus(tmp_path, f"127.0.0.1:{port}") as address:

            def steps_seen_for_long() -> bool:
                assert run.poll() is None, (tmp_path / "run.log").read_text()
                return value(address, "count_over_time(phiserve_training_tokens_per_second[1m])") >= 6

            wait_until(steps_seen_for_long, "a run in Prometheus", 120)
            pictured(TRAINING, address, tmp_path / "training.png", 0.5)
            run.send_signal(signal.SIGINT)
            assert run.wait(60) == 130
            wait_until(lambda: value(address, "1 - up") == 1, "the endpoint to be gone")
    finally:
        run.kill()
        run.wait(60)
