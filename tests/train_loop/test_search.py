"""Plans, claims, trials and selection of training.search, without processes of its own (test_search_processes.py)."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from tests.train_loop.runs import config_of, flags
from training.claims import Claim, GridBoard, SampledBoard, TrialBoard, open_storage, results_of, write_results
from training.config import TrainConfig
from training.record import read_record
from training.search import main, parse_search_flags
from training.search_plan import (
    LAMBDA_GRID,
    Space,
    Unit,
    grid_arms,
    make_units,
    parse_seeds,
    parse_space,
    point_name,
    read_points,
)
from training.selection import describe, rank_arms
from training.trial import TrialRequest, pruned_result, run_trial


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


# Plans


def test_the_default_grid_holds_zero_the_reports_range_and_values_below_it() -> None:
    assert LAMBDA_GRID[0] == 0
    assert sum(0.01 <= value <= 0.3 for value in LAMBDA_GRID) == 8
    assert sum(0 < value < 0.01 for value in LAMBDA_GRID) >= 3


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("dropout=0,0.1", Space("dropout", (0.0, 0.1))),
        ("learning-rate=1e-4:1e-2:log", Space("learning_rate", (), 1e-4, 1e-2, True)),
        ("phi_rank=1:4", Space("phi_rank", (), 1, 4)),
        ("phi_target=none,0.3", Space("phi_target", (None, 0.3))),
        ("phi_sham=true,false", Space("phi_sham", (True, False))),
        ("optimizer=adamw,muon", Space("optimizer", ("adamw", "muon"))),
    ],
)
def test_any_field_has_a_space(text: str, space: Space) -> None:
    assert parse_space(text) == space


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lambda_phi", "write field=a,b,c"),
        ("lambda=1", "TrainConfig has preset"),
        ("seed=0,1", "seeds go into --seeds"),
        ("dropout=a", "'a' is no float"),
        ("optimizer=a:b", "takes a list"),
        ("dropout=0.2:0.1", "low below high"),
        ("dropout=0:0.1:log", "above 0 on a log scale"),
        ("phi_sham=yes", "neither true nor false"),
    ],
)
def test_a_space_that_is_none_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_space(text)


def test_seeds_are_a_range_or_a_list() -> None:
    assert parse_seeds("2-4") == [2, 3, 4]
    assert parse_seeds("7,1") == [7, 1]
    for text in ("", "4-2", "1,1", "a", "1-", "-1"):
        with pytest.raises(ValueError, match="give different seeds"):
            parse_seeds(text)


def test_a_grid_is_every_combination_and_a_range_is_refused() -> None:
    arms = grid_arms([Space("lambda_phi", (0.0, 0.01)), Space("dropout", (0.0, 0.25))])
    assert list(arms) == [
        "lambda_phi=0,dropout=0", "lambda_phi=0,dropout=0.25", "lambda_phi=0.01,dropout=0",
        "lambda_phi=0.01,dropout=0.25",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="add --sampler tpe"):
        grid_arms([Space("dropout", (), 0.0, 0.1)])
    assert point_name({"dataset": "../a b"}) == "dataset=..-a-b"


def test_units_are_whole_rounds_of_seeds_and_equal_arms_are_refused() -> None:
    units = make_units({"max_steps": 5}, {"a": {"lambda_phi": 0}, "b": {"lambda_phi": 0.1}}, [3, 4])
    assert [(unit.arm, unit.config.seed, unit.config.max_steps) for unit in units] == [
        ("a", 3, 5), ("b", 3, 5), ("a", 4, 5), ("b", 4, 5)
    ]  # fmt: skip
    assert len({unit.folder_name for unit in units}) == 4
    with pytest.raises(ValueError, match="'b' is the same run as 'a'"):
        make_units({}, {"a": {}, "b": {"lambda_phi": 0.01}}, [0])


@pytest.mark.parametrize(
    ("arm", "changes", "words"),
    [
        ("a", {"seed": 1}, "the search sets it"),
        ("a", {"lambda_phi": "0.1"}, "give a value of type float"),
        ("a", {"max_steps": 1.5}, "give a value of type int"),
        ("a", {"lamda": 1}, "TrainConfig has preset"),
        ("a", {"dropout": 2}, "arm 'a': dropout=2.0"),
        ("../a", {}, "use letters, digits"),
    ],
)
def test_an_arm_that_cannot_be_run_is_named(arm: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_units({}, {arm: changes}, [0])


def test_a_points_file_gives_base_seeds_and_arms_and_flags_stand_between(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    path.write_text('{"base": {"max_steps": 5}, "seeds": [8], "arms": {"none": {"lambda_phi": 0}}}')
    assert read_points(path) == ({"max_steps": 5}, [8], {"none": {"lambda_phi": 0}})
    for content, words in (
        ("[]", "no object"),
        ('{"arms": {}}', "no arms"),
        ('{"arms": {"a": {}}, "more": 1}', "found more"),
        ('{"arms": {"a": {}, "a": {}}}', "'a' stands twice"),
        ('{"arms": {"a": 3}}', "a=3"),
        ('{"arms": {"a": {}}, "seeds": ["x"]}', "whole numbers"),
        ("{", "cannot be read"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=words):
            read_points(path)


def test_the_key_changes_with_what_is_computed_and_with_nothing_else() -> None:
    base = TrainConfig()
    assert base.key() == TrainConfig(output_dir="elsewhere", resume=True, publish="name").key()
    assert len({base.key(), TrainConfig(seed=1).key(), TrainConfig(phi_sham=True).key()}) == 3


def test_only_flags_that_are_given_reach_the_base() -> None:
    options = parse_search_flags(["--study", "s", "--max-steps", "7", "--bf16"])
    assert options.base == {"max_steps": 7, "bf16": True}
    assert config_of([]) == TrainConfig()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "0"], "workers=0: give 1 or more"),
        (["--preset", "huge"], "preset='huge'"),
        (["--space", "dropout=0,0.1", "--dropout", "0.1"], "given twice"),
        (["--points", "none.json"], "cannot be read"),
        (["--storage", "nosuch://x", "--space", "dropout=0"], "give a journal file or a database URL"),
        (["--dry-run", "--tokens-per-second", "0"], "tokens_per_second=0.0"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--study", "s", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1


def test_a_dry_run_prints_the_plan_and_its_cost_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--study", "s", "--space", "lambda_phi=0,0.1", "--seeds", "0-4", "--max-steps", "1000", "--workers"]
    arguments += ["2", "--threads", "1"]
    assert main([*arguments, "--dry-run", "--tokens-per-second", "10000"]) == 0
    said = capsys.readouterr().out
    assert "lambda_phi=0.1: seeds 0, 1, 2, 3, 4; 1,000 steps" in said
    assert "10 runs, 10,000 steps, 40,960,000 tokens; 0 are done" in said
    # 5 rounds of (1,000 steps of 4,096 tokens and a third of 11 evaluations of 65,536) at 10,000 a second
    assert f"about {5 * (4_096_000 + 11 * 65_536 / 3) / 1e4 / 3600:.2f} hours" in said
    assert not Path("s").exists()


# Claims


def _units(count: int) -> list[Unit]:
    return [Unit(f"arm{n}", TrainConfig(seed=n)) for n in range(count)]


def _board(where: Path, units: list[Unit], **changes: Any) -> GridBoard:
    options: dict[str, Any] = {"identity": {"threads": 1}, "grace_seconds": 0.0, "pruner": optuna.pruners.NopPruner()}
    return GridBoard(open_storage(str(where)), units, **{**options, **changes})


def _elsewhere(board: TrialBoard, machine: str = "another") -> TrialBoard:
    """The board as seen from a process on another machine."""
    board._owner["machine"] = machine
    return board


def _finish(board: TrialBoard, claim: Claim) -> None:
    for unit in claim.units:
        board.save(claim, unit.key, {"key": unit.key})
    board.finish(claim, TrialState.COMPLETE, 1.0)


ACTIONS = ("claim", "claim", "finish", "release", "die")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["claim", "finish", "release", "die"])), max_size=25)
)
def test_no_unit_is_run_twice_at_once_or_after_it_is_finished(
    actions: list[tuple[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Three processes claim, finish, give back and vanish in any order; the rest is then run to its end."""
    where = tmp_path_factory.mktemp("board") / "journal"
    units = _units(3)
    boards = [_elsewhere(_board(where, units, grace_seconds=1e9), f"machine{n}") for n in range(3)]
    held: list[list[Claim]] = [[], [], []]
    finished: list[str] = []
    for who, action in actions:
        board = boards[who]
        if action == "claim" and (claim := board.claim()):
            running = [unit.key for claims in held for other in claims for unit in other.units]
            assert claim.units[0].key not in running + finished
            held[who].append(claim)
        elif action == "finish" and held[who]:
            claim = held[who].pop()
            _finish(board, claim)
            finished.append(claim.units[0].key)
        elif action == "release" and held[who]:
            board.release(held[who].pop())
        elif action == "die":  # everyone sees that its claims are stale
            for claim in held[who]:
                boards[(who + 1) % 3]._fail(claim.trial_id)
            held[who] = []
    for claims, board in zip(held, boards, strict=True):
        for claim in claims:
            _finish(board, claim)
            finished.append(claim.units[0].key)
    while claim := boards[0].claim():
        _finish(boards[0], claim)
        finished.append(claim.units[0].key)
    assert sorted(finished) == sorted(unit.key for unit in units)
    assert not any(board.unfinished() for board in boards)
    assert boards[1].results().keys() == {unit.key for unit in units}


def test_a_claim_without_a_beat_for_the_grace_time_is_taken_over_with_its_results(tmp_path: Path) -> None:
    units = _units(1)
    there = _elsewhere(_board(tmp_path / "journal", units))
    lost = there.claim()
    assert lost is not None
    there.save(lost, "half", {"key": "half"})
    assert there.beat(lost)
    here = _board(tmp_path / "journal", units, grace_seconds=-1.0)
    assert here.claim() is None  # its beat is seen for the first time
    taken = here.claim()  # and now it stands still
    assert taken is not None
    assert taken.results == {"half": {"key": "half"}}
    assert not there.beat(lost)
    there.release(lost)  # the late process changes nothing
    assert here.beat(taken)


def test_a_claim_that_beats_is_left_alone(tmp_path: Path) -> None:
    units = _units(1)
    there = _elsewhere(_board(tmp_path / "journal", units))
    claim = there.claim()
    assert claim is not None
    here = _board(tmp_path / "journal", units, grace_seconds=-1.0)
    for _ in range(3):
        there.beat(claim)
        assert here.claim() is None
        assert here.unfinished()


def test_a_claim_of_a_process_gone_from_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    units = _units(1)
    gone = _board(tmp_path / "journal", units, grace_seconds=1e9)
    gone._owner["started"] = "before this machine was started"
    assert gone.claim() is not None
    here = _board(tmp_path / "journal", units, grace_seconds=1e9)
    assert here.claim() is not None
    assert _board(tmp_path / "journal", units, grace_seconds=1e9).claim() is None  # this process lives


def test_of_two_that_reach_for_a_unit_at_once_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = _units(2)
    here, there = (_board(tmp_path / "journal", units) for _ in range(2))
    first: list[Claim | None] = []
    find = here._id_of

    def find_late(trial: optuna.trial.FrozenTrial) -> int:
        if not first:  # the other one is quicker, after this one has looked
            first.append(there.claim())
        return find(trial)

    monkeypatch.setattr(here, "_id_of", find_late)
    second = here.claim()
    assert first[0] is not None
    assert second is not None
    assert (first[0].units, second.units) == ([units[0]], [units[1]])


def test_a_study_keeps_its_threads(tmp_path: Path) -> None:
    _board(tmp_path / "journal", [])
    with pytest.raises(ValueError, match="threads=2 differs from the study in this storage"):
        _board(tmp_path / "journal", [], identity={"threads": 2})


def test_a_sampled_study_draws_as_many_points_as_asked_in_a_database_too(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    spaces = [Space("learning_rate", (), 1e-4, 1e-2, True), Space("dropout", (0.0, 0.1)), Space("phi_rank", (), 1, 4)]
    boards = [
        SampledBoard(
            open_storage(storage), spaces, {"max_steps": 5}, [0, 1], 4,
            identity={}, grace_seconds=1e9, pruner=optuna.pruners.NopPruner(),
        )
        for _ in range(2)
    ]  # fmt: skip
    first = boards[0].claim()
    assert first is not None
    assert [unit.config.seed for unit in first.units] == [0, 1]
    boards[0].save(first, first.units[0].key, {"key": "one"})
    boards[0].release(first)
    again = boards[1].claim()  # the point that was given back comes first, with the seed it had done
    assert again is not None
    assert again.units == first.units
    assert list(again.results) == [first.units[0].key]
    claims = [again, *(claim for _ in range(5) for board in boards if (claim := board.claim()))]
    assert len(claims) == 4
    assert boards[0].unfinished()
    for claim in claims:
        boards[0].finish(claim, TrialState.COMPLETE, 1.0)
    assert not boards[1].unfinished()
    assert boards[1].claim() is None


def test_results_are_written_once_each_whoever_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_results(path, {"a": {"key": "a", "n": 1}})
    write_results(path, {"a": {"key": "a", "n": 2}, "b": {"key": "b"}})
    assert read_record(path) == [{"key": "a", "n": 1}, {"key": "b"}]


# A trial


def _request(data: Path, **changes: Any) -> TrialRequest:
    config = config_of(flags(data, Path("unused"), max_steps=4, eval_every=2, **changes))
    return TrialRequest("arm", config.key(), 1, False, config)


def test_a_trial_leaves_its_result_and_record_and_no_weights(data: Path, tmp_path: Path) -> None:
    request = _request(data)
    request.write(tmp_path / "trial")
    assert TrialRequest.read(tmp_path / "trial") == request
    assert run_trial(tmp_path / "trial", request) == 0
    result = json.loads((tmp_path / "trial" / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["config"]["lambda_phi"] == 0.01
    assert (result["arm"], result["seed"], result["threads"], result["steps"]) == ("arm", 0, 1, 4)
    assert result["tokens_seen"] == 4 * 4 * 32
    assert result["held_out"]["num_bytes"] > 4000  # the whole split
    assert result["phi"]["null_mean"] > 0
    assert result["guards"]["gradient_ratio"] > 0
    assert [step for step, _, _ in result["curve"]] == [0, 2, 4]
    assert not (tmp_path / "trial" / "run" / "resume").exists()
    assert not (tmp_path / "trial" / "run" / "checkpoint").exists()
    assert pruned_result(tmp_path / "trial")["held_out"] is None
    before = (tmp_path / "trial" / "result.json").stat().st_mtime_ns
    assert run_trial(tmp_path / "trial", request) == 0  # nothing is run twice
    assert (tmp_path / "trial" / "result.json").stat().st_mtime_ns == before


def test_a_trial_that_diverges_is_a_result(data: Path, tmp_path: Path) -> None:
    request = _request(data, learning_rate=1e30, max_grad_norm=1e30, warmup_steps=0)
    assert run_trial(tmp_path / "trial", request) == 0
    result = json.loads((tmp_path / "trial" / "result.json").read_text())
    assert (result["status"], result["held_out"]) == ("diverged", None)
    assert "the run diverged at step" in result["error"]


def test_a_half_run_trial_goes_on_from_its_last_saved_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = _request(data)
    assert run_trial(tmp_path / "whole", request) == 0
    with monkeypatch.context() as patch:
        patch.setattr("training.train._finish", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_trial(tmp_path / "half", request)
    assert run_trial(tmp_path / "half", request) == 0
    whole, half = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "half"))
    assert (whole["resumed_from_step"], half["resumed_from_step"]) == (0, 4)
    for result in (whole, half):
        for name in ("seconds", "resumed_from_step"):
            del result[name]
    assert whole == half


# Selection


def _result(arm: str, seed: int, bits: float | None) -> dict[str, Any]:
    status = "diverged" if bits is None else "finished"
    return {"arm": arm, "seed": seed, "status": status, "held_out": bits and {"bits_per_byte": bits}}


def test_selection_says_which_arms_are_within_error() -> None:
    figures = {"a": (2.0, 2.1, 2.2), "near": (2.01, 2.09, 2.21), "far": (2.5, 2.6, 2.7)}
    arms = rank_arms([_result(arm, seed, bits) for arm, row in figures.items() for seed, bits in enumerate(row)])
    assert [(arm.arm, arm.is_tied) for arm in arms[1:]] == [("near", True), ("far", False)]
    assert arms[0].mean == pytest.approx(2.1)
    assert arms[0].half_width == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert arms[2].difference == pytest.approx((0.5, 0), abs=1e-9)
    text = describe(arms, 1000)
    assert "Lowest: a; within error of it: near." in text
    assert "confirm it on fresh seeds" in text


def test_an_arm_that_lost_a_seed_is_not_selected() -> None:
    arms = rank_arms([_result("a", 0, 1.0), _result("a", 1, None), _result("b", 0, 2.0), _result("b", 1, 2.0)])
    assert [arm.arm for arm in arms] == ["b", "a"]
    assert "Selected: b" in describe(arms, 10) or "Lowest: b" in describe(arms, 10)
    assert "(1 pruned or diverged)" in describe(arms, 10)


def test_one_seed_gives_no_error_and_no_winner() -> None:
    arms = rank_arms([_result("a", 0, 1.0), _result("b", 0, 2.0)])
    assert arms[0].half_width is None
    assert "within error of it: b" in describe(arms, 10)
    assert "nothing is selected" in describe(rank_arms([_result("a", 0, None)]), 10)


def test_results_of_a_trial_are_its_own() -> None:
    trial = optuna.trial.create_trial(value=1.0, user_attrs={"result:a": {"key": "a"}, "claim": {}})
    assert results_of(trial) == {"a": {"key": "a"}}
