"""OpenAI's protocol: what is read, what is refused, what is written. No server."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from serve.channel import Add
from serve.chat_template import ChatTemplate
from serve.engine.request import SamplingParams
from serve.errors import ApiError
from serve.openai_answers import ChatCompletion, OpenAICompletion, OpenAIError
from serve.openai_schemas import NOT_DONE, parse_chat, parse_completion
from serve.schemas import Limits, Plan
from serve.served_model import ServedModel
from serve.settings import ServeSettings
from tests.http.test_completion import TOKENIZER, delta, events

TEMPLATE = """{{ bos_token }}{% for message in messages %}
    {%- if loop.first and message.role == 'assistant' %}{{ raise_exception('begin with the user') }}{% endif -%}
<|{{ message.role }}|>{{ message.content | trim }}{{ {"é": 1} | tojson }}
{% generation %}.{% endgeneration %}
{% if loop.index > 20 %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
LIMITS = Limits(100, 128, 256, ServeSettings())
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "tiny", "prompt": "hi"}


def model(template: str | None = TEMPLATE) -> ServedModel:
    chat = None if template is None else ChatTemplate(template, {"bos_token": "<s>"})
    return ServedModel("tiny", "1", Path("tiny"), 0, TOKENIZER, SamplingParams(), chat)


def refusal(body: Any, chat: bool = False, template: str | None = TEMPLATE) -> dict[str, Any]:
    parse = parse_chat if chat else parse_completion
    with pytest.raises(ApiError) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode(), model(template), LIMITS)
    error = OpenAIError(caught.value)
    return {"status": error.status, **error.body()["error"]}


def made(kind: type[OpenAICompletion], **how: Any) -> OpenAICompletion:
    prompt = [1, 2, 3]
    plan = Plan([Add(0, prompt), Add(0, prompt)], (), how.pop("logprobs", None), True, [0, 1])
    return kind(plan, TOKENIZER, 0.0, model="tiny@1", **how)


def test_the_prompt_is_that_of_transformers() -> None:
    turns = [{"role": "system", "content": " Be <b> "}, {"role": "user", "content": "é\n"}] * 2
    reference = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER, bos_token="<s>", chat_template=TEMPLATE)
    expected = reference.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(TEMPLATE, {"bos_token": "<s>"}).render(turns) == expected


def test_a_template_cannot_leave_the_sandbox() -> None:
    for source in ("{{ messages.__class__.__mro__ }}", "{% set n = namespace(_x=1) %}", "{{ messages.append(1) }}"):
        with pytest.raises(ValueError, match=r"unsafe|namespace|append"):
            ChatTemplate(source, {}).render([{"role": "user", "content": "hi"}])


def test_the_template_is_found_in_its_file_or_in_the_tokenizer_config(tmp_path: Path) -> None:
    assert ChatTemplate.of(tmp_path) is None
    config = {"chat_template": [{"name": "default", "template": "old{{ eos_token }}"}], "eos_token": {"content": "!"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = ChatTemplate.of(tmp_path)
    assert found is not None
    assert found.render([]) == "old!"
    (tmp_path / "chat_template.jinja").write_text("new")
    found = ChatTemplate.of(tmp_path)
    assert found is not None
    assert found.render([]) == "new"


def test_a_chat_becomes_a_prompt_and_text_parts_and_developers_are_understood() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = CHAT | {"messages": [{"role": "developer", "content": parts}], "max_completion_tokens": 7, "user": "me"}
    asked = parse_chat(json.dumps(body).encode(), model("{{ messages }}"), LIMITS)
    assert asked.generate.prompt == "[{'role': 'system', 'content': 'a\\nb'}]"
    assert asked.generate.max_new_tokens == 7


@pytest.mark.parametrize("field", sorted(NOT_DONE))
def test_what_is_not_supported_is_refused_by_name_with_a_remedy(field: str) -> None:
    value = {"response_format": {"type": "json_object"}, "tools": [{"type": "function"}]}.get(field, "x")
    said = refusal(CHAT | {field: value}, chat=True)
    assert (said["status"], said["param"], said["type"]) == (400, field, "invalid_request_error")
    assert json.dumps(value) in said["message"]
    assert NOT_DONE[field][1] in said["message"]


def test_values_that_ask_for_nothing_are_no_error() -> None:
    harmless = {field: values[0] for field, (values, _) in NOT_DONE.items() if values}
    parse_chat(json.dumps(CHAT | harmless | {"logit_bias": {}, "seed": None}).encode(), model(), LIMITS)


IMAGE = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        (IMAGE, "messages[0].content[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "name": "n"}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"temperature": -1}, "temperature"),
        ({"n": "two"}, "n"),
        ({"frequency": 1}, "frequency"),
    ],
)
def test_bad_chats_are_refused_with_the_field(more: dict[str, Any], param: str) -> None:
    said = refusal(CHAT | more, chat=True)
    assert (said["status"], said["param"]) == (400, param)


def test_a_model_without_a_template_says_so_and_names_the_other_endpoint() -> None:
    said = refusal(CHAT, chat=True, template=None)
    assert said["status"] == 400
    assert "tiny@1 has no chat template" in said["message"]
    assert "/v1/completions" in said["message"]


def test_another_model_is_404_and_a_body_that_is_no_json_400() -> None:
    said = refusal(COMPLETION | {"model": "gpt"})
    assert (said["status"], said["code"]) == (404, "model_not_found")
    assert refusal(b"{")["status"] == refusal([1])["status"] == refusal({"model": "tiny"})["status"] == 400


def test_errors_name_the_fields_of_this_protocol() -> None:
    error = ApiError(422, "max_new_tokens is 9", field="max_new_tokens", value=9, remedy="give at most 3")
    said = OpenAIError(error, {"max_new_tokens": "max_tokens"}).body()["error"]
    assert (said["message"], said["param"]) == ("max_tokens is 9: give at most 3", "max_tokens")


@pytest.mark.parametrize("kind", [OpenAICompletion, ChatCompletion])
def test_a_stream_and_the_whole_answer_say_the_same(kind: type[OpenAICompletion]) -> None:
    one, other = made(kind, logprobs=0, include_usage=True), made(kind, logprobs=0)
    batches = [[(0, delta(TOKENIZER.encode("né").ids[:2]))], [(0, delta(TOKENIZER.encode("é x").ids[1:], "stop"))]]
    batches.append([(1, delta([], "length"))])
    data = b"".join(one.events(one.accept(batch)) for batch in batches)
    assert data.endswith(b"data: [DONE]\n\n")
    assert data.count(b"[DONE]") == 1
    *chunks, last = events(data.replace(b"data: [DONE]\n\n", b""))
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 3 + 5)
    for batch in batches:
        other.accept(batch)
    whole = json.loads(other.body("", ""))
    assert whole["usage"] == last["usage"]
    shown = [c for chunk in chunks for c in chunk["choices"] if c["index"] == 0]
    texts = [c["delta"].get("content", "") if "delta" in c else c["text"] for c in shown]
    choice = whole["choices"][0]
    assert "".join(texts) == "né x" == (choice["message"]["content"] if "message" in choice else choice["text"])
    key = "content" if kind is ChatCompletion else "tokens"
    assert [t for c in shown if c["logprobs"] for t in c["logprobs"][key]] == choice["logprobs"][key]
    assert [c["finish_reason"] for c in whole["choices"]] == ["stop", "length"]


def test_a_token_that_is_part_of_a_character_is_written_byte_by_byte() -> None:
    answer = made(OpenAICompletion, logprobs=0)
    answer.accept([(0, delta(TOKENIZER.encode("né!").ids, "stop")), (1, delta([], "length"))])
    shown = json.loads(answer.body("", ""))["choices"][0]["logprobs"]
    assert shown["tokens"] == ["n", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert shown["text_offset"] == [0, 1, 1, 2]
