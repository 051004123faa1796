"""The worker's loop, turn by turn, with an engine and a channel that the test controls."""

import pytest

from serve.channel import READ_TOO_SLOWLY, Abort, Acknowledge, Add
from serve.worker import WorkerLoop
from tests.http.fakes import FakeEngine, FakeSockets


class Bench:
    def __init__(self, stall_seconds: float = 60.0) -> None:
        self.engine = FakeEngine()
        self.sockets = FakeSockets()
        self.now = 100.0
        self.loop = WorkerLoop(self.engine, self.sockets, stall_seconds=stall_seconds, clock=lambda: self.now)

    def turn(self, *commands: Add | Abort | Acknowledge) -> None:
        self.sockets.incoming.append(list(commands))
        self.loop.turn()


def add(request_id: int, *, prompt: list[int] | None = None, tokens: int = 100, window: int = 0) -> Add:
    return Add(request_id, prompt or [1], {"max_new_tokens": tokens}, None, window)


def test_one_message_a_step_holds_the_deltas_of_all_requests() -> None:
    bench = Bench()
    bench.turn(add(1), add(2), add(3))
    assert [[d.request_id for d in sent] for sent in bench.sockets.sent] == [[1, 2, 3]]


def test_an_idle_worker_waits_without_limit_and_checks_itself_once() -> None:
    bench = Bench()
    bench.turn()
    bench.turn()
    assert bench.sockets.waits == [None, None]
    assert bench.engine.num_checks == 1


def test_it_checks_itself_again_after_work() -> None:
    bench = Bench()
    bench.turn()
    bench.turn(add(1, tokens=1))
    bench.turn()
    assert bench.engine.num_checks == 2


def test_a_busy_worker_does_not_wait() -> None:
    bench = Bench()
    bench.turn(add(1))
    bench.turn()
    assert bench.sockets.waits[-1] == 0


@pytest.mark.parametrize(("prompt", "said"), [([999], "prompt_ids"), ([666], "the engine failed")])
def test_a_request_that_cannot_start_fails_alone(prompt: list[int], said: str) -> None:
    bench = Bench()
    bench.turn(add(1), add(2, prompt=prompt), add(3))
    failed = [d for d in bench.sockets.all_sent() if d.finish_reason == "error"]
    assert [d.request_id for d in failed] == [2]
    assert said in (failed[0].error or "")
    assert set(bench.engine.requests) == {1, 3}


def test_sampling_parameters_out_of_range_fail_that_request() -> None:
    bench = Bench()
    bench.turn(Add(1, [1], {"temperature": -1.0}))
    assert "temperature" in (bench.sockets.all_sent()[0].error or "")


def test_a_failing_step_does_not_end_the_worker() -> None:
    bench = Bench()
    bench.engine.explode_next = True
    bench.turn(add(1))
    bench.turn()
    assert len(bench.sockets.all_sent()) == 1


def test_an_abort_reaches_the_engine_before_the_next_step() -> None:
    bench = Bench()
    bench.turn(add(1), add(2))
    bench.turn(Abort([1]))
    assert bench.engine.aborted == [1]
    assert [d.request_id for d in bench.sockets.sent[-1]] == [2]


def test_a_slow_reader_pauses_its_own_stream_only() -> None:
    bench = Bench()
    bench.turn(add(1, window=8), add(2))
    for _ in range(20):
        bench.turn()
    assert bench.engine.written == {1: 8, 2: 21}


def test_credit_lets_a_paused_stream_go_on() -> None:
    bench = Bench()
    bench.turn(add(1, window=8))
    for _ in range(10):
        bench.turn()
    bench.turn(Acknowledge(1, 5))
    for _ in range(10):
        bench.turn()
    assert bench.engine.written == {1: 13}


def test_a_reader_that_takes_nothing_for_long_is_given_up() -> None:
    bench = Bench(stall_seconds=5)
    bench.turn(add(1, window=2))
    bench.turn()
    bench.turn()
    assert bench.sockets.waits[-1] == pytest.approx(5)
    bench.now += 5
    bench.turn()
    assert bench.engine.aborted == [1]
    assert bench.sockets.all_sent()[-1].error == READ_TOO_SLOWLY


def test_a_deadline_of_a_paused_stream_is_kept() -> None:
    bench = Bench()
    bench.turn(Add(1, [1], {"max_new_tokens": 100}, 3.0, 2))
    bench.turn()
    bench.turn()
    assert bench.sockets.waits[-1] == pytest.approx(3)
    bench.now += 3
    bench.turn()
    assert bench.sockets.all_sent()[-1].finish_reason == "deadline"
