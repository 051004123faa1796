"""Gate, hinge and watch."""

import pytest
import torch

from iit import GradientGate, HeadProbe, PhiObjective, PhiWatch, hinge
from iit.guards import PHI_UP_PHI_R_DOWN, PHI_UP_RANK_DOWN
from tests.phi.models import NUM_HEADS, tiny_model, token_ids

IDS = token_ids()
OBJECTIVE = PhiObjective(rank=2)
NUM_DIRECTIONS = 2 * NUM_HEADS


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def reward(heads: torch.Tensor) -> torch.Tensor:
    return OBJECTIVE(heads, seeded()).phi01


def gradient_at_states(heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the reward at the projected states, and the directions they lie along."""
    states, directions = OBJECTIVE.project(heads.detach(), seeded())
    (gradient,) = torch.autograd.grad(OBJECTIVE.of_states(states.requires_grad_(), seeded()).phi01, states)
    return gradient, directions


def gradients(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def gated_step(
    model: torch.nn.Module, forward: torch.nn.Module, probe: HeadProbe, gate: GradientGate, weight: float
) -> torch.Tensor:
    model.zero_grad()
    gate.prepare(*IDS.shape)
    loss = forward(input_ids=IDS, labels=IDS).loss
    gate.inject(*gradient_at_states(probe.read()), -weight)
    loss.backward()
    return gradients(model)


def plain_step(model: torch.nn.Module, probe: HeadProbe, weight: float) -> torch.Tensor:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    if weight:
        loss = loss - weight * reward(probe.read())
    loss.backward()
    return gradients(model)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_open_gate_gives_the_gradient_of_the_summed_loss(architecture: str) -> None:
    model = tiny_model(architecture).eval()
    with HeadProbe(model) as probe:
        summed = plain_step(model, probe, 0.01)
        with GradientGate(probe, NUM_DIRECTIONS, max_share=float("inf")) as gate:
            torch.testing.assert_close(gated_step(model, model, probe, gate, 0.01), summed, rtol=1e-4, atol=1e-6)


def test_gate_clips_the_objective_to_its_share_of_the_cross_entropy_at_the_heads() -> None:
    model = tiny_model("llama")
    with HeadProbe(model) as probe, GradientGate(probe, NUM_DIRECTIONS, max_share=0.1) as gate:
        at_heads = []
        for weight in (0.0, 1.0, 1000.0):
            gate.prepare(*IDS.shape)
            loss = model(input_ids=IDS, labels=IDS).loss
            heads = probe.read()
            heads.retain_grad()
            captured = probe._captured
            captured.retain_grad()
            gate.inject(*gradient_at_states(heads), -weight)
            loss.backward()
            at_heads.append(captured.grad)
            cross_entropy, objective = gate.read_norms()
            assert cross_entropy == pytest.approx(float(at_heads[0].norm()), rel=1e-5)
        assert objective > 0.1 * cross_entropy
        for clipped in at_heads[1:]:
            assert float((clipped - at_heads[0]).norm()) == pytest.approx(0.1 * cross_entropy, rel=1e-3)


def test_gate_with_nothing_injected_changes_no_bit() -> None:
    model = tiny_model("llama")
    with HeadProbe(model) as probe:
        plain = plain_step(model, probe, 0.0)
        with GradientGate(probe, NUM_DIRECTIONS) as gate:
            assert torch.equal(gated_step(model, model, probe, gate, 0.0), plain)


def test_in_bfloat16_the_injected_gradient_is_as_exact_as_that_allows() -> None:
    hidden, arriving = (torch.randn(2, 40, 32, generator=seeded()).bfloat16() for _ in range(2))
    gradient, directions = gradient_at_states(torch.randn(2, 40, NUM_HEADS, 8, generator=seeded()))
    model = tiny_model("llama")
    with HeadProbe(model) as probe, GradientGate(probe, NUM_DIRECTIONS, max_share=float("inf")) as gate:
        gate.prepare(2, 40)
        (gated,) = gate._gate(probe.module, (hidden.requires_grad_(),))
        gate.inject(gradient, directions, -1000.0)
        gated.backward(arriving)
    expected = arriving.float() - 1000 * gradient @ directions.mT
    assert float((expected - arriving.float()).norm()) > 0.01 * float(arriving.float().norm())
    torch.testing.assert_close(hidden.grad.float(), expected, rtol=2**-7, atol=2**-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing of Function
def test_gate_gives_the_same_gradient_under_torch_compile() -> None:
    model = tiny_model("llama")
    with HeadProbe(model) as probe, GradientGate(probe, NUM_DIRECTIONS) as gate:
        compiled = torch.compile(model, backend="aot_eager", dynamic=False)
        for weight in (0.001, 0.002, 10.0):  # below and above the clip, and with another injection in the same graph
            eager = gated_step(model, model, probe, gate, weight)
            norms = gate.read_norms()
            torch.testing.assert_close(gated_step(model, compiled, probe, gate, weight), eager)
            assert gate.read_norms() == pytest.approx(norms)


def test_gate_names_what_is_missing() -> None:
    model = tiny_model("lfm2")
    with HeadProbe(model, layer=0) as probe, pytest.raises(ValueError, match="no attention heads"):
        GradientGate(probe, NUM_DIRECTIONS)
    with HeadProbe(model) as probe:
        with pytest.raises(ValueError, match="max_share=0"):
            GradientGate(probe, NUM_DIRECTIONS, max_share=0)
        gate = GradientGate(probe, NUM_DIRECTIONS)
        with pytest.raises(ValueError, match="no backward pass"):
            gate.read_norms()
        with pytest.raises(ValueError, match="call prepare"):
            gate.inject(torch.zeros(1, 2, NUM_DIRECTIONS), torch.zeros(32, NUM_DIRECTIONS))


def test_gradient_at_the_states_spread_along_the_directions_is_the_one_at_the_heads() -> None:
    model = tiny_model("llama")
    with HeadProbe(model) as probe:
        model(input_ids=IDS)
        heads = probe.read()
        gradient, directions = gradient_at_states(heads)
        (expected,) = torch.autograd.grad(reward(heads), heads)
    torch.testing.assert_close((gradient @ directions.mT).view_as(expected), expected, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(directions.mT @ directions, torch.eye(NUM_DIRECTIONS))  # so the norms are equal too
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hinge_rewards_up_to_its_target_only() -> None:
    for value, expected in ((0.2, 1.0), (0.4, 0.0)):
        phi01 = torch.tensor(value, requires_grad=True)
        rewarded = hinge(phi01, target=0.3)
        rewarded.backward()
        assert float(rewarded.detach()) == pytest.approx(min(value, 0.3))
        assert float(phi01.grad) == expected
    assert hinge(phi01, None) is phi01
    with pytest.raises(ValueError, match=r"target=1\.5"):
        hinge(phi01, 1.5)


RISING, FLAT, FALLING = (1.0, 1.2), (1.0, 1.0), (1.0, 0.8)


@pytest.mark.parametrize(
    ("phi", "phi_r", "rank", "names"),
    [
        (RISING, FALLING, FLAT, (PHI_UP_PHI_R_DOWN,)),
        (RISING, FLAT, FALLING, (PHI_UP_RANK_DOWN,)),
        (RISING, FALLING, FALLING, (PHI_UP_PHI_R_DOWN, PHI_UP_RANK_DOWN)),
        (RISING, RISING, FLAT, ()),
        (FLAT, FALLING, FALLING, ()),
        ((1.0, 1.04), FALLING, FALLING, ()),
    ],
)
def test_watch_warns_only_where_phi_rises_as_the_others_fall(
    phi: tuple[float, float], phi_r: tuple[float, float], rank: tuple[float, float], names: tuple[str, ...]
) -> None:
    watch = PhiWatch(window=2, tolerance=0.05)
    assert watch.update(phi[0], phi_r[0], rank[0]) == ()
    assert watch.update(phi[1], phi_r[1], rank[1]) == names


def test_watch_window_must_halve() -> None:
    with pytest.raises(ValueError, match="window=3"):
        PhiWatch(window=3)
