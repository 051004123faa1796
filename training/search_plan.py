"""What a search will run: arms, seeds and spaces, from flags and files to a list of units. No storage, no processes."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from training.config import TrainConfig, field_type

# The 2025 report named its grid as eight values from 0.01 to 0.3; which eight, and those below, is our choice.
LAMBDA_GRID = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3)
NOT_SEARCHED = ("seed", "output_dir", "resume", "publish")
_ARM = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._=,+-]*$")


@dataclass(frozen=True)
class Unit:
    """What one trial runs: an arm under one seed."""

    arm: str
    config: TrainConfig

    @property
    def key(self) -> str:
        """The identity under which it is run once."""
        return self.config.key()

    @property
    def folder_name(self) -> str:
        """Readable, and distinct where the key is."""
        return f"{self.arm[:60]}-seed{self.config.seed}-{self.key}"


@dataclass(frozen=True)
class Space:
    """The values of one field: a list, or a range from low to high."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def is_range(self) -> bool:
        return not self.values


def parse_seeds(text: str) -> list[int]:
    """`0-4` or `0,3,7`. Raises ValueError for anything else, and for a seed that is named twice."""
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        seeds = list(range(int(match[1]), int(match[2]) + 1))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        seeds = [int(part) for part in text.split(",")]
    else:
        seeds = []
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds={text!r}: give different seeds as 0-4 or 0,3,7")
    return seeds


def parse_space(text: str) -> Space:
    """`field=a,b,c` or `field=low:high` or `field=low:high:log`. Raises ValueError naming what does not fit."""
    name, equals, rest = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not rest:
        raise ValueError(f"space={text!r}: write field=a,b,c or field=low:high or field=low:high:log")
    kind = field_type(name)
    if name in NOT_SEARCHED:
        raise ValueError(f"space={text!r}: {name} is not searched; seeds go into --seeds")
    if ":" not in rest:
        return Space(name, tuple(_value(kind, part, text) for part in rest.split(",")))
    low, high, *scale = rest.split(":")
    if kind not in (int, float) or scale not in ([], ["log"]):
        raise ValueError(f"space={text!r}: a range is low:high or low:high:log of a number; {name} takes a list a,b,c")
    space = Space(name, (), _value(kind, low, text), _value(kind, high, text), bool(scale))
    if space.low >= space.high or (space.log and space.low <= 0):
        raise ValueError(f"space={text!r}: give low below high, and above 0 on a log scale")
    return space


def read_points(path: Path) -> tuple[dict[str, Any], list[int] | None, dict[str, dict[str, Any]]]:
    """Base settings, seeds (None: not given) and arms of a points file. Raises ValueError where it is not one."""
    try:
        content = json.loads(path.read_text(), object_pairs_hook=_without_repeats)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"points={str(path)!r} cannot be read: {error}; give a JSON file") from None
    unknown = set(content) - {"base", "seeds", "arms", "note"} if isinstance(content, dict) else {"(no object)"}
    if unknown or not isinstance(content.get("arms"), dict) or not content["arms"]:
        raise ValueError(
            f'points={str(path)!r}: write {{"base": {{...}}, "seeds": [...], "arms": {{"name": {{...}}}}}}; '
            f"found {', '.join(sorted(unknown)) or 'no arms'}"
        )
    seeds = content.get("seeds")
    if seeds is not None and not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        raise ValueError(f"seeds={seeds!r} in {path}: give a list of whole numbers")
    for name, changes in {"base": content.get("base", {}), **content["arms"]}.items():
        if not isinstance(changes, dict):
            raise ValueError(f"{name}={changes!r} in {path}: give an object of settings")
    return content.get("base", {}), seeds, content["arms"]


def grid_arms(spaces: Sequence[Space]) -> dict[str, dict[str, Any]]:
    """Every combination of the lists, by name. Raises ValueError for a range: a grid needs its points."""
    for space in spaces:
        if space.is_range:
            raise ValueError(f"space={space.name}: a grid takes a list a,b,c; for a range add --sampler tpe")
    names = [space.name for space in spaces]
    points = (dict(zip(names, values, strict=True)) for values in product(*(space.values for space in spaces)))
    return {point_name(point): point for point in points}


def point_name(point: Mapping[str, Any]) -> str:
    """`lambda_phi=0.01,dropout=0.1`; characters that a folder cannot bear become a dash."""
    name = ",".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in point.items()
    )
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "-", name)


def make_units(base: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> list[Unit]:
    """Each arm under each seed, seeds outermost, so that a search that is cut short has whole rounds.

    Raises ValueError for settings that are none or out of range, and for two arms that are the same run.
    """
    units = [Unit(arm, make_config({**base, **arms[arm]}, arm, seed)) for seed in seeds for arm in arms]
    by_key: dict[str, Unit] = {}
    for unit in units:
        other = by_key.setdefault(unit.key, unit)
        if other is not unit:
            raise ValueError(f"arm={unit.arm!r} is the same run as {other.arm!r}: leave one out")
    return units


def make_config(settings: Mapping[str, Any], arm: str, seed: int) -> TrainConfig:
    """The configuration of an arm under a seed. Raises ValueError as above."""
    if not _ARM.match(arm):
        raise ValueError(f"arm={arm!r}: use letters, digits and ._=,+- in its name")
    values: dict[str, Any] = {}
    for name, value in settings.items():
        kind = field_type(name)
        if name in NOT_SEARCHED:
            raise ValueError(f"{name}={value!r} in arm {arm!r}: the search sets it; seeds go into --seeds")
        if value is not None and type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{name}={value!r} in arm {arm!r}: give a value of type {kind.__name__}")
        values[name] = float(value) if kind is float and type(value) is int else value
    try:
        return TrainConfig(**values, seed=seed)
    except ValueError as error:
        raise ValueError(f"arm {arm!r}: {error}") from None


def _value(kind: type, text: str, space: str) -> Any:
    if text == "none":
        return None
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"space={space!r}: {text!r} is neither true nor false")
        return text == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"space={space!r}: {text!r} is no {kind.__name__}") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise json.JSONDecodeError(f"{name!r} stands twice", name, 0)
    return dict(pairs)
