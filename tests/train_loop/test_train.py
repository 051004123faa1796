"""The command `python -m training.train`: what it leaves and says, and that its arithmetic is the plain Trainer's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from model_store.store import ModelStore
from tests.train_loop.runs import config_of, figures, flags, same, weights
from training.corpora import load_corpus
from training.packing import WindowDataset, prepare
from training.train import build_model, main
from training.trainer import PhiTrainer


def test_a_run_leaves_a_plain_hugging_face_folder_and_its_record(finished_run: Path) -> None:
    checkpoint = {path.name for path in (finished_run / "checkpoint").iterdir()}
    assert checkpoint == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert {"record.jsonl", "train_config.json", "dataset.json", "metrics.json", "curves.png", "tensorboard"} <= {
        path.name for path in finished_run.iterdir()
    }


def test_the_checkpoint_loads_without_our_code_and_keeps_no_trace_of_dropout(finished_run: Path) -> None:
    config = json.loads((finished_run / "checkpoint" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in config
    assert config["attention_dropout"] == 0
    model = AutoModelForCausalLM.from_pretrained(finished_run / "checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(finished_run / "checkpoint")
    ids = torch.tensor([tokenizer.encode("The old river walked home.")])
    logits = model(ids).logits
    best = min((r for r in figures(finished_run) if "eval_bits_per_byte" in r), key=lambda r: r["eval_bits_per_byte"])
    trained = AutoModelForCausalLM.from_pretrained(finished_run / "resume" / f"checkpoint-{best['step']}")
    assert torch.equal(logits, trained(ids).logits)


def test_held_out_bits_per_byte_falls_and_every_evaluation_records_phi_with_its_null(finished_run: Path) -> None:
    evaluations = [record for record in figures(finished_run) if "eval_bits_per_byte" in record]
    assert [record["step"] for record in evaluations] == [0, 5, 10]
    assert evaluations[-1]["eval_bits_per_byte"] < evaluations[0]["eval_bits_per_byte"] - 0.2
    for record in evaluations:
        assert record["eval_perplexity"] > 1
        assert 0 <= record["eval_phi01"] < 1
        assert 0 < record["eval_phi_null_mean"] < 1


def _plain_trainer(arguments: list[str], folder: Path) -> dict[str, Any]:
    """The same data, model, optimizer and schedule under transformers' Trainer, with nothing of ours in the step."""
    config = config_of(arguments)
    tokenizer, streams = prepare(
        load_corpus(config.dataset), None, config.vocab_size, config.block_size, folder / "tokens"
    )
    trainer = Trainer(
        model=build_model(config, tokenizer),
        args=TrainingArguments(
            output_dir=str(folder / "plain"), per_device_train_batch_size=config.batch_size, max_steps=config.max_steps,
            gradient_accumulation_steps=config.gradient_accumulation, learning_rate=config.learning_rate,
            lr_scheduler_type="cosine", warmup_steps=0, adam_beta1=0.9, adam_beta2=0.95, weight_decay=0.1,
            optim="adamw_torch_fused", save_strategy="no", report_to=[], disable_tqdm=True, dataloader_drop_last=True,
            dataloader_pin_memory=False, seed=config.seed, data_seed=config.seed, average_tokens_across_devices=False,
        ),
        train_dataset=WindowDataset(streams["train"], config.block_size),
    )  # fmt: skip
    trainer.train()
    return {name: value.detach() for name, value in trainer.model.state_dict().items() if name != "lm_head.weight"}


def test_lambda_0_trains_bit_for_bit_like_the_plain_trainer(data: Path, tmp_path: Path) -> None:
    arguments = flags(
        data, tmp_path / "run", lambda_phi=0, dropout=0, max_steps=6, eval_every=6, gradient_accumulation=2
    )
    assert main(arguments) == 0
    assert same(weights(tmp_path / "run", 6), _plain_trainer(arguments, tmp_path))


def test_the_objective_changes_the_weights(data: Path, tmp_path: Path) -> None:
    for weight in (0, 0.5):
        assert main(flags(data, tmp_path / str(weight), lambda_phi=weight, dropout=0, max_steps=3)) == 0
    assert not same(weights(tmp_path / "0", 3), weights(tmp_path / "0.5", 3))


class _Killed(Exception):
    pass


MUON = {"optimizer": "muon", "gradient_accumulation": 2, "max_steps": 4, "eval_every": 2}


@pytest.mark.parametrize("shared", [{}, MUON], ids=["adamw", "muon"])
def test_a_resumed_run_equals_one_never_stopped(
    shared: dict[str, Any], data: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, last = (tmp_path / "whole", 4) if shared else (finished_run, 10)
    if shared:
        assert main(flags(data, whole, **shared)) == 0
    with monkeypatch.context() as patch:
        step = PhiTrainer.training_step

        def dying_step(self: PhiTrainer, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == last - 1:
                raise _Killed
            return step(self, *args, **kwargs)

        patch.setattr(PhiTrainer, "training_step", dying_step)
        with pytest.raises(_Killed):
            main(flags(data, tmp_path / "cut", **shared))
    assert main(flags(data, tmp_path / "cut", resume=True, **shared)) == 0
    assert same(weights(whole, last), weights(tmp_path / "cut", last))
    assert figures(whole) == figures(tmp_path / "cut")


def test_publish_fills_the_manifest(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(data, tmp_path / "run", max_steps=2, publish="my_model", save_dtype="bfloat16")) == 0
    assert "python -m serve --model my_model@1" in capsys.readouterr().out
    resolved = ModelStore(tmp_path / "store").resolve("my_model")
    manifest = json.loads((resolved.path / "manifest.json").read_text())
    assert manifest["training"]["max_steps"] == 2
    assert manifest["tokens_seen"] == 2 * 4 * 32
    assert manifest["metrics"]["split"] == "valid"
    assert manifest["dataset"]["splits"]["train"]["documents"] == 60
    assert AutoModelForCausalLM.from_pretrained(resolved.path).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dropout": 1.5}, ("dropout=1.5", "below 1")),
        ({"preset": "huge"}, ("preset='huge'", "tiny_iit")),
        ({"publish": "../up"}, ("name='../up'",)),
        ({"dataset": "no/such/folder"}, ("no/such/folder", "give a path")),
        ({"tokenizer": "no-such-folder"}, ("tokenizer='no-such-folder'", "hf download")),
        ({"vocab_size": 100_000}, ("vocab_size=100000", "--vocab-size")),
        ({"resume": True}, ("resume", "no saved step")),
    ],
)
def test_bad_input_is_one_line_that_names_field_value_and_remedy(
    changes: dict[str, Any], words: tuple[str, ...], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(data, tmp_path / "run", **changes)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert all(word in error for word in words)
    assert "Traceback" not in error


def test_resume_refuses_other_settings_and_other_text(
    finished_run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(data, finished_run, resume=True, learning_rate=1e-3)) == 2
    assert "learning_rate=0.001 differs" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    for file in data.iterdir():
        (other / file.name).write_text(file.read_text() + " More.")
    settings = json.loads((finished_run / "train_config.json").read_text())
    settings["dataset"] = str(other)
    changed = tmp_path / "run"
    (changed / "resume" / "checkpoint-5").mkdir(parents=True)
    (changed / "resume" / "checkpoint-5" / "trainer_state.json").write_text("{}")
    (changed / "train_config.json").write_text(json.dumps(settings))
    (changed / "dataset.json").write_text((finished_run / "dataset.json").read_text())
    assert main(flags(other, changed, resume=True)) == 2
    assert "no longer the text" in capsys.readouterr().err
