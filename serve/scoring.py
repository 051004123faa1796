"""Scores of what is generated, beside the event loop: one thread, a bounded backlog, metrics. No routes, no engine.

A score holds the interpreter for about a millisecond, so the thread bounds
what other streams wait, it does not remove it. What nobody asked for has a
budget of processor time, and what does not fit is shed before any work is done
for it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from serve.errors import ApiError, StartupError
from serve.quality.drift import DriftWindow
from serve.quality.reference import FILE_NAME, find_reference
from serve.quality.score import QualityReport, QualityScorer
from serve.quality.surprise import TokenSurprise

if TYPE_CHECKING:
    from serve.completion import Choice
    from serve.metrics import QualityMetrics

MOST_WAITING = 64
"""Scores. With so many waiting, those that only metrics want are shed and POST /quality/score answers 429."""


BURST_SECONDS = 10.0
"""Seconds of budget that an idle process saves up."""
FIRST_COST = 0.001
"""Processor seconds of a score, until one has been measured."""
_NEWEST = 0.1  # weight of the newest cost in their running mean


def load_scorer(model_path: Path) -> tuple[QualityScorer | None, str]:
    """The checkpoint's scorer, or None and why. Raises StartupError for a reference that is there but broken."""
    try:
        return QualityScorer(find_reference(model_path)), ""
    except ValueError as error:
        if (model_path / FILE_NAME).is_file():
            raise StartupError(" ".join(str(error).split())) from error
        return None, " ".join(str(error).split())


def missing_reference(why: str) -> ApiError:
    """What a request for a score is answered when the checkpoint has no reference."""
    remedy = "make one with `python -m serve.quality fit --corpus ... --checkpoint ...`, and start the server again"
    return ApiError(422, f"quality cannot be scored: {why}", field="quality", remedy=remedy)


class Budget:
    """A bucket of processor seconds that fills at `share` of a core. Not safe to share between threads.

    Whether a score is paid for depends on those before it and on the clock, never on what is to be scored: the mean
    cost is taken first and set right when the true one is known.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._credit = share * BURST_SECONDS
        self._filled_at = clock()
        self._cost = FIRST_COST

    def take(self) -> float | None:
        """Pay for one score: what was taken, in seconds; None if there is not enough."""
        now = self._clock()
        self._credit = min(self._share * BURST_SECONDS, self._credit + self._share * (now - self._filled_at))
        self._filled_at = now
        if self._credit < self._cost:
            return None
        self._credit -= self._cost
        return self._cost

    def settle(self, taken: float, spent: float) -> None:
        """Give the difference to what the score really took back, or take it too."""
        self._credit += taken - spent
        self._cost += _NEWEST * (spent - self._cost)


class Scoring:
    """One HTTP process' scorer."""

    def __init__(
        self, scorer: QualityScorer, metrics: "QualityMetrics", *, share: float, window: int, budget: Budget
    ) -> None:
        """share: of the generations that only metrics want, from 0 to 1, and budget: what they may cost.

        window: scores in the drift figure.
        """
        self._scorer = scorer
        self._budget = budget
        self._metrics = metrics
        self._share = share
        self._due = 0.0
        self._waiting = 0
        heads = scorer.reference.heads.items()
        self._drift = {n: DriftWindow(h.served_scores, window) for n, h in heads if h.served_scores is not None}
        self._thread = ThreadPoolExecutor(1, "phiserve-score")
        # A score's products are too small to share, and BLAS' threads would wait for each other on the engine's cores.
        threadpool_limits(1, user_api="blas")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def report(self, choice: "Choice") -> QualityReport:
        """The score of a finished choice, counted in metrics. Raises ApiError 500 if it cannot be computed."""
        return await self._run(lambda: self._generated(choice))

    async def running(self, choice: "Choice") -> QualityReport:
        """The score of what a choice has so far; in no metric. Raises ApiError 500 if it cannot be computed."""
        return await self._run(lambda: self._score(choice))

    def observe(self, choice: "Choice") -> None:
        """Score a finished choice for metrics only; shed and counted if too many wait or the budget is spent."""
        self._due += self._share
        if self._due < 1:
            return
        self._due -= 1
        taken = None if self._waiting >= MOST_WAITING else self._budget.take()
        if taken is None:
            self._metrics.result("shed")
            return
        self._count(1)
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, lambda: self._timed(choice))
        future.add_done_callback(lambda done: self._observed(done, taken))

    async def texts(
        self,
        texts: list[str],
        surprises: Sequence[TokenSurprise] | None = None,
        num_tokens: Sequence[int] | None = None,
    ) -> list[QualityReport]:
        """Scores of given texts, one at a time so that generations come in between; in no metric.

        surprises, num_tokens: of each text, where known. Raises ApiError 429 if too many wait.
        """
        if self._waiting >= MOST_WAITING:
            raise ApiError(429, f"{self._waiting} scores are waiting", remedy="try again later", retry_after=1)
        score = self._scorer.score
        given: dict[str, Sequence[Any]] = {"surprise": surprises or (), "num_tokens": num_tokens or ()}
        rows = [{name: values[i] for name, values in given.items() if values} for i in range(len(texts))]
        return [await self._run(partial(score, text, **row)) for text, row in zip(texts, rows, strict=True)]

    async def _run(self, work: Callable[[], QualityReport]) -> QualityReport:
        self._count(1)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except ValueError as error:
            raise ApiError(500, f"the score failed: {error}") from error
        finally:
            self._count(-1)

    def _observed(self, future: "asyncio.Future[float]", taken: float) -> None:
        self._count(-1)
        if not future.cancelled():
            self._budget.settle(taken, future.result())

    def _count(self, change: int) -> None:
        self._waiting += change

    def _timed(self, choice: "Choice") -> float:
        """Processor seconds that scoring for metrics took. In the scoring thread."""
        started = time.thread_time()
        with contextlib.suppress(ValueError):  # counted as failed where it was raised
            self._generated(choice)
        return time.thread_time() - started

    def _score(self, choice: "Choice") -> QualityReport:
        surprise = TokenSurprise(choice.token_ids, choice.logprobs, choice.entropies)
        return self._scorer.score("".join(choice.text), surprise)

    def _generated(self, choice: "Choice") -> QualityReport:
        """In the scoring thread."""
        try:
            report = self._score(choice)
        except Exception:
            self._metrics.result("failed")
            raise
        self._metrics.scored(report)
        if report.score is not None and report.head in self._drift:
            index = self._drift[report.head].add(report.score)
            if index is not None:
                self._metrics.drift(index)
        return report
