"""What every route of one HTTP process shares: settings, model, workers, metrics, keys. Knows no LitServe.

Made in the main process, forked into each HTTP process, and started there inside the running event loop.
"""

import asyncio
import hmac
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from serve import channel
from serve.errors import ApiError
from serve.metrics import ApiMetrics, QualityMetrics
from serve.phi_client import PhiClient
from serve.processes import SharedState, watch_parent
from serve.schemas import Limits
from serve.scoring import Budget, Scoring, missing_reference
from serve.served_model import ServedModel
from serve.settings import ServeSettings
from serve.worker_pool import WorkerPool

if TYPE_CHECKING:
    from serve.completion import Choice

T = TypeVar("T")
# Tokenising a longer prompt would keep the event loop from the other streams.
LONG_PROMPT_CHARACTERS = 16_384
OPEN_PATHS = ("/", "/ui", "/livez", "/readyz")


class Service:
    """One HTTP process' share of the server."""

    def __init__(
        self,
        settings: ServeSettings,
        model: ServedModel,
        folder: Path,
        shared: SharedState,
        why_no_scores: str = "no reference was given",
    ) -> None:
        """why_no_scores: the sentence if there is no scoring process, else empty."""
        self.settings = settings
        self.model = model
        self.folder = folder
        self.shared = shared
        self._why_no_scores = why_no_scores
        self._scoring: Scoring | None = None
        self.api = -1
        self.pool: WorkerPool
        self.metrics: ApiMetrics
        self.phi: PhiClient
        # One thread, for the allocator keeps what tokenising took for each thread that did it.
        self._tokenising = ThreadPoolExecutor(1, "phiserve-tokenise")
        self._keys = [key.encode() for key in settings.secret_keys()]
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, api: int) -> None:
        """Open the channel; called inside the event loop of HTTP process number `api`."""
        self.api = api
        watch_parent(self.folder)
        self.metrics = ApiMetrics(self.model.full_name, self.model.created, api, timing=self.settings.step_timing)
        self.phi = PhiClient(self.folder)
        if not self._why_no_scores:
            budget = Budget(self.settings.quality_budget)
            counted = QualityMetrics(self.model.full_name)
            self._scoring = Scoring(self.folder, counted, share=self.settings.quality_sample, budget=budget)
        self.pool = WorkerPool(
            self.folder,
            api,
            interval=self.settings.stream_interval_ms / 1000,
            on_in_flight=self._count_in_flight,
            on_death=self._count_death,
            on_hello=lambda hello: self.metrics.workers_ready(len(self.pool.hellos)),
        )
        self.pool.start()
        self._take_signals()
        if api == 0:
            task = asyncio.get_running_loop().create_task(self._announce())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._scoring is not None:
            self._scoring.close()
        self._tokenising.shutdown(wait=False, cancel_futures=True)
        self.pool.close()

    @property
    def ready(self) -> bool:
        return bool(self.pool.hellos) and not self.shared.draining

    def limits(self) -> Limits:
        """Raises ApiError 503 when no worker is there or the server is about to go."""
        if self.shared.draining:
            raise ApiError(503, channel.SHUTTING_DOWN, remedy="send the request to another server", retry_after=5)
        hellos = self.pool.hellos
        if not hellos:
            raise ApiError(503, "no engine is ready", remedy="try again in a few seconds", retry_after=2)
        return Limits.of(self.settings, hellos[0])

    async def tokenise(self, work: Callable[[], T], num_characters: int) -> T:
        """`work`, beside the event loop where so many characters would keep it from other streams."""
        if num_characters <= LONG_PROMPT_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._tokenising, work)

    @property
    def scores_quality(self) -> bool:
        """Whether the checkpoint has a quality reference."""
        return self._scoring is not None

    def scoring(self) -> Scoring:
        """Raises ApiError 422 if the checkpoint has no quality reference."""
        if self._scoring is None:
            raise missing_reference(self._why_no_scores)
        return self._scoring

    def observe_quality(self, choices: "Iterable[Choice]") -> None:
        """Score finished choices for metrics, where the checkpoint has a reference."""
        if self._scoring is not None:
            for choice in choices:
                self._scoring.observe(choice)

    def check_room(self, num_choices: int) -> None:
        """Raises ApiError 429 if so many more choices would be too many."""
        if self.shared.in_flight + num_choices > self.settings.max_in_flight:
            message = f"{self.shared.in_flight} choices are in flight, of at most {self.settings.max_in_flight}"
            raise ApiError(429, message, remedy="try again after the seconds in Retry-After", retry_after=1)

    def check_key(self, path: str, headers: Mapping[str, str]) -> None:
        """Raises ApiError 401, counted, if a key is asked for and none of ours came, as Bearer or X-API-Key."""
        if not self._keys or path in OPEN_PATHS or (path == "/metrics" and not self.settings.metrics_need_key):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        # latin-1 gives the bytes that came; all keys are compared, so that the time says nothing about which is near
        matches = [hmac.compare_digest(given.encode("latin-1"), key) for key in self._keys]
        if not any(matches):
            self.metrics.key_refused()
            remedy = "send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            raise ApiError(401, "a valid API key is needed", remedy=remedy)

    def _count_in_flight(self, change: int) -> None:
        self.metrics.in_flight(self.shared.add_in_flight(self.api, change))

    def _count_death(self, pid: int) -> None:
        self.metrics.worker_died(pid)
        self.metrics.workers_ready(len(self.pool.hellos))

    def _take_signals(self) -> None:
        """Ctrl-C reaches every process of the terminal's group; the main process alone decides when we stop."""
        loop = asyncio.get_running_loop()
        stop = signal.getsignal(signal.SIGTERM)

        def on_terminate(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.pool.fail_all, channel.SHUTTING_DOWN)
            if callable(stop):
                stop(number, frame)

        signal.signal(signal.SIGTERM, on_terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def _announce(self) -> None:
        """Tell the user that the server answers, once it does."""
        hello = await self.pool.wait_ready()
        host = "[::1]" if self.settings.host == "::" else "127.0.0.1"
        address = f"http://{host}:{self.settings.port}"
        while True:
            try:
                _, writer = await asyncio.open_connection(host.strip("[]"), self.settings.port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            break
        key = " -H 'Authorization: Bearer YOUR_KEY'" if self._keys else ""
        print(
            f"model    {self.model.full_name}  ({self.model.path})\n"
            f"engine   {hello.runner}, {hello.dtype}: {hello.why}\n"
            f"page     {address}/\n"
            f"try      curl -N {address}/generate -H 'Content-Type: application/json'{key}"
            """ -d '{"prompt": "Once upon a time", "max_new_tokens": 64, "stream": true}'""",
            flush=True,
            file=sys.stdout,
        )
