"""Does the score earn its name? Measures every row of the validity table: `python -m serve.quality validate`. Offline.

Nothing measured here may have been fitted on: give corpora that the reference has not seen. Rows that need a model are
left out, and named as left out, when none is given. validity_report.py writes what comes of it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from serve.engine.loader import load_tokenizer
from serve.engine.request import SamplingParams
from serve.quality.corpus import passages, read_corpus, shorten
from serve.quality.degradations import FITTED, UNSEEN, Apply, Bank, shuffled_sentences
from serve.quality.examples import Example, generations, loops, prompts, spoiled, with_surprise
from serve.quality.model_runs import TextScorer
from serve.quality.score import QualityScorer, seed_score
from serve.quality.statistics import FloatArray, Interval, auc, bootstrap, calibration_error, mean, spearman

NAMED = ("random_fragments", "shuffled_words", "looped_phrase")


@dataclass(frozen=True)
class ValidateConfig:
    """corpus: held-out human text. genres: other human text. steps: (training step, checkpoint), rising."""

    reference: Path
    corpus: Path
    genres: tuple[Path, ...] = ()
    checkpoint: Path | None = None
    steps: tuple[tuple[int, Path], ...] = ()
    undertrained: Path | None = None
    num_passages: int = 400
    num_spoiled: int = 120
    num_samples: int = 96
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. required: as in the specification. met: None where nothing is required."""

    name: str
    head: str
    found: Interval
    required: str
    met: bool | None
    seed_score: float | None = None
    note: str = ""


@dataclass
class Validity:
    """Rows for the table, and the scores behind the plots."""

    rows: list[Row] = field(default_factory=list)
    scores: dict[str, FloatArray] = field(default_factory=dict)
    seed_scores: dict[str, FloatArray] = field(default_factory=dict)
    reliability: list[tuple[float, float, float]] = field(default_factory=list)
    steps: list[tuple[int, Interval, float]] = field(default_factory=list)
    setting: dict[str, Any] = field(default_factory=dict)


class Validation:
    """One run of all measurements; say() hears what is being done."""

    def __init__(self, config: ValidateConfig, say: Callable[[str], None]) -> None:
        self.config, self.say = config, say
        self.scorer = QualityScorer.load(config.reference)
        self.random = Random(config.seed)
        self.rng = np.random.default_rng(config.seed)
        self.corpus = read_corpus(config.corpus)
        self.documents = self.corpus.documents
        self.bank = Bank([d[:120_000] for d in self.documents])
        self.out = Validity()
        self.model: TextScorer | None = None if config.checkpoint is None else TextScorer(config.checkpoint)

    def run(self) -> Validity:
        """Every row, in the order of the specification."""
        self.say("human text")
        human = [Example(t, "human") for t in passages(self.documents, self.config.num_passages, self.random)]
        if self.model is not None and "surprise" in self.scorer.reference.heads:
            human = with_surprise(human, self.model)
        kinds = self._kinds()
        for head in self.scorer.reference.heads:
            self._contrasts(head, human, kinds)
        self._genres()
        self._order(human, kinds)
        self._lengths()
        self._calibration(human, kinds)
        self._training_steps()
        self._cost()
        self.out.setting = self._setting()
        return self.out

    def _kinds(self) -> dict[str, list[Example]]:
        """Spoiled passages and generations, by kind."""
        each = self.config.num_spoiled
        kinds: dict[str, list[Example]] = {}
        for kind, apply in [*FITTED.items(), *UNSEEN.items()]:
            kinds[kind] = spoiled(self.documents, {kind: apply}, each, self.random, self.bank)
        texts = passages(self.documents, each, self.random)
        kinds["shuffled_sentences"] = [Example(shuffled_sentences(t, self.random), "shuffled_sentences") for t in texts]
        if self.config.checkpoint is not None:
            kinds["random_tokens"] = self._random_tokens(self.config.checkpoint, each)
            if self.model is not None and "surprise" in self.scorer.reference.heads:
                self.say("surprise of spoiled passages")
                kinds = {kind: with_surprise(found, self.model) for kind, found in kinds.items()}
            kinds |= self._generated(self.config.checkpoint)
        return kinds

    def _random_tokens(self, checkpoint: Path, each: int) -> list[Example]:
        tokenizer = load_tokenizer(checkpoint)
        size = tokenizer.get_vocab_size()
        draws = [[self.random.randrange(size) for _ in range(self.random.randint(40, 240))] for _ in range(each)]
        return [Example(tokenizer.decode(ids), "random_tokens") for ids in draws]

    def _generated(self, checkpoint: Path) -> dict[str, list[Example]]:
        """Samples with the surprise that the generating model itself reports, as a server has it."""
        starts = prompts(self.documents, self.config.num_samples, self.random)

        def sample(folder: Path, kind: str, temperature: float, top_p: float = 1.0) -> list[Example]:
            self.say(f"generating: {kind}")
            params = SamplingParams(max_new_tokens=200, temperature=temperature, top_p=top_p, ignore_eos=True)
            return generations(
                folder, kind, starts, params, self.random, None, seed=self.config.seed, tokenizer_dir=checkpoint
            )

        found = {
            "trained_model": sample(checkpoint, "trained_model", 1.0),
            "temperature_0.8": sample(checkpoint, "temperature_0.8", 0.8, 0.95),
            "temperature_2.5": sample(checkpoint, "temperature_2.5", 2.5),
            "temperature_1.4": sample(checkpoint, "temperature_1.4", 1.4),
        }
        weak = self.config.undertrained or checkpoint
        found["greedy_loops"] = loops(sample(weak, "greedy_loops", 0.0))
        if self.config.undertrained is not None:
            found["undertrained_model"] = sample(self.config.undertrained, "undertrained_model", 1.0)
        with TemporaryDirectory() as folder:
            TextScorer(checkpoint, untrained=True, seed=self.config.seed + 100).save(Path(folder))
            found["untrained_model"] = sample(Path(folder), "untrained_model", 1.0)
        return found

    # --- rows ----------------------------------------------------------------------------------------------------

    def _score(self, examples: Sequence[Example], head: str = "text") -> FloatArray:
        """Scores; texts that are too short to score are left out."""
        given = [e.surprise if head == "surprise" else None for e in examples]
        reports = [self.scorer.score(e.text, surprise) for e, surprise in zip(examples, given, strict=True)]
        return np.array([r.score for r in reports if r.score is not None])

    def _add(self, name: str, head: str, found: Interval, required: str, met: bool | None, **more: Any) -> None:
        self.out.rows.append(Row(name, head, found, required, met, **more))

    def _contrasts(self, head: str, human: Sequence[Example], kinds: Mapping[str, Sequence[Example]]) -> None:
        real = self._score(human, head)
        seed_real = np.array([seed_score(e.text) for e in human])
        model_kinds = [k for k in ("untrained_model", "temperature_2.5", "greedy_loops") if k in kinds]
        first = ["random_tokens" if "random_tokens" in kinds else "random_fragments", *NAMED[1:], *model_kinds]
        unseen = [*UNSEEN, *(k for k in ("temperature_1.4",) if k in kinds)]
        scores = {kind: self._score(found, head) for kind, found in kinds.items()}
        if head == "text":
            self.out.scores = {"human": real, **scores}
            self.out.seed_scores = {k: np.array([seed_score(e.text) for e in v]) for k, v in kinds.items()}
            self.out.seed_scores["human"] = seed_real

        def add(name: str, spoiled_scores: FloatArray, texts: Sequence[Example], least: float | None) -> None:
            found = bootstrap(auc, [real, spoiled_scores], self.rng)
            by_seed = auc(seed_real, np.array([seed_score(e.text) for e in texts]))
            required = "" if least is None else f"AUC >= {least:.2f}"
            self._add(name, head, found, required, None if least is None else found.value >= least, seed_score=by_seed)

        for kind in first:
            add(f"human vs {kind}", scores[kind], kinds[kind], 0.95)
        pooled = [e for kind in unseen for e in kinds[kind]]
        add("human vs unseen degradations, pooled", np.concatenate([scores[k] for k in unseen]), pooled, 0.90)
        for kind in unseen:
            add(f"human vs unseen: {kind}", scores[kind], kinds[kind], 0.90)
        add("human vs shuffled_sentences", scores["shuffled_sentences"], kinds["shuffled_sentences"], None)
        for kind in sorted(set(FITTED) - set(first)):
            add(f"human vs fitted: {kind}", scores[kind], kinds[kind], None)

    def _genres(self) -> None:
        """Other human text against the same degradations of that very text: the harder and fairer question."""
        each = max(12, self.config.num_spoiled // 8)
        for path in self.config.genres:
            corpus = read_corpus(path)
            self.say(f"genre {corpus.name}")
            bank = Bank([d[:120_000] for d in corpus.documents[:20]])
            texts = [Example(t, "human") for t in passages(corpus.documents, self.config.num_passages, self.random)]
            real = self._score(texts)
            self.out.scores[f"human: {corpus.name}"] = real
            self._add(f"mean score of {corpus.name}", "text", bootstrap(mean, [real], self.rng), "", None)
            groups: list[tuple[str, Mapping[str, Apply]]] = [("fitted", FITTED), ("unseen", UNSEEN)]
            for name, kinds in groups:
                bad = spoiled(corpus.documents, kinds, each, self.random, bank)
                found = bootstrap(auc, [real, self._score(bad)], self.rng)
                row = f"{corpus.name} vs {name} degradations of itself"
                by_seed = auc(
                    np.array([seed_score(e.text) for e in texts]), np.array([seed_score(e.text) for e in bad])
                )
                self._add(row, "text", found, "AUC >= 0.90", found.value >= 0.90, seed_score=by_seed)

    def _order(self, human: Sequence[Example], kinds: Mapping[str, Sequence[Example]]) -> None:
        names = [n for n in ("trained_model", "undertrained_model", "untrained_model") if n in kinds]
        if not names:
            return
        for head in self.scorer.reference.heads:
            groups = [human, *(kinds[n] for n in names)]
            found = [bootstrap(mean, [self._score(g, head)], self.rng) for g in groups]
            seeds = [float(np.mean([seed_score(e.text) for e in g])) for g in groups]
            for i, (name, interval) in enumerate(zip(["human", *names], found, strict=True)):
                met = None if i == 0 else interval.high < found[i - 1].low
                required = "" if i == 0 else f"below {['human', *names][i - 1]}, intervals apart"
                self._add(f"mean score: {name}", head, interval, required, met, seed_score=seeds[i])

    def _lengths(self) -> None:
        long = passages(self.documents, self.config.num_passages, self.random, (520, 540))
        for head in ("text",):
            pairs = [[self.scorer.score(shorten(t, n)).score or 0.0 for n in (64, 512)] for t in long]
            difference = np.array([b - a for a, b in pairs])
            found = bootstrap(mean, [difference], self.rng)
            self._add("512 minus 64 tokens of the same text", head, found, "within 0.05", abs(found.value) < 0.05)

    def _calibration(self, human: Sequence[Example], kinds: Mapping[str, Sequence[Example]]) -> None:
        for head in self.scorer.reference.heads:
            real = self._score(human, head)
            for name, group in (("fitted", FITTED), ("unseen", UNSEEN)):
                bad = np.concatenate([self._score(kinds[kind], head) for kind in group])

                def error(a: FloatArray, b: FloatArray) -> float:
                    weights = np.concatenate([np.full(len(a), 0.5 / len(a)), np.full(len(b), 0.5 / len(b))])
                    return calibration_error(np.concatenate([a, b]), np.arange(len(a) + len(b)) < len(a), weights)

                found = bootstrap(error, [real, bad], self.rng, rounds=300)
                row = f"calibration error, human and {name} kinds half and half"
                self._add(row, head, found, "ECE <= 0.05", found.value <= 0.05)
                if head == "text" and name == "fitted":
                    self.out.reliability = _reliability(real, bad)

    def _training_steps(self) -> None:
        checkpoint = self.config.checkpoint
        if len(self.config.steps) < 3 or checkpoint is None:
            return
        starts = prompts(self.documents, self.config.num_samples, self.random)
        params = SamplingParams(max_new_tokens=160, temperature=1.0, ignore_eos=True)
        for step, folder in self.config.steps:
            self.say(f"generating at step {step}")
            found = generations(
                folder, "step", starts, params, self.random, None, seed=self.config.seed, tokenizer_dir=checkpoint
            )
            score = bootstrap(mean, [self._score(found)], self.rng)
            self.out.steps.append((step, score, float(np.mean([seed_score(e.text) for e in found]))))
        steps = [float(s) for s, _, _ in self.out.steps]
        rho = spearman(steps, [i.value for _, i, _ in self.out.steps])
        by_seed = spearman(steps, [s for _, _, s in self.out.steps])
        found_rho = Interval(rho, float("nan"), float("nan"))
        name = f"Spearman of mean score and training step, {len(steps)} checkpoints"
        self._add(name, "text", found_rho, ">= 0.9", rho >= 0.9, seed_score=by_seed)

    def _cost(self) -> None:
        """p50 over 200 calls on about 256 tokens, best of 5 bursts: another process's load is not the score's cost."""
        text = shorten(self.documents[0][20_000:24_000], 256)
        bursts = []
        for _ in range(5):
            times = []
            for _ in range(200):
                started = time.perf_counter()
                self.scorer.score(text)
                times.append(1000 * (time.perf_counter() - started))
            bursts.append(float(np.median(times)))
        found = Interval(min(bursts), min(bursts), max(bursts))
        self._add("milliseconds for 256 tokens, p50", "text", found, "< 1 ms", found.value < 1)

    def _setting(self) -> dict[str, Any]:
        c = self.config
        return {
            "corpus": self.corpus.identity(),
            "genres": [read_corpus(p).identity() for p in c.genres],
            "reference_origin": dict(self.scorer.reference.origin),
            "num_passages": c.num_passages,
            "num_spoiled": c.num_spoiled,
            "num_samples": c.num_samples,
            "seed": c.seed,
        }


def _reliability(real: FloatArray, bad: FloatArray, bins: int = 10) -> list[tuple[float, float, float]]:
    """(mean score, share of human, share of weight) by bin."""
    scores = np.concatenate([real, bad])
    human = np.arange(len(scores)) < len(real)
    weights = np.where(human, 0.5 / len(real), 0.5 / len(bad))
    which = np.minimum((scores * bins).astype(int), bins - 1)
    out = []
    for b in range(bins):
        w = weights[which == b]
        if len(w):
            out.append(
                (float(w @ scores[which == b] / w.sum()), float(w @ human[which == b] / w.sum()), float(w.sum()))
            )
    return out
