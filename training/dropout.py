"""Embedding and residual dropout by forward hooks, which transformers' Llama lacks.

They act in training only: the checkpoint and its configuration stay standard.
"""

from typing import Any

from torch import Tensor, nn

from iit.probe import decoder_layers

_SUBLAYERS = ("self_attn", "mlp")


def add_dropout(model: nn.Module, probability: float) -> None:
    """Drop the embedding's output and what each sublayer adds to the residual stream, in training mode only.

    Does nothing at probability 0, so such a run is bit for bit that of the plain model.
    """
    if probability == 0.0:
        return

    def drop(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (nn.functional.dropout(output[0], probability, module.training), *output[1:])
        assert isinstance(output, Tensor)
        return nn.functional.dropout(output, probability, module.training)

    embedding = model.get_input_embeddings()  # type: ignore[operator]
    embedding.register_forward_hook(drop)
    for layer in decoder_layers(model):
        for name in _SUBLAYERS:
            layer.get_submodule(name).register_forward_hook(drop)
