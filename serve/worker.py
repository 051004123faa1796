"""The engine's life in a worker process: take commands, step, send deltas. No LitServe, no HTTP, no text.

One thread does all of it. The intake thread is libzmq's own: it reads the socket, wakes the poll at once when
something arrives while the engine is idle, and costs the engine one non-blocking receive a step while it is busy.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import zmq

from serve import channel
from serve.channel import Abort, Acknowledge, Add, Command, CreditLedger, Hello
from serve.engine.request import EngineRequest, SamplingParams, TokenDelta
from serve.engine.stats import StepStats

logger = logging.getLogger(__name__)


class EngineLike(Protocol):
    """What the loop needs of serve.engine.engine.Engine."""

    last_step: StepStats

    @property
    def has_work(self) -> bool: ...
    @property
    def next_deadline(self) -> float | None: ...
    def add(self, request: EngineRequest) -> int: ...
    def abort(self, request_id: int) -> bool: ...
    def hold(self, request_id: int) -> bool: ...
    def resume(self, request_id: int) -> bool: ...
    def step(self, now: float) -> list[TokenDelta]: ...
    def check_integrity(self) -> None: ...


class Sockets:
    """A worker's inbox and its way to each HTTP process."""

    def __init__(self, folder: Path, worker: int, num_apis: int) -> None:
        self.worker = worker
        self.epoch = channel.new_epoch()
        self.address = channel.worker_address(folder, worker, self.epoch)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox = channel.unlimited(self._context, zmq.PULL)
        self._inbox.bind(self.address)
        self._apis = [channel.unlimited(self._context, zmq.PUSH) for _ in range(num_apis)]
        for api, socket in enumerate(self._apis):
            socket.connect(channel.api_address(folder, api))

    def greet(self, hello: Hello) -> None:
        frame = channel.pack_hello(hello)
        for socket in self._apis:
            socket.send(frame)

    def receive(self, seconds: float | None) -> list[Command]:
        """All commands that have come; waits up to so many seconds for the first (None: as long as it takes)."""
        if seconds != 0:
            self._inbox.poll(None if seconds is None else max(1, round(seconds * 1000)))
        commands: list[Command] = []
        while True:
            try:
                frame = self._inbox.recv(zmq.NOBLOCK)
            except zmq.Again:
                return commands
            commands += channel.unpack_commands(frame)

    def send(self, deltas: Sequence[TokenDelta]) -> None:
        """One frame to each HTTP process that has a part in them."""
        if len(self._apis) == 1:
            self._apis[0].send(channel.pack_step(deltas))
            return
        parts: dict[int, list[TokenDelta]] = {}
        for delta in deltas:
            parts.setdefault(channel.owner_of(delta.request_id), []).append(delta)
        for api, part in parts.items():
            self._apis[api].send(channel.pack_step(part))

    def close(self) -> None:
        for socket in (self._inbox, *self._apis):
            socket.close()
        self._context.term()


class SocketsLike(Protocol):
    def receive(self, seconds: float | None) -> list[Command]: ...
    def send(self, deltas: Sequence[TokenDelta]) -> None: ...


Observer = Callable[[StepStats, float], None]
"""Told after each step: the engine's numbers and the seconds that sending took."""


class WorkerLoop:
    """Commands in, steps, deltas out; pauses streams that run ahead of their readers."""

    def __init__(
        self,
        engine: EngineLike,
        sockets: SocketsLike,
        *,
        stall_seconds: float = 60.0,
        observe: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._sockets = sockets
        self._ledger = CreditLedger(stall_seconds)
        self._observe = observe
        self._clock = clock
        self._checked = False

    def run(self) -> None:
        """For ever."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Take what has come (waiting for it when there is nothing else to do), then one step."""
        failed: list[TokenDelta] = []
        for command in self._sockets.receive(self._patience()):
            failed += self._apply(command)
        failed += self._give_up_stalled()
        if failed:
            self._sockets.send(failed)
        deadline = self._engine.next_deadline
        if self._engine.has_work or (deadline is not None and deadline <= self._clock()):
            self._checked = False
            self._step()

    def _patience(self) -> float | None:
        """Seconds that receive() may wait: none while there is work, for ever when there is nothing at all."""
        if self._engine.has_work:
            return 0
        if not self._checked:
            self._engine.check_integrity()
            self._checked = True
        moments = [t for t in (self._engine.next_deadline, self._ledger.next_stall()) if t is not None]
        return max(0.001, min(moments) - self._clock()) if moments else None

    def _step(self) -> None:
        now = self._clock()
        try:
            deltas = self._engine.step(now)
        except Exception:  # the worker's edge: the engine has ended the requests of this batch, the others go on
            logger.exception("a step failed")
            return
        started = self._clock()
        if deltas:
            self._sockets.send(deltas)
            self._charge(deltas, now)
        if self._observe is not None:
            self._observe(self._engine.last_step, self._clock() - started)

    def _charge(self, deltas: Iterable[TokenDelta], now: float) -> None:
        for delta in deltas:
            if delta.finish_reason is not None:
                self._ledger.close(delta.request_id)
            elif self._ledger.spend(delta.request_id, len(delta.token_ids), now):
                self._engine.hold(delta.request_id)

    def _apply(self, command: Command) -> list[TokenDelta]:
        match command:
            case Add():
                try:
                    self._add(command)
                except ValueError as error:
                    return [failure(command.request_id, str(error))]
                except Exception:  # the worker's edge: one bad request fails alone
                    logger.exception("request %d could not be started", command.request_id)
                    return [failure(command.request_id, "the engine failed; the server's log says more")]
            case Abort():
                for request_id in command.request_ids:
                    self._ledger.close(request_id)
                    self._engine.abort(request_id)
            case Acknowledge():
                if self._ledger.grant(command.request_id, command.num_tokens, self._clock()):
                    self._engine.resume(command.request_id)
        return []

    def _add(self, command: Add) -> None:
        deadline = None if command.seconds is None else self._clock() + command.seconds
        params = SamplingParams(**command.params)
        self._engine.add(EngineRequest(command.request_id, command.prompt_ids, params, deadline=deadline))
        self._ledger.open(command.request_id, command.window)

    def _give_up_stalled(self) -> list[TokenDelta]:
        given_up = []
        for request_id in self._ledger.stalled(self._clock()):
            self._ledger.close(request_id)
            self._engine.abort(request_id)
            given_up.append(failure(request_id, channel.READ_TOO_SLOWLY))
        return given_up


def failure(request_id: int, error: str) -> TokenDelta:
    """The last delta of a request that cannot go on."""
    return TokenDelta(request_id, [], [], [], finish_reason="error", error=error)


def hello_of(sockets: Sockets, runner: object, why: str) -> Hello:
    """What a worker says about itself before anything else."""
    fields = {name: getattr(runner, name) for name in ("dtype", "max_model_len", "vocab_size", "max_slots")}
    name = str(getattr(runner, "name", ""))
    return Hello(
        worker=sockets.worker,
        epoch=sockets.epoch,
        pid=os.getpid(),
        address=sockets.address,
        runner=name,
        why=why,
        **fields,
    )
