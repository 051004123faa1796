"""The quality reference: what human text looks like to the features, and what each deviation weighs. JSON in, JSON out.

One file belongs to one checkpoint and is published beside it as quality_reference.json. It is data only: loading it
runs nothing, and every field is checked with a message that names it.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.quality.features import DOCUMENT_FEATURES, TEXT_FEATURES, Feature
from serve.quality.lexicon import Lexicon
from serve.quality.surprise import SURPRISE_FEATURES

SCHEMA = 1
FILE_NAME = "quality_reference.json"
KIND = "phiserve quality reference"
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
GRADES = ("EXCELLENT", "GOOD", "FAIR")
GRADE_QUANTILES = {"EXCELLENT": 0.25, "GOOD": 0.05, "FAIR": 0.01}
"""A text is EXCELLENT if a quarter of human passages score lower, GOOD if 5 % do, FAIR if 1 % do, else POOR."""
_MAX_BYTES = 4_000_000
_MAX_DEVIATION = 60.0
_TOLERATED = 0.6
"""Spreads from the median that do not count."""
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class HumanRange:
    """How a group of features lies in human text, by length.

    lengths: (L,) rising, in pieces or tokens. quantiles_LFQ: QUANTILES of each feature at each length.
    """

    features: tuple[Feature, ...]
    lengths: FloatArray
    quantiles_LFQ: FloatArray
    _rows: FloatArray = field(init=False, repr=False)
    _log_lengths: list[float] = field(init=False, repr=False)
    _low_F: FloatArray = field(init=False, repr=False)
    _high_F: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Centre and the spread to either side at each length, from the 1 % tails: wide enough for rare genres."""
        q = self.quantiles_LFQ
        least = np.array([f.resolution for f in self.features])
        low = np.maximum((q[:, :, 3] - q[:, :, 0]) / 2.326, least)
        high = np.maximum((q[:, :, 6] - q[:, :, 3]) / 2.326, least)
        object.__setattr__(self, "_rows", np.stack([q[:, :, 3], low, high], axis=1))
        object.__setattr__(self, "_log_lengths", [math.log(n) for n in self.lengths])
        object.__setattr__(self, "_low_F", np.array([f.side != "high" for f in self.features], dtype=np.float64))
        object.__setattr__(self, "_high_F", np.array([f.side != "low" for f in self.features], dtype=np.float64))

    def deviations(self, values_F: FloatArray, length: int) -> FloatArray:
        """(2, F): how far below and above human text each value lies, 0 within _TOLERATED spreads of the median.

        log(1 + excess in spreads), so that one feature beyond all measure cannot outweigh everything else.
        """
        centre, low, high = self._at(length)
        z = values_F - centre
        both = np.empty((2, len(values_F)))
        both[0] = z / -low
        both[1] = z / high
        both -= _TOLERATED
        np.maximum(both, 0.0, out=both)  # two calls cost a third of np.clip
        np.minimum(both, _MAX_DEVIATION, out=both)
        both[0] *= self._low_F
        both[1] *= self._high_F
        result: FloatArray = np.log1p(both)
        return result

    def _at(self, length: int) -> FloatArray:
        """Rows interpolated in the logarithm of the length, constant beyond the ends."""
        logs = self._log_lengths
        at = math.log(max(1, length))
        if at <= logs[0]:
            first: FloatArray = self._rows[0]
            return first
        for i in range(1, len(logs)):
            if at < logs[i]:
                share = (at - logs[i - 1]) / (logs[i] - logs[i - 1])
                rows: FloatArray = self._rows[i - 1] * (1 - share) + self._rows[i] * share
                return rows
        last: FloatArray = self._rows[-1]
        return last

    def to_json(self) -> dict[str, Any]:
        """Lengths, and per feature a row of quantiles for each length."""
        rows = {f.name: np.round(self.quantiles_LFQ[:, i], 5).tolist() for i, f in enumerate(self.features)}
        return {"lengths": self.lengths.tolist(), "quantiles": rows}

    @staticmethod
    def from_json(where: str, data: object, features: Sequence[Feature]) -> "HumanRange":
        """ValueError naming the field; `where` is its place in the file."""
        mapping = _mapping(where, data)
        lengths = _numbers(f"{where}.lengths", mapping.get("lengths"))
        if len(lengths) < 1 or lengths[0] <= 0 or any(np.diff(lengths) <= 0):
            raise ValueError(f"{where}.lengths is {lengths.tolist()}: it must rise from above 0")
        rows = _mapping(f"{where}.quantiles", mapping.get("quantiles"))
        names = [f.name for f in features]
        _require_names(f"{where}.quantiles", rows, names)
        table = np.empty((len(lengths), len(names), len(QUANTILES)))
        for i, name in enumerate(names):
            values = _numbers(f"{where}.quantiles.{name}", rows[name])
            if values.shape != (len(lengths), len(QUANTILES)):
                raise ValueError(
                    f"{where}.quantiles.{name} has shape {values.shape}: it must be {(len(lengths), len(QUANTILES))}"
                )
            if (np.diff(values, axis=1) < 0).any():
                raise ValueError(f"{where}.quantiles.{name} does not rise: quantiles must not fall")
            table[:, i] = values
        return HumanRange(tuple(features), lengths, table)


@dataclass(frozen=True)
class Head:
    """A logistic regression on deviations, calibrated: score = 1 / (1 + exp(-(intercept + sum of contributions))).

    weights_2F: per side and feature, never above 0: to deviate from human text is never to the good.
    human_scores: scores of held-out human passages at the percentiles 0, 1, ..., 100.
    served_scores: the same of the checkpoint's own generations under its default decoding, the yardstick for drift.
    """

    features: tuple[Feature, ...]
    intercept: float
    weights_2F: FloatArray
    human_scores: tuple[float, ...]
    served_scores: tuple[float, ...] | None
    fit: Mapping[str, Any]

    def threshold(self, grade: str) -> float:
        """The least score of a grade."""
        return float(np.interp(GRADE_QUANTILES[grade] * 100, np.arange(101), self.human_scores))

    def to_json(self) -> dict[str, Any]:
        """Weights that are 0 are left out."""
        weights: dict[str, dict[str, float]] = {}
        for i, feature in enumerate(self.features):
            sides = {s: float(self.weights_2F[k, i]) for k, s in enumerate(("low", "high")) if self.weights_2F[k, i]}
            if sides:
                weights[feature.name] = sides
        return {
            "intercept": self.intercept,
            "weights": weights,
            "human_scores": list(self.human_scores),
            "served_scores": None if self.served_scores is None else list(self.served_scores),
            "fit": dict(self.fit),
        }

    @staticmethod
    def from_json(where: str, data: object, features: Sequence[Feature]) -> "Head":
        """ValueError naming the field; `where` is its place in the file."""
        mapping = _mapping(where, data)
        intercept = _numbers(f"{where}.intercept", mapping.get("intercept"))
        if intercept.shape != ():
            raise ValueError(f"{where}.intercept must be one number")
        names = {f.name: i for i, f in enumerate(features)}
        weights = np.zeros((2, len(names)))
        for name, sides in _mapping(f"{where}.weights", mapping.get("weights")).items():
            if name not in names:
                raise ValueError(f"{where}.weights has '{name}', which is no feature of this version: fit anew")
            for side, weight in _mapping(f"{where}.weights.{name}", sides).items():
                value = float(_numbers(f"{where}.weights.{name}.{side}", weight))
                if side not in ("low", "high") or value > 0:
                    raise ValueError(f"{where}.weights.{name}.{side} is {value}: sides are low, high; weights <= 0")
                weights[("low", "high").index(side), names[name]] = value
        served = mapping.get("served_scores")
        return Head(
            tuple(features),
            float(intercept),
            weights,
            _percentiles(f"{where}.human_scores", mapping.get("human_scores")),
            None if served is None else _percentiles(f"{where}.served_scores", served),
            _mapping(f"{where}.fit", mapping.get("fit")),
        )


@dataclass(frozen=True)
class QualityReference:
    """What the score compares with. text, document: ranges over pieces; surprise: over tokens, None without a model.

    heads: "text", and "surprise" (text and surprise features together) where there is a model.
    origin: checkpoint, corpora, seed, library versions: for people and for the store; None-able fields are null.
    """

    lexicon: Lexicon
    text: HumanRange
    document: HumanRange
    surprise: HumanRange | None
    heads: Mapping[str, Head]
    origin: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "origin": dict(self.origin),
            "quantile_levels": list(QUANTILES),
            "heads": {name: head.to_json() for name, head in self.heads.items()},
            "text": self.text.to_json(),
            "document": self.document.to_json(),
            "surprise": None if self.surprise is None else self.surprise.to_json(),
            "lexicon": self.lexicon.to_json(),
        }

    def save(self, path: Path | str) -> None:
        """Write the file; the same reference gives the same bytes."""
        Path(path).write_text(json.dumps(self.to_json(), indent=None, ensure_ascii=True) + "\n", encoding="ascii")

    @staticmethod
    def from_json(data: object) -> "QualityReference":
        """ValueError naming the first field that is missing, of the wrong kind, or out of range."""
        top = _mapping("the quality reference", data)
        if top.get("kind") != KIND:
            raise ValueError(f"kind is {top.get('kind')!r}: this is not a quality reference ('{KIND}')")
        if top.get("schema") != SCHEMA:
            raise ValueError(f"schema is {top.get('schema')!r}: this version reads schema {SCHEMA}; fit anew")
        heads = _mapping("heads", top.get("heads"))
        surprise = top.get("surprise")
        known = TEXT_FEATURES + DOCUMENT_FEATURES
        of_head = {"text": known} | ({} if surprise is None else {"surprise": known + SURPRISE_FEATURES})
        _require_names("heads", heads, list(of_head))
        return QualityReference(
            lexicon=Lexicon.from_json(_mapping("lexicon", top.get("lexicon"))),
            text=HumanRange.from_json("text", top.get("text"), TEXT_FEATURES),
            document=HumanRange.from_json("document", top.get("document"), DOCUMENT_FEATURES),
            surprise=None if surprise is None else HumanRange.from_json("surprise", surprise, SURPRISE_FEATURES),
            heads={name: Head.from_json(f"heads.{name}", heads[name], features) for name, features in of_head.items()},
            origin=_mapping("origin", top.get("origin")),
        )


def find_reference(model_dir: Path | str) -> QualityReference:
    """A model folder's own reference.

    ValueError if it has none, or one made for other weights. A reference fitted without a checkpoint has the text head
    alone and suits any weights.
    """
    model_dir = Path(model_dir)
    reference = load_reference(model_dir / FILE_NAME)
    _require_weights(reference, model_dir)
    return reference


def weights_identity(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights by file name: says whether a reference belongs to a checkpoint."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"checkpoint is '{folder}': it holds no .safetensors file")
    return {f.name: _sha256(f) for f in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_weights(reference: QualityReference, model_dir: Path) -> None:
    """ValueError if the reference names weights and the folder holds others."""
    checkpoint = reference.origin.get("checkpoint")
    if checkpoint is None and reference.surprise is None:
        return
    wanted = _mapping("origin.checkpoint", checkpoint).get("weights")
    found = weights_identity(model_dir)
    if wanted != found:
        raise ValueError(
            f"{model_dir / FILE_NAME} belongs to weights {_short(wanted)}, but the folder holds {_short(found)}; "
            f"fit one for them with `python -m serve.quality fit --checkpoint {model_dir} ...`, or remove the file"
        )


def _short(weights: object) -> str:
    files = weights if isinstance(weights, dict) else {}
    return ", ".join(f"{name} (SHA-256 {str(digest)[:12]})" for name, digest in sorted(files.items())) or "of no name"


def load_reference(path: Path | str) -> QualityReference:
    """Read a quality_reference.json, whatever stands beside it. ValueError with the reason and the remedy.

    For a model folder use find_reference, which also checks that it belongs to the weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no quality reference; make one with `python -m serve.quality fit`")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes: a quality reference has at most {_MAX_BYTES}")
    try:
        return QualityReference.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid quality reference: {error}") from error


def _mapping(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is missing or not an object: fit the reference anew")
    return value


def _require_names(where: str, found: Mapping[str, Any], wanted: Sequence[str]) -> None:
    if set(found) != set(wanted):
        missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        raise ValueError(f"{where} lacks {missing} and has {extra} too many: fit the reference with this version")


def _numbers(where: str, value: object) -> FloatArray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} does not hold numbers: fit the reference anew") from error
    if value is None or isinstance(value, str | bool) or not np.isfinite(array).all():
        raise ValueError(f"{where} is missing or holds a number that is not finite: fit the reference anew")
    return array


def _percentiles(where: str, value: object) -> tuple[float, ...]:
    array = _numbers(where, value)
    if array.shape != (101,) or (np.diff(array) < 0).any() or array[0] < 0 or array[-1] > 1:
        raise ValueError(f"{where} must be 101 scores in [0, 1] that do not fall: fit the reference anew")
    return tuple(float(x) for x in array)
