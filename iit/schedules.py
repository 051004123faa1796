"""The weight of the objective over training: pure functions of the step, and one controller that is fed ratios.

No tensors. A weight of 0 is a value like any other.
"""

import math
from dataclasses import dataclass
from typing import Literal

ScheduleKind = Literal["constant", "linear", "cosine"]
SCHEDULE_KINDS: tuple[ScheduleKind, ...] = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class WeightSchedule:
    """Weight of phi01 at each step: from 0 up to weight over warmup_steps, then to final_weight at num_steps.

    kind: constant (final_weight is not used), linear, or cosine (half a period). Raises ValueError on settings out
    of range.
    """

    weight: float
    num_steps: int
    kind: ScheduleKind = "constant"
    final_weight: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULE_KINDS:
            raise ValueError(f"kind={self.kind!r}: use one of {', '.join(SCHEDULE_KINDS)}")
        for name in ("weight", "final_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value}: use a finite number of 0 or more")
        if not 0 <= self.warmup_steps <= self.num_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps}: use 0..num_steps={self.num_steps}")

    def at(self, step: int) -> float:
        """The weight at a step, counted from 0; held at its last value beyond num_steps."""
        if step < self.warmup_steps:
            return self.weight * step / self.warmup_steps
        if self.kind == "constant":
            return self.weight
        span = max(1, self.num_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        if self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.weight + (self.final_weight - self.weight) * progress


@dataclass
class ClosedLoopWeight:
    """Hold the objective's share of the gradient at the heads at target_share, by changing the weight after each step.

    The share is |weight * grad phi01| / |grad cross-entropy|. It is proportional to the weight, so each step moves the
    weight towards weight * target / share, gain of the way on a log scale, at most by a factor of 2, within
    0..max_weight. Raises ValueError on settings out of range.
    """

    weight: float
    target_share: float
    gain: float = 0.1
    max_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("weight", 0.0, self.max_weight), ("target_share", 0.0, 1.0), ("gain", 0.0, 1.0)):
            value = getattr(self, name)
            if not low < value <= high:
                raise ValueError(f"{name}={value}: use a value above {low:g}, at most {high:g}")

    def update(self, share: float) -> float:
        """Take in the share measured at the present weight (before any clipping) and return the next weight.

        A share of 0 or one that is not finite says nothing about the scale and leaves the weight alone.
        """
        if math.isfinite(share) and share > 0:
            factor = (self.target_share / share) ** self.gain
            self.weight = min(self.max_weight, self.weight * min(2.0, max(0.5, factor)))
        return self.weight
