"""Guards against a gamed objective: clip its gradient at the heads, cap its reward, and watch what Phi rises at the
cost of.

Pieces that a training loop puts together; none of them knows the loop. Shape suffixes: B batch, T positions, K units,
D channels of a unit, H = K * D.
"""

from collections import deque
from collections.abc import Callable
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


def gradient_at_heads(reward: Callable[[Tensor], Tensor], heads_BTKD: Tensor) -> Tensor:
    """Gradient of a 0-dim reward of the heads, (B, T, K, D), cut off from the model that made them."""
    leaf_BTKD = heads_BTKD.detach().requires_grad_()
    (gradient_BTKD,) = torch.autograd.grad(reward(leaf_BTKD), leaf_BTKD)
    return gradient_BTKD


class _Injection(torch.autograd.Function):
    """Identity forward; backward adds the injected gradient, clipped to a share of what arrives from the loss.

    The norms leave through the gradient of `meter`: the only way out that eager and compiled graphs have in common.
    """

    @staticmethod
    def forward(ctx: Any, hidden_BTH: Tensor, injected_BTH: Tensor, meter_2: Tensor, max_share: float) -> Tensor:
        ctx.save_for_backward(injected_BTH)
        ctx.max_share = max_share
        return hidden_BTH.view_as(hidden_BTH)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, Tensor, None]:
        (injected_BTH,) = ctx.saved_tensors
        arriving_BTH = gradients[0].float()
        arriving_norm, injected_norm = arriving_BTH.norm(), injected_BTH.norm()
        # Zero over zero must give no gradient, not NaN.
        factor = (ctx.max_share * arriving_norm / injected_norm.clamp_min(1e-30)).clamp(max=1.0)
        total_BTH = (arriving_BTH + factor * injected_BTH).to(gradients[0].dtype)
        return total_BTH, None, torch.stack([arriving_norm, injected_norm]), None


class GradientGate:
    """Add the objective's gradient at the probed heads during the backward pass of the cross-entropy, clipped to a
    share of it.

    Context manager, used with an entered HeadProbe on a layer with heads; works eagerly and under torch.compile
    (enter it before the model is traced). A step: prepare(B, T); forward; inject(-weight * gradient_at_heads(...));
    loss.backward(). max_share: bound on |objective's gradient| / |cross-entropy's gradient|, float("inf") for none.
    Raises ValueError where the layer has no heads or max_share is not positive.
    """

    def __init__(self, probe: HeadProbe, max_share: float = 0.1) -> None:
        if not probe.has_heads:
            raise ValueError(
                f"layer {probe.layer} has no attention heads: the gate clips at heads only; probe another layer"
            )
        if not max_share > 0:
            raise ValueError(f"max_share={max_share}: use a share above 0, or weight 0 to leave the objective out")
        self.max_share = max_share
        self._module = probe.module
        weight = next(probe.module.parameters())
        self._width = int(getattr(probe.module, "in_features", weight.shape[0]))
        self._meter_2 = torch.zeros(2, device=weight.device, requires_grad=True)
        self._injected_BTH = torch.zeros(0, 0, self._width, device=weight.device)
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
        shape = (num_sequences, num_positions, self._width)
        if self._injected_BTH.shape != shape:
            self._injected_BTH = torch.zeros(shape, device=self._injected_BTH.device)
        self._injected_BTH.data.zero_()
        self._meter_2.grad = None

    def inject(self, gradient_BTKD: Tensor, scale: float = 1.0) -> None:
        """Set what the backward pass adds at the heads: scale * gradient. Raises ValueError where the shape is not the
        one prepared for.
        """
        gradient_BTH = gradient_BTKD.detach().flatten(2)
        if gradient_BTH.shape != self._injected_BTH.shape:
            wanted = tuple(self._injected_BTH.shape)
            raise ValueError(
                f"gradient has shape {tuple(gradient_BTH.shape)}, prepared for {wanted}: call prepare(B, T) first"
            )
        # .data: the graph saved this tensor in the forward pass, on purpose before its value is known.
        torch.mul(gradient_BTH, scale, out=self._injected_BTH.data)

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
        gated_BTH = apply(inputs[0], self._injected_BTH, self._meter_2, self.max_share)
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
