"""Read units x positions off any transformers causal language model, by hooks found from the module tree.

A unit is an attention head, its output before the output projection. A layer without heads (convolution, state space)
is read as equal groups of channels of the residual stream that leaves it. No model class is named here.

Shape suffixes: B batch, T positions, K units, D channels of a unit, H hidden size.
"""

import re
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_ATTENTION = re.compile(r"^(self_|)(attn|attention)$")  # not linear_attn: its state has other heads, or none
_OUTPUT_PROJECTION = {"o_proj", "out_proj", "c_proj", "dense", "wo", "proj", "out_lin"}


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The model's stack of layers: the ModuleList as long as config.num_hidden_layers. Raises ValueError without
    one.
    """
    num_layers = _text_config(model).num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise ValueError(
        f"{type(model).__name__}: no list of {num_layers} layers in its module tree; give a transformers causal model"
    )


def output_projection(layer: nn.Module) -> nn.Module | None:
    """The output projection of the layer's attention, or None where the layer has no attention."""
    module: nn.Module
    for name, module in layer.named_modules():
        *path, last = name.split(".")
        if last in _OUTPUT_PROJECTION and any(_ATTENTION.match(part) for part in path):
            return module
    return None


class HeadProbe:
    """Context manager that keeps the units of one layer of the model's last forward pass, with their gradient.

    layer: index of the layer, negative from the end. num_groups: number of channel groups for a layer without heads
    (default: the model's number of attention heads). Enter it before torch.compile traces the model: hooks that come
    later are not traced. Raises ValueError where the layer is missing or its channels do not split into units of
    equal size.
    """

    def __init__(self, model: nn.Module, layer: int = -1, num_groups: int | None = None) -> None:
        model = getattr(model, "_orig_mod", model)  # what torch.compile(model) wraps
        layers = decoder_layers(model)
        if not -len(layers) <= layer < len(layers):
            raise ValueError(
                f"layer={layer}: the model has {len(layers)} layers; use {-len(layers)}..{len(layers) - 1}"
            )
        self.layer = layer % len(layers)
        num_heads = int(_text_config(model).num_attention_heads)
        projection = output_projection(layers[self.layer])
        self.has_heads = projection is not None
        self.num_units = num_heads if self.has_heads or num_groups is None else num_groups
        self.module = layers[self.layer] if projection is None else projection
        self._captured: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> Self:
        if self.has_heads:
            self._handle = self.module.register_forward_pre_hook(self._keep_input)
        else:
            self._handle = self.module.register_forward_hook(self._keep_output)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
        self._captured = None

    def read(self) -> Tensor:
        """The units' outputs of the last forward pass: (B, T, K, D). Raises ValueError if none was inside the
        `with`.
        """
        if self._captured is None:
            raise ValueError(
                f"layer {self.layer} has seen no forward pass: run the model inside `with HeadProbe(...)`, then read"
            )
        hidden_BTH = self._captured
        if hidden_BTH.shape[-1] % self.num_units:
            raise ValueError(
                f"{hidden_BTH.shape[-1]} channels do not split into {self.num_units} units: choose another num_groups"
            )
        return hidden_BTH.reshape(*hidden_BTH.shape[:-1], self.num_units, -1)

    def _keep_input(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._captured = inputs[0]

    def _keep_output(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._captured = output if isinstance(output, Tensor) else output[0]


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise ValueError(f"{type(model).__name__} has no transformers config: give a transformers causal model")
    return config.get_text_config(decoder=True)
