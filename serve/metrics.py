"""What operators see: every metric of the server, in one table. Subscribes to plain numbers; no engine, no HTTP.

prometheus_client runs in multiprocess mode: PROMETHEUS_MULTIPROC_DIR is set by prepare() in the main process before the
first import of this module's metrics, every process writes files there, and /metrics adds them up. docs/metrics.md is
the same table for people; a test holds the two against each other.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from serve.engine.stats import StepStats

if TYPE_CHECKING:
    from serve.completion import Totals
    from serve.quality.score import QualityReport

OUTCOMES = ("ok", "invalid", "full", "unavailable", "cancelled", "error")
OUTCOME_OF_STATUS = {429: "full", 500: "error", 503: "unavailable"}
"""Of an answer that is no success; other statuses are the request's own fault."""
ROUTES = ("generate", "completions", "chat")
"""What asks for text: /generate, /v1/completions, /v1/chat/completions."""
QUALITY_ENDPOINTS = ("score", "diagnose", "compare")
FINISH_REASONS = ("stop", "length", "deadline", "abort", "error")
GRADES = ("EXCELLENT", "GOOD", "FAIR", "POOR")
RESULTS = ("scored", "short", "shed", "failed")
PHASES = ("schedule", "forward", "sample", "update", "transport", "detokenise", "write")

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
SCORES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)


@dataclass(frozen=True)
class Row:
    """One metric: kind is counter, gauge or histogram; labels have bounded values."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    over_processes: Literal["livesum", "livemax"] = "livesum"


TABLE = (
    Row(
        "gen_ai_server_time_to_first_token_seconds",
        "histogram",
        "Seconds from the request's arrival to its first token.",
        ("gen_ai_request_model",),
        SECONDS,
    ),
    Row(
        "gen_ai_server_time_per_output_token_seconds",
        "histogram",
        "Seconds for each token of a choice after its first.",
        ("gen_ai_request_model",),
        TOKEN_SECONDS,
    ),
    Row(
        "gen_ai_server_request_duration_seconds",
        "histogram",
        "Seconds from the request's arrival to its last byte.",
        ("gen_ai_request_model",),
        SECONDS,
    ),
    Row(
        "gen_ai_client_token_usage",
        "histogram",
        "Tokens of a request, input or output; the sum counts all tokens.",
        ("gen_ai_request_model", "gen_ai_token_type"),
        TOKENS,
    ),
    Row("phiserve_requests_total", "counter", "Requests for text by route and outcome.", ("route", "outcome")),
    Row(
        "phiserve_quality_requests_total",
        "counter",
        "Requests to /quality/score, /quality/diagnose and /quality/compare by outcome.",
        ("endpoint", "outcome"),
    ),
    Row("phiserve_keys_refused_total", "counter", "Requests answered 401: no API key, or a wrong one."),
    Row("phiserve_choices_total", "counter", "Choices by finish reason.", ("finish_reason",)),
    Row("phiserve_choices_in_flight", "gauge", "Choices that HTTP processes wait for."),
    Row("phiserve_queue_length", "gauge", "Choices that wait in the engines for a place."),
    Row("phiserve_running_choices", "gauge", "Choices that have a place in an engine's running batch."),
    Row("phiserve_batch_size", "histogram", "Choices computed in one step.", (), (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    Row("phiserve_steps_total", "counter", "Steps of the engines."),
    Row("phiserve_computed_tokens_total", "counter", "Tokens computed, prompts and answers."),
    Row("phiserve_sampled_tokens_total", "counter", "Tokens drawn."),
    Row("phiserve_prefix_asked_tokens_total", "counter", "Prompt tokens looked up in the prefix cache."),
    Row("phiserve_prefix_hit_tokens_total", "counter", "Prompt tokens found in the prefix cache."),
    Row("phiserve_preemptions_total", "counter", "Choices sent back to the queue for want of memory."),
    Row("phiserve_cache_blocks_free", "gauge", "Blocks of the key-value caches that no running choice holds."),
    Row("phiserve_cache_blocks", "gauge", "Blocks of the key-value caches."),
    Row("phiserve_workers_ready", "gauge", "Engine workers that are alive, as HTTP process 0 sees them."),
    Row("phiserve_worker_deaths_total", "counter", "Engine workers that stopped, as HTTP process 0 saw it."),
    Row(
        "phiserve_model_published_timestamp_seconds",
        "gauge",
        "When the served version was published, in seconds since 1970; of a plain folder, when its config was written.",
        ("gen_ai_request_model",),
        (),
        "livemax",
    ),
    Row(
        "phiserve_step_phase_seconds_total",
        "counter",
        "Seconds by phase, with --step-timing; detokenise and write are the HTTP processes', the others the workers'.",
        ("phase",),
    ),
    Row("phiserve_quality_score", "histogram", "Quality score of a choice.", ("gen_ai_request_model",), SCORES),
    Row("phiserve_quality_grades_total", "counter", "Scored choices by grade.", ("gen_ai_request_model", "grade")),
    Row(
        "phiserve_quality_choices_total",
        "counter",
        "Choices by what became of their score: scored, short (under 32 tokens), shed (beyond the budget), failed.",
        ("gen_ai_request_model", "result"),
    ),
    Row(
        "phiserve_quality_feature_sum",
        "gauge",
        "Sum of a feature over scored choices; divide by those scored for the mean.",
        ("gen_ai_request_model", "feature"),
    ),
    Row(
        "phiserve_quality_drift_psi",
        "gauge",
        "Population stability index of the last scores against the reference's.",
        ("gen_ai_request_model",),
        (),
        "livemax",
    ),
)


def prepare(folder: Path) -> None:
    """Say where metric files go. In the main process, before anything imports prometheus_client."""
    folder.mkdir(mode=0o700)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def forget_process(pid: int) -> None:
    """It is dead: its gauges no longer count; its counters stay."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)  # type: ignore[no-untyped-call]


class _Registry:
    """The metrics of TABLE, made once a process at the first use."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if not self._made:
            self._made = _make()
        return self._made[name]


def _make() -> dict[str, Any]:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

    registry = CollectorRegistry()
    made: dict[str, Any] = {}
    for row in TABLE:
        if row.kind == "histogram":
            made[row.name] = Histogram(row.name, row.help, row.labels, buckets=row.buckets, registry=registry)
        elif row.kind == "gauge":
            made[row.name] = Gauge(
                row.name, row.help, row.labels, multiprocess_mode=row.over_processes, registry=registry
            )
        else:
            made[row.name] = Counter(row.name.removesuffix("_total"), row.help, row.labels, registry=registry)
    return made


_registry = _Registry()


class ApiMetrics:
    """What an HTTP process counts."""

    def __init__(self, model: str, published: float, api: int, *, timing: bool) -> None:
        """published: seconds since 1970."""
        m = _registry
        m["phiserve_model_published_timestamp_seconds"].labels(model).set(published)
        self.timing = timing
        self._is_first = api == 0
        self._first_token = m["gen_ai_server_time_to_first_token_seconds"].labels(model)
        self._per_token = m["gen_ai_server_time_per_output_token_seconds"].labels(model)
        self._duration = m["gen_ai_server_request_duration_seconds"].labels(model)
        self._input = m["gen_ai_client_token_usage"].labels(model, "input")
        self._output = m["gen_ai_client_token_usage"].labels(model, "output")
        requests = m["phiserve_requests_total"]
        self._outcomes = {(r, o): requests.labels(r, o) for r in ROUTES for o in OUTCOMES}
        quality = m["phiserve_quality_requests_total"]
        self._quality_outcomes = {(e, o): quality.labels(e, o) for e in QUALITY_ENDPOINTS for o in OUTCOMES}
        self._keys_refused = m["phiserve_keys_refused_total"]
        self._reasons = {reason: m["phiserve_choices_total"].labels(reason) for reason in FINISH_REASONS}
        self._in_flight = m["phiserve_choices_in_flight"]
        self._ready = m["phiserve_workers_ready"]
        self._deaths = m["phiserve_worker_deaths_total"]
        self._phases = {phase: m["phiserve_step_phase_seconds_total"].labels(phase) for phase in PHASES[-2:]}

    def outcome(self, route: str, name: str) -> None:
        self._outcomes[route, name].inc()

    def quality_outcome(self, endpoint: str, name: str) -> None:
        self._quality_outcomes[endpoint, name].inc()

    def key_refused(self) -> None:
        self._keys_refused.inc()

    def finished(self, totals: "Totals") -> None:
        """A request that reached the engine is over, in whatever way."""
        if totals.time_to_first_token is not None:
            self._first_token.observe(totals.time_to_first_token)
        for seconds in totals.times_per_output_token:
            self._per_token.observe(seconds)
        self._duration.observe(totals.seconds)
        self._input.observe(totals.num_prompt)
        self._output.observe(totals.num_completion)
        for reason in totals.finish_reasons:
            self._reasons[reason].inc()

    def in_flight(self, count: int) -> None:
        self._in_flight.set(count)

    def workers_ready(self, count: int) -> None:
        if self._is_first:
            self._ready.set(count)

    def worker_died(self, pid: int) -> None:
        if self._is_first:
            forget_process(pid)
            self._deaths.inc()

    def phase(self, name: str, seconds: float) -> None:
        self._phases[name].inc(seconds)


class QualityMetrics:
    """What the scoring process counts, and the HTTP processes of what never reached it."""

    def __init__(self, model: str) -> None:
        m = _registry
        self._model = model
        self._score = m["phiserve_quality_score"].labels(model)
        self._grades = {grade: m["phiserve_quality_grades_total"].labels(model, grade) for grade in GRADES}
        self._results = {name: m["phiserve_quality_choices_total"].labels(model, name) for name in RESULTS}
        self._sums: dict[str, Any] = {}

    def result(self, name: str) -> None:
        self._results[name].inc()

    def scored(self, report: "QualityReport") -> None:
        """A report of a generated choice, scored or too short."""
        if report.score is None or report.grade is None:
            self.result("short")
            return
        self.result("scored")
        self._score.observe(report.score)
        self._grades[report.grade].inc()
        for name, value in report.features.items():
            if name not in self._sums:
                self._sums[name] = _registry["phiserve_quality_feature_sum"].labels(self._model, name)
            self._sums[name].inc(value)

    def drift(self, index: float) -> None:
        """Made at the first call: the figure is absent until a window has enough scores."""
        _registry["phiserve_quality_drift_psi"].labels(self._model).set(index)


def worker_observer(*, timing: bool) -> Callable[[StepStats, float], None]:
    """What a worker counts after each step, from the engine's numbers and the seconds that sending took."""
    m = _registry
    batch, steps = m["phiserve_batch_size"], m["phiserve_steps_total"]
    counters = [
        (m["phiserve_computed_tokens_total"], "num_tokens"),
        (m["phiserve_sampled_tokens_total"], "num_sampled"),
        (m["phiserve_prefix_asked_tokens_total"], "prefix_tokens_asked"),
        (m["phiserve_prefix_hit_tokens_total"], "prefix_tokens_hit"),
        (m["phiserve_preemptions_total"], "num_preemptions"),
    ]
    gauges = [
        (m["phiserve_queue_length"], "num_waiting"),
        (m["phiserve_running_choices"], "num_running"),
        (m["phiserve_cache_blocks_free"], "num_free_blocks"),
        (m["phiserve_cache_blocks"], "num_blocks"),
    ]
    shown = [None] * len(gauges)
    phases = {phase: m["phiserve_step_phase_seconds_total"].labels(phase) for phase in PHASES[:5]}

    def observe(stats: StepStats, transport_seconds: float) -> None:
        steps.inc()
        batch.observe(stats.num_rows)
        for counter, name in counters:
            if change := getattr(stats, name):
                counter.inc(change)
        for i, (gauge, name) in enumerate(gauges):
            value = getattr(stats, name)
            if value != shown[i]:
                gauge.set(value)
                shown[i] = value
        if timing:
            phases["schedule"].inc(stats.schedule_seconds)
            phases["forward"].inc(max(0.0, stats.execute_seconds - stats.sample_seconds))
            phases["sample"].inc(stats.sample_seconds)
            phases["update"].inc(stats.update_seconds)
            phases["transport"].inc(transport_seconds)

    return observe


def exposition() -> bytes:
    """All processes' metrics in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
