"""What one decoding setting makes of given prompts: how far its texts lie from the human ones, by MAUVE and by score.

gap = (1 - MAUVE) + distance of scores, each part in 0 to 1, lower is closer. The distance of scores is the Wasserstein
distance between the quality scores of generated and of human text: to score higher than people is as far off as lower.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from model_store.staging import replace_file
from serve.engine.request import SamplingParams
from serve.quality.score import QualityScorer
from serve.quality.statistics import Interval
from training.continuations import Continuer, Prompt
from training.mauve import LastHiddenStates, mauve_of_features
from training.record import read_record

TUNED = ("temperature", "top_p", "min_p", "repetition_penalty")
"""What is tuned: the sampling settings of transformers' generation_config.json that no other one stands in for."""
Setting = Mapping[str, float]
FloatArray = NDArray[np.float64]
_NEVER = -100.0


@dataclass(frozen=True)
class Trial:
    """One setting on one set of prompts. draws_B: the bootstrap's gaps, centred; rows of two trials belong together."""

    name: str
    setting: Setting
    num_prompts: int
    mauve: Interval
    score: Interval
    score_distance: Interval
    gap: Interval
    draws_B: FloatArray

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with which from_json() makes an equal trial up to the fourth decimal."""
        intervals = {name: getattr(self, name).to_json() for name in ("mauve", "score", "score_distance", "gap")}
        return {
            "name": self.name,
            "setting": dict(self.setting),
            "num_prompts": self.num_prompts,
            **intervals,
            "draws": np.round(self.draws_B, 4).tolist(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Trial":
        """Of a record that to_json() made."""
        intervals = {name: Interval(**data[name]) for name in ("mauve", "score", "score_distance", "gap")}
        return Trial(data["name"], data["setting"], data["num_prompts"], **intervals, draws_B=np.array(data["draws"]))


@dataclass(frozen=True)
class Outcome:
    """stages: every stage's trials, best first. held_out: the winner, then its rivals. adopted: is it to be written?

    people: MAUVE and distance of scores between the two halves' human texts.
    """

    stages: list[list[Trial]]
    held_out: list[Trial]
    adopted: bool
    verdict: str
    people: tuple[Interval, float]


def difference(one: Trial, other: Trial) -> Interval:
    """Gap of one less gap of other, on the same prompts; below 0 where one is closer to human text."""
    low, high = np.quantile(one.draws_B - other.draws_B, [0.025, 0.975])
    return Interval(one.gap.value - other.gap.value, float(low), float(high))


class Trials:
    """Runs settings on prompts, and keeps what is done in a file of JSON lines, so that a killed run goes on.

    kept: sampling settings that are not tuned, the same in every trial. protocol: identity of all else that decides a
    result; lines of another one are not read. progress: called with the number of tokens that came.
    """

    def __init__(
        self,
        model_dir: Path,
        scorer: QualityScorer,
        continuer: Continuer,
        *,
        kept: Mapping[str, Any],
        protocol: str,
        results: Path,
        seed: int,
        num_bootstrap: int,
        progress: Callable[[int], object],
    ) -> None:
        self._continuer, self._scorer = continuer, scorer
        self._features = LastHiddenStates(model_dir)
        # The human texts are all of full length, so the tokens that end a text are never drawn.
        self._kept = {**kept, "logit_bias": dict.fromkeys(continuer.end_token_ids, _NEVER)}
        self._protocol, self._results = protocol, results
        self._seed, self._num_bootstrap = seed, num_bootstrap
        self._progress = progress
        lines = read_record(results)
        if results.exists():  # without the line that a kill cut short: the next one would be appended to it
            replace_file(results, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._done = {line["key"]: line for line in lines if line["protocol"] == protocol}
        self._human: dict[str, tuple[NDArray[np.float32], FloatArray]] = {}

    def run(self, name: str, setting: Setting, part: str, prompts: Sequence[Prompt]) -> Trial:
        """The trial, from the file if it is there. part: names where the prompts are from ("selection", "held_out")."""
        key = f"{part} {len(prompts)} {json.dumps(dict(setting), sort_keys=True)}"
        line = self._done.get(key)
        if line is None:
            line = {"key": key, "protocol": self._protocol, **self._measure(name, setting, part, prompts).to_json()}
            with self._results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._done[key] = line
        else:
            self._progress(sum(prompt.human_tokens for prompt in prompts))
        return Trial.from_json({**line, "name": name})

    def people(self, selection: Sequence[Prompt], held_out: Sequence[Prompt]) -> tuple[Interval, float]:
        """MAUVE and distance of scores between two samples of human text: what a perfect writer could expect."""
        one_ND, one_scores = self._of_people("selection", selection)
        other_ND, other_scores = self._of_people("held_out", held_out)
        found = mauve_of_features(one_ND, other_ND, seed=self._seed, num_bootstrap=self._num_bootstrap)
        distance = wasserstein_distance(one_scores, other_scores)
        return Interval(found.value, found.low, found.high), float(distance)

    def _measure(self, name: str, setting: Setting, part: str, prompts: Sequence[Prompt]) -> Trial:
        human_ND, human_scores = self._of_people(part, prompts)
        params = {**self._kept, **setting}
        seeds = range(self._seed, self._seed + len(prompts))
        texts = [c.text for c in self._continuer(prompts, params, seeds=seeds, progress=self._progress)]
        scores = self._scores(texts, prompts)
        mauve = mauve_of_features(human_ND, self._features(texts), seed=self._seed, num_bootstrap=self._num_bootstrap)
        rng = np.random.default_rng(self._seed)
        rows_BN = rng.integers(0, len(prompts), (self._num_bootstrap, len(prompts)))
        distance = score_distance(human_scores[None], scores[None])[0]
        distances_B = score_distance(human_scores[rows_BN], scores[rows_BN])
        distances_B += distance - distances_B.mean()
        draws_B = 1 - mauve.draws + distances_B
        return Trial(
            name=name,
            setting=setting,
            num_prompts=len(prompts),
            mauve=Interval(mauve.value, mauve.low, mauve.high),
            score=_interval(float(scores.mean()), scores[rows_BN].mean(1)),
            score_distance=_interval(float(distance), distances_B),
            gap=_interval(float(1 - mauve.value + distance), draws_B),
            draws_B=draws_B,
        )

    def _of_people(self, part: str, prompts: Sequence[Prompt]) -> tuple[NDArray[np.float32], FloatArray]:
        key = f"{part} {len(prompts)}"
        if key not in self._human:
            texts = [prompt.human for prompt in prompts]
            self._human[key] = self._features(texts), self._scores(texts, prompts)
        return self._human[key]

    def _scores(self, texts: Sequence[str], prompts: Sequence[Prompt]) -> FloatArray:
        """Text head only: the surprise head knows the model, and would call its likeliest text the best."""
        reports = [self._scorer.score(t, num_tokens=p.human_tokens) for t, p in zip(texts, prompts, strict=True)]
        return np.array([report.score for report in reports], dtype=np.float64)


def score_distance(one_BN: FloatArray, other_BN: FloatArray) -> FloatArray:
    """Wasserstein-1 distance between rows of equally many scores; (B,)."""
    distance: FloatArray = np.abs(np.sort(one_BN, axis=1) - np.sort(other_BN, axis=1)).mean(1)
    return distance


def as_setting(params: SamplingParams) -> dict[str, float]:
    """The tuned part of sampling parameters."""
    return {name: float(getattr(params, name)) for name in TUNED}


def _interval(value: float, draws_B: FloatArray) -> Interval:
    """None of these figures can be below 0; centred draws of one close to it can."""
    low, high = np.quantile(draws_B, [0.025, 0.975]).clip(0.0)
    return Interval(value, float(low), float(high))
