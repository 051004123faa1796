"""The Phi objective inside a training step: its weight in force, its gradient at the heads, its figures for the record.

Built only where lambda_phi is above 0. Knows nothing of data, optimizers or files.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from iit import (
    ClosedLoopWeight,
    GradientGate,
    HeadProbe,
    PhiObjective,
    PhiWatch,
    WeightSchedule,
    hinge,
)
from iit.schedules import ScheduleKind
from training.config import TrainConfig

_WATCH_WINDOW = 6


class StepObjective(TrainerCallback, ExportableState):
    """Adds -lambda * phi01 to each backward pass of the cross-entropy, at the heads of the last layer.

    Context manager, entered before torch.compile traces the model. A forward and backward pass of the loop:
    prepare(ids); forward; reward = add(...), which the loop subtracts from the loss it reports; backward; measure().
    As the Trainer's callback it moves a closed-loop lambda after each step, and is saved and restored with the run.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self._config = config
        self._objective = PhiObjective(config.phi_rank, config.phi_lag, sham=config.phi_sham)
        closed = config.lambda_schedule == "closed_loop"
        self._schedule = WeightSchedule(
            config.lambda_phi,
            config.max_steps,
            "constant" if closed else cast(ScheduleKind, config.lambda_schedule),
            config.lambda_final,
            config.lambda_warmup_steps,
        )
        self._closed_loop = ClosedLoopWeight(config.lambda_phi, config.lambda_target_share) if closed else None
        self._probe = HeadProbe(model)
        share = config.phi_max_share
        num_directions = self._probe.num_units * config.phi_rank
        self._gate = GradientGate(self._probe, num_directions, float("inf") if share is None else share)
        self._resources = ExitStack()
        self._sums: dict[str, float] = defaultdict(float)
        self._num_passes = 0
        self._weight_in_force = 0.0
        self._ratios_of_step: list[float] = []

    def __enter__(self) -> Self:
        self._resources.enter_context(self._probe)
        self._resources.enter_context(self._gate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def weight(self, step: int) -> float:
        """Lambda at a step, counted from 0."""
        if self._closed_loop is not None and step >= self._config.lambda_warmup_steps:
            return self._closed_loop.weight
        return self._schedule.at(step)

    def prepare(self, ids_BT: Tensor) -> None:
        """Make ready for the forward pass of these tokens."""
        self._gate.prepare(*ids_BT.shape)

    def add(self, step: int, fraction: float) -> float:
        """Hand the objective's gradient to the coming backward pass, scaled by fraction (of the step's batch).

        Returns lambda * phi01 * fraction, phi01 capped at the hinge. Raises ValueError where a head is not finite.
        """
        generator = self._generator(step)
        states_BTn, directions_Hn = self._objective.project(self._probe.read().detach(), generator)
        term = self._objective.of_states(states_BTn.requires_grad_(), generator)
        reward = hinge(term.phi01, self._config.phi_target)
        (gradient_BTn,) = torch.autograd.grad(reward, states_BTn)
        weight = self.weight(step)
        self._gate.inject(gradient_BTn, directions_Hn, -weight * fraction)
        rewarded = weight * float(reward.detach())
        figures = {"phi": float(term.phi.detach()), "phi01": float(term.phi01.detach()), "reward": rewarded}
        figures |= {"phi_null_mean": term.null_mean, "phi_r": term.phi_r(), "effective_rank": term.effective_rank()}
        for name, value in figures.items():
            self._sums[name] += value
        self._weight_in_force = weight
        self._num_passes += 1
        return rewarded * fraction

    def measure(self) -> None:
        """Take in the gradient norms at the heads, after the backward pass."""
        cross_entropy, objective = self._gate.read_norms()
        # No gradient of the loss, no ratio: 0 leaves a closed loop where it is.
        self._ratios_of_step.append(objective / cross_entropy if cross_entropy > 0 else 0.0)
        self._sums["gradient_ratio"] += self._ratios_of_step[-1]

    def take_figures(self) -> dict[str, float]:
        """Means over the passes since the last call, and lambda at the last of them; empty where there was none."""
        if not self._num_passes:
            return {}
        figures = {name: total / self._num_passes for name, total in self._sums.items()}
        figures["lambda_phi"] = self._weight_in_force
        self._sums.clear()
        self._num_passes = 0
        return figures

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let a closed loop move lambda by the ratio of the step just done; in its warm-up it waits."""
        if self._closed_loop is not None and state.global_step > self._config.lambda_warmup_steps:
            self._closed_loop.update(_mean_over_processes(self._ratios_of_step))
        self._ratios_of_step.clear()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up a closed loop's lambda where the saved run left it."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if self._closed_loop is not None and saved is not None:
            self._closed_loop.weight = saved["attributes"]["closed_loop_weight"]

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: lambda of a closed loop."""
        weight = None if self._closed_loop is None else self._closed_loop.weight
        return {"args": {}, "attributes": {"closed_loop_weight": weight}}

    def _generator(self, step: int) -> torch.Generator:
        """Projections are redrawn every step, from the seed and the step alone: a resumed run draws the same ones."""
        return torch.Generator().manual_seed(self._config.seed * 1_000_003 + step)


def new_warnings(history: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the guards' warnings that hold at the last training record of a log history and did not before it."""
    records = [record for record in history if "phi_r" in record][-_WATCH_WINDOW - 1 :]
    watch, before, now = PhiWatch(_WATCH_WINDOW), tuple[str, ...](), tuple[str, ...]()
    for record in records:
        before, now = now, watch.update(record["phi"], record["phi_r"], record["effective_rank"])
    return [name for name in now if name not in before]


def _mean_over_processes(ratios: Sequence[float]) -> float:
    """One lambda for all processes of a run, whatever part of the batch each saw."""
    mean = sum(ratios) / len(ratios)
    if not torch.distributed.is_initialized():
        return mean
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(mean, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return float(total) / torch.distributed.get_world_size()
