"""Whatever arrives, leaves, waits or is preempted: the text of a request depends on that request alone."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from serve.engine.engine import Engine, EngineLimits
from serve.engine.request import EngineRequest, SamplingParams
from tests.engine.helpers import Collected, ContextRunner, text_of_context_runner

# Few prompts with common beginnings, so that prefixes are found; the same one twice, so that they are found whole.
PROMPTS = [
    [5],
    list(range(3, 36)),
    list(range(3, 51)),
    [*range(3, 20), 7, 7, 7],
    [7] * 16,
    [7] * 17,
    [*range(3, 35), *[9] * 30],
]


class EngineMachine(RuleBasedStateMachine):
    """Random arrivals, aborts, holds and steps on a cache that is far too small, audited after each."""

    requests = Bundle("requests")

    @initialize(
        num_blocks=st.integers(6, 12), max_running=st.integers(1, 5), extra=st.integers(0, 40), caching=st.booleans()
    )
    def start(self, num_blocks: int, max_running: int, extra: int, caching: bool) -> None:
        self.runner = ContextRunner(max_slots=5, num_blocks=num_blocks)
        self.engine = Engine(self.runner, EngineLimits(max_running, max_running + extra, caching))
        self.collected = Collected()
        self.asked: dict[int, tuple[EngineRequest, int]] = {}
        self.ended: set[int] = set()
        self.now = 0.0

    @rule(
        target=requests,
        prompt=st.sampled_from(PROMPTS),
        max_new_tokens=st.integers(1, 30),
        seed=st.one_of(st.none(), st.integers(0, 2)),
        priority=st.integers(-2, 2),
        patience=st.one_of(st.none(), st.integers(0, 20)),
        ignore_eos=st.booleans(),
    )
    def add(self, prompt, max_new_tokens, seed, priority, patience, ignore_eos) -> int:
        request_id = len(self.asked)
        params = SamplingParams(max_new_tokens=max_new_tokens, seed=seed, ignore_eos=ignore_eos, stop_token_ids=(50,))
        deadline = None if patience is None else self.now + patience
        request = EngineRequest(request_id, prompt, params, priority, deadline)
        self.asked[request_id] = (request, self.engine.add(request))
        return request_id

    @rule(request_id=consumes(requests))
    def abort(self, request_id: int) -> None:
        if self.engine.abort(request_id):
            self.ended.add(request_id)
            assert request_id not in self.engine.scheduler.requests

    @rule(request_id=requests)
    def hold(self, request_id: int) -> None:
        self.engine.hold(request_id)

    @rule(request_id=requests)
    def resume(self, request_id: int) -> None:
        self.engine.resume(request_id)

    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.now += 1
            could_run = self.engine.scheduler.can_run
            self.collected.take(self.engine.step(self.now))
            self.engine.check_integrity()
            if could_run and self.engine.scheduler.can_run:
                assert self.engine.last_step.num_tokens > 0, "a step without progress"

    @invariant()
    def everything_adds_up(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()
            assert set(self.runner.seeds) == {s.slot for s in self.engine.scheduler.running}

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for request_id in self.asked:
            self.engine.resume(request_id)
        for _ in range(3000):
            if not self.engine.has_work:
                break
            self.step(1)
        assert not self.engine.has_work
        assert not self.engine.scheduler.requests
        self._texts_are_right()

    def _texts_are_right(self) -> None:
        for request_id, (request, seed) in self.asked.items():
            stop = [50] if request.params.ignore_eos else [50, 2]
            whole = text_of_context_runner(request.prompt_ids, seed, request.params.max_new_tokens, stop)
            tokens, reason = self.collected.tokens[request_id], self.collected.reasons[request_id]
            if reason in ("abort", "deadline"):
                assert tokens == whole[: len(tokens)]
                assert (reason == "abort") == (request_id in self.ended)
            else:
                assert tokens == whole
                assert reason == ("stop" if whole[-1] in stop else "length")


EngineMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestRandomArrivals = EngineMachine.TestCase
