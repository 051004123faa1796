"""One answer, with a generation that the test feeds."""

import asyncio
from types import SimpleNamespace
from typing import Any

from serve.engine.request import TokenDelta
from serve.routes.generate import Answer
from tests.http.test_completion import TOKENIZER, completion


class FakeGeneration:
    def __init__(self, *batches: list[tuple[int, TokenDelta]]) -> None:
        self.batches = list(batches)
        self.stopped: list[int] = []
        self.acknowledged: list[tuple[int, int]] = []

    async def take(self) -> list[tuple[int, TokenDelta]]:
        return self.batches.pop(0)

    def stop(self, index: int) -> None:
        self.stopped.append(index)

    def acknowledge(self, index: int, num_tokens: int) -> None:
        self.acknowledged.append((index, num_tokens))

    def close(self) -> None:
        pass


def tokens(text: str, end: Any = None) -> TokenDelta:
    ids = TOKENIZER.encode(text).ids
    return TokenDelta(1, ids, [0.0] * len(ids), [0.0] * len(ids), None, end)


def answer_of(generation: FakeGeneration, *stop: str, choices: int = 1) -> Answer:
    metrics = SimpleNamespace(timing=False, outcome=lambda route, name: None, finished=lambda totals: None)
    service: Any = SimpleNamespace(metrics=metrics, observe_quality=lambda choices: None)
    feed: Any = generation
    return Answer(service, feed, completion(*stop, choices=choices))


def test_a_choice_that_a_stop_string_ended_is_aborted_while_the_other_goes_on() -> None:
    generation = FakeGeneration([(0, tokens("x")), (1, tokens("one STOP two"))])
    asyncio.run(answer_of(generation, "STOP", choices=2)._advance())
    assert generation.stopped == [1]


def test_credit_is_given_for_what_the_connection_took_and_not_before() -> None:
    generation = FakeGeneration([(0, tokens("abc"))], [(0, tokens("de"))], [(0, tokens("", "length"))])
    answer = answer_of(generation)

    async def scenario() -> list[list[tuple[int, int]]]:
        seen = []
        first = await answer._advance()
        async for _ in answer._rest(first):
            seen.append(list(generation.acknowledged))
        return seen

    assert asyncio.run(scenario()) == [[(0, 3)], [(0, 3), (0, 2)]]
