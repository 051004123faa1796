"""What users ask for: seeded, within its bounds; and how many users a shape has."""

import json
import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.hostilities import HOSTILITIES
from loadtests.workload import ANSWER_TOKENS, PROMPT_WORDS, SHAPES, Lengths, asks, parse_mix, rng_of, users_at


def test_a_seed_repeats_its_requests_and_each_user_has_others() -> None:
    first = list(islice(asks(rng_of(1, "generate", 0)), 20))
    assert first == list(islice(asks(rng_of(1, "generate", 0)), 20))
    for other in (rng_of(2, "generate", 0), rng_of(1, "chat", 0), rng_of(1, "generate", 1)):
        assert first != list(islice(asks(other), 20))
    assert len({ask.prompt for ask in first}) == 20


def test_prompts_and_answers_are_as_long_as_their_distributions_say() -> None:
    for ask in islice(asks(random.Random(0)), 500):
        assert PROMPT_WORDS.least <= len(ask.prompt.split()) <= PROMPT_WORDS.most
        assert ANSWER_TOKENS.least <= ask.num_tokens <= ANSWER_TOKENS.most


def test_half_of_the_lengths_are_below_the_median() -> None:
    rng, lengths = random.Random(0), Lengths(median=50.5, sigma=0.7, least=1, most=10**6)
    below = sum(lengths.draw(rng) <= 50 for _ in range(2000))
    assert abs(below - 1000) < 3.3 * 2000**0.5 / 2  # binomial: false alarm in 1 of 1000 seeds


@given(
    shape=st.sampled_from(SHAPES),
    share=st.floats(0, 1),
    seconds=st.floats(1, 1e5),
    users=st.integers(1, 1000),
)
def test_a_shape_has_always_somebody_and_never_more_than_it_may(
    shape: str, share: float, seconds: float, users: int
) -> None:
    assert 1 <= users_at(shape, share * seconds, seconds, users) <= users


def test_shapes_look_like_their_names() -> None:
    shapes = {shape: [users_at(shape, second, 100, 40) for second in range(100)] for shape in SHAPES}
    assert shapes["ramp"] == sorted(shapes["ramp"])
    assert (shapes["ramp"][0], shapes["ramp"][99]) == (1, 40)
    assert set(shapes["soak"]) == {40}
    assert [shapes["spike"][second] for second in (0, 49, 50, 74, 75, 99)] == [10, 10, 40, 40, 10, 10]


@pytest.mark.parametrize("text", ["", "generate", "generate=x", "other=1", "generate=1,generate=2", "generate=0"])
def test_a_bad_mix_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(ValueError, match="mix="):
        parse_mix(text, ("generate", "score"))
    assert parse_mix("score=0,generate=3", ("generate", "score")) == {"score": 0, "generate": 3}


def test_the_hostile_send_much_and_little_and_each_names_the_refusal_it_deserves() -> None:
    sizes = {each.name: len(each.body(random.Random(0))) for each in HOSTILITIES}
    assert len(sizes) == len(HOSTILITIES)
    assert sizes["huge body"] > 1 << 20 > sizes["huge prompt"] > 100_000
    assert all(400 <= status < 500 for each in HOSTILITIES for status in each.statuses)
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(next(each for each in HOSTILITIES if each.name == "truncated JSON").body(random.Random(0)))
