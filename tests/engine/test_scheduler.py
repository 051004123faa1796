"""What the scheduler promises: budget, gap, admission, fairness, priorities, deadlines, one abort path."""

from collections.abc import Callable

import pytest

from serve.engine.kv_blocks import BlockAllocator, block_digest
from serve.engine.request import EngineRequest, SamplingParams
from serve.engine.scheduler import RequestState, Schedule, Scheduler

BLOCK = 16


def make(num_blocks: int = 64, max_running: int = 4, budget: int = 64, caching: bool = True) -> Scheduler:
    return Scheduler(BlockAllocator(num_blocks, BLOCK, prefix_caching=caching), max_running, budget)


def add(scheduler: Scheduler, request_id: int, length: int, new: int = 8, **options) -> RequestState:
    prompt = [request_id * 1000 + i for i in range(length)]  # no two requests share a prefix
    request = EngineRequest(request_id, prompt, SamplingParams(max_new_tokens=new), **options)
    state = RequestState(request, 0, frozenset())
    scheduler.add(state)
    return state


def step(scheduler: Scheduler, now: float = 0.0) -> Schedule:
    """One step; requests that reach their limit are forgotten. Token 1 is always the one that comes."""
    schedule = scheduler.schedule(now)
    assert sum(schedule.num_tokens.values()) <= scheduler.max_tokens_per_step
    ends = [s for s, n in schedule.num_tokens.items() if s.num_computed + n == len(s.token_ids)]
    for state, reason in scheduler.update(schedule, [1] * len(ends)):
        if reason is not None:
            scheduler.finish(state)
    scheduler.check_integrity()
    return schedule


def step_until(scheduler: Scheduler, holds: Callable[[], bool]) -> Schedule:
    for _ in range(500):
        schedule = step(scheduler)
        if holds():
            return schedule
    raise AssertionError("it never came to be")


def computed(schedule: Schedule) -> dict[int, int]:
    return {s.request_id: n for s, n in schedule.num_tokens.items()}


def test_a_prompt_of_4000_tokens_delays_no_running_stream_by_a_step() -> None:
    scheduler = make(num_blocks=400, max_running=8, budget=256)
    streams = [add(scheduler, i, 10, new=100) for i in range(3)]
    step(scheduler)
    long = add(scheduler, 9, 4000, new=4)
    steps_of_the_prompt = 0
    while long.num_computed < 4000:
        schedule = step(scheduler)
        assert all(schedule.num_tokens[s] == 1 for s in streams)
        steps_of_the_prompt += 1
    assert steps_of_the_prompt == -(-4000 // (256 - 3))


def test_decodes_come_first_and_chunks_share_what_is_left_in_order() -> None:
    scheduler = make(budget=20)
    add(scheduler, 0, 4)
    assert computed(step(scheduler)) == {0: 4}
    add(scheduler, 1, 30)
    add(scheduler, 2, 3)
    assert computed(step(scheduler)) == {0: 1, 1: 19}
    assert computed(step(scheduler)) == {0: 1, 1: 11, 2: 3}
    assert computed(step(scheduler)) == {0: 1, 1: 1, 2: 1}


def test_admission_waits_for_memory_and_nobody_overtakes_the_first_in_line() -> None:
    scheduler = make(num_blocks=6)
    add(scheduler, 0, 60, new=4)
    step(scheduler)
    big, small = add(scheduler, 1, 40), add(scheduler, 2, 1)
    step(scheduler)
    assert (big.slot, small.slot) == (-1, -1)
    for _ in range(4):
        step(scheduler)
    assert big.slot >= 0
    assert small.slot >= 0


def test_a_preempted_request_is_computed_again_and_keeps_its_tokens() -> None:
    scheduler = make(num_blocks=4, caching=False)
    first, second = add(scheduler, 0, 16, new=40), add(scheduler, 1, 14, new=30)
    step_until(scheduler, lambda: second.slot >= 0)
    schedule = step_until(scheduler, lambda: second.slot < 0)
    assert schedule.num_preemptions == 1
    kept = list(second.token_ids)
    while second.slot < 0 and not first.finished:
        step(scheduler)
    step_until(scheduler, lambda: len(second.token_ids) > len(kept))
    assert second.token_ids[: len(kept)] == kept
    assert len(second.token_ids) == len(kept) + 1


def test_a_recomputed_request_finds_its_own_blocks_in_the_cache() -> None:
    scheduler = make(num_blocks=6)
    first, second = add(scheduler, 0, 30, new=40), add(scheduler, 1, 30, new=30)
    step_until(scheduler, lambda: second.slot >= 0)
    step_until(scheduler, lambda: second.slot < 0)
    schedule = step_until(scheduler, lambda: second.slot >= 0)
    assert first.finished
    assert schedule.prefix_tokens_hit > 0


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 3), (0, 3)])
@pytest.mark.parametrize("arrivals", [2, 4])
def test_a_low_priority_request_comes_to_its_turn_under_an_endless_flood(low: int, high: int, arrivals: int) -> None:
    aging = 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve.engine.scheduler.AGING_STEPS", aging)
        scheduler = make(max_running=2, budget=32)
        patient = add(scheduler, 0, 5, new=2, priority=low)
        # Those that may go first arrive within this many steps; each takes 2 steps in one of 2 slots.
        num_ahead = arrivals * (aging * (high - low) + 1)
        waited = 0
        while patient.slot < 0 and not patient.finished:
            for i in range(arrivals):
                add(scheduler, 1 + waited * arrivals + i, 5, new=2, priority=high)
            step(scheduler)
            waited += 1
            assert waited <= max(num_ahead, aging * (high - low)) + 2
        assert waited > aging * (high - low) / 2


def test_equal_priorities_are_served_in_the_order_of_arrival() -> None:
    scheduler = make(max_running=1)
    states = [add(scheduler, i, 5, new=2) for i in range(5)]
    order: list[int] = []
    while scheduler.requests:
        for state in step(scheduler).admitted:
            order.append(states.index(state))
    assert order == [0, 1, 2, 3, 4]


def test_a_higher_priority_is_admitted_first_and_preempted_last() -> None:
    scheduler = make(max_running=1)
    add(scheduler, 0, 5, new=2)
    low, high = add(scheduler, 1, 5, priority=0), add(scheduler, 2, 5, priority=1)
    step(scheduler)
    step(scheduler)
    step(scheduler)
    assert high.slot >= 0
    assert low.slot == -1

    scheduler = make(num_blocks=4, caching=False)
    low, high = add(scheduler, 1, 16, new=40), add(scheduler, 2, 16, new=40, priority=1)
    step_until(scheduler, lambda: high.slot >= 0 and low.slot >= 0)
    step_until(scheduler, lambda: low.slot < 0)
    assert high.slot >= 0


def test_a_deadline_ends_a_request_in_the_first_step_after_it() -> None:
    scheduler = make(max_running=1)
    running, waiting = add(scheduler, 0, 5, deadline=3.0), add(scheduler, 1, 5, deadline=2.0)
    assert scheduler.next_deadline == 2.0
    assert step(scheduler, 1.9).expired == []
    schedule = step(scheduler, 2.0)
    assert schedule.expired == [waiting]
    assert schedule.freed_slots == []
    schedule = step(scheduler, 3.5)
    assert schedule.expired == [running]
    assert schedule.freed_slots == [0]
    assert scheduler.next_deadline is None
    assert not scheduler.requests


def test_a_finished_request_frees_its_slot_and_blocks_at_once() -> None:
    scheduler = make(num_blocks=8)
    state = add(scheduler, 0, 40)
    step(scheduler)
    assert scheduler.allocator.num_free == 5
    assert scheduler.finish(state) == 0
    assert scheduler.allocator.num_free == 8
    scheduler.check_integrity()


def test_a_held_request_computes_nothing_and_gives_way_to_one_that_can_run() -> None:
    scheduler = make(num_blocks=8, max_running=1)
    held, other = add(scheduler, 0, 40, new=20), add(scheduler, 1, 40, new=3)
    step(scheduler)
    scheduler.hold(held)
    schedule = step(scheduler)
    assert computed(schedule) == {1: 40}
    assert schedule.num_preemptions == 1
    step_until(scheduler, lambda: other.finished)
    assert not scheduler.can_run
    assert computed(step(scheduler)) == {}
    scheduler.resume(held)
    assert 0 in computed(step(scheduler))


def test_a_prefix_is_shared_while_it_is_in_use_and_after() -> None:
    scheduler = make()
    prompt = list(range(40))
    first = RequestState(EngineRequest(1, prompt, SamplingParams(max_new_tokens=4)), 0, frozenset())
    scheduler.add(first)
    step(scheduler)
    for request_id in (2, 3):
        again = RequestState(EngineRequest(request_id, prompt, SamplingParams(max_new_tokens=4)), 0, frozenset())
        scheduler.add(again)
        schedule = step(scheduler)
        assert schedule.num_tokens[again] == 8
        assert (schedule.prefix_tokens_hit, schedule.prefix_tokens_asked) == (32, 40)
        if request_id == 2:
            assert again.blocks[:2] == first.blocks[:2]
            while scheduler.requests:
                step(scheduler)


def test_the_last_token_of_a_prompt_is_computed_even_when_all_of_it_is_cached() -> None:
    scheduler = make()
    for request_id in (1, 2):
        request = EngineRequest(request_id, list(range(32)), SamplingParams(max_new_tokens=1))
        scheduler.add(RequestState(request, 0, frozenset()))
        schedule = step(scheduler)
    assert computed(schedule) == {2: 16}


def test_cached_blocks_are_given_up_oldest_first_and_ends_before_beginnings() -> None:
    allocator = BlockAllocator(3, BLOCK)
    digests = [block_digest(b"", range(16))]
    digests.append(block_digest(digests[0], range(16, 32)))
    blocks = [allocator.allocate(), allocator.allocate()]
    for block, digest in zip(blocks, digests, strict=True):
        allocator.name_block(block, digest)
    allocator.release(blocks)
    assert allocator.num_free == 3
    taken = [allocator.allocate(), allocator.allocate()]
    assert allocator.find_prefix(digests) == ([blocks[0]], 1)
    allocator.check_integrity([taken])


def test_a_digest_names_the_whole_prefix() -> None:
    one = block_digest(block_digest(b"", [1] * 16), [2] * 16)
    assert one != block_digest(block_digest(b"", [3] * 16), [2] * 16)
    assert one != block_digest(b"", [2] * 16)
    assert one == block_digest(block_digest(b"", [1] * 16), [2] * 16)


def test_the_auditor_sees_lost_shared_and_misnamed_blocks() -> None:
    scheduler = make()
    state = add(scheduler, 0, 40, new=20)
    step(scheduler)
    taken = state.blocks.pop()
    with pytest.raises(AssertionError, match="computed tokens without blocks"):
        scheduler.check_integrity()
    state.blocks += [taken, scheduler.allocator._blank[-1]]
    with pytest.raises(AssertionError, match="reference counts differ"):
        scheduler.check_integrity()
    state.blocks.pop()
    scheduler.check_integrity()
    scheduler._free_slots.append(state.slot)
    with pytest.raises(AssertionError, match="slots are lost or shared"):
        scheduler.check_integrity()


@pytest.mark.parametrize(("max_running", "budget", "field"), [(0, 5, "max_running"), (8, 7, "max_tokens_per_step")])
def test_limits_that_break_a_promise_are_refused(max_running, budget, field) -> None:
    with pytest.raises(ValueError, match=f"{field} is"):
        make(max_running=max_running, budget=budget)


def test_a_step_of_decodes_looks_at_no_history() -> None:
    class Counting(list):  # type: ignore[type-arg]
        reads = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            Counting.reads += len(self)
            return super().__iter__()

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            Counting.reads += len(range(*index.indices(len(self)))) if isinstance(index, slice) else 1
            return super().__getitem__(index)

    scheduler = make(num_blocks=200)
    state = add(scheduler, 0, 1000, new=500)
    while state.num_computed < 1000:
        step(scheduler)
    state.token_ids = Counting(state.token_ids)
    Counting.reads = 0
    for _ in range(160):
        scheduler.update(scheduler.schedule(), [1])
    # Each token is read once, when its block is named.
    assert Counting.reads <= 160 + BLOCK
