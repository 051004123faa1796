"""The official OpenAI client against a real server."""

import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from tokenizers import pre_tokenizers

from tests.http.server_process import ROOT, ServerProcess
from tests.http.tiny import write_tiny_model

pytestmark = pytest.mark.slow

KEY = "sesame"
CHAT: Any = [{"role": "user", "content": "hello"}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
FULL: dict[str, Any] = {"max_tokens": 2000, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def chat_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = write_tiny_model(tmp_path_factory.mktemp("chat") / "tiny")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    flags = ("--runner", "torch", "--max-batch-size", "4", "--max-queue", "2")
    process = ServerProcess(folder, flags, {"PHISERVE_API_KEYS": KEY}).start()
    yield process
    process.stop()


@pytest.fixture
def client(chat_server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"http://127.0.0.1:{chat_server.port}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_the_model_is_listed_and_found_by_its_name(client: OpenAI) -> None:
    (listed,) = client.models.list().data
    assert listed.id == "tiny@local"
    assert client.models.retrieve("tiny@local") == listed
    with pytest.raises(openai.NotFoundError, match="tiny@local"):
        client.models.retrieve("gpt-4")


def test_a_completion_streamed_or_not_is_the_same_text(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "abc", "max_tokens": 20, "seed": 5, "n": 2, "user": "me"}
    asked |= {"temperature": 0.7, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.5, "logprobs": 2}
    whole = client.completions.create(**asked)
    texts = {0: "", 1: ""}
    tokens: dict[int, list[str]] = {0: [], 1: []}
    *chunks, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += (choice.logprobs and choice.logprobs.tokens) or []
    assert [texts[0], texts[1]] == [choice.text for choice in whole.choices]
    assert texts[0] != texts[1]
    assert last.usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 3
    for choice in whole.choices:
        assert choice.logprobs is not None
        assert tokens[choice.index] == choice.logprobs.tokens
        assert choice.finish_reason in ("length", "stop")


def test_a_chat_streamed_or_not_is_the_same_and_is_that_of_its_template(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 20, "temperature": 0}
    with_logprobs: dict[str, Any] = {"messages": CHAT, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked, **with_logprobs)
    *chunks, last = client.chat.completions.create(
        **asked, **with_logprobs, stream=True, stream_options={"include_usage": True}
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    prompt = "<user>hello<assistant>"
    same = client.completions.create(**asked, prompt=prompt)
    assert whole.choices[0].message.content == text == same.choices[0].text
    assert last.usage == whole.usage == same.usage
    assert chunks[0].choices[0].delta.role == "assistant"
    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content
    assert content is not None
    assert content[0].logprob == content[0].top_logprobs[0].logprob


@pytest.mark.parametrize("stop", ["e", ["e", "a"]])
def test_a_stop_string_ends_the_text_and_logit_bias_chooses(client: OpenAI, stop: Any) -> None:
    bias = {str(token_of("e")): 100}
    answer = client.completions.create(model="tiny", prompt="abc", max_tokens=9, stop=stop, logit_bias=bias)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")


def token_of(letter: str) -> int:
    return sorted(pre_tokenizers.ByteLevel.alphabet()).index(letter)


def test_errors_are_the_clients_typed_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tools") as refused:
        client.chat.completions.create(model="tiny", messages=CHAT, tools=[{"type": "function"}])  # type: ignore[list-item]
    assert refused.value.param == "tools"
    with pytest.raises(openai.BadRequestError, match="messages has") as refused:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 5000}])
    assert refused.value.param == "messages"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.APIStatusError) as too_long:
        client.completions.create(model="tiny", prompt="x" * (2 << 20))
    assert too_long.value.status_code == 413
    with pytest.raises(openai.RateLimitError):
        ask_a_full_server(client)


def ask_a_full_server(client: OpenAI) -> None:
    """Every place is taken by a stream that has begun, and one more is asked for."""
    with client.completions.create(model="tiny", prompt="x", n=6, stream=True, **FULL) as stream:
        next(iter(stream))
        client.completions.create(model="tiny", prompt="x")


def test_a_client_that_hangs_up_frees_its_slot(chat_server: ServerProcess, client: OpenAI) -> None:
    labels = {"route": "chat", "outcome": "cancelled"}
    before = chat_server.metric("phiserve_requests_total", **labels)
    with client.chat.completions.create(model="tiny", messages=CHAT, stream=True, **FULL) as stream:
        next(iter(stream))
    chat_server.wait_for_metric(before + 1, "phiserve_requests_total", **labels)
    chat_server.wait_for_metric(0, "phiserve_running_choices")
    chat_server.wait_for_metric(0, "phiserve_choices_in_flight")


def test_the_example_of_the_docs_runs_on_the_shipped_model_which_refuses_chats(
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "openai.md").read_text(), flags=re.DOTALL)[0]
    server = ServerProcess("tiny_iit").start()
    try:
        names: dict[str, Any] = {}
        exec(example.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), names)
        asked = {"model": names["model"], "prompt": "It was", "max_tokens": 64, "extra_body": {"quality": True}}
        *_, last = names["client"].completions.create(**asked, stream=True)
        assert 0 <= last.choices[0].quality["score"] <= 1
        with names["client"] as client, pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model=names["model"], messages=CHAT)
    finally:
        server.stop()
    assert "score" in capsys.readouterr().out
