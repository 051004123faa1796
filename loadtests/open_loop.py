"""One trial at one arrival rate: requests leave at times planned beforehand, whatever the server does with the others.

A request's time counts from its planned arrival, not from when the client got round to sending it, so a server (or a
client) that falls behind cannot hide it by delaying what comes next ("coordinated omission"). HTTP by client.ask.
"""

import asyncio
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp

from loadtests.client import DIALECTS, Prompt, Sampling, ServerError, ask
from loadtests.measurement import percentile
from loadtests.workload import Ask

PERCENT = 99.0
TOP_P = 0.9
ANSWER_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Objective:
    """What 99 of 100 requests, and 99 of 100 gaps between texts, must keep. Milliseconds."""

    first_token_ms: float
    gap_ms: float


@dataclass(frozen=True)
class Length:
    """Of a trial: so many seconds of warm-up that do not count, then `seconds`, or more until so many requests."""

    warm_up_seconds: float
    seconds: float
    least_requests: int

    def counted_seconds(self, rate: float) -> float:
        return max(self.seconds, self.least_requests / rate)


@dataclass(frozen=True)
class Trial:
    """What a rate gave. Percentiles are of counted requests; one that was refused or failed took forever.

    client_late_p99_ms: how late requests were sent; near the objective, the client is what is measured.
    """

    rate: float
    num_requests: int
    num_refused: int
    num_failed: int
    cut_short: bool
    first_token_p99_ms: float
    gap_p99_ms: float
    tokens_per_second: float
    client_late_p99_ms: float
    kept: bool

    def to_json(self) -> dict[str, Any]:
        """Infinite times as null."""
        return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in asdict(self).items()}


def poisson_arrivals(rng: random.Random, rate: float, seconds: float) -> list[float]:
    """Times from 0 on, with independent exponential gaps of mean 1 / rate."""
    times: list[float] = []
    at = rng.expovariate(rate)
    while at < seconds:
        times.append(at)
        at += rng.expovariate(rate)
    return times


@dataclass
class _Tally:
    """A trial while it runs. Times in seconds."""

    allowed_misses: int
    objective: Objective
    firsts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_refused: int = 0
    num_failed: int = 0
    num_misses: int = 0

    def add(self, first: float) -> None:
        self.firsts.append(first)
        self.num_misses += 1000 * first > self.objective.first_token_ms

    @property
    def lost(self) -> bool:
        """More have missed than the percentile allows: the rest cannot change the verdict."""
        return self.num_misses > self.allowed_misses


async def run_trial(
    url: str, rate: float, objective: Objective, length: Length, asks: Iterator[Ask], seed: str
) -> Trial:
    """Send at `rate` a second and measure. A trial that is lost is cut short; its requests are hung up."""
    times = poisson_arrivals(random.Random(seed), rate, length.warm_up_seconds + length.counted_seconds(rate))
    counted = [at >= length.warm_up_seconds for at in times]
    tally = _Tally(math.floor(sum(counted) * (1 - PERCENT / 100)), objective)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=ANSWER_PATIENCE_SECONDS)
    tasks: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        begun = time.perf_counter()
        try:
            for at, counts in zip(times, counted, strict=True):
                await asyncio.sleep(begun + at - time.perf_counter())  # at once if that is past
                if tally.lost:
                    break
                task = asyncio.create_task(_request(session, url, begun + at, next(asks), tally if counts else None))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            pending = set(tasks)
            while pending and not tally.lost:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return _trial(rate, tally, sum(counted), time.perf_counter() - begun - length.warm_up_seconds)


async def _request(session: aiohttp.ClientSession, url: str, planned: float, asked: Ask, tally: _Tally | None) -> None:
    sent = time.perf_counter()
    prompt, sampling = Prompt(asked.prompt, []), Sampling(TOP_P, asked.num_tokens)
    answer = None
    refused = False
    try:
        answer = await ask(session, url, DIALECTS["phiserve"], prompt, sampling)
    except (ServerError, aiohttp.ClientError, TimeoutError) as error:
        refused = " answered 429" in str(error)
    if tally is None:
        return
    tally.late.append(sent - planned)
    if answer is None:
        tally.num_refused += refused
        tally.num_failed += not refused
        tally.add(math.inf)
        return
    tally.num_tokens += asked.num_tokens
    tally.gaps += [b - a for a, b in zip(answer.arrivals, answer.arrivals[1:], strict=False)]
    tally.add(answer.arrivals[0] - planned)


def _trial(rate: float, tally: _Tally, num_planned: int, seconds: float) -> Trial:
    first = 1000 * percentile(tally.firsts, PERCENT) if tally.firsts else math.inf
    gap = 1000 * percentile(tally.gaps, PERCENT) if tally.gaps else math.inf
    return Trial(
        rate=rate,
        num_requests=len(tally.firsts),
        num_refused=tally.num_refused,
        num_failed=tally.num_failed,
        cut_short=tally.lost,
        first_token_p99_ms=first,
        gap_p99_ms=gap,
        tokens_per_second=tally.num_tokens / seconds if seconds > 0 else 0.0,
        client_late_p99_ms=1000 * percentile(tally.late, PERCENT),
        kept=not tally.lost and len(tally.firsts) == num_planned and gap <= tally.objective.gap_ms,
    )


def best_kept(trials: Sequence[Trial]) -> Trial | None:
    """The fastest trial that kept the objective below every one that missed it."""
    missed = min((trial.rate for trial in trials if not trial.kept), default=math.inf)
    return max((t for t in trials if t.kept and t.rate < missed), key=lambda trial: trial.rate, default=None)
