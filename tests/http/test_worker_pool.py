"""The HTTP side of the channel, over real sockets, with the worker's side held by the test."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from serve.channel import WORKER_LOST, Abort, Acknowledge, Add, Command, Hello
from serve.engine.request import TokenDelta
from serve.worker import Sockets
from serve.worker_pool import ReaderGone, WorkerPool


@pytest.fixture
def folder() -> Path:
    from serve.settings import make_private_folder

    return make_private_folder()


def hello(sockets: Sockets, pid: int) -> Hello:
    return Hello(sockets.worker, sockets.epoch, pid, sockets.address, "fake", "", "", 100, 257, 4)


def delta(request_id: int, *tokens: int, end: str | None = None) -> TokenDelta:
    numbers = [0.0] * len(tokens)
    return TokenDelta(request_id, list(tokens), numbers, numbers, finish_reason=end)  # type: ignore[arg-type]


class Bench:
    """One pool and any number of workers, each a Sockets object and a sleeping process that stands for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.in_flight = 0
        self.deaths: list[int] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.sockets: list[Sockets] = []

    def count(self, change: int) -> None:
        self.in_flight += change

    async def __aenter__(self) -> "Bench":
        self.pool = WorkerPool(self.folder, 0, on_in_flight=self.count, on_death=self.deaths.append)
        self.pool.start()
        return self

    async def __aexit__(self, *failure: object) -> None:
        self.pool.close()
        for sockets in self.sockets:
            sockets.close()
        for process in self.processes:
            process.kill()
            process.wait()

    async def worker(self, number: int = 0) -> Sockets:
        sockets = Sockets(self.folder, number, 1)
        process = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
        self.sockets.append(sockets)
        self.processes.append(process)
        sockets.greet(hello(sockets, process.pid))
        while sockets.epoch not in [h.epoch for h in self.pool.hellos]:
            await asyncio.sleep(0)
        return sockets


def commands(sockets: Sockets, count: int = 1) -> list[Command]:
    """At least so many commands, waiting for them."""
    received: list[Command] = []
    while len(received) < count:
        received += sockets.receive(10)
    return received


def run(folder: Path, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Bench(folder) as bench:
            await asyncio.wait_for(scenario(bench), 30)

    asyncio.run(main())


def test_a_request_goes_out_and_its_deltas_come_back(folder: Path) -> None:
    async def scenario(bench: Bench) -> None:
        sockets = await bench.worker()
        generation = bench.pool.open([Add(0, [1, 2]), Add(0, [3])], 16)
        first, second = commands(sockets)
        assert isinstance(first, Add)
        assert isinstance(second, Add)
        assert (first.prompt_ids, first.window, second.prompt_ids) == ([1, 2], 16, [3])
        sockets.send([delta(first.request_id, 7), delta(second.request_id, 8, 9, end="stop")])
        assert await generation.take() == [
            (0, delta(first.request_id, 7)),
            (1, delta(second.request_id, 8, 9, end="stop")),
        ]
        assert generation.unfinished == 1
        assert bench.in_flight == 1

    run(folder, scenario)


def test_everything_that_waits_is_taken_at_once(folder: Path) -> None:
    async def scenario(bench: Bench) -> None:
        sockets = await bench.worker()
        generation = bench.pool.open([Add(0, [1])], 0)
        (add,) = commands(sockets)
        assert isinstance(add, Add)
        for token in range(5):
            sockets.send([delta(add.request_id, token, end="length" if token == 4 else None)])
        taken: list[tuple[int, TokenDelta]] = []
        turns = 0
        while bench.in_flight:
            await asyncio.sleep(0)
        while not taken or taken[-1][1].finish_reason is None:
            taken += await generation.take()
            turns += 1
        assert [d.token_ids for _, d in taken] == [[0], [1], [2], [3], [4]]
        assert turns == 1

    run(folder, scenario)


def test_the_death_of_a_worker_fails_its_requests_at_once(folder: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.worker()
        generation = bench.pool.open([Add(0, [1]), Add(0, [2])], 0)
        bench.processes[0].kill()
        taken = await generation.take()
        assert [d.error for _, d in taken] == [WORKER_LOST] * 2
        assert bench.in_flight == 0
        assert bench.deaths == [bench.processes[0].pid]
        assert bench.pool.hellos == []
        with pytest.raises(LookupError):
            bench.pool.open([Add(0, [1])], 0)

    run(folder, scenario)


def test_what_a_worker_said_before_it_died_still_counts(folder: Path) -> None:
    async def scenario(bench: Bench) -> None:
        sockets = await bench.worker()
        generation = bench.pool.open([Add(0, [1])], 0)
        (add,) = commands(sockets)
        assert isinstance(add, Add)
        sockets.send([delta(add.request_id, 7)])
        assert (await generation.take())[0][1].token_ids == [7]
        sockets.send([delta(add.request_id, 8, end="stop")])
        bench.pool._inbox.poll(10_000)
        bench.processes[0].kill()
        bench.processes[0].wait()
        taken = await generation.take()
        assert [d.finish_reason for _, d in taken] == ["stop"]

    run(folder, scenario)


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_a_worker_that_comes_back_fails_what_its_last_life_owed(
    folder: Path, has_pidfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_pidfd:
        monkeypatch.delattr("os.pidfd_open", raising=False)

    async def scenario(bench: Bench) -> None:
        before = await bench.worker()
        generation = bench.pool.open([Add(0, [1])], 0)
        (add,) = commands(before)
        assert isinstance(add, Add)
        after = await bench.worker()
        assert [d.error for _, d in await generation.take()] == [WORKER_LOST]
        before.send([delta(add.request_id, 7)])  # late words of the dead are not heard
        bench.pool.open([Add(0, [2])], 0)
        (again,) = commands(after)
        assert isinstance(again, Add)
        assert again.prompt_ids == [2]
        assert before.receive(0) == []

    run(folder, scenario)


def test_a_cancel_goes_to_the_worker_that_owns_the_request(folder: Path) -> None:
    async def scenario(bench: Bench) -> None:
        workers = [await bench.worker(0), await bench.worker(1)]
        generations = [bench.pool.open([Add(0, [i])], 0) for i in range(2)]
        owners = {}
        for number, sockets in enumerate(workers):
            (add,) = commands(sockets)
            assert isinstance(add, Add)
            owners[add.prompt_ids[0]] = (number, add.request_id)
        assert {number for number, _ in owners.values()} == {0, 1}
        number, request_id = owners[1]
        generations[1].hang_up()
        assert commands(workers[number]) == [Abort([request_id])]
        assert workers[1 - number].receive(0) == []
        assert bench.in_flight == 1
        with pytest.raises(ReaderGone):
            await generations[1].take()

    run(folder, scenario)


def test_credit_is_given_in_quarters_of_the_window(folder: Path) -> None:
    async def scenario(bench: Bench) -> None:
        sockets = await bench.worker()
        generation = bench.pool.open([Add(0, [1])], 16)
        (add,) = commands(sockets)
        assert isinstance(add, Add)
        for _ in range(7):
            generation.acknowledge(0, 1)
        generation.acknowledge(0, 3)
        assert commands(sockets, 2) == [Acknowledge(add.request_id, 4), Acknowledge(add.request_id, 6)]

    run(folder, scenario)


def test_hanging_up_twice_or_after_the_end_says_nothing_more(folder: Path) -> None:
    async def scenario(bench: Bench) -> None:
        sockets = await bench.worker()
        generation = bench.pool.open([Add(0, [1])], 0)
        commands(sockets)
        generation.hang_up()
        generation.hang_up()
        assert len(commands(sockets)) == 1
        assert bench.in_flight == 0

    run(folder, scenario)


def test_tokens_in_the_middle_of_answers_wait_for_the_flush_and_the_first_and_last_do_not(folder: Path) -> None:
    async def scenario(bench: Bench) -> None:
        bench.pool._interval = 3600.0
        sockets = await bench.worker()
        generations = [bench.pool.open([Add(0, [i])], 0) for i in range(8)]
        ids = [c.request_id for c in commands(sockets, len(generations)) if isinstance(c, Add)]
        sockets.send([delta(ids[0], 1)])
        assert (await generations[0].take())[0][1].token_ids == [1]
        waiting = asyncio.ensure_future(generations[0].take())
        sockets.send([delta(ids[0], 2)])
        sockets.send([delta(ids[1], 1)])
        await generations[1].take()  # came after token 2 of generation 0
        assert not waiting.done()
        sockets.send([delta(ids[0], 3, end="length")])
        assert [d.token_ids for _, d in await waiting] == [[2], [3]]

    run(folder, scenario)
