"""What operators see of a run while it goes on: every metric of training, in one table, and the endpoint for them.

Subscribes to the Trainer's steps and log records; knows no model, no data, no files. The figures lie in a dictionary,
and only a scrape makes text of them. docs/training.md is the same table for people; a test holds the two together.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from transformers import TrainerCallback

from iit.guards import PHI_UP_PHI_R_DOWN, PHI_UP_RANK_DOWN


@dataclass(frozen=True)
class Row:
    """One metric: kind is counter or gauge. Every one has the label run, the name of the run's folder, before its own.

    logged: the figure's name in the Trainer's records, if that is where it comes from. With the label text it is
    the training text's, and with eval_ before it the held-out text's.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    logged: str = ""


_TEXT = ("text",)
TABLE = (
    Row("phiserve_training_steps_done", "gauge", "Optimizer steps of the run so far, those before a resume too."),
    Row("phiserve_training_steps_planned", "gauge", "Optimizer steps of the whole run."),
    Row(
        "phiserve_training_time_left_seconds",
        "gauge",
        "Seconds to the last step at the pace of this process, evaluations included; the final one is not.",
    ),
    Row("phiserve_training_tokens_total", "counter", "Tokens trained on since this process began."),
    Row(
        "phiserve_training_tokens_per_second",
        "gauge",
        "Tokens by second of the steps since the last record, without evaluations and saving.",
    ),
    Row("phiserve_training_loss_nats", "gauge", "Cross-entropy less lambda times phi01, per token.", (), "loss"),
    Row("phiserve_training_cross_entropy_nats", "gauge", "Cross-entropy per token.", _TEXT, "cross_entropy"),
    Row(
        "phiserve_training_held_out_bits_per_byte",
        "gauge",
        "Held-out cross-entropy in bits, by byte of text; the last evaluation's.",
        (),
        "eval_bits_per_byte",
    ),
    Row("phiserve_training_learning_rate", "gauge", "Learning rate in force.", (), "learning_rate"),
    Row("phiserve_training_gradient_norm", "gauge", "Norm of the gradient before it is clipped.", (), "grad_norm"),
    Row("phiserve_training_phi_nats", "gauge", "Phi_G of the last layer's heads.", _TEXT, "phi"),
    Row(
        "phiserve_training_phi_null_mean_nats",
        "gauge",
        "Mean of Phi_G where there is nothing to find, in a sample of this size.",
        _TEXT,
        "phi_null_mean",
    ),
    Row("phiserve_training_phi01_ratio", "gauge", "Phi_G mapped to 0 to 1, the objective's value.", _TEXT, "phi01"),
    Row("phiserve_training_lambda", "gauge", "Weight of the objective in force.", (), "lambda_phi"),
    Row("phiserve_training_phi_r_nats", "gauge", "Guard: Phi^R of the same states.", _TEXT, "phi_r"),
    Row(
        "phiserve_training_effective_rank_channels",
        "gauge",
        "Guard: effective rank of the same states.",
        _TEXT,
        "effective_rank",
    ),
    Row(
        "phiserve_training_gradient_ratio",
        "gauge",
        "Guard: the objective's gradient at the heads over cross-entropy's, before any clip.",
        (),
        "gradient_ratio",
    ),
    Row("phiserve_training_warnings_total", "counter", "Warnings of the guards by name.", ("warning",)),
)

_Key = tuple[str, tuple[str, ...]]
"""A metric's name and the values of its own labels."""


def _keys_of_records() -> dict[str, _Key]:
    keys: dict[str, _Key] = {}
    for row in TABLE:
        if row.labels == _TEXT:
            keys[row.logged] = (row.name, ("train",))
            keys[f"eval_{row.logged}"] = (row.name, ("held_out",))
        elif row.logged:
            keys[row.logged] = (row.name, ())
    return keys


_KEYS_OF_RECORDS = _keys_of_records()


class RunMetrics(TrainerCallback):
    """The figures of one run. A figure that was not measured yet, or is not at all, is absent, never 0.

    A callback of the Trainer in its thread; collect() is called by scrapes in others.
    """

    def __init__(self, run: str, tokens_per_step: int) -> None:
        self._run = run
        self._tokens_per_step = tokens_per_step
        self._values: dict[_Key, float] = {
            ("phiserve_training_warnings_total", (name,)): 0.0 for name in (PHI_UP_PHI_R_DOWN, PHI_UP_RANK_DOWN)
        }
        self._first: tuple[int, float] | None = None  # steps done and the clock when this process began its first
        self._step_began = 0.0
        self._unrecorded_steps = 0
        self._unrecorded_seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where the run stands and where it goes."""
        self._set("steps_done", state.global_step)
        self._set("steps_planned", state.max_steps)
        self._set("tokens_total", 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clocks."""
        self._step_began = time.monotonic()
        if self._first is None:
            self._first = (state.global_step, self._step_began)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count, and say how long it still takes."""
        assert self._first is not None
        now = time.monotonic()
        self._unrecorded_steps += 1
        self._unrecorded_seconds += now - self._step_began
        steps_of_process = state.global_step - self._first[0]
        seconds_per_step = (now - self._first[1]) / steps_of_process
        self._set("steps_done", state.global_step)
        self._set("tokens_total", steps_of_process * self._tokens_per_step)
        self._set("time_left_seconds", (state.max_steps - state.global_step) * seconds_per_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Take the figures of a record; one of training is also the end of a stretch whose speed is known."""
        record = logs or {}
        if "loss" in record:
            record = {"cross_entropy": record["loss"]} | record  # without the objective they are one
            if self._unrecorded_steps:
                tokens = self._unrecorded_steps * self._tokens_per_step
                self._set("tokens_per_second", tokens / self._unrecorded_seconds)
            self._unrecorded_steps, self._unrecorded_seconds = 0, 0.0
        for name in record.keys() & _KEYS_OF_RECORDS.keys():
            self._values[_KEYS_OF_RECORDS[name]] = float(record[name])
        if "warning" in record:
            self._values["phiserve_training_warnings_total", (record["warning"],)] += 1

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Every metric of TABLE with its samples."""
        values = self._values.copy()  # one operation of the interpreter: no lock against the training thread
        for row in TABLE:
            family = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            metric = family(row.name, row.help, labels=["run", *row.labels])
            for (name, labels), value in values.items():
                if name == row.name:
                    metric.add_metric([self._run, *labels], value)
            yield metric

    def _set(self, name: str, value: float) -> None:
        self._values[f"phiserve_training_{name}", ()] = value


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--metrics-port and --metrics-host. They decide nothing of the run, so they are no fields of TrainConfig."""
    parser.add_argument(
        "--metrics-port", type=int, metavar="INT", help="serve Prometheus metrics here while training; 0: a free port"
    )
    parser.add_argument("--metrics-host", default="127.0.0.1", metavar="STR", help="address that --metrics-port is of")


@contextmanager
def serving(host: str, port: int | None) -> Iterator[CollectorRegistry | None]:
    """A registry whose metrics are served over HTTP until the end; None for no port. Says where.

    Raises ValueError for a port or an address that cannot be had.
    """
    if port is None:
        yield None
        return
    if not 0 <= port <= 65535:
        raise ValueError(f"metrics_port={port}: give a number from 0 (any free one) to 65535")
    registry = CollectorRegistry()
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ValueError(
            f"metrics_port={port}, metrics_host={host!r}: cannot listen there ({error.strerror}); give a free port, "
            "and an address of this machine"
        ) from None
    print(f"Metrics: http://{host}:{server.server_port}/metrics", flush=True)
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
