"""Guards against a gamed objective: clip its gradient at the heads, cap its reward, and watch what Phi rises at the
cost of.

Pieces that a training loop puts together; none of them knows the loop. Shape suffixes: B batch, T positions, K units,
D channels of a unit, H = K * D, n directions that the states are projected on.
"""

from collections import deque
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from iit.probe import HeadProbe

PHI_UP_RANK_DOWN = "phi_up_while_effective_rank_falls"
PHI_UP_PHI_R_DOWN = "phi_up_while_phi_r_falls"


def hinge(phi01: Tensor, target: float | None) -> Tensor:
    """The rewarded part of phi01: no gradient beyond target. None means no target. Raises ValueError outside (0, 1]."""
    if target is None:
        return phi01
    if not 0 < target <= 1:
        raise ValueError(f"target={target}: phi01 lies in [0, 1), use a target in (0, 1] or None")
    return phi01.clamp(max=target)


class _Injection(torch.autograd.Function):
    """Identity forward; backward adds the injected gradient, clipped to a share of what arrives from the loss.

    What is injected comes as coordinates along orthonormal directions and is spread over the heads in one product: at
    full width, four passes over memory would cost as much as the objective itself.
    The norms leave through the gradient of `meter`: the only way out that eager and compiled graphs have in common.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_BTH: Tensor, injected_BTn: Tensor, directions_Hn: Tensor, meter_2: Tensor, max_share: float
    ) -> Tensor:
        ctx.save_for_backward(injected_BTn, directions_Hn)
        ctx.max_share = max_share
        return hidden_BTH.view_as(hidden_BTH)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, Tensor, None]:
        injected_BTn, directions_Hn = ctx.saved_tensors
        arriving_BTH: Tensor = gradients[0]
        arriving_norm, injected_norm = arriving_BTH.norm(dtype=torch.float32), injected_BTn.norm()
        # Zero over zero must give no gradient, not NaN.
        factor = (ctx.max_share * arriving_norm / injected_norm.clamp_min(1e-30)).clamp(max=1.0)
        # In the dtype of what arrives: the sum is rounded to it anyway, and float32 copies cost more than the product.
        scaled_Nn = (factor * injected_BTn).flatten(0, 1).to(arriving_BTH.dtype)
        total_NH = torch.addmm(arriving_BTH.flatten(0, 1), scaled_Nn, directions_Hn.mT.to(arriving_BTH.dtype))
        total_BTH = total_NH.view_as(arriving_BTH)
        return total_BTH, None, None, torch.stack([arriving_norm, injected_norm]), None


class GradientGate:
    """Add the objective's gradient at the probed heads during the backward pass of the cross-entropy, clipped to a
    share of it.

    Context manager, used with an entered HeadProbe on a layer with heads; works eagerly and under torch.compile
    (enter it before the model is traced). A step: prepare(B, T); forward; inject(...) what PhiObjective.project and
    the gradient at its states give; loss.backward(). num_directions: n of what will be injected. max_share: bound on
    |objective's gradient| / |cross-entropy's gradient|, float("inf") for none.
    Raises ValueError where the layer has no heads or max_share is not positive.
    """

    def __init__(self, probe: HeadProbe, num_directions: int, max_share: float = 0.1) -> None:
        if not probe.has_heads:
            raise ValueError(
                f"layer {probe.layer} has no attention heads: the gate clips at heads only; probe another layer"
            )
        if not max_share > 0:
            raise ValueError(f"max_share={max_share}: use a share above 0, or weight 0 to leave the objective out")
        self.max_share = max_share
        self._module = probe.module
        weight = next(probe.module.parameters())
        width = int(getattr(probe.module, "in_features", weight.shape[0]))
        self._meter_2 = torch.zeros(2, device=weight.device, requires_grad=True)
        self._injected_BTn = torch.zeros(0, 0, num_directions, device=weight.device)
        self._directions_Hn = torch.zeros(width, num_directions, device=weight.device)
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> Self:
        self._handle = self._module.register_forward_pre_hook(self._gate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def prepare(self, num_sequences: int, num_positions: int) -> None:
        """Clear the injection and the measured norms for a forward pass of this shape."""
        shape = (num_sequences, num_positions, self._injected_BTn.shape[2])
        if self._injected_BTn.shape != shape:
            self._injected_BTn = torch.zeros(shape, device=self._injected_BTn.device)
        self._injected_BTn.data.zero_()
        self._meter_2.grad = None

    def inject(self, gradient_BTn: Tensor, directions_Hn: Tensor, scale: float = 1.0) -> None:
        """Set what the backward pass adds at the heads: scale * gradient @ directions.T, directions orthonormal.

        Raises ValueError where a shape is not the one prepared for.
        """
        for name, given, held in (
            ("gradient", gradient_BTn, self._injected_BTn),
            ("directions", directions_Hn, self._directions_Hn),
        ):
            if given.shape != held.shape:
                raise ValueError(
                    f"{name} of shape {tuple(given.shape)}, expected {tuple(held.shape)}: call prepare(B, T) first, "
                    "and give the gate as many directions as the objective projects to"
                )
        # .data: the graph saved these tensors in the forward pass, on purpose before their values are known.
        torch.mul(gradient_BTn.detach(), scale, out=self._injected_BTn.data)
        self._directions_Hn.data.copy_(directions_Hn)

    def read_norms(self) -> tuple[float, float]:
        """Norms at the heads in the last backward pass: cross-entropy's, and the objective's before clipping.

        Raises ValueError if no backward pass went through since prepare.
        """
        if self._meter_2.grad is None:
            raise ValueError("no backward pass since prepare: call loss.backward() first")
        cross_entropy, objective = self._meter_2.grad.tolist()
        return cross_entropy, objective

    def _gate(self, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        if not torch.is_grad_enabled():
            return None
        apply: Any = _Injection.apply  # untyped in torch's stubs
        gated_BTH = apply(inputs[0], self._injected_BTn, self._directions_Hn, self._meter_2, self.max_share)
        return (gated_BTH, *inputs[1:])


class PhiWatch:
    """Name what looks wrong when Phi rises while the effective rank or Phi^R falls: the mark of a collapsed state.

    Compares the mean of the newer half of the last `window` records with that of the older half; a change counts from
    `tolerance` of the older mean on. Raises ValueError for a window that is odd or below 2.
    """

    def __init__(self, window: int = 6, tolerance: float = 0.05) -> None:
        if window < 2 or window % 2:
            raise ValueError(f"window={window}: use an even number of 2 or more")
        self.tolerance = tolerance
        self._records: deque[tuple[float, float, float]] = deque(maxlen=window)

    def update(self, phi: float, phi_r: float, effective_rank: float) -> tuple[str, ...]:
        """Take in one record and return the names of the warnings that hold now; none until the window is full."""
        self._records.append((phi, phi_r, effective_rank))
        if len(self._records) < (self._records.maxlen or 0):
            return ()
        records = list(self._records)
        half = len(records) // 2
        older, newer = (
            [sum(column) / half for column in zip(*part, strict=True)] for part in (records[:half], records[half:])
        )
        rises, falls_r, falls_rank = (
            sign * (after - before) > self.tolerance * abs(before)
            for sign, before, after in zip((1, -1, -1), older, newer, strict=True)
        )
        warnings = ((PHI_UP_PHI_R_DOWN, rises and falls_r), (PHI_UP_RANK_DOWN, rises and falls_rank))
        return tuple(name for name, holds in warnings if holds)
