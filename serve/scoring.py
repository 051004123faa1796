"""How an HTTP process asks the scoring process: a bounded backlog, a budget, an end to waiting. No routes, no engine.

What nobody asked for has a budget of processor time, and what does not fit is shed before any work is done for it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.errors import ApiError, StartupError
from serve.quality.reference import FILE_NAME, find_reference
from serve.quality.score import QualityReport, QualityScorer
from serve.quality.surprise import TokenSurprise
from serve.scoring_process import SOCKET_NAME, pack_frame, read_frame

if TYPE_CHECKING:
    from serve.completion import Choice
    from serve.metrics import QualityMetrics

MOST_WAITING = 64
"""Scores. With so many waiting, those that only metrics want are shed and POST /quality/score answers 429."""
LONGEST_SECONDS = 30.0
"""Wait for a score, with those before it."""

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
    """One HTTP process' way to the scoring process."""

    def __init__(
        self,
        folder: Path,
        metrics: "QualityMetrics",
        *,
        share: float,
        budget: Budget,
        longest_seconds: float = LONGEST_SECONDS,
    ) -> None:
        """share: of the generations that only metrics want, from 0 to 1, and budget: what they may cost."""
        self._path = folder / SOCKET_NAME
        self._budget = budget
        self._metrics = metrics
        self._share = share
        self._longest_seconds = longest_seconds
        self._due = 0.0
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._connecting = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._writer is not None:
            self._writer.close()

    async def report(self, choice: "Choice") -> QualityReport:
        """The score of a finished choice, counted in metrics. Raises ApiError if there is none: 500, 503."""
        return (await self._ask(True, "".join(choice.text), _surprise_of(choice)))[0]

    async def running(self, choice: "Choice") -> QualityReport:
        """The score of what a choice has so far; in no metric. Raises ApiError if there is none: 500, 503."""
        return (await self._ask(False, "".join(choice.text), _surprise_of(choice)))[0]

    def observe(self, choice: "Choice") -> None:
        """Score a finished choice for metrics only; shed and counted if too many wait or the budget is spent."""
        self._due += self._share
        if self._due < 1:
            return
        self._due -= 1
        taken = None if len(self._waiting) >= MOST_WAITING else self._budget.take()
        if taken is None:
            self._metrics.result("shed")
            return
        self._keep(self._observe(self._ask(True, "".join(choice.text), _surprise_of(choice)), taken))

    async def texts(
        self,
        texts: list[str],
        surprises: Sequence[TokenSurprise] | None = None,
        num_tokens: Sequence[int] | None = None,
    ) -> list[QualityReport]:
        """Scores of given texts, one at a time so that generations come in between; in no metric.

        surprises, num_tokens: of each text, where known. Raises ApiError 429 if too many wait.
        """
        if len(self._waiting) >= MOST_WAITING:
            waiting = len(self._waiting)
            raise ApiError(429, f"{waiting} scores are waiting", remedy="try again later", retry_after=1)
        reports = []
        for i, text in enumerate(texts):
            given = surprises[i] if surprises else None
            seen = [list(given.token_ids), list(given.logprobs), list(given.entropies)] if given else None
            reports.append((await self._ask(False, text, seen, num_tokens[i] if num_tokens else None))[0])
        return reports

    async def _observe(self, asked: Coroutine[Any, Any, tuple[QualityReport, float]], taken: float) -> None:
        spent = taken
        with contextlib.suppress(ApiError):  # counted as failed where it was raised
            _, spent = await asked
        self._budget.settle(taken, spent)

    def _ask(
        self, counted: bool, text: str, surprise: list[list[Any]] | None, num_tokens: int | None = None
    ) -> Coroutine[Any, Any, tuple[QualityReport, float]]:
        """The report and the processor seconds it took. Raises ApiError: 500 if it failed, 503 if nobody answered.

        It waits, and counts as waiting, from this call on.
        """
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        return self._answer(number, counted, pack_frame([number, counted, text, surprise, num_tokens]))

    async def _answer(self, number: int, counted: bool, question: bytes) -> tuple[QualityReport, float]:
        try:
            async with asyncio.timeout(self._longest_seconds):
                writer = await self._connect()
                writer.write(question)
                await writer.drain()
                seconds, report, error = await self._waiting[number]
        except (OSError, TimeoutError) as failure:
            if counted:
                self._metrics.result("failed")
            said = "did not answer in time" if isinstance(failure, TimeoutError) else "has ended"
            remedy = "try again in a few seconds, or without quality"
            raise ApiError(503, f"the scoring process {said}", remedy=remedy, retry_after=2) from failure
        finally:
            del self._waiting[number]
        if report is None:
            raise ApiError(500, f"the score failed: {error}")
        return QualityReport(**report | {"notes": tuple(report["notes"])}), seconds

    async def _connect(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None:
                reader, self._writer = await asyncio.open_unix_connection(str(self._path))
                self._keep(self._listen(reader))
            return self._writer

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Hand each reply to whom it is for, until the process ends; then nobody waits any longer."""
        with contextlib.suppress(EOFError):
            while True:
                number, *reply = await read_frame(reader)
                waiting = self._waiting.get(number)
                if waiting is not None and not waiting.done():  # else it was given up
                    waiting.set_result(reply)
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError())

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _surprise_of(choice: "Choice") -> list[list[Any]]:
    return [choice.token_ids, choice.logprobs, choice.entropies]
