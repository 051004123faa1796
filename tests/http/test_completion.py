"""Deltas to text to bytes, whatever way the tokens are cut into deltas."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from serve.channel import WORKER_LOST, Add
from serve.completion import Completion, error_event
from serve.engine.request import TokenDelta
from serve.errors import ApiError
from serve.schemas import Plan


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = byte_tokenizer()


def completion(*stop: str, choices: int = 1, logprobs: int | None = None) -> Completion:
    prompt = [1, 2, 3]
    plan = Plan([Add(0, prompt) for _ in range(choices)], stop, logprobs, True, list(range(choices)))
    ticks = iter(range(10_000))
    return Completion(plan, TOKENIZER, arrived=-1.0, clock=lambda: float(next(ticks)))


def delta(ids: list[int], end: Any = None) -> TokenDelta:
    return TokenDelta(1, ids, [-0.5] * len(ids), [1.0] * len(ids), None, end)


def events(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in data.decode().split("\n") if line.startswith("data: ")]


@given(st.text(max_size=30), st.lists(st.integers(1, 6), min_size=1), st.booleans())
def test_events_join_to_the_text_however_tokens_come(text: str, sizes: list[int], together: bool) -> None:
    ids = TOKENIZER.encode(text).ids
    deltas = []
    position = 0
    for size in sizes * (len(ids) + 1):
        if position >= len(ids):
            break
        deltas.append(delta(ids[position : position + size]))
        position += size
    deltas.append(delta([], "length"))
    made = completion()
    batches = [deltas] if together else [[d] for d in deltas]
    data = b"".join(made.events(made.accept([(0, d) for d in batch])) for batch in batches)
    assert "".join(event["text"] for event in events(data)) == text
    assert made.finished
    final = events(data)[-1]
    assert (final["finish_reason"], final["usage"]["completion_tokens"]) == ("length", len(ids))
    assert json.loads(made.body("m", "id"))["choices"][0]["text"] == text


def test_a_character_cut_off_by_the_end_is_shown_as_replacement() -> None:
    made = completion()
    data = made.events(made.accept([(0, delta(TOKENIZER.encode("a\u20ac").ids[:-1]))]))
    data += made.events(made.accept([(0, delta([], "length"))]))
    assert "".join(event["text"] for event in events(data)) == "a\ufffd"


@given(st.integers(1, 8), st.integers(1, 4))
def test_a_stop_string_across_deltas_ends_the_choice(size: int, after: int) -> None:
    ids = TOKENIZER.encode("one two STOP three" + "x" * after).ids
    made = completion("STOP")
    data = b""
    for start in range(0, len(ids), size):
        changed = made.accept([(0, delta(ids[start : start + size]))])
        data += made.events(changed)
        if made.finished:
            break
    assert "".join(event["text"] for event in events(data)) == "one two "
    assert events(data)[-1]["finish_reason"] == "stop"
    assert made.accept([(0, delta([65]))]) == []  # the engine may have run a step ahead


def test_choices_end_each_with_its_own_final_event() -> None:
    made = completion(choices=2)
    data = made.events(made.accept([(0, delta([65], "length")), (1, delta([66]))]))
    assert not made.finished
    data += made.events(made.accept([(1, delta([67], "stop"))]))
    finals = [event for event in events(data) if "finish_reason" in event]
    assert [(f["index"], f["finish_reason"], f["seed"]) for f in finals] == [(0, "length", 0), (1, "stop", 1)]
    assert made.finished


def test_a_shared_prompt_counts_once_and_times_are_per_choice() -> None:
    made = completion(choices=2)
    made.accept([(0, delta([65])), (1, delta([65]))])
    made.accept([(0, delta([65, 66], "length"))])
    made.accept([(1, delta([65], "length"))])
    totals = made.totals()
    assert (totals.num_prompt, totals.num_completion) == (3, 5)
    assert totals.time_to_first_token == 1.0  # arrived at -1, the clock's first reading is 0
    assert totals.times_per_output_token == [0.5, 2.0]
    assert totals.finish_reasons == ["length", "length"]


def test_logprobs_of_a_delta_are_those_of_its_tokens() -> None:
    made = completion(logprobs=0)
    data = made.events(made.accept([(0, delta([65, 66]))]))
    data += made.events(made.accept([(0, delta([67], "length"))]))
    assert [e["logprobs"]["token_ids"] for e in events(data) if "logprobs" in e] == [[65, 66], [67]]


@pytest.mark.parametrize(("said", "status"), [(WORKER_LOST, 503), ("the model failed", 500)])
def test_an_engine_error_becomes_an_api_error(said: str, status: int) -> None:
    with pytest.raises(ApiError) as failure:
        completion().accept([(0, TokenDelta(1, [], [], [], finish_reason="error", error=said))])
    assert failure.value.status == status
    event = error_event(failure.value)
    assert event.startswith(b"event: error\ndata: {")
    assert event.endswith(b"}\n\n")


def test_a_deadline_before_the_first_token_is_503_and_after_it_a_finish_reason() -> None:
    with pytest.raises(ApiError) as failure:
        completion().accept([(0, delta([], "deadline"))])
    assert failure.value.status == 503
    made = completion()
    made.accept([(0, delta([65]))])
    made.accept([(0, delta([], "deadline"))])
    assert made.choices[0].finish_reason == "deadline"
