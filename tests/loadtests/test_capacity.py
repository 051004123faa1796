"""Open-loop trials and the search for the highest rate."""

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.capacity import LEAST_RATE, best_kept, main, search, summary
from loadtests.open_loop import Length, Objective, Trial, poisson_arrivals, run_trial
from loadtests.workload import Ask, asks, rng_of
from tests.loadtests.fake_phiserve import FakePhiserve, pretending

EASY = Objective(first_token_ms=60_000, gap_ms=60_000)


def trial(rate: float, kept: bool) -> Trial:
    return Trial(rate, 100, 0, 0, False, math.inf, 1.0, 1.0, 0.0, kept)


def run(server: FakePhiserve, rate: float, objective: Objective, length: Length) -> Trial:
    return asyncio.run(run_trial(server.url, rate, objective, length, asks(rng_of(0, "test")), "seed"))


def test_arrivals_are_a_poisson_process() -> None:
    times = poisson_arrivals(random.Random(0), rate=20, seconds=500)
    assert times == sorted(times) == poisson_arrivals(random.Random(0), rate=20, seconds=500)
    by_second = Counter(int(at) for at in times)
    counts = [by_second[second] for second in range(500)]
    mean = sum(counts) / 500
    variance = sum((count - mean) ** 2 for count in counts) / 499
    assert abs(mean - 20) < 4 * (20 / 500) ** 0.5
    # The index of dispersion of a Poisson process is 1, of evenly spaced requests 0; 4 standard errors.
    assert abs(variance / mean - 1) < 4 * (2 / 499) ** 0.5


def test_requests_leave_although_none_before_them_is_answered() -> None:
    num_planned = len(poisson_arrivals(random.Random("seed"), 100, 0.3))
    with pretending(FakePhiserve(waits_for=num_planned)) as server:  # a closed loop would wait for ever
        found = run(server, 100, EASY, Length(0, 0.3, 1))
    assert server.num_generate == found.num_requests == num_planned
    assert found.kept


def test_a_time_counts_from_the_planned_arrival_even_if_the_client_is_late() -> None:
    def busy_client() -> Iterator[Ask]:
        time.sleep(0.3)  # the client itself hangs before its first request, and with it all that are planned meanwhile
        yield from asks(rng_of(0, "test"))

    with pretending(FakePhiserve()) as server:
        found = asyncio.run(run_trial(server.url, 100, EASY, Length(0, 0.3, 1), busy_client(), "seed"))
    assert found.first_token_p99_ms > found.client_late_p99_ms >= 300


def test_the_warm_up_does_not_count() -> None:
    times = poisson_arrivals(random.Random("seed"), 100, 0.4)
    with pretending(FakePhiserve()) as server:
        found = run(server, 100, EASY, Length(0.2, 0.2, 1))
    assert server.num_generate == len(times)
    assert found.num_requests == sum(at >= 0.2 for at in times)


def test_a_refusal_takes_forever_and_a_lost_trial_is_cut_short() -> None:
    with pretending(FakePhiserve(full=True)) as server:
        found = run(server, 200, EASY, Length(0, 2.0, 1))
    assert not found.kept
    assert found.cut_short
    assert found.num_refused == found.num_requests < 50
    assert found.to_json()["first_token_p99_ms"] is None


@given(
    capacity=st.floats(0.06, 4000),
    start=st.floats(0.1, 4000),
    tolerance=st.sampled_from([0.02, 0.05, 0.2]),
)
def test_the_search_ends_within_its_tolerance_of_the_truth(capacity: float, start: float, tolerance: float) -> None:
    async def measure(rate: float) -> Trial:
        return trial(rate, rate <= capacity)

    found = asyncio.run(search(measure, start, 4096, tolerance))
    best = best_kept(found)
    assert best is not None
    assert capacity / (1 + tolerance) <= best.rate <= capacity
    assert len(found) < 30


def test_a_search_stops_at_the_most_and_at_the_least_rate() -> None:
    async def always(rate: float) -> Trial:
        return trial(rate, True)

    async def never(rate: float) -> Trial:
        return trial(rate, False)

    assert asyncio.run(search(always, 8, 100, 0.05))[-1].rate == 100
    lowest = asyncio.run(search(never, 8, 100, 0.05))
    assert best_kept(lowest) is None
    assert min(each.rate for each in lowest) == LEAST_RATE


def test_a_rate_above_one_that_was_missed_is_no_capacity() -> None:
    best = best_kept([trial(4, True), trial(8, False), trial(16, True)])
    assert best is not None
    assert best.rate == 4


def test_six_rounds_hold_the_median_with_97_percent() -> None:
    found = summary([3.0, 1.0, 2.0, 2.0, 4.0, 2.0])
    assert (found["requests_per_second"], found["least"], found["most"]) == (2.0, 1.0, 4.0)
    assert found["confidence"] == pytest.approx(0.96875)


def test_the_command_writes_every_round_and_prints_the_capacity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--rounds", "2", "--seconds", "0.1", "--least-requests", "5", "--warm-up-seconds", "0"]
    loose = ["--first-token-ms", "60000", "--gap-ms", "60000", "--start-rate", "50", "--most-rate", "60"]
    with pretending(FakePhiserve()) as server:
        assert main(["--url", server.url, "--output", str(tmp_path / "c.json"), *flags, *loose]) == 0
    result = json.loads((tmp_path / "c.json").read_text())
    assert [each["kept"]["rate"] for each in result["rounds"]] == [60, 60]
    assert "at least 60.0 requests a second (median of 2 rounds" in " ".join(capsys.readouterr().out.split())


def test_an_objective_that_no_rate_keeps_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rounds", "1", "--seconds", "0.1", "--least-requests", "1", "--start-rate", "0.05"]
    with pretending(FakePhiserve(full=True)) as server:
        assert main(["--url", server.url, "--output", str(tmp_path / "c.json"), "--seed", "1", *flags]) == 2
    assert "give a looser objective" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()
