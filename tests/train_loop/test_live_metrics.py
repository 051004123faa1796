"""`--metrics-port`: what a scrape of a run holds, that the run stays the same, and what is refused."""

import json
import re
import socket
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tests.train_loop.runs import figures, flags, same, weights
from training.live_metrics import TABLE, Row, RunMetrics, serving
from training.record import RecordCallback
from training.train import main

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
PREFIX = "phiserve_training_"
Samples = dict[tuple[str, ...], float]


def scrape(address: str) -> Samples:
    """Every sample by name and values of labels."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name.removeprefix(PREFIX), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def scrapes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[Samples]:
    """A scrape after each record of the run that the test makes."""
    found: list[Samples] = []
    said: list[str] = []
    write = RecordCallback.on_log

    def write_and_scrape(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        said.append(capsys.readouterr().out)
        (address,) = re.findall(r"^Metrics: (\S+)$", "".join(said), re.MULTILINE)
        found.append(scrape(address))

    monkeypatch.setattr(RecordCallback, "on_log", write_and_scrape)
    return found


def test_a_run_that_is_watched_is_the_run_that_is_not_and_every_metric_has_a_sample(
    finished_run: Path, data: Path, tmp_path: Path, scrapes: list[Samples]
) -> None:
    assert main([*flags(data, tmp_path / "run"), "--metrics-port", "0"]) == 0
    assert figures(tmp_path / "run") == figures(finished_run)
    assert same(weights(tmp_path / "run", 10), weights(finished_run, 10))
    settings = [json.loads((run / "train_config.json").read_text()) for run in (tmp_path / "run", finished_run)]
    assert {**settings[0], "output_dir": None} == {**settings[1], "output_dir": None}
    assert {PREFIX + name for name, *_ in scrapes[-1]} == {row.name for row in TABLE}
    assert {labels[0] for _, *labels in scrapes[-1]} == {"run"}


@pytest.mark.parametrize("end", [None, KeyboardInterrupt])
def test_the_endpoint_is_gone_when_the_run_is_over_in_whatever_way(
    end: type[BaseException] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(KeyboardInterrupt), serving("127.0.0.1", 0) as registry:
        (port,) = re.findall(r"^Metrics: http://127\.0\.0\.1:(\d+)/metrics$", capsys.readouterr().out, re.MULTILINE)
        assert registry is not None
        registry.register(RunMetrics("r", 100))
        assert ("warnings_total", "r", "phi_up_while_phi_r_falls") in scrape(f"http://127.0.0.1:{port}/metrics")
        if end is not None:
            raise end
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)), timeout=5)


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("training.live_metrics.time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def step(clock: Clock) -> Callable[[RunMetrics, Any, float], None]:
    def take(metrics: RunMetrics, state: Any, seconds: float) -> None:
        metrics.on_step_begin(None, state, None)
        clock.now += seconds
        state.global_step += 1
        metrics.on_step_end(None, state, None)

    return take


def value(metrics: RunMetrics, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(metrics)
    return registry.get_sample_value(PREFIX + name, {"run": "r", **labels})


def test_speed_leaves_evaluations_out_and_time_left_does_not(
    clock: Clock, step: Callable[[RunMetrics, Any, float], None]
) -> None:
    metrics, state = RunMetrics("r", 100), SimpleNamespace(global_step=40, max_steps=50)
    metrics.on_train_begin(None, state, None)
    assert value(metrics, "time_left_seconds") is None
    step(metrics, state, 2.0)
    clock.now += 5.0  # an evaluation
    step(metrics, state, 3.0)
    metrics.on_log(None, state, None, {"loss": 3.0})
    # 2 steps took 10 s, 5 s of them in steps; 8 steps are left. What came before the resume has no part in it.
    assert value(metrics, "tokens_per_second") == 200 / 5
    assert value(metrics, "time_left_seconds") == 8 * 5
    assert value(metrics, "tokens_total") == 200
    assert (value(metrics, "steps_done"), value(metrics, "steps_planned")) == (42, 50)
    step(metrics, state, 0.5)
    metrics.on_log(None, state, None, {"loss": 3.0})
    assert value(metrics, "tokens_per_second") == 100 / 0.5


def test_records_of_training_and_of_evaluations_stay_apart() -> None:
    metrics = RunMetrics("r", 100)
    metrics.on_log(None, None, None, {"eval_phi01": 0.5, "eval_bits_per_byte": 2.25, "eval_cross_entropy": 4.0})
    metrics.on_log(None, None, None, {"loss": 2.9, "cross_entropy": 3.0, "phi01": 0.25, "lambda_phi": 0.4})
    assert value(metrics, "phi01_ratio", text="held_out") == 0.5
    assert value(metrics, "phi01_ratio", text="train") == 0.25
    assert value(metrics, "cross_entropy_nats", text="held_out") == 4.0
    assert value(metrics, "cross_entropy_nats", text="train") == 3.0
    assert value(metrics, "loss_nats") == 2.9
    assert value(metrics, "held_out_bits_per_byte") == 2.25
    assert value(metrics, "lambda") == 0.4


def test_what_a_run_without_the_objective_does_not_measure_is_absent() -> None:
    metrics = RunMetrics("r", 100)
    metrics.on_log(None, None, None, {"loss": 3.0, "learning_rate": 1e-3})
    assert value(metrics, "cross_entropy_nats", text="train") == value(metrics, "loss_nats") == 3.0
    for name in ("phi_nats", "phi01_ratio", "effective_rank_channels"):
        assert value(metrics, name, text="train") is None
    assert value(metrics, "lambda") is None


def test_each_warning_of_the_guards_is_counted_from_zero() -> None:
    metrics = RunMetrics("r", 100)
    name = "phi_up_while_phi_r_falls"
    assert value(metrics, "warnings_total", warning=name) == 0
    metrics.on_log(None, None, None, {"warning": name, "message": "..."})
    assert value(metrics, "warnings_total", warning=name) == 1
    assert value(metrics, "warnings_total", warning="phi_up_while_effective_rank_falls") == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--metrics-port", "70000"], "metrics_port=70000: give a number from 0"),
        (["--metrics-port", "0", "--metrics-host", "192.0.2.1"], "metrics_host='192.0.2.1': cannot listen there"),
    ],
)
def test_an_address_that_cannot_be_had_is_an_error_of_one_line(
    given: list[str], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags(data, tmp_path / "run"), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main([*flags(data, tmp_path / "run"), "--metrics-port", str(port)]) == 2
    assert f"error: metrics_port={port}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_a_port_nothing_listens() -> None:
    with serving("127.0.0.1", None) as registry:
        assert registry is None


def row_of(row: Row) -> str:
    return f"| `{row.name}` | {row.kind} | {', '.join(('run', *row.labels))} | {row.help} |"


def test_the_docs_hold_the_table_of_the_code() -> None:
    shown = [line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{PREFIX}")]
    assert shown == [row_of(row) for row in TABLE]


def test_names_say_what_they_count() -> None:
    for row in TABLE:
        assert re.fullmatch(r"phiserve_training(_[a-z0-9]+)+", row.name)
        assert (row.kind == "counter") == row.name.endswith("_total")
