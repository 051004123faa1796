"""The shipped checkpoint, its server, Prometheus and Alertmanager, all real: which alerts fire, and until when."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator

import psutil
import pytest

from tests.deploy.alert_rules import runbook_commands
from tests.deploy.monitoring_stack import Stack, monitoring
from tests.deploy.traffic import Traffic
from tests.http.server_process import ROOT, ServerProcess, wait_until

pytestmark = pytest.mark.slow

FACTOR = 200
"""A day of the rules is 7.2 minutes here, an hour 18 s; numbers of requests and scores are not rescaled."""
SCRAPE_SECONDS = 0.5
"""Three scrapes in the shortest window. On a busy machine a scrape takes a good part of this."""
KEY = "sesame"
FLAGS = ("--quality-budget", "1", "--quality-window", "200")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serves the shipped checkpoint, published anew, so that its age does not depend on the day of the test."""
    from model_store.store import ModelStore

    root = tmp_path_factory.mktemp("models")
    shipped = ModelStore(ROOT / "models").resolve("tiny_iit").path
    ModelStore(root).publish(shipped, "tiny_iit")
    environment = {"MODEL_STORE_ROOT": str(root), "PHISERVE_API_KEYS": KEY}
    process = ServerProcess("tiny_iit", FLAGS, environment).start()
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="module")
def stack(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with monitoring(tmp_path_factory.mktemp("stack"), f"127.0.0.1:{server.port}", FACTOR, SCRAPE_SECONDS) as made:
        yield made


@pytest.fixture(scope="module")
def traffic(server: ServerProcess) -> Iterator[Traffic]:
    with Traffic(server, 4, 12, X_API_Key=KEY).running() as made:
        yield made


class KeptDead:
    """Kills the engine worker, and each that the server starts in its place."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._kill)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _kill(self) -> None:
        while not self._stop.wait(0.1):
            with contextlib.suppress(StopIteration, psutil.NoSuchProcess):
                self._server.worker().kill()


def has_history(stack: Stack) -> bool:
    """Whether there is a day before, by the rules' shortened clock, that the quality alerts can compare with."""
    past = f"[{round(86_400 / FACTOR)}s] offset {round(3_600 / FACTOR)}s"
    scores = stack.value(f"sum(increase(phiserve_quality_score_count{past}))")
    return scores >= 120 and stack.value("phiserve_quality_drift_psi") > 0


def await_exactly(stack: Stack, mark: int, expected: set[str], seconds: float) -> None:
    """Wait until all these have fired since the mark, and at least one still does; no other may have."""
    stack.receiver.wait_for(lambda: expected <= stack.receiver.fired_since(mark), f"{sorted(expected)}", seconds)
    assert stack.receiver.fired_since(mark) == expected
    assert stack.firing()
    assert stack.firing() <= expected


def await_peace(stack: Stack, mark: int, expected: set[str], seconds: float) -> None:
    """Wait until all are resolved; no others than these may have fired since the mark."""
    stack.receiver.wait_for(lambda: not stack.receiver.firing(), "all alerts to resolve", seconds)
    assert stack.receiver.fired_since(mark) == expected
    assert stack.firing() == set()


def test_normal_traffic_fires_nothing(stack: Stack, traffic: Traffic) -> None:
    wait_until(lambda: has_history(stack), "scores to compare with", 120)
    assert set(traffic.statuses) == {200}
    assert stack.firing() == set()
    assert stack.receiver.notifications == []


def test_traffic_at_temperature_2_5_fires_the_quality_alerts_until_it_ends(stack: Stack, traffic: Traffic) -> None:
    expected = {"PhiserveQualityDrop", "PhiserveQualityDrift"}
    mark = len(stack.receiver.notifications)
    traffic.settings = {"temperature": 2.5}
    await_exactly(stack, mark, expected, 120)
    traffic.settings = {}
    await_peace(stack, mark, expected, 120)


def test_a_worker_that_is_killed_again_and_again_fires_its_alerts_until_it_lives(
    server: ServerProcess, stack: Stack, traffic: Traffic
) -> None:
    expected = {
        "PhiserveAvailabilityFastBurn",
        "PhiserveAvailabilitySlowBurn",
        "PhiserveNoSuccess",
        "PhiserveNotReady",
        "PhiserveWorkerDied",
    }
    mark = len(stack.receiver.notifications)
    with KeptDead(server):
        await_exactly(stack, mark, expected, 60)
    await_peace(stack, mark, expected, 200)


def test_many_wrong_keys_fire_their_alert_until_they_end(server: ServerProcess, stack: Stack, traffic: Traffic) -> None:
    expected = {"PhiserveKeyAbuse"}
    mark = len(stack.receiver.notifications)
    with Traffic(server, 4, 100, X_API_Key="not " + KEY).running():
        await_exactly(stack, mark, expected, 60)
    await_peace(stack, mark, expected, 60)


@pytest.mark.parametrize(("kind", "command"), runbook_commands())
def test_the_runbook_s_commands_work(
    server: ServerProcess, stack: Stack, traffic: Traffic, kind: str, command: str
) -> None:
    places = {"SERVER": f"http://127.0.0.1:{server.port}", "KEY": KEY, "PROMETHEUS": stack.prometheus}
    script = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(script, env=os.environ | places, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert '"error":' not in done.stdout
