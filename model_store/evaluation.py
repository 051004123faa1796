"""Read evaluation.json, the record of what a checkpoint was measured to do. Strict; runs no model and writes nothing.

The file lies beside the weights it speaks of and names their hash, so that it cannot vouch for others.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

EVALUATION_FILE = "evaluation.json"
FORMAT = 2

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SHAPES = {int: "a whole number", float: "a number", str: "text", dict: "an object", list: "a list"}


@dataclass(frozen=True, slots=True)
class Split:
    """Held-out text: num_bytes and sha256 are those of its file."""

    name: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the figures were taken. Two evaluations can be compared only if all of it is equal.

    context, stride: tokens of the window in which bits per byte was taken. prompt_tokens, new_tokens: lengths of a
    prompt and of its continuation.
    """

    splits: tuple[Split, ...]
    context: int
    stride: int
    prompts_sha256: str
    num_prompts: int
    prompt_tokens: int
    new_tokens: int
    seed: int
    quality_reference_sha256: str


@dataclass(frozen=True, slots=True)
class Passage:
    """One piece of held-out text: its length, and the model's total cross-entropy over it in nats."""

    num_bytes: int
    nats: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """generation_config_sha256: of the decoding defaults that prompt_scores were made under; None without that file.

    prompt_scores: the quality score of one continuation per prompt, None where it was too short to score.

    report: all else that was measured, for people. sha256: of the file that was read.
    """

    weights_sha256: str
    generation_config_sha256: str | None
    protocol: Protocol
    passages: tuple[Passage, ...]
    prompt_scores: tuple[float | None, ...]
    report: Mapping[str, Any]
    sha256: str


def read_evaluation(path: Path) -> Evaluation:
    """Read one file. ValueError, naming file, field and remedy, unless every field is there and means what it says.

    FileNotFoundError if there is no such file.
    """
    data = path.read_bytes()
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
        return _evaluation(content, hashlib.sha256(data).hexdigest())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"evaluation {str(path)!r} is unusable: {error}; make it again with python -m training.evaluate"
        ) from error


def _evaluation(content: object, sha256: str) -> Evaluation:
    if isinstance(content, dict) and "format" in content and _number("format", content["format"]) != FORMAT:
        raise ValueError(f"format={content['format']} is not known; this program reads format {FORMAT}")
    names = {"format", *(field.name for field in fields(Evaluation))} - {"sha256"}
    top = _object("the file", content, names)
    evaluation = Evaluation(
        weights_sha256=_sha256("weights_sha256", top["weights_sha256"]),
        generation_config_sha256=None
        if top["generation_config_sha256"] is None
        else _sha256("generation_config_sha256", top["generation_config_sha256"]),
        protocol=_protocol(top["protocol"]),
        passages=tuple(_passage(f"passages[{i}]", item) for i, item in enumerate(_list("passages", top["passages"]))),
        prompt_scores=tuple(
            _score(f"prompt_scores[{i}]", item) for i, item in enumerate(_list("prompt_scores", top["prompt_scores"]))
        ),
        report=_typed("report", top["report"], dict),
        sha256=sha256,
    )
    if len(evaluation.prompt_scores) != evaluation.protocol.num_prompts:
        raise ValueError(
            f"prompt_scores has {len(evaluation.prompt_scores)} entries, "
            f"protocol.num_prompts is {evaluation.protocol.num_prompts}"
        )
    return evaluation


def _protocol(value: object) -> Protocol:
    content = _object("protocol", value, {field.name for field in fields(Protocol)})
    least = {"context": 1, "stride": 1, "num_prompts": 0, "prompt_tokens": 1, "new_tokens": 1, "seed": 0}
    counts = {name: _count(f"protocol.{name}", content[name], low) for name, low in least.items()}
    splits = [
        _split(f"protocol.splits[{i}]", item) for i, item in enumerate(_list("protocol.splits", content["splits"]))
    ]
    hashes = {
        name: _sha256(f"protocol.{name}", content[name]) for name in ("prompts_sha256", "quality_reference_sha256")
    }
    return Protocol(splits=tuple(splits), **counts, **hashes)  # type: ignore[arg-type]


def _split(field: str, value: object) -> Split:
    content = _object(field, value, {"name", "sha256", "num_bytes"})
    return Split(
        _typed(f"{field}.name", content["name"], str),
        _sha256(f"{field}.sha256", content["sha256"]),
        _count(f"{field}.num_bytes", content["num_bytes"], 1),
    )


def _passage(field: str, value: object) -> Passage:
    content = _object(field, value, {"num_bytes", "nats"})
    nats = _number(f"{field}.nats", content["nats"])
    if nats < 0:
        raise ValueError(f"{field}.nats={nats} is negative; a cross-entropy is 0 or more")
    return Passage(_count(f"{field}.num_bytes", content["num_bytes"], 1), nats)


def _score(field: str, value: object) -> float | None:
    if value is None:
        return None
    score = _number(field, value)
    if not 0 <= score <= 1:
        raise ValueError(f"{field}={score} is no score; it is between 0 and 1, or null where the text was too short")
    return score


def _object(field: str, value: object, names: set[str]) -> dict[str, Any]:
    content: dict[str, Any] = _typed(field, value, dict)
    if absent := sorted(names - content.keys()):
        raise ValueError(f"{field} lacks {', '.join(absent)}")
    if unknown := sorted(content.keys() - names):
        raise ValueError(f"{field} has unknown fields: {', '.join(unknown)}")
    return content


def _list(field: str, value: object) -> Sequence[object]:
    items: list[object] = _typed(field, value, list)
    return items


def _sha256(field: str, value: object) -> str:
    text: str = _typed(field, value, str)
    if not _SHA256.fullmatch(text):
        raise ValueError(f"{field}={text[:80]!r} is no sha256; it has 64 lower-case hexadecimal digits")
    return text


def _count(field: str, value: object, least: int) -> int:
    count: int = _typed(field, value, int)
    if count < least:
        raise ValueError(f"{field}={count} is too small; it is {least} or more")
    return count


def _number(field: str, value: object) -> float:
    try:
        number = float(_typed(field, value, float))
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{field} is not finite")
    return number


def _typed(field: str, value: object, kind: type) -> Any:
    # JSON's 1 is a number too; its true is not.
    accepted: tuple[type, ...] = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ValueError(f"{field} is {type(value).__name__}; it must be {_SHAPES[kind]}")
    return value


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is not JSON")
