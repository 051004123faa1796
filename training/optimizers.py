"""AdamW, or Muon for hidden matrices with AdamW for the rest, as one optimizer that transformers' Trainer can drive."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import nn

from training.config import TrainConfig


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon and AdamW side by side, one list of parameter groups, one state_dict.

    Muon's update is scaled to AdamW's root mean square, so one learning rate serves both (Liu et al. 2025, "Muon is
    scalable for LLM training", section 2.2).
    """

    def __init__(self, matrices: list[nn.Parameter], others: list[dict[str, Any]], config: TrainConfig) -> None:
        super().__init__([{"params": matrices}, *others], {})
        self.muon = torch.optim.Muon(
            matrices, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = _adamw(others, config)
        self._share_groups()

    def _share_groups(self) -> None:
        # Schedulers write the learning rate into these dicts; both optimizers must see the same ones.
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both."""
        assert closure is None
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adamw.step()
        return None

    def state_dict(self) -> dict[str, Any]:
        """The two states by name."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both; the groups are shared again, since loading replaces them."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self._share_groups()


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer the configuration names. Norms are not decayed; embeddings belong to AdamW under either."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    vectors = {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0}
    embeddings = [p for name, p in named if p.ndim >= 2 and ("embed" in name or "lm_head" in name)]
    matrices = [p for name, p in named if p.ndim >= 2 and not ("embed" in name or "lm_head" in name)]
    if config.optimizer == "adamw":
        return _adamw([{"params": matrices + embeddings}, vectors], config)
    return MuonWithAdamW(matrices, [{"params": embeddings, "weight_decay": 0.0}, vectors], config)


def _adamw(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
