"""POST /quality/score: texts in, scores with their reasons out."""

import json

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serve.errors import ApiError, problems_of
from serve.routes.responses import error_response, json_response, read_json_body
from serve.schemas import refuse
from serve.service import Service

EXAMPLE = 'send {"texts": ["..."]}'


class ScoreRequest(BaseModel):
    """Body of POST /quality/score."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    texts: list[str] = Field(description="texts to score")


class QualityRoutes:
    """Endpoints bound to their service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def score(self, request: Request) -> Response:
        """Score given texts by the served checkpoint's reference, from the text alone."""
        try:
            body = await read_json_body(request, self._service.settings.max_body_bytes)
            asked = parse_score(body, self._service.settings.max_score_texts)
            reports = await self._service.scoring().texts(asked.texts)
        except ApiError as error:
            return error_response(error)
        except ClientDisconnect:  # nobody reads the answer
            return Response()
        scores = [report.to_json() for report in reports]
        answer = {"model": self._service.model.full_name, "scores": scores}
        return json_response(json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode())


def parse_score(body: bytes, most: int) -> ScoreRequest:
    """Raises ApiError: 400 if the body is not JSON, 422 naming field, value and remedy."""
    try:
        asked = ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if errors[0]["type"] == "json_invalid":
            raise ApiError(400, f"the body is not JSON: {errors[0]['ctx']['error']}", remedy=EXAMPLE) from None
        first, *more = problems_of(errors, ScoreRequest.model_fields)
        raise ApiError(422, **first, more=more) from None
    if not 1 <= len(asked.texts) <= most:
        count = len(asked.texts)
        raise refuse("texts", count, f"lists {count} texts", f"give 1 to {most} texts")
    return asked
