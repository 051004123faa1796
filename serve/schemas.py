"""What a request may say. Strict: unknown fields, wrong types, values out of range: 422, here or never."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.channel import Add, Hello
from serve.engine.request import MAX_SEED, SamplingParams
from serve.errors import ApiError, problems_of
from serve.served_model import ServedModel
from serve.settings import ServeSettings
from serve.token_bounds import fewest_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A seed that the server draws must survive a reader whose numbers are doubles.
SEED_LIMIT = 2**53

# One error for each element would make a large answer, slowly, of a list of nonsense.
Texts = Annotated[list[str], Field(fail_fast=True)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]
Probability = Annotated[float, Field(gt=0, le=1)]


class GenerateRequest(BaseModel):
    """Body of POST /generate. None is "not given": generation_config.json decides, then the engine."""

    # Not the values: pydantic would keep the last 16,384 short prompts in memory.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, cache_strings="keys")

    prompt: str | Texts | TokenIds = Field(description="a text, a list of texts, or one prompt as token ids")
    max_new_tokens: int | None = Field(None, ge=1, description="tokens to write at most")
    temperature: float | None = Field(None, ge=0, le=100, description="0 takes the likeliest token")
    top_p: Probability | None = Field(None, description="nucleus: the likeliest tokens that have this mass together")
    top_k: int | None = Field(None, ge=0, description="only the k likeliest tokens; 0 for all")
    min_p: float | None = Field(None, ge=0, le=1, description="only tokens this likely relative to the likeliest")
    typical_p: Probability | None = Field(None, description="locally typical sampling; 1 for off")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="1 for off")
    frequency_penalty: float | None = Field(None, ge=-100, le=100, description="0 for off")
    presence_penalty: float | None = Field(None, ge=-100, le=100, description="0 for off")
    no_repeat_ngram_size: int | None = Field(None, ge=0, description="0 for off")
    ignore_eos: bool = Field(False, description="go on after the end-of-text token")
    stop: str | Texts | None = Field(None, description="texts that end the answer and are not part of it")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="choice i of the request draws with seed + i")
    n: int = Field(1, ge=1, description="choices for each prompt")
    logprobs: int | None = Field(None, ge=0, description="report log-probabilities and so many alternatives")
    stream: bool = Field(False, description="answer with server-sent events")
    quality: bool = Field(False, description="add the quality score of each choice, with its reasons")
    quality_every: int | None = Field(
        None, ge=32, description="also the score of the text so far, each time that so many tokens have come (stream)"
    )
    phi: bool = Field(False, description="add Phi of the last layer's heads over each choice, with its null")


SAMPLING_FIELDS = tuple(
    name
    for name in GenerateRequest.model_fields
    if name in SamplingParams.__dataclass_fields__ and name not in ("seed", "max_new_tokens")
)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, from the settings and from what the workers said."""

    max_prompt_tokens: int
    max_model_len: int
    vocab_size: int
    settings: ServeSettings

    @classmethod
    def of(cls, settings: ServeSettings, hello: Hello) -> "Limits":
        longest = hello.max_model_len - 1  # room for one token of answer
        return cls(
            max_prompt_tokens=min(settings.max_prompt_tokens or longest, longest),
            max_model_len=hello.max_model_len,
            vocab_size=hello.vocab_size,
            settings=settings,
        )


@dataclass(frozen=True)
class Plan:
    """A request that will be computed: one job a choice; the choices of prompt p are p*n .. p*n + n - 1."""

    jobs: list[Add]
    stop: tuple[str, ...]
    logprobs: int | None
    stream: bool
    seeds: list[int]
    quality: bool = False
    quality_every: int | None = None
    phi: bool = False


def parse(body: bytes) -> GenerateRequest:
    """Raises ApiError: 400 if the body is not JSON, 422 naming field, value and remedy."""
    try:
        return GenerateRequest.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    if errors[0]["type"] == "json_invalid":
        raise ApiError(400, f"the body is not JSON: {errors[0]['ctx']['error']}", remedy='send {"prompt": "..."}')
    first, *more = problems_of(errors, GenerateRequest.model_fields)
    if first["field"] == "body":
        raise ApiError(422, "the body is not a JSON object", remedy='send {"prompt": "..."}', value=first["value"])
    raise ApiError(422, **first, more=more)


def refuse(field: str, value: Any, message: str, remedy: str) -> ApiError:
    """A 422 for a value that only the server's limits rule out."""
    return ApiError(422, f"{field} {message}", field=field, value=value, remedy=remedy)


def check_sizes(request: GenerateRequest, settings: ServeSettings) -> tuple[str, ...]:
    """Refuse what is beyond the server's limits, before anything is tokenised. Returns the stop strings."""
    limits = (("n", settings.max_n), ("logprobs", settings.max_logprobs), ("max_new_tokens", settings.max_new_tokens))
    for field, most in limits:
        value = getattr(request, field)
        if value is not None and value > most:
            raise refuse(field, value, f"is {value}, more than this server allows", f"give at most {most}")
    if request.quality_every is not None and not (request.stream and request.quality):
        message = "scores a text while it streams"
        raise refuse("quality_every", request.quality_every, message, 'send "stream": true and "quality": true with it')
    if request.phi and not settings.phi_diagnostic:
        raise refuse("phi", True, "is not measured by this server", "start it with --phi-diagnostic")
    prompts = prompts_of(request)
    if not 1 <= len(prompts) <= settings.max_prompts:
        message = f"lists {len(prompts)} texts"
        raise refuse("prompt", request.prompt, message, f"give 1 to {settings.max_prompts} texts")
    num_choices = len(prompts) * request.n
    if num_choices > settings.max_in_flight:
        raise refuse("n", request.n, f"asks for {num_choices} choices", f"give at most {settings.max_in_flight} in all")
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if len(stop) > settings.max_stop:
        raise refuse("stop", list(stop), f"lists {len(stop)} texts", f"give at most {settings.max_stop}")
    if any(not 1 <= len(text) <= settings.max_stop_characters for text in stop):
        message = "has an empty or too long text"
        raise refuse("stop", list(stop), message, f"give texts of 1 to {settings.max_stop_characters} characters")
    return stop


def prompts_of(request: GenerateRequest) -> Sequence[str | list[int]]:
    """The prompts, each a text or a list of token ids."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [[int(token) for token in prompt]]
    return [str(text) for text in prompt]


def refuse_too_long(field: str, text: str, tokenizer: "Tokenizer", most: int) -> None:
    """Raises ApiError 422 for a text that cannot have as few as `most` tokens, without tokenising it."""
    fewest = fewest_tokens(text, tokenizer)
    if fewest > most:
        message = f"has {len(text)} characters, which are at least {fewest} tokens"
        raise refuse(field, text, message, f"give at most {most} tokens")


def encode(
    request: GenerateRequest, tokenizer: "Tokenizer", limits: Limits, *, add_special_tokens: bool = True
) -> list[list[int]]:
    """The prompts as token ids. Raises ApiError 422 for one that is empty, too long or not of this vocabulary."""
    prompts = prompts_of(request)
    for prompt in prompts:
        if isinstance(prompt, str):
            refuse_too_long("prompt", prompt, tokenizer, limits.max_prompt_tokens)
    encoded = []
    for prompt in prompts:
        if isinstance(prompt, str):
            ids = list(tokenizer.encode(prompt, add_special_tokens=add_special_tokens).ids)
        else:
            ids = prompt
        if not ids:
            raise refuse("prompt", prompt, "has no tokens", "give at least one character")
        if len(ids) > limits.max_prompt_tokens:
            message = f"has {len(ids)} tokens"
            raise refuse("prompt", prompt, message, f"give at most {limits.max_prompt_tokens} tokens")
        if not isinstance(prompt, str) and not all(0 <= token < limits.vocab_size for token in ids):
            message = "has a token id outside the vocabulary"
            raise refuse("prompt", prompt, message, f"give ids from 0 to {limits.vocab_size - 1}")
        encoded.append(ids)
    return encoded


def plan(request: GenerateRequest, prompts: list[list[int]], model: ServedModel, limits: Limits) -> Plan:
    """The jobs of a request that passed check_sizes. Raises ApiError 422."""
    params = {name: getattr(model.defaults, name) for name in SAMPLING_FIELDS}
    for name in SAMPLING_FIELDS:
        value = getattr(request, name)
        if value is not None:
            params[name] = value
    if request.logprobs is not None:
        params["num_logprobs"] = request.logprobs
    first_seed = secrets.randbelow(SEED_LIMIT) if request.seed is None else request.seed
    jobs: list[Add] = []
    seeds: list[int] = []
    for prompt in prompts:
        room = _max_new_tokens(request, len(prompt), model, limits)
        for _ in range(request.n):
            seed = (first_seed + len(seeds)) % (MAX_SEED + 1)
            seeds.append(seed)
            job = params | {"max_new_tokens": room, "seed": seed}
            jobs.append(Add(0, prompt, job, limits.settings.request_deadline_seconds))
    try:
        SamplingParams(**jobs[0].params)
    except ValueError as error:
        raise ApiError(422, str(error), remedy="change the value as the message says") from error
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return Plan(
        jobs, stop, request.logprobs, request.stream, seeds, request.quality, request.quality_every, request.phi
    )


def _max_new_tokens(request: GenerateRequest, num_prompt: int, model: ServedModel, limits: Limits) -> int:
    room = limits.max_model_len - num_prompt
    asked = request.max_new_tokens
    if asked is None:
        return min(model.defaults.max_new_tokens, room, limits.settings.max_new_tokens)
    if asked > room:
        message = f"is {asked}, and with {num_prompt} tokens of prompt more than the model's {limits.max_model_len}"
        raise refuse("max_new_tokens", asked, message, f"give at most {room}, or a shorter prompt")
    return asked
