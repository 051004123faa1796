"""The engine around scheduler and runner: deltas, endings, errors, statistics."""

import numpy as np
import pytest

from serve.engine.engine import Engine, EngineLimits
from serve.engine.request import EngineRequest, SamplingParams, TokenDelta
from serve.engine.runner import Runner, StepBatch, StepOutput
from tests.engine.helpers import ContextRunner, run_to_end, text_of_context_runner


def request(request_id: int, length: int = 5, new: int = 6, **options) -> EngineRequest:
    params = SamplingParams(max_new_tokens=new, **{"seed": 1, "ignore_eos": True, **options})
    return EngineRequest(request_id, list(range(3, 3 + length)), params)


def test_the_context_runner_is_a_runner() -> None:
    assert isinstance(ContextRunner(), Runner)


def test_requests_join_and_leave_a_running_batch() -> None:
    engine = Engine(ContextRunner())
    engine.add(request(0, new=4))
    engine.step()
    engine.add(request(1, new=4))
    rows = []
    while engine.has_work:
        engine.step()
        rows.append(engine.last_step.num_rows)
    assert rows == [2, 2, 2, 1]


def test_an_abort_frees_slot_and_blocks_at_once_and_is_told_in_the_next_step() -> None:
    runner = ContextRunner()
    engine = Engine(runner)
    engine.add(request(0))
    engine.step()
    assert engine.abort(0)
    assert not engine.abort(0)
    assert runner.seeds == {}
    assert engine.scheduler.allocator.num_free == runner.num_blocks
    assert engine.has_work
    assert engine.step() == [TokenDelta(0, [], [], [], None, "abort")]
    assert not engine.has_work


def test_a_waiting_request_can_be_aborted() -> None:
    engine = Engine(ContextRunner(), EngineLimits(max_running=1))
    for i in range(3):
        engine.add(request(i, new=3))
    engine.step()
    engine.abort(1)
    collected = run_to_end(engine)
    assert collected.reasons == {0: "length", 1: "abort", 2: "length"}


def test_eos_and_stop_tokens_end_a_text_and_belong_to_it() -> None:
    prompt = list(range(3, 8))
    whole = text_of_context_runner(prompt, 1, 60, [])
    stop = whole[9]
    collected = run_to_end(Engine(ContextRunner()), [request(0, new=60, stop_token_ids=(stop,))])
    assert collected.tokens[0] == whole[: whole.index(stop) + 1]
    assert collected.reasons[0] == "stop"


def test_an_eos_that_is_ignored_does_not_end_a_text() -> None:
    class AlwaysEos(ContextRunner):
        def execute(self, batch: StepBatch) -> StepOutput:
            output = super().execute(batch)
            output.token_ids[:] = 2
            return output

    collected = run_to_end(Engine(AlwaysEos()), [request(0), request(1, ignore_eos=False)])
    assert collected.tokens == {0: [2] * 6, 1: [2]}
    assert collected.reasons == {0: "length", 1: "stop"}


def test_a_deadline_ends_a_request_and_keeps_what_it_has() -> None:
    engine = Engine(ContextRunner())
    late = request(0, new=50)
    late.deadline = 3.0
    engine.add(late)
    assert engine.next_deadline == 3.0
    deltas = [d for now in range(5) for d in engine.step(now)]
    assert [len(d.token_ids) for d in deltas] == [1, 1, 1, 0]
    assert deltas[-1].finish_reason == "deadline"
    assert not engine.has_work


def test_a_held_request_is_no_work_and_goes_on_where_it_was() -> None:
    engine = Engine(ContextRunner())
    engine.add(request(0))
    first = engine.step()[0].token_ids
    assert engine.hold(0)
    assert not engine.has_work
    assert engine.step() == []
    assert engine.resume(0)
    rest = run_to_end(engine).tokens[0]
    assert first + rest == text_of_context_runner(list(range(3, 8)), 1, 6, [])
    assert not engine.hold(0)
    assert not engine.resume(0)


def test_a_request_the_runner_refuses_fails_alone() -> None:
    collected = run_to_end(Engine(ContextRunner()), [request(0), request(1, top_k=666), request(2)])
    assert collected.reasons == {0: "length", 1: "error", 2: "length"}


def test_a_failing_step_ends_its_requests_with_an_error_and_the_engine_goes_on() -> None:
    class FailsOnce(ContextRunner):
        def execute(self, batch: StepBatch) -> StepOutput:
            if len(self.steps) == 2:
                self.steps.append([])
                raise RuntimeError("out of luck")
            return super().execute(batch)

    engine = Engine(FailsOnce(), EngineLimits(max_running=2))
    for i in range(3):
        engine.add(request(i, length=20))
    engine.step()
    engine.step()
    engine.abort(0)
    with pytest.raises(RuntimeError, match="out of luck"):
        engine.step()
    engine.check_integrity()
    deltas = {d.request_id: d for d in engine.step()}
    assert deltas[0].finish_reason == "abort"
    assert deltas[1].error == deltas[2].error == "the model failed: out of luck"
    engine.add(request(4, length=20))
    assert run_to_end(engine).reasons == {4: "length"}


def test_a_seed_is_drawn_from_the_engines_own_and_reported() -> None:
    def seeds(engine_seed: int) -> list[int]:
        engine = Engine(ContextRunner(), EngineLimits(seed=engine_seed))
        return [engine.add(request(i, seed=None)) for i in range(5)]

    assert seeds(1) == seeds(1)
    assert len({*seeds(1), *seeds(2)}) == 10
    assert all(0 <= s < 2**63 for s in seeds(1))
    assert Engine(ContextRunner()).add(request(0, seed=77)) == 77


def test_top_logprobs_reach_only_those_who_asked() -> None:
    class WithTop(ContextRunner):
        def execute(self, batch: StepBatch) -> StepOutput:
            output = super().execute(batch)
            output.top_logprobs = [[(slot, -0.5)] if slot else [] for slot, *_ in self.steps[-1]]
            return output

    engine = Engine(WithTop())
    engine.add(request(0))
    engine.add(request(1, num_logprobs=1))
    assert [d.top_logprobs for d in engine.step()] == [None, [[(1, -0.5)]]]


REFUSED = [
    (request(0, length=5), "request_id is 0"),
    (EngineRequest(1, [3, 97]), "prompt_ids has 97: the model's token ids are 0..96"),
    (EngineRequest(1, [3, -1]), "prompt_ids has -1"),
    (request(1, logit_bias={97: 1.0}), "logit_bias has 97"),
    (request(1, length=60, new=200), "max_new_tokens is 200: .* ask for at most 196"),
    (request(1, length=90, new=80), "exceeds the cache's 128 tokens"),
]


@pytest.mark.parametrize(("bad", "message"), REFUSED)
def test_what_cannot_be_served_is_refused_with_a_remedy_and_changes_nothing(bad: EngineRequest, message: str) -> None:
    engine = Engine(ContextRunner())
    engine.add(request(0))
    with pytest.raises(ValueError, match=message):
        engine.add(bad)
    assert len(engine.scheduler.requests) == 1


def test_a_request_that_just_fits_is_served() -> None:
    collected = run_to_end(Engine(ContextRunner()), [request(0, length=90, new=39), request(1, length=1, new=128)])
    assert [len(collected.tokens[i]) for i in (0, 1)] == [39, 128]


def test_more_running_requests_than_the_runner_has_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="max_running is 9"):
        Engine(ContextRunner(), EngineLimits(max_running=9))


def test_statistics_add_up() -> None:
    ticks = iter(range(10_000))
    engine = Engine(ContextRunner(num_blocks=20), EngineLimits(max_running=2), clock=lambda: float(next(ticks)))
    for i in range(3):
        engine.add(request(i, length=33, new=4))
    deltas = []
    while engine.has_work:
        deltas += engine.step()
        last = engine.last_step
        assert last.schedule_seconds > 0
        assert last.execute_seconds > 0
        assert last.update_seconds > 0
    stats = engine.stats
    assert (stats.num_requests, stats.num_finished) == (3, 3)
    assert stats.num_tokens_sampled == sum(len(d.token_ids) for d in deltas) == 12
    assert stats.num_tokens_computed == 3 * 33 + 3 * 3 - stats.prefix_tokens_hit
    assert (stats.prefix_tokens_asked, stats.prefix_tokens_hit) == (99, 32)
    assert (engine.last_step.num_running, engine.last_step.num_waiting) == (0, 0)
    assert engine.last_step.num_free_blocks == engine.last_step.num_blocks == 20


def test_block_tables_stay_one_array_for_the_life_of_the_engine() -> None:
    class Remembers(ContextRunner):
        addresses: set[int]

        def execute(self, batch: StepBatch) -> StepOutput:
            self.addresses = getattr(self, "addresses", set()) | {batch.block_tables.ctypes.data}
            arrays = (batch.slots, batch.num_tokens, batch.start_positions, batch.token_ids, batch.block_tables)
            assert all(a.dtype == np.int32 and a.flags.c_contiguous for a in arrays)
            assert batch.sample.dtype == np.uint8
            return super().execute(batch)

    runner = Remembers()
    run_to_end(Engine(runner), [request(i, length=20 + i) for i in range(6)])
    assert len(runner.addresses) == 1
