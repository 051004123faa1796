"""The race finds the closest setting, its result repeats after a kill, and what is written keeps what was there."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from serve.quality.statistics import Interval
from tests.test_repository import ROOT
from tests.train_loop.small_model import save_small_model
from training.continuations import Prompt
from training.decoding_trials import Setting, Trial, difference, score_distance
from training.tune_decoding import TuneConfig, judge, main, new_generation_config, rivals, settings_to_try, tune

PRESENT = {"temperature": 0.8, "top_p": 0.95, "min_p": 0.0, "repetition_penalty": 1.0}


def trial(name: str, setting: Setting, gap: float, num_prompts: int = 40, spread: float = 0.01) -> Trial:
    around = Interval(gap, gap - spread, gap + spread)
    draws = gap + spread * np.random.default_rng(len(name)).normal(size=200)
    return Trial(name, setting, num_prompts, around, around, around, around, draws)


class Known:
    """Trials whose gap is the distance of the temperature from 0.9 and of top_p from 0.98."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []

    def run(self, name: str, setting: Setting, part: str, prompts: Sequence[Prompt]) -> Trial:
        self.calls.append((part, [prompt.ids[0] for prompt in prompts]))
        gap = abs(setting["temperature"] - 0.9) + abs(setting["top_p"] - 0.98) + setting["repetition_penalty"] - 1
        return trial(name, setting, gap, len(prompts))

    def people(self, selection: Sequence[Prompt], held_out: Sequence[Prompt]) -> tuple[Interval, float]:
        return Interval(len(selection), 0.0, 0.0), len(held_out)


def test_the_race_finds_the_closest_setting_and_never_sees_the_held_out_prompts() -> None:
    config = TuneConfig(num_prompts=400, num_settings=60, seed=3)
    prompts = [Prompt((i,), "", "", 1) for i in range(400)]
    known = Known()
    outcome = tune(known, prompts, PRESENT, config)  # type: ignore[arg-type]
    every = settings_to_try(PRESENT, 60, 3)
    best = min(
        every.values(), key=lambda s: abs(s["temperature"] - 0.9) + abs(s["top_p"] - 0.98) + s["repetition_penalty"]
    )
    assert outcome.held_out[0].setting == best
    assert [len(stage) for stage in outcome.stages] == [60, 20, 10]
    assert [t.name for t in outcome.held_out[1:]] == list(rivals(PRESENT))
    assert outcome.adopted
    seen = {part: {i for p, ids in known.calls if p == part for i in ids} for part in ("selection", "held_out")}
    assert seen["selection"] == set(range(200))
    assert seen["held_out"] == set(range(200, 400))


def test_settings_are_drawn_by_the_seed_and_none_is_there_twice() -> None:
    found = settings_to_try(PRESENT, 40, 1)
    assert list(found)[:2] == ["present", "greedy"]
    assert len({json.dumps(dict(s), sort_keys=True) for s in found.values()}) == 40
    assert found == settings_to_try(PRESENT, 40, 1) != settings_to_try(PRESENT, 40, 2)


def test_only_a_winner_that_is_not_shown_worse_is_adopted() -> None:
    present = trial("present", PRESENT, 0.5)
    for gap, adopted, word in ((0.4, True, "Better"), (0.5, True, "Not shown worse"), (0.6, False, "Worse")):
        found, verdict = judge(trial("other", {}, gap), present)
        assert (found, verdict.startswith(word)) == (adopted, True)
    assert judge(present, None)[0] is False
    assert difference(present, present) == Interval(0.0, 0.0, 0.0)


def test_the_score_distance_is_wassersteins() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((5, 30)), rng.random((5, 30)) ** 2
    expected = [wasserstein_distance(a, b) for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(score_distance(one, other), expected)


def test_generation_config_keeps_what_is_not_tuned() -> None:
    old = {"eos_token_id": 7, "vendor": [1], "do_sample": False, "temperature": 0.3, "min_p": 0.1}
    setting = {**PRESENT, "repetition_penalty": 1.1}
    kept = {"eos_token_id": 7, "vendor": [1]}
    assert new_generation_config(old, setting) == {**kept, "do_sample": True, **setting}
    assert new_generation_config(old, {**PRESENT, "temperature": 0.0}) == {**kept, "do_sample": False}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning_text")
    rng = Random(0)
    for split in ("train", "valid", "test"):
        documents = [" ".join(rng.choices(["the", "old", "man", "sea", "went", "."], k=1500)) for _ in range(3)]
        (folder / f"{split}.txt").write_text("<|endoftext|>".join(documents))
    return folder


def command(model_dir: Path, text: Path, *more: str) -> list[str]:
    line = f"{model_dir} --dataset {text} --num-prompts 160 --prompt-tokens 8 --continuation-tokens 40 --num-settings 5"
    reference = ROOT / "models" / "tiny_iit" / "3" / "quality_reference.json"
    return [*line.split(), "--quality-reference", str(reference), "--num-bootstrap", "50", "--num-threads", "1", *more]


def test_a_killed_run_goes_on_to_the_same_result_and_the_config_is_written(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.tune_decoding.judge", lambda winner, present: (True, "Adopted."))
    model_dir, output = save_small_model(tmp_path / "model"), tmp_path / "out"
    config = model_dir / "generation_config.json"
    config.write_text('{"eos_token_id": 256, "vendor": 7, "temperature": 3.0}')
    before = config.read_text()
    arguments = command(model_dir, text, "--output", str(output))
    assert main(arguments) == 0
    summary = (output / "summary.json").read_text()
    assert json.loads(summary)["people"]["score_distance"] < 0.1
    winner = json.loads(summary)["held_out"][0]["setting"]
    written = json.loads(config.read_text())
    assert written == new_generation_config(json.loads(before), winner) != json.loads(before)

    lines = (output / "results.jsonl").read_text().splitlines(keepends=True)
    (output / "results.jsonl").write_text("".join(lines[:-2]) + lines[-2][:50])
    config.write_text(before)
    (model_dir / "manifest.json").write_text("{}")  # published meanwhile: the folder stays as it is
    assert main(arguments) == 0
    assert (output / "summary.json").read_text() == summary
    assert (output / "results.jsonl").read_text().splitlines(keepends=True) == lines
    assert config.read_text() == before
    assert json.loads((output / "generation_config.json").read_text()) == written


def test_a_dry_run_prints_the_plan_and_leaves_nothing(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_dir = save_small_model(tmp_path / "model")
    assert main(command(model_dir, text, "--dry-run", "--output", str(tmp_path / "out"))) == 0
    shown = capsys.readouterr().out
    # 5 settings on 20 prompts, 1 on 40, 1 on 80, 6 on the 80 that are held out; 40 tokens each.
    assert "tokens to generate: at most 28,000" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "dev"], "split is 'dev'"),
        (["--num-prompts", "100"], "num_prompts is 100: give at least 160"),
        (["--num-prompts", "5000"], "num_prompts is 5000: the text holds"),
        (["--dataset", "/nowhere"], "dataset='/nowhere'"),
        (["--runner", "other"], "runner is 'other'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, text: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model_dir = save_small_model(tmp_path / "model")
    capsys.readouterr()
    assert main([*command(model_dir, text, "--output", str(tmp_path / "out")), *more]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.strip().splitlines()) == 1
