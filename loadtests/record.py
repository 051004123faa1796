"""What the users of a run met: requests by outcome, failures by reason, exact times. Knows no HTTP and no locust."""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests.accounts import Counts
from loadtests.measurement import percentile

TIMES = ("first_token", "gap", "whole")


@dataclass
class KindRecord:
    """One kind of user. Times in milliseconds."""

    requests: int = 0
    refused: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    times: "dict[str, array[float]]" = field(default_factory=lambda: {name: array("d") for name in TIMES})

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "refused": self.refused,
            "failures": dict(self.failures),
            **{f"{name}_ms": spread(values) for name, values in self.times.items()},
        }


class Record:
    """A whole run: by kind of user, and by what the server should have counted."""

    def __init__(self) -> None:
        self.kinds: defaultdict[str, KindRecord] = defaultdict(KindRecord)
        self.outcomes: Counts = Counter()

    def times(self, name: str) -> "array[float]":
        """The times of one name over the kinds whose answers are whole."""
        found: array[float] = array("d")
        for kind in ("generate", "chat"):
            if kind in self.kinds:
                found.extend(self.kinds[kind].times[name])
        return found

    @property
    def num_failures(self) -> int:
        return sum(sum(kind.failures.values()) for kind in self.kinds.values())

    @property
    def refused_share(self) -> float:
        """Of the requests that asked for something reasonable."""
        polite = [kind for name, kind in self.kinds.items() if name != "hostile"]
        return sum(kind.refused for kind in polite) / max(1, sum(kind.requests for kind in polite))


def spread(values: Sequence[float]) -> dict[str, float]:
    """How many, and percentiles that were measured."""
    if not values:
        return {"n": 0}
    ordered = sorted(values)
    return (
        {"n": len(ordered)}
        | {f"p{p}": round(percentile(ordered, p), 3) for p in (50, 90, 99)}
        | {"max": round(ordered[-1], 3)}
    )


@dataclass(frozen=True)
class Threshold:
    """A limit that a run keeps or misses."""

    name: str
    limit: float
    value: float
    unit: str = ""

    @property
    def kept(self) -> bool:
        return self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """An infinite value as null."""
        value = None if math.isinf(self.value) else self.value
        return {"name": self.name, "limit": self.limit, "value": value, "unit": self.unit, "kept": self.kept}


def thresholds(record: Record, limits: Mapping[str, float], unaccounted: int) -> list[Threshold]:
    """limits: first_token_p99_ms, gap_p99_ms, failures, refused_share. A run without a whole answer keeps none."""
    first, gaps = record.times("first_token"), record.times("gap")
    nothing = float("inf")
    wanted = any(record.kinds[kind].requests for kind in ("generate", "chat") if kind in record.kinds)
    empty = nothing if wanted else 0.0
    return [
        Threshold("first token p99", limits["first_token_p99_ms"], percentile(first, 99) if first else empty, "ms"),
        Threshold("gap p99", limits["gap_p99_ms"], percentile(gaps, 99) if gaps else empty, "ms"),
        Threshold("failures", limits["failures"], record.num_failures),
        Threshold("refused share", limits["refused_share"], record.refused_share),
        Threshold("requests unaccounted for or places kept", 0, unaccounted),
    ]
