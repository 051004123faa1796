"""POST /quality/score, /quality/diagnose, /quality/compare: good text? a sound model? which settings are better?"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serve.completion import Choice
from serve.engine.runner import BROKEN_LOGITS
from serve.engine_calls import EngineCalls, too_late
from serve.errors import ApiError, problems_of
from serve.metrics import OUTCOME_OF_STATUS
from serve.quality.compare import compare
from serve.quality.diagnose import PROBES, Diagnosis, Findings, diagnose
from serve.quality.score import QualityReport
from serve.routes.responses import error_response, json_response, read_json_body
from serve.schemas import SAMPLING_FIELDS, GenerateRequest, Texts, refuse
from serve.service import Service
from serve.worker_pool import ReaderGone

PROBE_TOKENS = 128
NEUTRAL: Mapping[str, Any] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "ignore_eos": True,
}
"""The model itself, whatever its generation_config.json says."""
TWO_MODELS = "compare two models with `python -m serve.quality compare MODEL_A MODEL_B --prompts FILE`"
SIDE_FIELDS = tuple(name for name in SAMPLING_FIELDS if name in GenerateRequest.model_fields)
Body = TypeVar("Body", bound=BaseModel)
Work = Callable[[bytes, EngineCalls], Awaitable[dict[str, Any]]]


class ScoreRequest(BaseModel):
    """Body of POST /quality/score."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, cache_strings="keys")

    texts: Texts = Field(description="texts to score")
    surprise: bool = Field(False, description="also ask the served model what it thinks of each token")


class DiagnoseRequest(BaseModel):
    """Body of POST /quality/diagnose: {} is all that is needed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, cache_strings="keys")

    seed: int = Field(0, ge=0, le=2**53, description="of the sampled continuations")


class CompareRequest(BaseModel):
    """Body of POST /quality/compare."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, cache_strings="keys")

    prompts: Texts = Field(min_length=1, description="what both sides continue")
    a: dict[str, Any] = Field(description="sampling settings of one side, as in /generate; {} for the defaults")
    b: dict[str, Any] = Field(description="sampling settings of the other side")
    n: int = Field(4, ge=1, description="continuations of each prompt and side")
    max_new_tokens: int = Field(128, ge=32, description="tokens of each continuation at most")
    seed: int = Field(0, ge=0, le=2**53, description="continuation i of either side draws with seed + i")


class QualityRoutes:
    """Endpoints bound to their service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._diagnosing = False

    async def score(self, request: Request) -> Response:
        """Score given texts by the served checkpoint's reference; with `surprise`, by what its model thinks too."""
        return await self._answer(request, "score", self._score)

    async def diagnose(self, request: Request) -> Response:
        """Is the served model healthy? Its entropies, its surprise at plain text, its greedy and sampled writing."""
        return await self._answer(request, "diagnose", self._diagnose)

    async def compare(self, request: Request) -> Response:
        """Two sampling settings on the same prompts and seeds: scores, variety, and the paired difference."""
        return await self._answer(request, "compare", self._compare)

    async def _answer(self, request: Request, endpoint: str, work: Work) -> Response:
        """The answer to one request, within the deadline, counted by its outcome."""
        settings, outcome = self._service.settings, "error"
        try:
            body = await read_json_body(request, settings.max_body_bytes)
            async with asyncio.timeout(settings.request_deadline_seconds):
                found = await work(body, EngineCalls(self._service, request.receive))
            outcome = "ok"
        except (ApiError, TimeoutError) as error:
            refused = error if isinstance(error, ApiError) else too_late()
            outcome = OUTCOME_OF_STATUS.get(refused.status, "invalid")
            return error_response(refused)
        except (ClientDisconnect, ReaderGone):  # nobody reads the answer
            outcome = "cancelled"
            return Response()
        finally:
            self._service.metrics.quality_outcome(endpoint, outcome)
        answer = {"model": self._service.model.full_name} | found
        return json_response(json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode())

    async def _score(self, body: bytes, calls: EngineCalls) -> dict[str, Any]:
        asked = parse_score(body, self._service.settings.max_score_texts)
        scoring = self._service.scoring()
        if not asked.surprise:
            reports = await scoring.texts(asked.texts)
        else:
            seen = [await calls.surprise(text, f"texts[{i}]") for i, text in enumerate(asked.texts)]
            reports = await scoring.texts(asked.texts, seen)
        return {"scores": [report.to_json() for report in reports]}

    async def _diagnose(self, body: bytes, calls: EngineCalls) -> dict[str, Any]:
        asked = _parse(body, DiagnoseRequest, "send {}")
        if self._diagnosing:
            raise ApiError(429, "a diagnosis is under way", remedy="try again in a few seconds", retry_after=2)
        self._diagnosing = True
        try:
            return {"diagnosis": (await self._examine(asked.seed, calls)).to_json()}
        finally:
            self._diagnosing = False

    async def _examine(self, seed: int, calls: EngineCalls) -> Diagnosis:
        limits = self._service.limits()
        settings = self._service.settings
        probes = list(PROBES[: min(settings.max_prompts, settings.max_in_flight)])
        try:
            given = [await calls.surprise(text, "prompt") for text in probes]
            common: dict[str, Any] = {
                "prompt": probes,
                "max_new_tokens": min(PROBE_TOKENS, limits.max_model_len // 2, settings.max_new_tokens),
                "logprobs": min(1, settings.max_logprobs),
                "seed": seed,
                **NEUTRAL,
            }
            greedy = await calls.continuations(GenerateRequest(temperature=0.0, **common))
            sampled = await calls.continuations(GenerateRequest(temperature=1.0, **common))
        except ApiError as error:
            if BROKEN_LOGITS not in error.message:
                raise
            return diagnose(Findings(limits.vocab_size, [float("nan")]))
        findings = Findings(
            limits.vocab_size,
            [entropy for text in given for entropy in text.entropies],
            [logprob for text in given for logprob in text.logprobs],
            _top_probabilities(sampled),
            [choice.token_ids for choice in greedy],
            [choice.token_ids for choice in sampled],
        )
        return diagnose(findings)

    async def _compare(self, body: bytes, calls: EngineCalls) -> dict[str, Any]:
        asked = parse_compare(body, self._service.settings.max_prompts)
        scoring = self._service.scoring()
        sides = [_side_request(asked, name, getattr(asked, name)) for name in ("a", "b")]
        texts: list[list[list[str]]] = []
        reports: list[list[list[QualityReport]]] = []
        for side in sides:
            choices = await calls.continuations(side)
            written = ["".join(choice.text) for choice in choices]
            scored = await scoring.texts(written, num_tokens=[len(choice.token_ids) for choice in choices])
            texts.append(_rows(written, asked.n))
            reports.append(_rows(scored, asked.n))
        found = await asyncio.to_thread(compare, (texts[0], texts[1]), (reports[0], reports[1]), seed=asked.seed)
        examples = {"a": texts[0][0][0], "b": texts[1][0][0]}
        return {"head": "text", "samples_per_prompt": asked.n} | found | {"first_texts": examples}


def parse_score(body: bytes, most: int) -> ScoreRequest:
    """Raises ApiError: 400 if the body is not JSON, 422 naming field, value and remedy."""
    asked = _parse(body, ScoreRequest, 'send {"texts": ["..."]}')
    if not 1 <= len(asked.texts) <= most:
        count = len(asked.texts)
        raise refuse("texts", count, f"lists {count} texts", f"give 1 to {most} texts")
    return asked


def parse_compare(body: bytes, most: int) -> CompareRequest:
    """Raises ApiError as parse_score; for a model's name it says how models are compared."""
    try:
        asked = _parse(body, CompareRequest, 'send {"prompts": ["..."], "a": {"temperature": 0.8}, "b": {}}')
    except ApiError as error:
        if error.field not in ("model", "model_a", "model_b"):
            raise
        raise refuse(error.field, error.value, "cannot be chosen: one server serves one model", TWO_MODELS) from None
    if len(asked.prompts) > most:
        count = len(asked.prompts)
        raise refuse("prompts", count, f"lists {count} texts", f"give 1 to {most} texts")
    return asked


def _parse(body: bytes, kind: type[Body], example: str) -> Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    if errors[0]["type"] == "json_invalid":
        raise ApiError(400, f"the body is not JSON: {errors[0]['ctx']['error']}", remedy=example)
    first, *more = problems_of(errors, kind.model_fields)
    raise ApiError(422, **first, more=more)


def _side_request(asked: CompareRequest, name: str, settings: dict[str, Any]) -> GenerateRequest:
    """One side as a request. Raises ApiError 422 for what is no sampling setting."""
    if unknown := sorted(set(settings) - set(SIDE_FIELDS)):
        remedy = f"give sampling settings: {', '.join(SIDE_FIELDS)}; one server serves one model"
        raise refuse(f"{name}.{unknown[0]}", settings[unknown[0]], "is no sampling setting", remedy)
    common = {"prompt": asked.prompts, "n": asked.n, "max_new_tokens": asked.max_new_tokens, "seed": asked.seed}
    try:
        return GenerateRequest.model_validate(common | settings)
    except ValidationError as error:
        first, *more = problems_of(error.errors(include_url=False), GenerateRequest.model_fields)
        raise ApiError(422, **(first | {"field": f"{name}.{first['field']}"}), more=more) from None


def _rows(values: Sequence[Any], n: int) -> list[list[Any]]:
    return [list(values[start : start + n]) for start in range(0, len(values), n)]


def _top_probabilities(choices: Sequence[Choice]) -> list[float]:
    return [math.exp(row[0][1]) for choice in choices for row in choice.top_logprobs if row]
