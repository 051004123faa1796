"""POST /generate: a body becomes jobs for one worker, its deltas become JSON or server-sent events."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serve.completion import Choice, Completion, error_event
from serve.errors import ApiError
from serve.metrics import OUTCOME_OF_STATUS
from serve.routes.responses import EventStream, error_response, json_response, read_json_body, watch_hang_up
from serve.schemas import GenerateRequest, Limits, Plan, check_sizes, encode, parse, plan, prompts_of
from serve.service import Service
from serve.worker_pool import Generation, ReaderGone


class GenerateRoute:
    """The endpoint, bound to its service; a subclass speaks another protocol on the same path."""

    route = "generate"  # as metrics count it
    _add_special_tokens = True  # the tokenizer's own, around the prompt

    def __init__(self, service: Service) -> None:
        self._service = service

    async def generate(self, request: Request) -> Response:
        """Continue a prompt. The schema says what the body may hold; `stream` chooses between JSON and events."""
        arrived = time.perf_counter()
        try:
            limits = self._service.limits()
            body = await read_json_body(request, self._service.settings.max_body_bytes)
            generation, completion = await self._begin(body, limits, arrived)
        except ApiError as error:
            self._service.metrics.outcome(self.route, OUTCOME_OF_STATUS.get(error.status, "invalid"))
            return error_response(self._presented(error))
        except ClientDisconnect:  # before the whole body came: nobody reads the answer
            self._service.metrics.outcome(self.route, "cancelled")
            return Response()
        answer = Answer(self._service, generation, completion, self.route, self._presented)
        if not completion.stream:
            return await answer.whole(request)
        return await answer.streamed(request)

    async def _begin(self, body: bytes, limits: Limits, arrived: float) -> tuple[Generation, Completion]:
        generation, plan = await self._open(parse(body), limits)
        return generation, Completion(plan, self._service.model.tokenizer, arrived)

    @staticmethod
    def _presented(error: ApiError) -> ApiError:
        """The error in the shape that this route's readers expect."""
        return error

    async def _open(
        self, asked: GenerateRequest, limits: Limits, more: Mapping[str, Any] | None = None
    ) -> tuple[Generation, Plan]:
        """Hand the jobs to a worker. more: sampling parameters that GenerateRequest does not have, checked."""
        service = self._service
        plan = await self._plan(asked, limits)
        for job in plan.jobs:
            job.params.update(more or {})
        if plan.quality:
            service.scoring()  # refuses before anything is computed
        if plan.phi:
            service.phi.check_room()
        service.check_room(len(plan.jobs))
        window = service.settings.stream_window if plan.stream else 0
        try:
            return service.pool.open(plan.jobs, window), plan
        except LookupError as error:
            raise ApiError(503, str(error), remedy="try again in a few seconds", retry_after=2) from error

    async def _plan(self, asked: GenerateRequest, limits: Limits) -> Plan:
        service = self._service
        check_sizes(asked, service.settings)
        prompts = prompts_of(asked)
        service.check_room(len(prompts) * asked.n)
        special = self._add_special_tokens
        tokenise = partial(encode, asked, service.model.tokenizer, limits, add_special_tokens=special)
        encoded = await service.tokenise(tokenise, sum(map(len, prompts)))
        return plan(asked, encoded, service.model, limits)


class Answer:
    """One request that a worker computes, until its last byte."""

    def __init__(
        self,
        service: Service,
        generation: Generation,
        completion: Completion,
        route: str = GenerateRoute.route,
        presented: Callable[[ApiError], ApiError] = lambda error: error,
    ) -> None:
        self._service = service
        self._route = route
        self._presented = presented
        self._generation = generation
        self._completion = completion
        self._outcome = ""

    async def whole(self, request: Request) -> Response:
        """The JSON answer, or an error in its place."""
        watcher = watch_hang_up(request.receive, self._generation.hang_up)
        try:
            while not self._completion.finished:
                await self._advance()
            request_id = f"gen-{self._service.api}-{self._generation.number}"
            body = self._completion.body(self._service.model.full_name, request_id)
            self._end("ok")
            return json_response(body)
        except ReaderGone:
            self._end("cancelled")
            return Response(status_code=499)
        except ApiError as error:
            self._end(OUTCOME_OF_STATUS.get(error.status, "error"))
            return error_response(self._presented(error))
        finally:
            watcher.cancel()
            self._end("error")

    async def streamed(self, request: Request) -> Response:
        """Events; an error before the first of them is an answer with its own status."""
        watcher = watch_hang_up(request.receive, self._generation.hang_up)
        try:
            changed = await self._advance()
        except ReaderGone:
            self._end("cancelled")
            return Response(status_code=499)
        except ApiError as error:
            self._end(OUTCOME_OF_STATUS.get(error.status, "error"))
            return error_response(self._presented(error))
        except BaseException:
            self._end("error")
            raise
        finally:
            watcher.cancel()
        return EventStream(self._completion.events(changed), self._rest(changed), gone=self._hang_up)

    async def _rest(self, changed: list[tuple[Choice, str]]) -> AsyncIterator[bytes]:
        """Each turn starts when the connection took the chunk before, and gives credit for it."""
        try:
            while not self._completion.finished:
                self._acknowledge(changed)
                changed = await self._advance()
                if chunk := self._completion.events(changed):
                    started = time.perf_counter()
                    yield chunk
                    if self._service.metrics.timing:
                        self._service.metrics.phase("write", time.perf_counter() - started)
            self._end("ok")
        except ReaderGone:
            self._end("cancelled")
        except ApiError as error:
            self._end(OUTCOME_OF_STATUS.get(error.status, "error"))
            yield error_event(self._presented(error))

    async def _advance(self) -> list[tuple[Choice, str]]:
        """Everything that came since the last turn, as text; stops what a stop string ended."""
        taken = await self._generation.take()
        started = time.perf_counter()
        changed = self._completion.accept(taken)
        for choice, _ in changed:
            if choice.finished:
                self._generation.stop(choice.index)
        if self._service.metrics.timing:
            self._service.metrics.phase("detokenise", time.perf_counter() - started)
        if self._completion.quality:
            for choice, _ in changed:
                await self._score(choice)
        if self._completion.wants_phi:
            for choice, _ in changed:
                if choice.finished:
                    choice.phi = await self._service.phi.measure(self._completion.prompt_of(choice), choice.token_ids)
        return changed

    async def _score(self, choice: Choice) -> None:
        scoring = self._service.scoring()
        if choice.finished:
            choice.quality = await scoring.report(choice)
        elif self._completion.running_score_due(choice):
            choice.running_quality = await scoring.running(choice)

    def _acknowledge(self, changed: list[tuple[Choice, str]]) -> None:
        for choice, _ in changed:
            num_new = len(choice.token_ids) - choice.num_acknowledged
            choice.num_acknowledged += num_new
            self._generation.acknowledge(choice.index, num_new)

    def _hang_up(self) -> None:
        self._generation.hang_up()
        self._end("cancelled")

    def _end(self, outcome: str) -> None:
        """Count the request and free its places, once."""
        if not self._outcome:
            self._outcome = outcome
            self._generation.close()
            self._service.metrics.outcome(self._route, outcome)
            self._service.metrics.finished(self._completion.totals())
            if outcome == "ok" and not self._completion.quality:
                self._service.observe_quality(self._completion.choices)
