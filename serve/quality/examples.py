"""Human passages, spoiled passages and generations, as examples to fit and to validate on. Offline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np

from serve.engine.loader import load_tokenizer
from serve.engine.request import SamplingParams
from serve.quality.corpus import passages
from serve.quality.degradations import Apply, Bank
from serve.quality.model_runs import Sample, TextScorer, generate
from serve.quality.restyling import restyle
from serve.quality.surprise import TokenSurprise


@dataclass(frozen=True, slots=True)
class Example:
    """kind: "human" or the name of what is wrong. surprise: where a checkpoint has seen the text."""

    text: str
    kind: str
    surprise: TokenSurprise | None = None

    @property
    def is_human(self) -> bool:
        """Whether it is a positive."""
        return self.kind == "human"


def human(documents: Sequence[str], count: int, random: Random, bank: Bank, restyled: float = 0.5) -> list[Example]:
    """Passages, a share of them restyled."""
    found = passages(documents, count, random)
    return [Example(restyle(t, random, bank) if random.random() < restyled else t, "human") for t in found]


def spoiled(
    documents: Sequence[str], kinds: Mapping[str, Apply], each: int, random: Random, bank: Bank
) -> list[Example]:
    """`each` passages of every kind of degradation, from passages of their own."""
    found = []
    for kind, apply in kinds.items():
        for text in passages(documents, each, random):
            found.append(Example(apply(text, random, bank), kind))
    return [e for e in found if e.text.strip()]


def with_surprise(examples: Iterable[Example], scorer: TextScorer) -> list[Example]:
    """The same texts, each with its surprise under the scorer's model; those that have it already keep it."""
    examples = list(examples)
    missing = [i for i, e in enumerate(examples) if e.surprise is None]
    scored = scorer.score([examples[i].text for i in missing])
    for i, found in zip(missing, scored, strict=True):
        examples[i] = Example(examples[i].text, examples[i].kind, found.surprise)
    return examples


def prompts(documents: Sequence[str], count: int, random: Random) -> list[str]:
    """Beginnings of about 32 tokens."""
    return passages(documents, count, random, (24, 40))


def shortened(sample: Sample, num_tokens: int, tokenizer_dir: Path | str) -> Sample:
    """The first tokens of a sample."""
    s = sample.surprise
    ids = list(s.token_ids)[:num_tokens]
    text = load_tokenizer(tokenizer_dir).decode(ids)
    return Sample(text, TokenSurprise(ids, s.logprobs[:num_tokens], s.entropies[:num_tokens]))


def generations(
    model_dir: Path | str,
    kind: str,
    starts: Sequence[str],
    params: SamplingParams,
    random: Random,
    lengths: tuple[int, int] | None = (40, 240),
    seed: int = 0,
    tokenizer_dir: Path | str | None = None,
) -> list[Example]:
    """Samples of a checkpoint, cut to log-uniform lengths (None: left whole); empty ones are dropped."""
    tokenizer_dir = tokenizer_dir or model_dir
    samples = generate(model_dir, starts, params, seed=seed, tokenizer_dir=tokenizer_dir)
    if lengths is not None:
        low, high = lengths
        samples = [shortened(s, round(low * (high / low) ** random.random()), tokenizer_dir) for s in samples]
    return [Example(s.text, kind, s.surprise) for s in samples if len(s.surprise) and s.text]


def untrained_generations(
    model_dir: Path | str, starts: Sequence[str], params: SamplingParams, random: Random, seed: int = 0
) -> list[Example]:
    """Samples of the same architecture with fresh weights."""
    with TemporaryDirectory() as folder:
        TextScorer(model_dir, untrained=True, seed=seed).save(Path(folder))
        return generations(folder, "untrained_model", starts, params, random, seed=seed)


def loops(examples: Sequence[Example]) -> list[Example]:
    """Those that repeat themselves: more than a fifth of their 4-grams of tokens."""
    from serve.quality.repetition import seq_rep

    kept = []
    for example in examples:
        assert example.surprise is not None
        if seq_rep(np.asarray(example.surprise.token_ids, dtype=np.int64))[3] > 0.2:
            kept.append(example)
    return kept
