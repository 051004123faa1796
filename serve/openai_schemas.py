"""OpenAI's request bodies, read into what /generate takes; whatever this server cannot do is refused by name.

Fields that both protocols have mean the same and are checked by GenerateRequest; null is "not given", as it is there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.chat_template import ChatTemplate
from serve.errors import ApiError, problems_of
from serve.schemas import SAMPLING_FIELDS, GenerateRequest, Limits, refuse
from serve.served_model import ServedModel

SHARED_FIELDS = ("n", "stop", "seed", "stream", "quality", *SAMPLING_FIELDS)
"""Of GenerateRequest, under the same name. top_k and others that OpenAI lacks come by extra_body."""
NOT_DONE: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), "this server calls no tools: remove it"),
    "tool_choice": (("none",), "this server calls no tools: remove it"),
    "functions": (([],), "this server calls no functions: remove it"),
    "function_call": (("none",), "this server calls no functions: remove it"),
    "parallel_tool_calls": ((), "this server calls no tools: remove it"),
    "response_format": (({"type": "text"},), 'this server writes text only: remove it, or send {"type": "text"}'),
    "modalities": ((["text"],), 'this server writes text only: remove it, or send ["text"]'),
    "audio": ((), "this server writes text only: remove it"),
    "prediction": ((), "this server takes no prediction: remove it"),
    "reasoning_effort": ((), "the served model has no such setting: remove it"),
    "verbosity": ((), "the served model has no such setting: remove it"),
    "web_search_options": ((), "this server searches nothing: remove it"),
    "store": ((False,), "this server keeps no answers: remove it"),
    "metadata": (({},), "this server keeps no answers: remove it"),
    "service_tier": (("auto", "default"), "this server has one tier: remove it"),
    "best_of": ((1,), "this server ranks no candidates: send n, and rank the choices yourself"),
    "echo": ((False,), "put the prompt before the text yourself"),
    "suffix": (("",), "the served model cannot fill in: remove it"),
    "max_new_tokens": ((), "use max_tokens here"),
    "quality_every": ((), "POST /generate has it"),
    "phi": ((False,), "POST /generate has it"),
}
"""Known fields: the values that ask for nothing, and what to do about any other."""
IGNORED = ("user", "safety_identifier")
"""Who asked: nothing here depends on it."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TOP_LOGPROBS = 20


Fields = TypeVar("Fields", bound="_Common")


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    include_usage: bool = Field(False, description="a last chunk with the usage of the whole request")


class _Common(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: str = Field(description="the served model, as GET /v1/models names it")
    max_tokens: int | None = Field(None, ge=1, description="tokens to write at most")
    stream_options: StreamOptions | None = Field(None, description="with stream only")
    logit_bias: dict[str, float] | None = Field(None, description="token id -> what is added to its logit")


class CompletionFields(_Common):
    """Of POST /v1/completions, what GenerateRequest does not have."""

    prompt: str | list[str] | list[int] = Field(description="a text, a list of texts, or one prompt as token ids")
    logprobs: int | None = Field(None, ge=0, description="log-probabilities, and so many alternatives")


class ChatFields(_Common):
    """Of POST /v1/chat/completions, what GenerateRequest does not have."""

    messages: list[dict[str, Any]] = Field(min_length=1, description="the conversation so far")
    max_completion_tokens: int | None = Field(None, ge=1, description="tokens to write at most")
    logprobs: bool = Field(False, description="report log-probabilities")
    top_logprobs: int | None = Field(None, ge=0, le=TOP_LOGPROBS, description="alternatives, with logprobs only")


def body_schema(fields: type[BaseModel], ref_template: str) -> dict[str, Any]:
    """JSON schema of a whole body: these fields, and those that it shares with GenerateRequest."""
    schema = fields.model_json_schema(ref_template=ref_template)
    shared = GenerateRequest.model_json_schema(ref_template=ref_template)["properties"]
    schema["properties"] |= {name: shared[name] for name in SHARED_FIELDS if name not in schema["properties"]}
    return schema


@dataclass(frozen=True)
class Asked:
    """A checked request. renamed: GenerateRequest's names of fields -> the names in this body, for errors."""

    generate: GenerateRequest
    include_usage: bool
    more: Mapping[str, Any]
    renamed: Mapping[str, str]


def parse_completion(body: bytes, model: ServedModel, limits: Limits) -> Asked:
    """Raises ApiError 400, 404 or 422."""
    given, fields = _read(body, CompletionFields, model)
    rest = given | {"prompt": fields.prompt, "logprobs": fields.logprobs, "max_new_tokens": fields.max_tokens}
    return _asked(rest, fields, limits, {"max_new_tokens": "max_tokens"})


def parse_chat(body: bytes, model: ServedModel, limits: Limits) -> Asked:
    """Raises ApiError 400, 404 or 422; 422 too where the model has no chat template."""
    given, fields = _read(body, ChatFields, model)
    if fields.max_tokens is not None and fields.max_completion_tokens is not None:
        message = "and max_completion_tokens are both given"
        raise refuse("max_tokens", fields.max_tokens, message, "send max_completion_tokens alone")
    if fields.top_logprobs is not None and not fields.logprobs:
        message = f"is {fields.top_logprobs} without logprobs"
        raise refuse("top_logprobs", fields.top_logprobs, message, 'send "logprobs": true with it')
    old = fields.max_tokens is not None
    rest = given | {
        "prompt": _prompt(fields.messages, model),
        "logprobs": (fields.top_logprobs or 0) if fields.logprobs else None,
        "max_new_tokens": fields.max_tokens if old else fields.max_completion_tokens,
    }
    limit = "max_tokens" if old else "max_completion_tokens"
    return _asked(rest, fields, limits, {"max_new_tokens": limit, "prompt": "messages", "logprobs": "top_logprobs"})


def _read(body: bytes, kind: type[Fields], model: ServedModel) -> tuple[dict[str, Any], Fields]:
    """The body in two parts: what is GenerateRequest's, as it came, and what is this protocol's, checked."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", remedy='send {"model": "...", ...}') from error
    if not isinstance(given, dict):
        raise ApiError(400, "the body is not a JSON object", remedy='send {"model": "...", ...}', value=given)
    given = {name: value for name, value in given.items() if value is not None and name not in IGNORED}
    for name, (harmless, remedy) in NOT_DONE.items():
        if name in given and (value := given.pop(name)) not in harmless:
            raise refuse(name, value, f"is {_shown(value)}, which this server does not support", remedy)
    shared = {name: given.pop(name) for name in SHARED_FIELDS if name in given}
    try:
        fields = kind.model_validate(given)
    except ValidationError as error:
        known = [*kind.model_fields, *SHARED_FIELDS, *IGNORED]
        first, *more = problems_of(error.errors(include_url=False), known)
        raise ApiError(422, **first, more=more) from error
    check_model(fields.model, model)
    return shared, fields


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:100] + "..."


def check_model(name: str, model: ServedModel) -> None:
    """Raises ApiError 404 for a model that this server does not serve."""
    if name not in (model.full_name, model.name):
        message = f"model is {_shown(name)}, and this server serves {model.full_name}"
        raise ApiError(404, message, field="model", value=name, remedy=f"send {model.full_name} or {model.name}")


def _asked(rest: Mapping[str, Any], fields: _Common, limits: Limits, renamed: Mapping[str, str]) -> Asked:
    try:
        generate = GenerateRequest.model_validate(rest)
    except ValidationError as error:
        first, *more = problems_of(error.errors(include_url=False), GenerateRequest.model_fields)
        raise ApiError(422, **first, more=more) from error
    if fields.stream_options is not None and not generate.stream:
        message = "is given without stream"
        raise refuse("stream_options", fields.stream_options.model_dump(), message, 'send "stream": true with it')
    include_usage = fields.stream_options is not None and fields.stream_options.include_usage
    bias = _logit_bias(fields.logit_bias or {}, limits.vocab_size)
    return Asked(generate, include_usage, {"logit_bias": bias} if bias else {}, renamed)


def _logit_bias(given: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    bias = {}
    for token, amount in given.items():
        if not (token.isascii() and token.isdecimal() and len(token) <= 9 and int(token) < vocab_size):
            raise refuse(
                "logit_bias", token, f"has the key {_shown(token)}", f"give token ids from 0 to {vocab_size - 1}"
            )
        if not -100 <= amount <= 100:
            raise refuse("logit_bias", amount, f"adds {amount} to token {token}", "give numbers from -100 to 100")
        bias[int(token)] = amount
    return bias


def _prompt(messages: list[dict[str, Any]], model: ServedModel) -> str:
    template: ChatTemplate | None = model.chat_template
    if template is None:
        message = f"cannot be answered: {model.full_name} has no chat template"
        raise refuse("messages", None, message, "send a prompt to /v1/completions, or serve a model that has one")
    turns = [_turn(f"messages[{i}]", message) for i, message in enumerate(messages)]
    try:
        return template.render(turns)
    except ValueError as error:
        message = f"are refused by the model's chat template: {error}"
        raise refuse("messages", messages, message, "send the roles in the order that this model expects") from error


def _turn(name: str, given: Mapping[str, Any]) -> dict[str, str]:
    """A message as templates take it. Empty parts of an answer of ours that came back mean nothing."""
    message = {key: value for key, value in given.items() if value is not None}
    role, content = message.pop("role", None), message.pop("content", None)
    if not isinstance(role, str) or role not in ROLES:
        raise refuse(f"{name}.role", role, f"is {_shown(role)}", f"give one of {', '.join(ROLES)}")
    if message:
        key, value = next(iter(message.items()))
        raise refuse(
            f"{name}.{key}", value, "is not supported by this server", "remove it; a message is role and content"
        )
    if isinstance(content, list):
        content = "\n".join(_text_part(f"{name}.content[{i}]", part) for i, part in enumerate(content))
    if not isinstance(content, str):
        raise refuse(f"{name}.content", content, f"is {_shown(content)}", "give a text, or a list of text parts")
    return {"role": ROLES[role], "content": content}


def _text_part(name: str, part: object) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else part
    raise refuse(name, kind, f"is {_shown(kind)}", 'this server reads text only: give {"type": "text", "text": "..."}')
