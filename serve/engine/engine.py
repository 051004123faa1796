"""Schedule, execute, update: requests in, token deltas out. One thread; time and randomness are arguments. No HTTP."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from serve.engine.kv_blocks import BlockAllocator
from serve.engine.request import EngineRequest, FinishReason, TokenDelta
from serve.engine.runner import Runner, StepBatch, StepOutput
from serve.engine.scheduler import RequestState, Schedule, Scheduler
from serve.engine.stats import EngineStats, StepStats

_MASK_64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """max_running: requests computed at once; None: the runner's max_slots, which it may not exceed.

    max_tokens_per_step: the budget of a step, decodes and prompt chunks together; it bounds how long a running stream
    waits for a long prompt. prefix_caching: share equal prompt beginnings.
    seed: the engine's, from which requests without one get theirs.
    """

    max_running: int | None = None
    max_tokens_per_step: int = 512
    prefix_caching: bool = True
    seed: int = 0


class Engine:
    """Requests join and leave the running batch at any step.

    runner: computes; the engine owns its slots and blocks. clock: seconds, for StepStats only; None leaves zeros.
    Neither add() nor abort() computes anything: they may be called between any two steps.
    """

    def __init__(
        self, runner: Runner, limits: EngineLimits | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        limits = limits or EngineLimits()
        max_running = runner.max_slots if limits.max_running is None else limits.max_running
        if max_running > runner.max_slots:
            raise ValueError(f"max_running is {max_running}: the runner has {runner.max_slots} slots; lower it")
        self.runner = runner
        self.stats = EngineStats()
        self.last_step = StepStats()
        self._limits = limits
        self._clock = clock or (lambda: 0.0)
        allocator = BlockAllocator(runner.num_blocks, runner.block_size, prefix_caching=limits.prefix_caching)
        self.scheduler = Scheduler(allocator, max_running, limits.max_tokens_per_step)
        most_blocks = -(-runner.max_model_len // runner.block_size)
        self._block_tables = np.zeros((runner.max_slots, most_blocks), dtype=np.int32)
        self._endings: list[TokenDelta] = []
        self._eos = frozenset(runner.eos_token_ids)
        self._num_seeds = 0

    # --- requests ------------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> int:
        """Queue a request. Returns the seed it draws with: its own, or one from the engine's seed and a counter.

        ValueError, with field, value and remedy, for a request this model or pool cannot serve.
        """
        self.check(request)
        seed = request.params.seed
        if seed is None:
            seed = self._next_seed()
        stop_ids = frozenset(request.params.stop_token_ids)
        if not request.params.ignore_eos:
            stop_ids |= self._eos
        self.scheduler.add(RequestState(request, seed, stop_ids))
        self.stats.num_requests += 1
        return seed

    def check(self, request: EngineRequest) -> None:
        """Raise the ValueError that add() would raise."""
        runner, params = self.runner, request.params
        if request.request_id in self.scheduler.requests:
            raise ValueError(f"request_id is {request.request_id}: that one is running; give another")
        smallest, largest = min(request.prompt_ids), max(request.prompt_ids)
        if smallest < 0 or largest >= runner.vocab_size:
            bad = smallest if smallest < 0 else largest
            raise ValueError(f"prompt_ids has {bad}: the model's token ids are 0..{runner.vocab_size - 1}")
        for token in params.logit_bias or ():
            if token >= runner.vocab_size:
                raise ValueError(f"logit_bias has {token}: the model's token ids are 0..{runner.vocab_size - 1}")
        length, wanted = len(request.prompt_ids), params.max_new_tokens
        longest = runner.max_model_len
        if length + wanted > longest:
            raise ValueError(
                f"max_new_tokens is {wanted}: with a prompt of {length} tokens this exceeds the model's {longest}; "
                f"ask for at most {max(0, longest - length)}, or shorten the prompt"
            )
        room = runner.num_blocks * runner.block_size
        if length + wanted - 1 > room:
            raise ValueError(
                f"max_new_tokens is {wanted}: with a prompt of {length} tokens this exceeds the cache's {room} tokens; "
                "shorten one of them, or serve with a larger num_blocks"
            )

    def abort(self, request_id: int) -> bool:
        """End a request now; its slot and blocks are free at once. Its last delta comes with the next step.

        Returns False for a request that is not (or no longer) there.
        """
        return self._end(request_id, "abort", None)

    def fail(self, request_id: int, error: str) -> bool:
        """End a request with finish reason "error"; otherwise as abort()."""
        return self._end(request_id, "error", error)

    def hold(self, request_id: int) -> bool:
        """Compute nothing for a request whose reader is slow, until resume(). Under pressure it loses its memory."""
        state = self.scheduler.requests.get(request_id)
        if state is not None:
            self.scheduler.hold(state)
        return state is not None

    def resume(self, request_id: int) -> bool:
        """End hold()."""
        state = self.scheduler.requests.get(request_id)
        if state is not None:
            self.scheduler.resume(state)
        return state is not None

    @property
    def has_work(self) -> bool:
        """Whether step() would compute or report anything now. Held requests alone are no work."""
        return bool(self._endings) or self.scheduler.can_run

    @property
    def next_deadline(self) -> float | None:
        """When step() is due even without work: the earliest deadline."""
        return self.scheduler.next_deadline

    def check_integrity(self) -> None:
        """Raise AssertionError unless queues, slots and blocks agree. For tests, and for a worker that is idle."""
        self.scheduler.check_integrity()

    # --- steps ---------------------------------------------------------------------------------------------------

    def step(self, now: float = 0.0) -> list[TokenDelta]:
        """Compute one step. now: a time on the clock of the requests' deadlines.

        Returns at most one delta per request, and the endings since the last step. An exception of the runner comes
        through after the requests of that batch have been ended with finish reason "error" (in the next step's
        deltas); the engine goes on with the others.
        """
        started = self._clock()
        schedule = self.scheduler.schedule(now)
        for state in schedule.expired:
            self._endings.append(TokenDelta(state.request_id, [], [], [], None, "deadline"))
        self._apply(schedule)
        deltas, self._endings = self._endings, []
        stats = self.last_step = StepStats(num_rows=len(schedule.num_tokens))
        scheduled = self._clock()
        stats.schedule_seconds = scheduled - started
        if schedule.num_tokens:
            batch = self._batch(schedule)
            try:
                output = self.runner.execute(batch)
            except Exception as error:
                self._endings = deltas
                for state in list(schedule.num_tokens):
                    self.fail(state.request_id, f"the model failed: {error}")
                raise
            executed = self._clock()
            deltas += self._update(schedule, output)
            stats.execute_seconds = executed - scheduled
            stats.update_seconds = self._clock() - executed
            stats.sample_seconds = output.sample_seconds
            stats.num_tokens, stats.num_sampled = len(batch.token_ids), batch.num_samples
        self._close_step(schedule, deltas, stats)
        return deltas

    def _apply(self, schedule: Schedule) -> None:
        """Tell the runner who left and who came, and write the new blocks into the tables."""
        for slot in schedule.freed_slots:
            self.runner.remove_request(slot)
        for state in schedule.admitted:
            request, n = state.request, state.num_prompt
            try:
                self.runner.add_request(state.slot, request.prompt_ids, request.params, state.seed, state.token_ids[n:])
            except ValueError as error:
                del schedule.num_tokens[state]
                self.scheduler.finish(state)
                self._endings.append(TokenDelta(state.request_id, [], [], [], None, "error", str(error)))
        for state, first in schedule.grown:
            if state.slot >= 0:
                self._block_tables[state.slot, first : len(state.blocks)] = state.blocks[first:]

    def _batch(self, schedule: Schedule) -> StepBatch:
        slots, starts, sample, token_ids = [], [], [], []
        for state, count in schedule.num_tokens.items():
            start = state.num_computed
            slots.append(state.slot)
            starts.append(start)
            known = state.token_ids
            sample.append(start + count == len(known))
            if count == 1:
                token_ids.append(known[start])
            else:
                token_ids += known[start : start + count]
        return StepBatch(
            np.array(slots, dtype=np.int32),
            np.array(list(schedule.num_tokens.values()), dtype=np.int32),
            np.array(starts, dtype=np.int32),
            np.array(token_ids, dtype=np.int32),
            np.array(sample, dtype=np.uint8),
            self._block_tables,
            sum(sample),
        )

    def _update(self, schedule: Schedule, output: StepOutput) -> list[TokenDelta]:
        tokens = output.token_ids.tolist()
        logprobs, entropies, top = output.logprobs.tolist(), output.entropies.tolist(), output.top_logprobs
        sampled = self.scheduler.update(schedule, tokens)
        deltas = []
        for i, (state, reason) in enumerate(sampled):
            asked = None if top is None or not state.request.params.num_logprobs else [top[i]]
            deltas.append(TokenDelta(state.request_id, [tokens[i]], [logprobs[i]], [entropies[i]], asked, reason))
            if reason is not None:
                self._forget(state)
        return deltas

    def _close_step(self, schedule: Schedule, deltas: list[TokenDelta], stats: StepStats) -> None:
        scheduler = self.scheduler
        stats.num_running, stats.num_waiting = len(scheduler.running), scheduler.num_waiting
        stats.num_free_blocks, stats.num_blocks = scheduler.allocator.num_free, scheduler.allocator.num_blocks
        stats.prefix_tokens_asked = schedule.prefix_tokens_asked
        stats.prefix_tokens_hit = schedule.prefix_tokens_hit
        stats.num_preemptions = schedule.num_preemptions
        stats.num_finished = sum(delta.finish_reason is not None for delta in deltas)
        self.stats.add(stats)
        if not scheduler.requests:
            assert stats.num_free_blocks == stats.num_blocks, "blocks are lost"

    def _end(self, request_id: int, reason: FinishReason, error: str | None) -> bool:
        state = self.scheduler.requests.get(request_id)
        if state is None:
            return False
        self._forget(state)
        self._endings.append(TokenDelta(request_id, [], [], [], None, reason, error))
        return True

    def _forget(self, state: RequestState) -> None:
        slot = self.scheduler.finish(state)
        if slot >= 0:
            self.runner.remove_request(slot)

    def _next_seed(self) -> int:
        # splitmix64 over a counter, kept to 63 bits so that a seed fits a signed integer everywhere.
        self._num_seeds += 1
        x = (self._limits.seed + self._num_seeds * 0x9E3779B97F4A7C15) & _MASK_64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
        return (x ^ (x >> 31)) >> 1
