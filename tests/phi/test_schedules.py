"""The weight over training."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iit import ClosedLoopWeight, WeightSchedule
from iit.schedules import SCHEDULE_KINDS


@given(
    st.sampled_from(SCHEDULE_KINDS),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 50),
    st.integers(0, 50),
    st.integers(0, 99),
)
def test_weight_stays_between_its_ends(
    kind: str, weight: float, final: float, num_steps: int, warmup: int, step: int
) -> None:
    schedule = WeightSchedule(weight, num_steps, kind, final, warmup_steps=min(warmup, num_steps))
    assert -1e-12 <= schedule.at(step) <= max(weight, final) + 1e-12
    if step >= schedule.warmup_steps:
        assert min(weight, final) - 1e-12 <= schedule.at(step)


def test_warm_up_is_linear_from_zero() -> None:
    schedule = WeightSchedule(0.4, num_steps=20, warmup_steps=4)
    assert [schedule.at(step) for step in range(6)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])


@pytest.mark.parametrize(("kind", "quarter"), [("constant", 1.0), ("linear", 0.75), ("cosine", 0.853553)])
def test_each_kind_has_its_shape(kind: str, quarter: float) -> None:
    schedule = WeightSchedule(1.0, num_steps=100, kind=kind)
    end = 1.0 if kind == "constant" else 0.0
    assert [schedule.at(step) for step in (0, 25, 100, 500)] == pytest.approx([1.0, quarter, end, end], abs=1e-6)


@pytest.mark.parametrize(
    "setting", [{"weight": -1}, {"final_weight": float("nan")}, {"kind": "step"}, {"warmup_steps": 11}]
)
def test_schedule_settings_out_of_range_are_named(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        WeightSchedule(**{"weight": 0.1, "num_steps": 10, **setting})


@given(st.floats(1e-4, 1.0), st.floats(0.01, 10))
def test_closed_loop_settles_at_its_target_share(weight: float, share_per_weight: float) -> None:
    loop = ClosedLoopWeight(weight, target_share=0.05, gain=0.2, max_weight=10)
    for _ in range(200):
        loop.update(loop.weight * share_per_weight)
    assert loop.weight * share_per_weight == pytest.approx(0.05, rel=1e-3)


def test_closed_loop_ignores_a_share_that_says_nothing_and_obeys_its_bound() -> None:
    loop = ClosedLoopWeight(0.5, target_share=0.1, gain=1.0, max_weight=0.6)
    for share in (0.0, float("nan"), float("inf")):
        assert loop.update(share) == 0.5
    assert loop.update(1e-9) == 0.6
    with pytest.raises(ValueError, match="target_share=2"):
        ClosedLoopWeight(0.5, target_share=2)
