"""The Phi objective inside training: lambda's schedules, the hinge, the clip, the sham arm, and what the guards say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iit import HeadProbe, PhiObjective
from iit.guards import PHI_UP_PHI_R_DOWN, PHI_UP_RANK_DOWN
from tests.train_loop.runs import figures, flags, same, weights
from training.config import TrainConfig
from training.objective import StepObjective, new_warnings
from training.record import read_record
from training.train import main
from training.trainer import PhiTrainer

SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"lambda_schedule": "linear", "lambda_final": 0.1},
    "cosine": {"lambda_schedule": "cosine", "lambda_warmup_steps": 3},
    "closed_loop": {"lambda_schedule": "closed_loop", "lambda_warmup_steps": 2},
}


def _steps(run: Path) -> list[dict[str, Any]]:
    return [record for record in figures(run) if "gradient_ratio" in record]


def _run(data: Path, folder: Path, **changes: object) -> list[dict[str, Any]]:
    assert main(flags(data, folder, **{"dropout": 0, "lambda_phi": 0.5, **changes})) == 0
    return _steps(folder)


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    "kind",
    [
        # the one whose lambda is a state; that of the others follows from the step
        "closed_loop",
        pytest.param("linear", marks=pytest.mark.slow),
        pytest.param("cosine", marks=pytest.mark.slow),
    ],
)
def test_a_run_resumed_amid_its_schedule_equals_one_never_stopped(
    kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"lambda_phi": 0.5, "phi_max_share": 0.5, "max_steps": 6, "eval_every": 3, **SCHEDULES[kind]}
    assert main(flags(data, tmp_path / "whole", **shared)) == 0
    with monkeypatch.context() as patch:
        step = PhiTrainer.training_step

        def dying_step(self: PhiTrainer, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 4:
                raise _Killed
            return step(self, *args, **kwargs)

        patch.setattr(PhiTrainer, "training_step", dying_step)
        with pytest.raises(_Killed):
            main(flags(data, tmp_path / "cut", **shared))
    assert main(flags(data, tmp_path / "cut", resume=True, **shared)) == 0
    assert same(weights(tmp_path / "whole", 6), weights(tmp_path / "cut", 6))
    assert figures(tmp_path / "whole") == figures(tmp_path / "cut")


def test_lambda_in_force_follows_warm_up_and_schedule(data: Path, tmp_path: Path) -> None:
    records = _run(
        data, tmp_path / "run", lambda_schedule="linear", lambda_final=0.1, lambda_warmup_steps=2, max_steps=6
    )
    assert [record["lambda_phi"] for record in records] == pytest.approx([0, 0.25, 0.5, 0.4, 0.3, 0.2])
    assert records[0]["gradient_ratio"] == 0
    assert all(record["gradient_ratio"] > 0 for record in records[1:])


def test_a_closed_loop_brings_the_gradient_ratio_to_its_target(data: Path, tmp_path: Path) -> None:
    """The loop moves a tenth of the way a step, on a log scale: 12 steps are 72 % of it. The model hardly moves."""
    closed = {"lambda_schedule": "closed_loop", "lambda_target_share": 0.05}
    records = _run(data, tmp_path / "run", learning_rate=1e-6, max_steps=13, eval_every=13, **closed)
    first, last = (abs(math.log(records[place]["gradient_ratio"] / 0.05)) for place in (0, -1))
    assert first > 1
    assert last < first / 2


def test_beyond_the_hinge_the_objective_trains_nothing(data: Path, tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"max_steps": 2, "eval_every": 2}
    _run(data, tmp_path / "plain", lambda_phi=0, **kwargs)
    hinged = _run(data, tmp_path / "hinged", phi_target=1e-6, **kwargs)
    free = _run(data, tmp_path / "free", phi_target=1, **kwargs)
    assert [record["gradient_ratio"] for record in hinged] == [0, 0]
    assert same(weights(tmp_path / "plain", 2), weights(tmp_path / "hinged", 2))
    assert free[0]["gradient_ratio"] > 0
    # The hinge caps what is rewarded, and never what is reported.
    assert hinged[0]["phi01"] == free[0]["phi01"]
    assert hinged[0]["loss"] == pytest.approx(hinged[0]["cross_entropy"] - 0.5e-6, abs=1e-9)


def test_the_clip_makes_a_large_lambda_act_as_a_small_one(data: Path, tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"phi_max_share": 0.01, "max_steps": 1, "eval_every": 1}
    ratios = [_run(data, tmp_path / f"{w}", lambda_phi=w, **kwargs)[0]["gradient_ratio"] for w in (5, 50)]
    assert ratios[1] == pytest.approx(10 * ratios[0], rel=1e-3)  # what is logged is the ratio before the clip
    assert ratios[0] > 0.01
    five, fifty = (weights(tmp_path / w, 1) for w in ("5", "50"))
    for name, value in five.items():
        torch.testing.assert_close(value, fifty[name], rtol=1e-3, atol=1e-5)


def test_the_first_step_is_the_one_of_the_summed_loss(data: Path, tmp_path: Path) -> None:
    """The gate against its slow twin: one backward pass through cross-entropy - lambda * phi01."""
    config = TrainConfig(lambda_phi=0.5, dropout=0.0)
    from tests.phi.models import tiny_model, token_ids  # the same tiny models that the package iit is tested on

    model, ids = tiny_model("llama"), token_ids()
    with HeadProbe(model) as probe:
        loss = model(input_ids=ids, labels=ids).loss
        generator = torch.Generator().manual_seed(7)
        (loss - 0.5 * PhiObjective(4)(probe.read(), generator).phi01).backward()
    summed = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with StepObjective(model, config) as objective:
        objective.prepare(ids)
        again = model(input_ids=ids, labels=ids).loss
        assert 0 < objective.add(7, 1.0) < 0.5
        again.backward()
        objective.measure()
    for parameter, expected in zip(model.parameters(), summed, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)
    assert set(objective.take_figures()) == {
        "phi", "phi01", "phi_null_mean", "phi_r", "effective_rank", "gradient_ratio", "lambda_phi", "reward"
    }  # fmt: skip
    assert objective.take_figures() == {}


def test_the_sham_arm_and_the_lag_train_on_other_pairs_of_the_same_states(data: Path, tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"max_steps": 1, "eval_every": 1}
    arms: dict[str, dict[str, Any]] = {"real": {}, "sham": {"phi_sham": True}, "lag": {"phi_lag": 3}}
    first = {name: _run(data, tmp_path / name, **arm, **kwargs)[0] for name, arm in arms.items()}
    assert all(record["gradient_ratio"] > 0 for record in first.values())
    assert len({round(record["cross_entropy"], 5) for record in first.values()}) == 1
    assert len({record["phi"] for record in first.values()}) == 3


def test_the_objective_draws_nothing_from_the_global_generator() -> None:
    from tests.phi.models import tiny_model, token_ids

    model, ids = tiny_model("llama"), token_ids()
    with StepObjective(model, TrainConfig(phi_sham=True)) as objective:
        objective.prepare(ids)
        model(input_ids=ids)
        before = torch.get_rng_state()
        objective.add(0, 1.0)
        assert torch.equal(before, torch.get_rng_state())


HISTORY = [{"phi_r": 1.0 - 0.1 * n, "phi": 1.0 + 0.1 * n, "effective_rank": 4.0} for n in range(6)]


def test_a_warning_is_new_once() -> None:
    assert new_warnings(HISTORY[:5]) == []
    assert new_warnings([{"loss": 1.0}, *HISTORY]) == [PHI_UP_PHI_R_DOWN]
    assert new_warnings([*HISTORY, HISTORY[-1] | {"phi_r": 0.4}]) == []
    assert new_warnings([*HISTORY, HISTORY[-1] | {"effective_rank": 1.0}]) == [PHI_UP_RANK_DOWN]


def test_a_warning_stands_in_the_log_the_record_and_tensorboard(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.trainer.new_warnings", lambda history: [PHI_UP_RANK_DOWN] * (len(history) == 2))
    run = tmp_path / "run"
    _run(data, run, max_steps=2, eval_every=2)
    (warning,) = (record for record in read_record(run / "record.jsonl") if "warning" in record)
    assert (warning["step"], warning["warning"]) == (1, PHI_UP_RANK_DOWN)
    assert f"step      1  WARNING {PHI_UP_RANK_DOWN}: " in capsys.readouterr().out
    page = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"train/phi_r", "train/effective_rank", "train/gradient_ratio", "train/lambda_phi"} <= set(
        page.Tags()["scalars"]
    )
    text = page.Tensors("train/warning/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == PHI_UP_RANK_DOWN


@pytest.mark.parametrize("weight", [0, 0.5])
def test_a_run_that_diverges_says_so(
    weight: float, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags(data, tmp_path / "run", learning_rate=1e30, max_grad_norm=1e30, lambda_phi=weight, warmup_steps=0)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "the run diverged at step" in error
    assert "lower learning_rate" in error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phi_target": 1.5}, "phi_target=1.5"),
        ({"phi_max_share": 0.0}, "phi_max_share=0.0"),
        ({"lambda_warmup_steps": 3000}, "lambda_warmup_steps=3000: give at most max_steps=2000"),
        ({"lambda_schedule": "step"}, "lambda_schedule='step'"),
        ({"lambda_schedule": "closed_loop", "lambda_target_share": 0.2, "phi_max_share": 0.1}, "give at most 0.1"),
        ({"phi_lag": 250}, "phi_lag=250"),
        ({"lambda_final": -0.1}, "lambda_final=-0.1"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig(**changes)


def test_every_evaluation_carries_the_guards_at_any_lambda(data: Path, tmp_path: Path) -> None:
    assert main(flags(data, tmp_path / "run", lambda_phi=0, max_steps=1)) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 1 <= metrics["effective_rank"] <= 16
    assert metrics["phi_r"] > 0
