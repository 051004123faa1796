"""Decide what each request computes in the next step. Pure Python: no tensors, no clocks, no HTTP.

There are no prefill and decode phases: a running request has tokens, of which some are computed, and a step computes
some of the rest. A step is {request: number of tokens}, at most max_tokens_per_step in sum.

Order. Each request has a key, smaller first: (step of arrival - AGING_STEPS * priority, arrival number). It never
changes, so a request waits only for requests with smaller keys, and those arrive at most AGING_STEPS * (difference in
priority) steps after it: nothing waits for ever, whatever keeps arriving.
Gap. Every running request that lacks one token gets it in every step (max_tokens_per_step >= max_running), before any
prompt gets a chunk; so a long prompt delays a running stream by no step at all, and makes no step longer than the
budget.
Memory. A request is admitted when the blocks for all its tokens are free, plus one for each running request; later
it grows a block at a time. When none is free the running request with the largest key goes back to the queue and will
be computed again from its tokens (its text cannot change: the tokens are kept). The smallest key is never the victim
of another, so it always finishes.
A held request (back-pressure) computes nothing and is the first to lose its memory or slot to one that can run.
"""

from bisect import insort
from dataclasses import dataclass, field
from heapq import heappop, heappush

from serve.engine.kv_blocks import ROOT_DIGEST, BlockAllocator, block_digest
from serve.engine.request import EngineRequest, FinishReason

AGING_STEPS = 256
"""Steps of waiting that weigh as much as one unit of priority."""


class RequestState:
    """A request inside the engine. Compared and hashed by identity; ordered by key."""

    __slots__ = (
        "blocks",
        "digests",
        "finished",
        "held",
        "key",
        "max_tokens",
        "num_computed",
        "num_named",
        "num_prompt",
        "request",
        "request_id",
        "seed",
        "slot",
        "stop_ids",
        "token_ids",
    )

    def __init__(self, request: EngineRequest, seed: int, stop_ids: frozenset[int]) -> None:
        self.request = request
        self.request_id = request.request_id
        self.seed = seed
        self.stop_ids = stop_ids
        self.token_ids = list(request.prompt_ids)
        self.num_prompt = len(request.prompt_ids)
        self.max_tokens = self.num_prompt + request.params.max_new_tokens
        self.num_computed = 0
        self.slot = -1
        self.blocks: list[int] = []
        self.digests: list[bytes] = []
        self.num_named = 0
        self.held = False
        self.finished = False
        self.key = (0, 0)

    def __lt__(self, other: "RequestState") -> bool:
        return self.key < other.key


@dataclass(slots=True)
class Schedule:
    """What the next step is.

    num_tokens: {request: tokens to compute}, decodes first. Then what changed, in the order to apply it:
    freed_slots: slots whose request left (preempted, expired); expired: requests whose deadline passed;
    admitted: requests that got a slot; grown: (request, index of its first new block), admitted ones included.
    """

    num_tokens: dict[RequestState, int] = field(default_factory=dict)
    freed_slots: list[int] = field(default_factory=list)
    expired: list[RequestState] = field(default_factory=list)
    admitted: list[RequestState] = field(default_factory=list)
    grown: list[tuple[RequestState, int]] = field(default_factory=list)
    num_preemptions: int = 0
    prefix_tokens_asked: int = 0
    prefix_tokens_hit: int = 0


class Scheduler:
    """Queues, slots and blocks of all requests of one engine."""

    def __init__(self, allocator: BlockAllocator, max_running: int, max_tokens_per_step: int) -> None:
        if max_running < 1:
            raise ValueError(f"max_running is {max_running}: give at least 1")
        if max_tokens_per_step < max_running:
            raise ValueError(
                f"max_tokens_per_step is {max_tokens_per_step}: give at least max_running ({max_running}), "
                "so that every running stream gets a token in every step"
            )
        self.allocator = allocator
        self.max_running = max_running
        self.max_tokens_per_step = max_tokens_per_step
        self.requests: dict[int, RequestState] = {}
        self.running: list[RequestState] = []  # ascending keys
        self.num_held = 0
        self._block_size = allocator.block_size
        self._free_slots = list(range(max_running - 1, -1, -1))
        self._queue: list[RequestState] = []  # a heap; ended and held requests are dropped when they surface
        self._deadlines: list[tuple[float, int, RequestState]] = []  # a heap, likewise
        self._num_arrived = 0
        self._num_steps = 0

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self.requests) - len(self.running)

    @property
    def can_run(self) -> bool:
        """Whether a step would compute something: some request is not held."""
        return len(self.requests) > self.num_held

    @property
    def next_deadline(self) -> float | None:
        """The earliest deadline of any request, held or not."""
        while self._deadlines and self._deadlines[0][2].finished:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def add(self, state: RequestState) -> None:
        """Queue a request. It must fit in the pool when alone: see Engine.add."""
        assert state.request_id not in self.requests
        self._num_arrived += 1
        state.key = (self._num_steps - AGING_STEPS * state.request.priority, self._num_arrived)
        self.requests[state.request_id] = state
        heappush(self._queue, state)
        deadline = state.request.deadline
        if deadline is not None:
            heappush(self._deadlines, (deadline, self._num_arrived, state))

    def finish(self, state: RequestState) -> int:
        """Forget a request and free what it has, at once. Returns the slot it had, -1 if none."""
        slot = state.slot
        if slot >= 0:
            self._leave_slot(state)
        state.finished = True
        self.num_held -= state.held
        del self.requests[state.request_id]
        return slot

    def hold(self, state: RequestState) -> None:
        """Compute nothing for this request until resume(): its reader is slow."""
        if not state.held:
            state.held = True
            self.num_held += 1

    def resume(self, state: RequestState) -> None:
        """End hold()."""
        if state.held:
            state.held = False
            self.num_held -= 1
            # It may have left the queue while held.
            if state.slot < 0 and state not in self._queue:
                heappush(self._queue, state)

    def schedule(self, now: float = 0.0) -> Schedule:
        """The next step, at time now (the clock of the deadlines). update() must follow before the next call."""
        self._num_steps += 1
        step = Schedule()
        self._expire(now, step)
        budget = self.max_tokens_per_step - self._schedule_decodes(step)
        budget = self._schedule_chunks(step, budget)
        if budget and len(self.requests) > len(self.running):
            self._admit(step, budget)
        return step

    def update(self, step: Schedule, tokens: list[int]) -> list[tuple[RequestState, FinishReason | None]]:
        """Take in a computed step. tokens: one for each request that is now computed to its end, in order.

        Returns these requests, and for each why it ended, or None. Ended requests are not yet forgotten: see finish().
        """
        sampled: list[tuple[RequestState, FinishReason | None]] = []
        block_size = self._block_size
        for state, count in step.num_tokens.items():
            computed = state.num_computed = state.num_computed + count
            if computed - state.num_named * block_size >= block_size:
                self._name_blocks(state)
            token_ids = state.token_ids
            if computed != len(token_ids):
                continue
            token = tokens[len(sampled)]
            token_ids.append(token)
            if token in state.stop_ids:
                sampled.append((state, "stop"))
            else:
                sampled.append((state, "length" if len(token_ids) >= state.max_tokens else None))
        assert len(sampled) == len(tokens)
        return sampled

    def check_integrity(self) -> None:
        """Raise AssertionError unless queues, slots and blocks agree."""
        assert [s.key for s in self.running] == sorted(s.key for s in self.running), "running is out of order"
        slots = [s.slot for s in self.running]
        assert sorted(slots + self._free_slots) == list(range(self.max_running)), "slots are lost or shared"
        queued = {s for s in self._queue if not s.finished}
        assert len(queued) == sum(not s.finished for s in self._queue), "a request is queued twice"
        running = set(self.running)
        assert len(running) == len(self.running), "a request runs twice"
        for state in self.requests.values():
            assert not state.finished, "a finished request is kept"
            assert (state.slot >= 0) == (state in running), "a slot without running, or running without a slot"
            assert state.num_computed < len(state.token_ids), "nothing is left to compute"
            assert len(state.token_ids) < state.max_tokens, "a request outlived its limit"
            if state in running:
                assert len(state.blocks) * self._block_size >= state.num_computed, "computed tokens without blocks"
                assert state.num_named * self._block_size <= state.num_computed, "uncomputed blocks are named"
            else:
                assert not state.blocks, "a waiting request holds blocks"
                assert state.num_computed == 0, "a waiting request has computed tokens"
                assert state in queued or state.held, "a waiting request is in no queue"
        assert running <= set(self.requests.values()), "a forgotten request runs"
        assert self.num_held == sum(s.held for s in self.requests.values()), "held requests are miscounted"
        self.allocator.check_integrity(s.blocks for s in self.running)

    # --- the parts of a step -------------------------------------------------------------------------------------

    def _expire(self, now: float, step: Schedule) -> None:
        deadlines = self._deadlines
        while deadlines and (deadlines[0][0] <= now or deadlines[0][2].finished):
            state = heappop(deadlines)[2]
            if not state.finished:
                slot = self.finish(state)
                step.expired.append(state)
                if slot >= 0:
                    step.freed_slots.append(slot)

    def _schedule_decodes(self, step: Schedule) -> int:
        num_tokens = step.num_tokens
        block_size = self._block_size
        # A copy, since a preemption shortens the list. Victims have larger keys than whoever needs a block, or are
        # held: none of them is in the step yet.
        for state in self.running.copy():
            computed = state.num_computed
            if len(state.token_ids) - computed != 1 or state.held or state.slot < 0:
                continue
            if computed >= len(state.blocks) * block_size and not self._grow(state, step):
                continue
            num_tokens[state] = 1
        return len(num_tokens)

    def _schedule_chunks(self, step: Schedule, budget: int) -> int:
        if len(step.num_tokens) == len(self.running):
            return budget
        for state in self.running:
            missing = len(state.token_ids) - state.num_computed
            if missing > 1 and not state.held and budget:
                count = step.num_tokens[state] = min(missing, budget)
                budget -= count
        return budget

    def _admit(self, step: Schedule, budget: int) -> None:
        queue = self._queue
        while queue and budget:
            state = queue[0]
            if state.finished or state.held:
                heappop(queue)
                continue
            if not self._free_slots or not self._take_blocks(state, step):
                # Nobody overtakes the head: what it waits for will come free. Only held requests give way to it.
                if self._preempt_held(step):
                    continue
                return
            heappop(queue)
            state.slot = self._free_slots.pop()
            insort(self.running, state)
            step.admitted.append(state)
            step.grown.append((state, 0))
            count = step.num_tokens[state] = min(len(state.token_ids) - state.num_computed, budget)
            budget -= count

    def _take_blocks(self, state: RequestState, step: Schedule) -> bool:
        """Blocks for all tokens a waiting request has, as many as possible from the prefix cache."""
        allocator = self.allocator
        num_tokens = len(state.token_ids)
        shared: list[int] = []
        num_shared_free = 0
        if allocator.prefix_caching:
            # The last token is always computed: its logits are wanted.
            num_full = (num_tokens - 1) // self._block_size
            self._extend_digests(state, num_full)
            shared, num_shared_free = allocator.find_prefix(state.digests[:num_full])
        num_new = -(-num_tokens // self._block_size) - len(shared)
        if num_new + len(self.running) > allocator.num_free - num_shared_free:
            return False
        allocator.hold(shared)
        state.blocks = shared + [allocator.allocate() for _ in range(num_new)]
        state.num_named = len(shared)
        state.num_computed = len(shared) * self._block_size
        step.prefix_tokens_asked += num_tokens
        step.prefix_tokens_hit += state.num_computed
        return True

    def _grow(self, state: RequestState, step: Schedule) -> bool:
        """One more block for a running request; False if it was itself the one to give way."""
        while not self.allocator.num_free:
            if not self._preempt_held(step):
                victim = self.running[-1]
                self._preempt(victim, step)
                if victim is state:
                    return False
        state.blocks.append(self.allocator.allocate())
        step.grown.append((state, len(state.blocks) - 1))
        return True

    def _preempt_held(self, step: Schedule) -> bool:
        if self.num_held:
            for state in reversed(self.running):
                if state.held:
                    self._preempt(state, step)
                    return True
        return False

    def _preempt(self, state: RequestState, step: Schedule) -> None:
        step.freed_slots.append(state.slot)
        step.num_preemptions += 1
        self._leave_slot(state)
        heappush(self._queue, state)

    def _leave_slot(self, state: RequestState) -> None:
        self.running.remove(state)
        self._free_slots.append(state.slot)
        self.allocator.release(state.blocks)
        state.slot = -1
        state.blocks = []
        state.num_computed = state.num_named = 0

    def _name_blocks(self, state: RequestState) -> None:
        num_full = state.num_computed // self._block_size
        if self.allocator.prefix_caching:
            self._extend_digests(state, num_full)
            for i in range(state.num_named, num_full):
                self.allocator.name_block(state.blocks[i], state.digests[i])
        state.num_named = num_full

    def _extend_digests(self, state: RequestState, num_full: int) -> None:
        digests = state.digests
        size = self._block_size
        for i in range(len(digests), num_full):
            parent = digests[-1] if digests else ROOT_DIGEST
            digests.append(block_digest(parent, state.token_ids[i * size : (i + 1) * size]))
