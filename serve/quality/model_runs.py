"""Run a checkpoint for the score's sake: surprise of given texts, and samples. Offline only; loads torch when called.

Samples come from serve.engine, so what is measured is what is served. Texts are scored by one plain forward pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve.engine.engine import Engine, EngineLimits
from serve.engine.loader import load_runner, load_tokenizer
from serve.engine.request import EngineRequest, SamplingParams
from serve.engine.runner import RunnerOptions
from serve.quality.surprise import TokenSurprise

_MAX_ROWS = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """A generation: its text and its tokens as the model saw them (stop token left out)."""

    text: str
    surprise: TokenSurprise


def generate(
    model_dir: Path | str,
    prompts: Sequence[str],
    params: SamplingParams,
    *,
    seed: int = 0,
    runner: str = "auto",
    tokenizer_dir: Path | str | None = None,
) -> list[Sample]:
    """Continue each prompt under one decoding setting; params.seed is replaced by seed + its index.

    tokenizer_dir: where tokenizer.json is, for checkpoints that were saved without it.
    """
    tokenizer = load_tokenizer(tokenizer_dir or model_dir)
    options = RunnerOptions(max_slots=min(32, max(1, len(prompts))))
    engine = Engine(load_runner(model_dir, runner, options).runner, EngineLimits(max_tokens_per_step=2048))
    room = engine.runner.max_model_len - params.max_new_tokens
    if room < 1:
        raise ValueError(f"max_new_tokens is {params.max_new_tokens}: {model_dir} takes {engine.runner.max_model_len}")
    for index, prompt in enumerate(prompts):
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids[-room:] or [0]
        values = {name: getattr(params, name) for name in SamplingParams.__dataclass_fields__}
        engine.add(EngineRequest(index, ids, SamplingParams(**{**values, "seed": seed + index})))
    tokens: list[list[tuple[int, float, float]]] = [[] for _ in prompts]
    while engine.has_work:
        for delta in engine.step():
            if delta.error:
                raise ValueError(f"{model_dir} failed: {delta.error}")
            tokens[delta.request_id] += zip(delta.token_ids, delta.logprobs, delta.entropies, strict=True)
    stop = frozenset(engine.runner.eos_token_ids)
    return [_sample(tokenizer, [t for t in row if t[0] not in stop]) for row in tokens]


def _sample(tokenizer: "object", row: list[tuple[int, float, float]]) -> Sample:
    ids = [token for token, _, _ in row]
    text: str = tokenizer.decode(ids)  # type: ignore[attr-defined]
    return Sample(text, TokenSurprise(ids, [p for _, p, _ in row], [h for _, _, h in row]))


@dataclass(frozen=True, slots=True)
class ScoredText:
    """Surprise of a text's tokens, the probability of the likeliest token at each place, and where tokens end.

    ends: index of the character behind each token, so that a shorter text is a prefix of the arrays.
    """

    surprise: TokenSurprise
    top1: np.ndarray[tuple[int], np.dtype[np.float64]]
    ends: list[int]


class TextScorer:
    """Forward passes of one checkpoint over given texts, in float32 on the CPU."""

    def __init__(
        self,
        model_dir: Path | str,
        *,
        untrained: bool = False,
        seed: int = 0,
        tokenizer_dir: Path | str | None = None,
    ) -> None:
        """untrained: the same architecture with fresh weights drawn from seed."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        self._tokenizer = load_tokenizer(tokenizer_dir or model_dir)
        if untrained:
            config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        else:
            self.model = AutoModelForCausalLM.from_pretrained(
                model_dir, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
            )
        self.model.eval()
        self.vocab_size = int(self.model.config.vocab_size)
        self._max_tokens = int(getattr(self.model.config, "max_position_embeddings", 1024))

    def score(self, texts: Sequence[str], context: str = "\n") -> list[ScoredText]:
        """Each text behind `context`, which is not scored; texts beyond the model's length are cut."""
        import torch

        lead = self._tokenizer.encode(context, add_special_tokens=False).ids or [0]
        encoded = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        rows = [e.ids[: self._max_tokens - len(lead)] for e in encoded]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out: dict[int, ScoredText] = {}
        for at in range(0, len(order), _MAX_ROWS):
            batch = order[at : at + _MAX_ROWS]
            width = max(1, *(len(rows[i]) for i in batch))
            ids = torch.zeros((len(batch), len(lead) + width), dtype=torch.long)
            for row, i in enumerate(batch):
                ids[row, : len(lead) + len(rows[i])] = torch.tensor(lead + rows[i])
            # Padding stands behind the text and attention is causal, so it needs no mask.
            with torch.inference_mode():
                logp_BTV = self.model(input_ids=ids).logits[:, len(lead) - 1 : -1].float().log_softmax(-1)
                entropy_BT = -(logp_BTV.exp() * logp_BTV).sum(-1)
                chosen_BT = logp_BTV.gather(-1, ids[:, len(lead) :, None])[..., 0]
                top_BT = logp_BTV.amax(-1).exp()
            for row, i in enumerate(batch):
                n = len(rows[i])
                surprise = TokenSurprise(
                    rows[i], chosen_BT[row, :n].double().numpy(), entropy_BT[row, :n].double().numpy()
                )
                ends = [end for _, end in encoded[i].offsets[:n]]
                out[i] = ScoredText(surprise, top_BT[row, :n].double().numpy(), ends)
        return [out[i] for i in range(len(rows))]

    @property
    def log_vocab(self) -> float:
        """ln(vocabulary): the entropy of a model that knows nothing."""
        return math.log(self.vocab_size)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer as a plain folder, for generate()."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self._tokenizer.save(str(folder / "tokenizer.json"))
