"""What HTTP processes and engine workers say to each other, and how far a stream may run ahead of its reader.

Frames are msgpack over zmq PUSH/PULL on ipc:// sockets in a private folder. An HTTP process has one inbox, which every
worker writes to; a worker has one inbox, which every HTTP process writes to, so that a cancel goes to the worker that
owns the request. A worker sends each HTTP process at most one frame a step, with the deltas of all its requests.

Sockets have no high-water mark (a full one would stop the engine for everybody), so the credit is ours: see
CreditLedger. No engine, no asyncio and no HTTP in here.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import zmq

from serve.engine.request import TokenDelta

# A request id says which HTTP process it belongs to: (process << ID_BITS) | running number.
ID_BITS = 48
# Longest path of a Unix socket on Linux, less the name of the socket.
MAX_FOLDER_CHARACTERS = 107 - len("/worker-00-0123456789abcdef.ipc")
# Errors that are the server's circumstances, not the request's: sending it again may help.
WORKER_LOST = "the engine process that computed this request stopped"
SHUTTING_DOWN = "the server is shutting down"
READ_TOO_SLOWLY = "the stream was read too slowly"
PASSING_ERRORS = frozenset({WORKER_LOST, SHUTTING_DOWN, READ_TOO_SLOWLY})


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker's first message. epoch: larger in a later life of the same worker."""

    worker: int
    epoch: int
    pid: int
    address: str
    runner: str
    why: str
    dtype: str
    max_model_len: int
    vocab_size: int
    max_slots: int


@dataclass(frozen=True, slots=True)
class StepDeltas:
    """What one step of one worker gave the requests of one HTTP process. Request ids are never used twice."""

    deltas: list[TokenDelta]


@dataclass(frozen=True, slots=True)
class Add:
    """Compute this. params: fields of SamplingParams. seconds: time until the deadline. window: 0 is without limit."""

    request_id: int
    prompt_ids: list[int]
    params: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    window: int = 0


@dataclass(frozen=True, slots=True)
class Abort:
    """The reader is gone."""

    request_ids: list[int]


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The reader has taken so many more tokens."""

    request_id: int
    num_tokens: int


Command = Add | Abort | Acknowledge
_COMMANDS: dict[str, type[Command]] = {"add": Add, "abort": Abort, "ack": Acknowledge}
_KINDS = {kind: name for name, kind in _COMMANDS.items()}


def pack_commands(commands: Iterable[Command]) -> bytes:
    return bytes(msgpack.packb([(_KINDS[type(c)], *(getattr(c, name) for name in c.__slots__)) for c in commands]))


def unpack_commands(frame: bytes) -> list[Command]:
    """Raises ValueError for a frame that is not one."""
    try:
        return [_COMMANDS[kind](*values) for kind, *values in msgpack.unpackb(frame, strict_map_key=False)]
    except (KeyError, TypeError, ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"not a frame of commands ({error})") from error


def pack_hello(hello: Hello) -> bytes:
    return bytes(msgpack.packb(("hello", asdict(hello))))


def pack_step(deltas: Sequence[TokenDelta]) -> bytes:
    rows = [
        (d.request_id, d.token_ids, d.logprobs, d.entropies, d.top_logprobs, d.finish_reason, d.error) for d in deltas
    ]
    return bytes(msgpack.packb(("step", rows)))


def unpack_message(frame: bytes) -> Hello | StepDeltas:
    """Raises ValueError for a frame that is not one."""
    try:
        kind, *values = msgpack.unpackb(frame)
        if kind == "hello":
            return Hello(**values[0])
        return StepDeltas([TokenDelta(*row) for row in values[0]])
    except (LookupError, TypeError, ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"not a message of a worker ({error})") from error


def owner_of(request_id: int) -> int:
    """The HTTP process a request belongs to."""
    return request_id >> ID_BITS


def api_address(folder: Path, api: int) -> str:
    return f"ipc://{folder}/api-{api}.ipc"


def worker_address(folder: Path, worker: int, epoch: int) -> str:
    """Another socket in each life, so that nothing meant for a dead worker reaches the next one."""
    return f"ipc://{folder}/worker-{worker}-{epoch:x}.ipc"


def check_folder(folder: Path) -> None:
    """Raises ValueError if sockets in this folder would have too long a name."""
    if len(str(folder)) > MAX_FOLDER_CHARACTERS:
        raise ValueError(f"TMPDIR gives {folder}: too long for a socket's name, set TMPDIR to a shorter path")


def new_epoch() -> int:
    return time.time_ns()


def unlimited(context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
    """A socket without high-water mark that does not outlive close() and finds a late peer soon."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, 5)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    return socket


@dataclass(slots=True)
class _Account:
    window: int
    outstanding: int = 0


class CreditLedger:
    """How many tokens each stream is ahead of its reader; says when to pause and when to go on.

    The engine stops running ahead for a slow reader only: a bounded buffer with an abort would lose an answer that the
    reader was about to take, and pausing costs the other requests nothing. A reader that takes nothing for
    stall_seconds is given up, since a paused request keeps its place. Requests with window 0 are not limited (a JSON
    answer is kept whole anyway).

    Invariant: outstanding tokens < window + tokens of one step.
    """

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._accounts: dict[int, _Account] = {}
        self._paused: dict[int, float] = {}

    def open(self, request_id: int, window: int) -> None:
        if window > 0:
            self._accounts[request_id] = _Account(window)

    def close(self, request_id: int) -> None:
        self._accounts.pop(request_id, None)
        self._paused.pop(request_id, None)

    def spend(self, request_id: int, num_tokens: int, now: float) -> bool:
        """Count tokens sent. True: pause this request now."""
        account = self._accounts.get(request_id)
        if account is None:
            return False
        account.outstanding += num_tokens
        if account.outstanding < account.window or request_id in self._paused:
            return False
        self._paused[request_id] = now
        return True

    def grant(self, request_id: int, num_tokens: int, now: float) -> bool:
        """Count tokens taken. True: the request, paused until now, goes on."""
        account = self._accounts.get(request_id)
        if account is None:
            return False
        account.outstanding = max(0, account.outstanding - num_tokens)
        if request_id not in self._paused:
            return False
        if account.outstanding < account.window:
            del self._paused[request_id]
            return True
        self._paused[request_id] = now
        return False

    def stalled(self, now: float) -> list[int]:
        """Paused requests whose readers took nothing for stall_seconds."""
        return [request_id for request_id, since in self._paused.items() if now - since >= self._stall_seconds]

    def next_stall(self) -> float | None:
        """When stalled() may next have something, None if nothing is paused."""
        return min(self._paused.values()) + self._stall_seconds if self._paused else None

    def outstanding(self, request_id: int) -> int:
        account = self._accounts.get(request_id)
        return 0 if account is None else account.outstanding

    def __len__(self) -> int:
        return len(self._accounts)
