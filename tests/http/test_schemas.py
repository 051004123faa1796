"""What a request may say: defaults, limits, and that nothing but an ApiError comes out of a bad body."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.errors import ApiError
from serve.routes.quality import parse_compare, parse_score
from serve.schemas import GenerateRequest, Limits, check_sizes, encode, parse, plan
from serve.served_model import ServedModel, load_served_model
from serve.settings import ServeSettings

LIMITS = Limits(max_prompt_tokens=100, max_model_len=128, vocab_size=257, settings=ServeSettings())


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ServedModel:
    return load_served_model(str(tiny_model))


def planned(model: ServedModel, **body: Any) -> list[dict[str, Any]]:
    request = parse(json.dumps(body).encode())
    check_sizes(request, LIMITS.settings)
    return [job.params for job in plan(request, encode(request, model.tokenizer, LIMITS), model, LIMITS).jobs]


def test_what_is_not_given_comes_from_generation_config_then_from_the_engine(model: ServedModel) -> None:
    (params,) = planned(model, prompt="abc")
    assert params["temperature"] == 0.9  # generation_config.json of the tiny model
    assert params["top_p"] == 1.0
    assert params["max_new_tokens"] == 125  # 128 fit, 3 are prompt
    assert "num_logprobs" not in params


def test_zero_is_a_value(model: ServedModel) -> None:
    (params,) = planned(model, prompt="abc", temperature=0, seed=0, logprobs=0)
    assert (params["temperature"], params["seed"], params["num_logprobs"]) == (0, 0, 0)


def test_each_choice_has_its_own_seed(model: ServedModel) -> None:
    jobs = planned(model, prompt=["a", "b"], n=2, seed=7)
    assert [job["seed"] for job in jobs] == [7, 8, 9, 10]


def test_a_drawn_seed_survives_readers_whose_numbers_are_doubles(model: ServedModel) -> None:
    seeds = [planned(model, prompt="abc")[0]["seed"] for _ in range(50)]
    assert all(seed == int(float(seed)) for seed in seeds)
    assert len(set(seeds)) == 50


@pytest.mark.parametrize("body", [b"", b"null", b"3", b"[]", b'"x"', b"{", b"\xff", b'{"prompt": "\\ud800"}'])
def test_a_body_that_is_no_object_is_400_or_422(body: bytes) -> None:
    with pytest.raises(ApiError) as failure:
        parse(body)
    assert failure.value.status in (400, 422)
    json.loads(failure.value.json_bytes())


@pytest.mark.parametrize(
    ("parser", "body"),
    [
        (parse, {f"field_{i}": 1 for i in range(20_000)}),
        (parse, {"x" * 500_000: 1}),
        (parse, {"prompt": [1.5] * 100_000}),
        (parse, {"prompt": [[]] * 100_000}),
        (parse, {"prompt": "a", "stop": [1] * 100_000}),
        (parse, {"prompt": "a", "seed": 10**4000}),
        (lambda body: parse_score(body, 9), {"texts": [1] * 100_000}),
        (lambda body: parse_compare(body, 9), {"prompts": [1] * 100_000, "a": {}, "b": {}}),
    ],
    ids=["fields", "a long name", "numbers", "lists", "stops", "digits", "scores", "comparisons"],
)
def test_a_large_body_of_nonsense_makes_a_small_answer(parser: Callable[[bytes], object], body: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as failure:
        parser(json.dumps(body).encode())
    assert failure.value.status == 422
    assert len(failure.value.json_bytes()) < 20_000


def test_a_list_of_nonsense_is_one_problem_for_each_kind_of_list() -> None:
    with pytest.raises(ValidationError) as failure:
        GenerateRequest.model_validate_json(json.dumps({"prompt": [1.5] * 1000}))
    assert failure.value.error_count() == 3


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from([*GenerateRequest.model_fields, "other"])


def failure_of(model: ServedModel, body: dict[str, Any]) -> ApiError | None:
    try:
        planned(model, **body)
    except ApiError as error:
        return error
    return None


@given(st.dictionaries(names, values, max_size=5))
def test_any_json_is_a_plan_or_an_api_error_in_the_one_shape(model: ServedModel, body: dict[str, Any]) -> None:
    failure = failure_of(model, body)
    if failure is not None:
        assert failure.status in (400, 422)
        shape = json.loads(failure.json_bytes())["error"]
        assert shape["message"]
        assert shape["remedy"]
        assert failure.status == 400 or shape["field"]


@given(st.text(min_size=1, max_size=40))
def test_any_text_is_encoded_within_the_vocabulary(model: ServedModel, text: str) -> None:
    request = GenerateRequest(prompt=text)
    limits = Limits(10_000, 20_000, 257, ServeSettings())
    (ids,) = encode(request, model.tokenizer, limits)
    assert all(0 <= token < 257 for token in ids)
