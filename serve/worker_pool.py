"""The engine workers as one HTTP process sees them: send requests, receive deltas, notice a death. Needs asyncio.

Runs in the event loop's thread. No text, no JSON, no HTTP.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from serve import channel
from serve.channel import Abort, Acknowledge, Add, Hello, StepDeltas
from serve.engine.request import TokenDelta

logger = logging.getLogger(__name__)

SECONDS_PER_CHOICE = 0.0005  # a write costs about 60 us here and as much at the reader
ACKNOWLEDGED_AT_ONCE = 4  # a stream acknowledges a quarter of its window at a time


class ReaderGone(Exception):
    """Nobody waits for this generation any more."""


class Generation:
    """The choices of one HTTP request on their way through one worker: an inbox of (choice, delta)."""

    def __init__(self, pool: "WorkerPool", request_ids: Sequence[int], window: int) -> None:
        self._pool = pool
        self._index = {request_id: index for index, request_id in enumerate(request_ids)}
        self._ids = list(request_ids)
        self._unfinished = set(request_ids)
        self._window = window
        self._taken = [0] * len(request_ids)
        self._queue: list[tuple[int, TokenDelta]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._gone = False
        self._began = False

    @property
    def number(self) -> int:
        """Of its first request, within this HTTP process."""
        return self._ids[0] & ((1 << channel.ID_BITS) - 1)

    @property
    def unfinished(self) -> int:
        return len(self._unfinished)

    def push(self, delta: TokenDelta) -> None:
        self._queue.append((self._index[delta.request_id], delta))
        if delta.finish_reason is not None:
            self._forget(delta.request_id)

    @property
    def in_no_hurry(self) -> bool:
        """Whether all that waits are tokens in the middle of answers."""
        return self._began and all(delta.finish_reason is None for _, delta in self._queue)

    def hang_up(self) -> None:
        """The reader is gone: abort, and end a waiting take(). May be called again."""
        self._gone = True
        self.close()
        self.wake()

    def wake(self) -> None:
        """End a waiting take()."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[tuple[int, TokenDelta]]:
        """Everything that has come since the last call, at least one delta. Waits for it.

        Raises ReaderGone after hang_up().
        """
        while not self._queue or self._gone:
            if self._gone:
                raise ReaderGone
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        taken, self._queue = self._queue, []
        self._began = True
        return taken

    def acknowledge(self, index: int, num_tokens: int) -> None:
        """The reader has these; the worker hears of it in portions."""
        self._taken[index] += num_tokens
        if self._window and self._taken[index] * ACKNOWLEDGED_AT_ONCE >= self._window:
            if self._ids[index] in self._unfinished:
                self._pool.tell(self, [Acknowledge(self._ids[index], self._taken[index])])
            self._taken[index] = 0

    def stop(self, index: int) -> None:
        """This choice needs no more tokens."""
        request_id = self._ids[index]
        if request_id in self._unfinished:
            self._pool.tell(self, [Abort([request_id])])
            self._forget(request_id)

    def close(self) -> None:
        """Abort whatever is unfinished. May be called again."""
        if self._unfinished:
            self._pool.tell(self, [Abort(sorted(self._unfinished))])
            for request_id in list(self._unfinished):
                self._forget(request_id)

    def _forget(self, request_id: int) -> None:
        if request_id in self._unfinished:
            self._unfinished.remove(request_id)
            self._pool.forget(request_id)


@dataclass(slots=True)
class _Worker:
    hello: Hello
    socket: "zmq.Socket[bytes]"
    pidfd: int | None = None
    alive: bool = True
    pending: set[int] = field(default_factory=set)


class WorkerPool:
    """All workers of the server, seen from HTTP process number `api`.

    interval: seconds that a token in the middle of an answer may wait for the next ones when many choices run.
    on_in_flight: told by how much the number of choices in flight changed. on_death: told the pid of a dead worker.
    on_hello: told of each worker that is there.
    """

    def __init__(
        self,
        folder: Path,
        api: int,
        *,
        interval: float = 0.0,
        on_in_flight: Callable[[int], None] = lambda change: None,
        on_death: Callable[[int], None] = lambda pid: None,
        on_hello: Callable[[Hello], None] = lambda hello: None,
    ) -> None:
        self._folder = folder
        self._api = api
        self._interval = interval
        self._unhurried: set[Generation] = set()
        self._on_in_flight = on_in_flight
        self._on_death = on_death
        self._on_hello = on_hello
        self._workers: dict[int, _Worker] = {}
        self._generations: dict[int, tuple[Generation, int]] = {}
        self._next = 0
        self._changed: asyncio.Event = asyncio.Event()

    def start(self) -> None:
        """Open the inbox; call inside the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox = channel.unlimited(self._context, zmq.PULL)
        self._inbox.bind(channel.api_address(self._folder, self._api))
        self._loop.add_reader(self._inbox.fileno(), self._drain)
        # what came before the reader was there signals no change
        self._loop.call_soon(self._drain)

    def close(self) -> None:
        self._loop.remove_reader(self._inbox.fileno())
        for worker in self._workers.values():
            self._drop(worker)
        self._inbox.close()
        self._context.term()

    # -- who is there -----------------------------------------------------------------------------------------------

    @property
    def hellos(self) -> list[Hello]:
        """What the living workers said of themselves."""
        return [worker.hello for worker in self._workers.values() if worker.alive]

    async def wait_ready(self) -> Hello:
        """The first living worker, waiting until there is one."""
        while not self.hellos:
            self._changed.clear()
            await self._changed.wait()
        return self.hellos[0]

    # -- requests ---------------------------------------------------------------------------------------------------

    def open(self, jobs: Sequence[Add], window: int) -> Generation:
        """Send the jobs of one HTTP request (their request_id and window are set here) to the least busy worker.

        Raises LookupError if no worker is alive.
        """
        alive = [worker for worker in self._workers.values() if worker.alive]
        if not alive:
            raise LookupError("no engine worker is alive")
        worker = min(alive, key=lambda w: len(w.pending))
        ids = [self._api << channel.ID_BITS | (self._next + i) for i in range(len(jobs))]
        self._next += len(jobs)
        generation = Generation(self, ids, window)
        for request_id in ids:
            self._generations[request_id] = (generation, worker.hello.worker)
        worker.pending.update(ids)
        self._on_in_flight(len(ids))
        adds = [Add(i, job.prompt_ids, job.params, job.seconds, window) for i, job in zip(ids, jobs, strict=True)]
        worker.socket.send(channel.pack_commands(adds))
        return generation

    def tell(self, generation: Generation, commands: Sequence[channel.Command]) -> None:
        """Send commands to the worker that owns the request of the first of them."""
        first = commands[0]
        request_id = first.request_ids[0] if isinstance(first, Abort) else first.request_id
        _, number = self._generations[request_id]
        worker = self._workers[number]
        if worker.alive:
            worker.socket.send(channel.pack_commands(commands))

    def forget(self, request_id: int) -> None:
        """This request is over: its place is free."""
        _, number = self._generations.pop(request_id)
        worker = self._workers[number]
        worker.pending.discard(request_id)
        self._on_in_flight(-1)

    def fail_all(self, error: str) -> None:
        """End every pending request with this error."""
        for request_id, (generation, _) in list(self._generations.items()):
            self.tell(generation, [Abort([request_id])])
            generation.push(TokenDelta(request_id, [], [], [], finish_reason="error", error=error))
            generation.wake()

    # -- what comes in ----------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        while True:
            try:
                frame = self._inbox.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = channel.unpack_message(frame)
            if isinstance(message, Hello):
                self._welcome(message)
            else:
                self._deliver(message)

    def _deliver(self, message: StepDeltas) -> None:
        for delta in message.deltas:
            found = self._generations.get(delta.request_id)
            if found is not None:  # else it was aborted, or failed with its worker
                found[0].push(delta)
                self._wake(found[0])

    def _wake(self, generation: Generation) -> None:
        """At once for a first token, an end or one choice; else at the next flush: one write for several tokens."""
        seconds = min(self._interval, SECONDS_PER_CHOICE * (len(self._generations) - 1))
        if seconds <= 0 or not generation.in_no_hurry:
            generation.wake()
            return
        if not self._unhurried:
            self._loop.call_later(seconds, self._flush)
        self._unhurried.add(generation)

    def _flush(self) -> None:
        unhurried, self._unhurried = self._unhurried, set()
        for generation in unhurried:
            generation.wake()

    def _welcome(self, hello: Hello) -> None:
        before = self._workers.get(hello.worker)
        if before is not None:
            if hello.epoch <= before.hello.epoch:
                return
            self._bury(before)
            self._drop(before)
        socket = channel.unlimited(self._context, zmq.PUSH)
        socket.connect(hello.address)
        worker = _Worker(hello, socket)
        self._workers[hello.worker] = worker
        self._watch(worker)
        self._changed.set()
        self._on_hello(hello)

    def _watch(self, worker: _Worker) -> None:
        """Hear of the worker's death from the kernel. Where that cannot be, its next life tells (_welcome)."""
        if not hasattr(os, "pidfd_open"):
            return
        try:
            worker.pidfd = os.pidfd_open(worker.hello.pid)
        except ProcessLookupError:
            self._bury(worker)
            return
        self._loop.add_reader(worker.pidfd, self._died, worker)

    def _died(self, worker: _Worker) -> None:
        self._drain()  # what it said last still counts
        self._bury(worker)

    def _bury(self, worker: _Worker) -> None:
        """Fail everything that this worker still owed."""
        if not worker.alive:
            return
        worker.alive = False
        self._close_pidfd(worker)
        if worker.pending:
            logger.error("engine worker %d stopped with %d requests", worker.hello.worker, len(worker.pending))
        for request_id in list(worker.pending):
            generation, _ = self._generations[request_id]
            generation.push(TokenDelta(request_id, [], [], [], finish_reason="error", error=channel.WORKER_LOST))
            generation.wake()
        self._on_death(worker.hello.pid)

    def _drop(self, worker: _Worker) -> None:
        self._close_pidfd(worker)
        with contextlib.suppress(zmq.ZMQError):
            worker.socket.close()

    def _close_pidfd(self, worker: _Worker) -> None:
        if worker.pidfd is not None:
            self._loop.remove_reader(worker.pidfd)
            os.close(worker.pidfd)
            worker.pidfd = None
