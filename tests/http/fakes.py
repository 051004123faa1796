"""An engine and a channel that do what a test tells them."""

from collections import deque
from collections.abc import Sequence

from serve.channel import Command
from serve.engine.request import EngineRequest, TokenDelta
from serve.engine.stats import StepStats


class FakeEngine:
    """Gives each request that is not held one token a step, counting up; ends it at max_new_tokens."""

    def __init__(self) -> None:
        self.requests: dict[int, EngineRequest] = {}
        self.written: dict[int, int] = {}
        self.held: set[int] = set()
        self.aborted: list[int] = []
        self.num_checks = 0
        self.num_steps = 0
        self.last_step = StepStats()
        self.explode_next = False

    @property
    def has_work(self) -> bool:
        return bool(set(self.requests) - self.held)

    @property
    def next_deadline(self) -> float | None:
        return min((r.deadline for r in self.requests.values() if r.deadline is not None), default=None)

    def add(self, request: EngineRequest) -> int:
        if request.prompt_ids == [666]:
            raise RuntimeError("a bug")
        if max(request.prompt_ids) > 256:
            raise ValueError("prompt_ids has 999: the model's token ids are 0..256")
        self.requests[request.request_id] = request
        self.written[request.request_id] = 0
        return 0

    def abort(self, request_id: int) -> bool:
        self.aborted.append(request_id)
        return self.requests.pop(request_id, None) is not None

    def hold(self, request_id: int) -> bool:
        self.held.add(request_id)
        return True

    def resume(self, request_id: int) -> bool:
        self.held.discard(request_id)
        return True

    def step(self, now: float) -> list[TokenDelta]:
        self.num_steps += 1
        if self.explode_next:
            self.explode_next = False
            raise RuntimeError("the model failed")
        deltas = []
        for request_id, request in list(self.requests.items()):
            if request.deadline is not None and request.deadline <= now:
                del self.requests[request_id]
                deltas.append(TokenDelta(request_id, [], [], [], finish_reason="deadline"))
            elif request_id not in self.held:
                self.written[request_id] += 1
                last = self.written[request_id] >= request.params.max_new_tokens
                if last:
                    del self.requests[request_id]
                deltas.append(TokenDelta(request_id, [65], [-1.0], [1.0], None, "length" if last else None))
        return deltas

    def check_integrity(self) -> None:
        self.num_checks += 1


class FakeSockets:
    """Commands are what the test puts in; records how long the loop was ready to wait."""

    def __init__(self) -> None:
        self.incoming: deque[list[Command]] = deque()
        self.waits: list[float | None] = []
        self.sent: list[list[TokenDelta]] = []

    def receive(self, seconds: float | None) -> list[Command]:
        self.waits.append(seconds)
        return self.incoming.popleft() if self.incoming else []

    def send(self, deltas: Sequence[TokenDelta]) -> None:
        self.sent.append(list(deltas))

    def all_sent(self) -> list[TokenDelta]:
        return [delta for deltas in self.sent for delta in deltas]
