"""The table of metrics: the same in the code and in the docs, with bounded labels."""

import re
from pathlib import Path

from serve.engine.stats import StepStats
from serve.metrics import TABLE, ApiMetrics, Row, worker_observer

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
BOUNDED_LABELS = {
    "gen_ai_request_model",
    "gen_ai_token_type",
    "endpoint",
    "route",
    "outcome",
    "finish_reason",
    "phase",
    "grade",
    "result",
    "feature",
}


def row_of(row: Row) -> str:
    return f"| `{row.name}` | {row.kind} | {', '.join(row.labels) or '-'} | {row.help} |"


def test_the_docs_hold_the_table_of_the_code() -> None:
    shown = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert shown == [row_of(row) for row in TABLE]


def test_labels_are_bounded() -> None:
    assert {label for row in TABLE for label in row.labels} <= BOUNDED_LABELS


def test_names_end_in_their_unit() -> None:
    for row in TABLE:
        assert re.fullmatch(r"(gen_ai|phiserve)(_[a-z]+)+", row.name)
        assert (row.kind == "counter") == row.name.endswith("_total")


def test_every_number_of_a_step_reaches_a_metric() -> None:
    from serve.metrics import _registry

    ApiMetrics("m", 1.7e9, 0, timing=True)
    observe = worker_observer(timing=True)
    observe(StepStats(3, 40, 2, 3, 5, 60, 64, 32, 16, 1, 0, 0.1, 0.5, 0.2, 0.05), 0.01)
    counted = {
        "phiserve_steps_total": 1,
        "phiserve_computed_tokens_total": 40,
        "phiserve_sampled_tokens_total": 2,
        "phiserve_running_choices": 3,
        "phiserve_queue_length": 5,
        "phiserve_cache_blocks_free": 60,
        "phiserve_cache_blocks": 64,
        "phiserve_prefix_asked_tokens_total": 32,
        "phiserve_prefix_hit_tokens_total": 16,
        "phiserve_preemptions_total": 1,
    }
    assert {name: _registry[name]._value.get() for name in counted} == counted
    phases = _registry["phiserve_step_phase_seconds_total"]
    assert phases.labels("forward")._value.get() == 0.3
    assert phases.labels("sample")._value.get() == 0.2
