"""GET /v1/models, POST /v1/completions, POST /v1/chat/completions: what OpenAI's clients speak, on /generate's path."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve.completion import Completion
from serve.errors import ApiError
from serve.openai_answers import ChatCompletion, OpenAICompletion, OpenAIError
from serve.openai_schemas import Asked, check_model, parse_chat, parse_completion
from serve.routes.generate import GenerateRoute
from serve.routes.responses import error_response, json_response
from serve.schemas import Limits
from serve.service import Service
from serve.worker_pool import Generation

PREFIX = "/v1/"


class CompletionsRoute(GenerateRoute):
    """POST /v1/completions."""

    route = "completions"
    answer: type[OpenAICompletion] = OpenAICompletion

    async def _begin(self, body: bytes, limits: Limits, arrived: float) -> tuple[Generation, Completion]:
        model = self._service.model
        asked = self._parse(body, limits)
        try:
            generation, plan = await self._open(asked.generate, limits, asked.more)
        except ApiError as error:
            raise OpenAIError(error, asked.renamed) from error
        completion = self.answer(
            plan, model.tokenizer, arrived, model=model.full_name, include_usage=asked.include_usage
        )
        return generation, completion

    def _parse(self, body: bytes, limits: Limits) -> Asked:
        return parse_completion(body, self._service.model, limits)

    @staticmethod
    def _presented(error: ApiError) -> ApiError:
        return error if isinstance(error, OpenAIError) else OpenAIError(error)


class ChatRoute(CompletionsRoute):
    """POST /v1/chat/completions: the same, its prompt made by the model's chat template."""

    route = "chat"
    _add_special_tokens = False  # the template wrote those that belong there
    answer = ChatCompletion

    def _parse(self, body: bytes, limits: Limits) -> Asked:
        return parse_chat(body, self._service.model, limits)


class ModelsRoutes:
    """GET /v1/models and /v1/models/{model_id}."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, request: Request) -> Response:
        """The served model, as a list of one."""
        return json_response(json.dumps({"object": "list", "data": [self._entry()]}).encode())

    async def model(self, request: Request) -> Response:
        """The served model, by either of its names."""
        try:
            check_model(request.path_params["model_id"], self._service.model)
        except ApiError as error:
            return error_response(OpenAIError(error))
        return json_response(json.dumps(self._entry()).encode())

    def _entry(self) -> dict[str, Any]:
        model = self._service.model
        hellos = self._service.pool.hellos
        return {
            "id": model.full_name,
            "object": "model",
            "created": model.created,
            "owned_by": "phiserve",
            "quality": self._service.scores_quality,
            "chat": model.chat_template is not None,
            "max_model_len": hellos[0].max_model_len if hellos else None,
        }
