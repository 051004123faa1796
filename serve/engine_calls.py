"""What endpoints beside /generate ask of the running engine: whole continuations, and its view of a given text.

Nothing of the model is loaded a second time: these are requests like any other, and make way for none and wait for
none. No routes, no scores.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from serve.channel import Add
from serve.completion import Choice, Completion, failure
from serve.engine.request import SamplingParams
from serve.errors import ApiError
from serve.quality.surprise import TokenSurprise
from serve.routes.responses import watch_hang_up
from serve.schemas import GenerateRequest, check_sizes, encode, plan, prompts_of, refuse, refuse_too_long
from serve.service import Service
from serve.worker_pool import Generation

Receive = Callable[[], Awaitable[object]]

POSITIONS_AT_ONCE = 16
"""Of a given text: a block of the prefix cache, so that each position computes its own block again and no more."""
_CERTAIN = 1e9  # added to a logit, it decides a greedy draw; the log-probability is taken before it is added


def too_late() -> ApiError:
    """What a request is answered when its time is over."""
    return ApiError(503, "the deadline passed before the answer was whole", remedy="try again later", retry_after=1)


class EngineCalls:
    """Calls on behalf of one HTTP request; a reader that hangs up (seen by `receive`) ends them with ReaderGone."""

    def __init__(self, service: Service, receive: Receive) -> None:
        self._service = service
        self._receive = receive

    async def continuations(self, asked: GenerateRequest) -> list[Choice]:
        """Every choice of a request, whole. Raises ApiError as /generate does, and 503 for one cut by its deadline."""
        service = self._service
        check_sizes(asked, service.settings)
        limits = service.limits()
        encoded = await service.tokenise(
            partial(encode, asked, service.model.tokenizer, limits), sum(map(len, prompts_of(asked)))
        )
        planned = plan(asked, encoded, service.model, limits)
        completion = Completion(planned, service.model.tokenizer, arrived=0.0)
        generation = self._open(planned.jobs)
        watcher = watch_hang_up(self._receive, generation.hang_up)
        try:
            while not completion.finished:
                for choice, _ in completion.accept(await generation.take()):
                    if choice.finished:
                        generation.stop(choice.index)
        finally:
            watcher.cancel()
            generation.close()
        if any(choice.finish_reason == "deadline" for choice in completion.choices):
            raise too_late()
        return completion.choices

    async def surprise(self, text: str, field: str) -> TokenSurprise:
        """Log-probability and entropy of each token of a text, behind a line break, as the served model has them.

        One greedy token for each position, forced to be the text's own. Raises ApiError 422, naming `field`, for a text
        of more tokens than the model takes.
        """
        tokenizer, limits = self._service.model.tokenizer, self._service.limits()
        lead = list(tokenizer.encode("\n", add_special_tokens=False).ids) or [0]
        most = limits.max_prompt_tokens + 1 - len(lead)
        refuse_too_long(field, text, tokenizer, most)
        encode_text = partial(tokenizer.encode, text, add_special_tokens=False)
        ids = list((await self._service.tokenise(encode_text, len(text))).ids)
        if len(ids) > most:
            raise refuse(field, len(ids), f"has a text of {len(ids)} tokens", f"give at most {most} for the surprise")
        logprobs: list[float] = []
        entropies: list[float] = []
        at_once = min(POSITIONS_AT_ONCE, self._service.settings.max_in_flight)
        for start in range(0, len(ids), at_once):
            end = min(start + at_once, len(ids))
            for logprob, entropy in await self._forced([lead + ids[:t] for t in range(start, end)], ids[start:end]):
                logprobs.append(logprob)
                entropies.append(entropy)
        return TokenSurprise(ids, logprobs, entropies)

    async def _forced(self, prompts: Sequence[list[int]], tokens: Sequence[int]) -> list[tuple[float, float]]:
        """For each prompt, the log-probability of the token that follows it and the entropy of what might."""
        deadline = self._service.settings.request_deadline_seconds
        jobs = []
        for prompt, token in zip(prompts, tokens, strict=True):
            params = {"max_new_tokens": 1, "temperature": 0.0, "logit_bias": {token: _CERTAIN}, "seed": 0}
            SamplingParams(**params)  # type: ignore[arg-type]
            jobs.append(Add(0, prompt, params, deadline))
        generation = self._open(jobs)
        watcher = watch_hang_up(self._receive, generation.hang_up)
        found: dict[int, tuple[float, float]] = {}
        try:
            while generation.unfinished or len(found) < len(jobs):
                for index, delta in await generation.take():
                    if delta.error is not None:
                        raise failure(delta.error)
                    if delta.token_ids:
                        assert delta.token_ids == [tokens[index]]
                        found[index] = (delta.logprobs[0], delta.entropies[0])
                    elif delta.finish_reason is not None and index not in found:
                        raise too_late()
        finally:
            watcher.cancel()
            generation.close()
        return [found[index] for index in range(len(jobs))]

    def _open(self, jobs: list[Add]) -> Generation:
        self._service.check_room(len(jobs))
        try:
            return self._service.pool.open(jobs, 0)
        except LookupError as error:
            raise ApiError(503, str(error), remedy="try again in a few seconds", retry_after=2) from error
