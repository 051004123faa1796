"""The probe on real architectures with random weights."""

import pytest
import torch

from iit import HeadProbe, PhiObjective
from tests.phi.models import NUM_HEADS, tiny_model, token_ids

WIDTHS = {("gpt2", 1): 8, ("llama", 1): 8, ("qwen3", 1): 16, ("lfm2", 1): 8, ("lfm2", 0): 8, ("llama", 0): 8}


@pytest.mark.parametrize(("architecture", "layer"), WIDTHS, ids=str)
def test_probe_reads_batch_positions_units_channels(architecture: str, layer: int) -> None:
    model = tiny_model(architecture)
    with HeadProbe(model, layer) as probe, torch.no_grad():
        model(input_ids=token_ids())
        assert probe.read().shape == (2, 40, NUM_HEADS, WIDTHS[architecture, layer])
        assert probe.has_heads == ((architecture, layer) != ("lfm2", 0))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3"])
def test_heads_are_the_output_before_the_output_projection(architecture: str) -> None:
    model = tiny_model(architecture).eval()
    attention, projection = {
        "gpt2": lambda: (model.transformer.h[1].attn, model.transformer.h[1].attn.c_proj),
        "llama": lambda: (model.model.layers[1].self_attn, model.model.layers[1].self_attn.o_proj),
        "qwen3": lambda: (model.model.layers[1].self_attn, model.model.layers[1].self_attn.o_proj),
    }[architecture]()
    seen = []
    attention.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    with HeadProbe(model) as probe, torch.no_grad():
        model(input_ids=token_ids())
        torch.testing.assert_close(projection(probe.read().flatten(2)), seen[0])


def test_layer_without_heads_is_read_as_groups_of_the_residual_stream() -> None:
    model = tiny_model("lfm2").eval()
    with HeadProbe(model, layer=0, num_groups=8) as probe, torch.no_grad():
        hidden = model(input_ids=token_ids(), output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(probe.read(), hidden.unflatten(-1, (8, 4)))


def gradient_of_query(
    model: torch.nn.Module, forward: torch.nn.Module, probe: HeadProbe, autocast: bool
) -> torch.Tensor:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        forward(input_ids=token_ids())
        term = PhiObjective(rank=2)(probe.read(), torch.Generator().manual_seed(1))
        (-term.phi01).backward()
    return model.model.layers[1].self_attn.q_proj.weight.grad.clone()


@pytest.mark.slow
def test_captured_heads_keep_their_gradient_under_torch_compile() -> None:
    model = tiny_model("llama")
    with HeadProbe(model) as probe:
        compiled = torch.compile(model, backend="aot_eager", dynamic=False)
        plain = gradient_of_query(model, model, probe, autocast=False)
        assert plain.norm() > 0
        torch.testing.assert_close(gradient_of_query(model, compiled, probe, autocast=False), plain)


def test_captured_heads_keep_their_gradient_under_bf16_autocast() -> None:
    model = tiny_model("llama")
    with HeadProbe(model) as probe:
        plain = gradient_of_query(model, model, probe, autocast=False)
        mixed = gradient_of_query(model, model, probe, autocast=True)
        assert 0 < (mixed - plain).norm() < 0.2 * plain.norm()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what inductor itself imports
def test_captured_heads_keep_their_gradient_under_inductor_and_bf16_autocast() -> None:
    model = tiny_model("llama")
    with HeadProbe(model) as probe:
        compiled = torch.compile(model, dynamic=False)
        plain = gradient_of_query(model, model, probe, autocast=False)
        assert (gradient_of_query(model, compiled, probe, autocast=True) - plain).norm() < 0.2 * plain.norm()


def test_read_without_a_forward_pass_names_the_remedy() -> None:
    with HeadProbe(tiny_model("llama")) as probe, pytest.raises(ValueError, match="run the model inside"):
        probe.read()


def test_hook_is_gone_after_the_with_block() -> None:
    model = tiny_model("llama")
    with HeadProbe(model) as probe:
        pass
    model(input_ids=token_ids())
    with pytest.raises(ValueError, match="no forward pass"):
        probe.read()


def test_missing_layer_is_named() -> None:
    with pytest.raises(ValueError, match=r"layer=2: the model has 2 layers; use -2\.\.1"):
        HeadProbe(tiny_model("llama"), layer=2)
