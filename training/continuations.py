"""Prompts cut from human text, and their continuations by a model, made on serve.engine: what is judged is served.

Knows nothing of scores. Loads torch only where the runner does.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Tokenizer

from serve.engine.engine import Engine, EngineLimits
from serve.engine.loader import load_runner, load_tokenizer
from serve.engine.request import EngineRequest, SamplingParams
from serve.engine.runner import RunnerOptions

PRESETS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        # The likeliest token each time; Holtzman et al. (2020) is where its loops are described.
        "greedy": MappingProxyType({"temperature": 0.0}),
        # The generation_config.json that Meta ships with Llama 2 and 3 (temperature 0.6, top_p 0.9).
        "conservative": MappingProxyType({"temperature": 0.6, "top_p": 0.9}),
        # Nucleus sampling as Holtzman et al. (2020) propose it: p = 0.95 and no change of temperature.
        "aggressive": MappingProxyType({"temperature": 1.0, "top_p": 0.95}),
    }
)
"""Decoding settings that need no tuning, for comparison; what one leaves open keeps SamplingParams' default."""

_MAX_SLOTS = 16
_KNOWN = frozenset(field.name for field in fields(SamplingParams)) - {"seed"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A place in a human text. ids, text: what stands before it. human: what follows, human_tokens tokens of it."""

    ids: tuple[int, ...]
    text: str
    human: str
    human_tokens: int


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the model wrote, a stop token left out. logprobs, entropies: nats, of its own distribution (TokenDelta)."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    entropies: list[float]


def prompts_from(
    documents: Sequence[str],
    tokenizer: Tokenizer,
    num_prompts: int,
    prompt_tokens: int,
    continuation_tokens: int,
    seed: int,
) -> list[Prompt]:
    """num_prompts windows of prompt_tokens + continuation_tokens, none overlapping, none across two documents.

    Drawn without replacement and in random order, so that any slice is a random sample. A window begins and ends at
    any token. ValueError where the documents hold too few, or for a number below 1.
    """
    asked = {
        "num_prompts": num_prompts,
        "prompt_tokens": prompt_tokens,
        "continuation_tokens": continuation_tokens,
    }
    for name, value in asked.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: give a whole number of at least 1")
    rng = random.Random(seed)
    span = prompt_tokens + continuation_tokens
    windows: list[list[int]] = []
    for document in documents:
        ids = tokenizer.encode(document, add_special_tokens=False).ids
        count = len(ids) // span
        first = rng.randint(0, len(ids) - count * span)
        windows += [ids[at : at + span] for at in range(first, first + count * span, span)]
    if len(windows) < num_prompts:
        raise ValueError(
            f"num_prompts is {num_prompts}: the text holds {len(windows)} windows of {span} tokens; "
            "ask for fewer or shorter ones, or give more text"
        )
    return [_prompt(tokenizer, window, prompt_tokens) for window in rng.sample(windows, num_prompts)]


def _prompt(tokenizer: Tokenizer, window: list[int], prompt_tokens: int) -> Prompt:
    before, after = window[:prompt_tokens], window[prompt_tokens:]
    return Prompt(tuple(before), tokenizer.decode(before), tokenizer.decode(after), len(after))


class Continuer:
    """A model ready to continue prompts.

    runner_name: what computes ("native" or "torch"). runner_dtype: in what. runner_reason: why it was chosen.
    end_token_ids: the tokens that end a text.
    """

    def __init__(self, model_dir: Path | str, runner: str = "auto", num_threads: int | None = None) -> None:
        """ValueError for a folder that cannot be served so (serve.engine.loader)."""
        loaded = load_runner(model_dir, runner, RunnerOptions(max_slots=_MAX_SLOTS, num_threads=num_threads))
        self.runner_name, self.runner_dtype, self.runner_reason = loaded.name, loaded.runner.dtype, loaded.reason
        self.tokenizer = load_tokenizer(model_dir)
        self._model_dir = model_dir
        self.end_token_ids = loaded.runner.eos_token_ids
        self._engine = Engine(loaded.runner, EngineLimits(max_tokens_per_step=1024))

    def __call__(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Mapping[str, Any],
        *,
        seeds: Sequence[int],
        progress: Callable[[int], object] | None = None,
    ) -> list[Continuation]:
        """As continue_prompts()."""
        if len(seeds) != len(prompts):
            raise ValueError(f"seeds has {len(seeds)} entries: give one for each of the {len(prompts)} prompts")
        engine = self._engine
        requests = [
            EngineRequest(index, list(prompt.ids), _sampling_params(params, prompt, seed))
            for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        for request in requests:  # all before any is queued: an error leaves the engine empty
            engine.check(request)
        for request in requests:
            engine.add(request)
        rows: list[list[tuple[int, float, float]]] = [[] for _ in prompts]
        try:
            while engine.has_work:
                for delta in engine.step():
                    if delta.error:
                        raise ValueError(f"{self._model_dir} failed: {delta.error}")
                    rows[delta.request_id] += zip(delta.token_ids, delta.logprobs, delta.entropies, strict=True)
                    if progress is not None:
                        progress(len(delta.token_ids))
        finally:
            for request in requests:
                engine.abort(request.request_id)
        stop = frozenset(self.end_token_ids)
        return [self._continuation([token for token in row if token[0] not in stop]) for row in rows]

    def _continuation(self, row: list[tuple[int, float, float]]) -> Continuation:
        ids = [token for token, _, _ in row]
        return Continuation(self.tokenizer.decode(ids), ids, [p for _, p, _ in row], [h for _, _, h in row])


def continue_prompts(
    model_dir: Path | str,
    prompts: Sequence[Prompt],
    params: SamplingParams | Mapping[str, Any],
    *,
    seeds: Sequence[int],
    runner: str = "auto",
    progress: Callable[[int], object] | None = None,
) -> list[Continuation]:
    """Continue each prompt by as many tokens as its human continuation has, unless params gives max_new_tokens.

    seeds: one for each prompt; a continuation depends on its prompt, params and seed alone, not on its neighbours.
    progress: called with the number of tokens that came.
    ValueError for a setting out of range or of an unknown name, and for a prompt that does not fit the model.
    """
    return Continuer(model_dir, runner)(prompts, params, seeds=seeds, progress=progress)


def _sampling_params(params: SamplingParams | Mapping[str, Any], prompt: Prompt, seed: int) -> SamplingParams:
    if isinstance(params, SamplingParams):
        params = {name: getattr(params, name) for name in _KNOWN}
    for name in params:
        if name not in _KNOWN:
            raise ValueError(f"params has '{name}': known settings are {', '.join(sorted(_KNOWN))}")
    return SamplingParams(**{"max_new_tokens": prompt.human_tokens, **params, "seed": seed})
