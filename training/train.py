"""The command that trains: data -> tokens -> model -> run folder -> (model store).

    python -m training.train --lambda-phi 0.01

The run folder holds checkpoint/ (a plain Hugging Face folder), record.jsonl, train_config.json, dataset.json,
curves.png, TensorBoard logs, and resume/ with what a continuation needs.
"""

import dataclasses
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from prometheus_client import CollectorRegistry
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from model_store.names import validate_name
from model_store.presets import build_model_config
from model_store.store import ModelStore, default_root
from training.config import TrainConfig, check_same_run, flag_parser
from training.corpora import Corpus, load_corpus
from training.dropout import add_dropout
from training.evaluation import Evaluator, HeldOut
from training.live_metrics import RunMetrics, serving
from training.live_metrics import add_flags as add_metrics_flags
from training.packing import TokenStream, WindowDataset, prepare
from training.record import plot_curves, read_record
from training.trainer import PhiTrainer, as_metrics, is_first_process, num_processes

RUNS = Path("runs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. 0: done; 2: bad input, said in one line; 130: interrupted, resumable."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    parser = flag_parser()
    add_metrics_flags(parser)
    options = vars(parser.parse_args(arguments))
    host, port = options.pop("metrics_host"), options.pop("metrics_port")
    try:
        config = TrainConfig(**options)
        with serving(host, port if is_first_process() else None) as registry:
            return train(config, registry)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nInterrupted before the first step or while saving; the last saved step, if any, is whole.",
            file=sys.stderr,
        )
        return 130


def train(config: TrainConfig, registry: CollectorRegistry | None = None) -> int:
    """Train as configured and leave the run folder. Returns the exit status; raises ValueError for bad input.

    registry: where the run's metrics are to be seen meanwhile.
    """
    check_names(config)
    run_dir = _run_dir(config)
    corpus = load_corpus(config.dataset)
    if config.resume:
        _check_same_text(corpus, run_dir / "dataset.json")
    tokenizer, streams = prepare(corpus, config.tokenizer, config.vocab_size, config.block_size, RUNS / ".tokens")
    model = build_model(config, tokenizer)
    windows = WindowDataset(streams["train"], config.block_size)
    if is_first_process():
        _announce(config, run_dir, model, streams, windows)
        write_json(run_dir / "dataset.json", corpus.fingerprint())
        (run_dir / "train_config.json").write_text(config.to_json())
    evaluator = _evaluator(config, tokenizer, streams["valid"], config.eval_tokens)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run_dir / "tensorboard")
    with PhiTrainer(model, config, windows, evaluator, run_dir) as trainer, warnings.catch_warnings():
        # Trainer steps the schedule once before a resumed optimizer has stepped; the saved state sets both right after.
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)`")
        if registry is not None:
            metrics = RunMetrics(run_dir.resolve().name, tokens_per_step(config))
            registry.register(metrics)
            trainer.add_callback(metrics)
        saved = last_saved(run_dir) if config.resume else None
        if saved is not None and saved_step(saved) >= config.max_steps:
            trainer.take_up_finished(saved)
        else:
            trainer.train(resume_from_checkpoint=saved)
        if trainer.interrupt.interrupted:
            print(f"\nInterrupted and saved. Go on with the same flags and: --output-dir {run_dir} --resume")
            return 130
        if trainer.is_world_process_zero():
            # What is scored is what is saved: its dtype, computed in float32.
            model.to(getattr(torch, config.save_dtype)).to(torch.float32)
            held_out = _evaluator(dataclasses.replace(config, bf16=False), tokenizer, streams["valid"], None)(model)
            _finish(config, run_dir, model, tokenizer, corpus, held_out)
    return 0


def build_model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A freshly initialised model of the preset, in float32, with dropout hooks; seeds every generator."""
    set_seed(config.seed)
    architecture = build_model_config(
        config.preset,
        vocab_size=len(tokenizer),
        max_position_embeddings=config.block_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = transformers.AutoModelForCausalLM.from_config(architecture)
    add_dropout(model, config.dropout)
    return model


def check_names(config: TrainConfig) -> None:
    """Refuse at once what would otherwise fail only after hours of training."""
    build_model_config(config.preset, vocab_size=config.vocab_size, max_position_embeddings=config.block_size)
    if config.publish is not None:
        validate_name(config.publish)
    if num_processes() > 1 and config.output_dir is None:
        raise ValueError("output_dir=None: several processes train one run, name its folder with --output-dir DIR")


def _check_same_text(corpus: Corpus, saved: Path) -> None:
    if json.loads(saved.read_text()) != corpus.fingerprint():
        raise ValueError(
            f"dataset={corpus.name!r} is no longer the text this run began with (see {saved}); restore it, or start a "
            "new run in another --output-dir"
        )


def _run_dir(config: TrainConfig) -> Path:
    name = f"{config.preset}-{Path(config.dataset).name}-lambda{config.lambda_phi:g}-seed{config.seed}"
    run_dir = Path(config.output_dir) if config.output_dir else RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if config.resume:
        if last_saved(run_dir) is None:
            raise ValueError(f"resume: {run_dir} holds no saved step; start it without --resume")
        check_same_run(config, run_dir / "train_config.json")
    elif is_first_process() and (run_dir / "train_config.json").exists():
        raise ValueError(f"output_dir={str(run_dir)!r} holds a run already; add --resume, or name another folder")
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


def last_saved(run_dir: Path) -> str | None:
    """The newest saved step that is whole, or None."""
    saved = sorted((run_dir / "resume").glob("checkpoint-*"), key=lambda path: saved_step(str(path)))
    whole = [path for path in saved if (path / "trainer_state.json").exists()]  # written last
    return str(whole[-1]) if whole else None


def saved_step(saved: str) -> int:
    """The step of a saved folder."""
    return int(Path(saved).name.split("-")[1])


def _evaluator(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, stream: TokenStream, num_tokens: int | None
) -> Evaluator:
    return Evaluator(
        stream,
        tokenizer,
        config.block_size,
        num_tokens=num_tokens,
        phi_rank=config.phi_rank,
        phi_lag=config.phi_lag,
        bf16=config.bf16,
    )


def _announce(
    config: TrainConfig, run_dir: Path, model: PreTrainedModel, streams: dict[str, TokenStream], windows: WindowDataset
) -> None:
    tokens = ", ".join(f"{split} {len(stream.ids):,}" for split, stream in streams.items())
    per_step = tokens_per_step(config)
    passes = config.max_steps * per_step / (len(windows) * config.block_size)
    print(f"{config.preset}: {model.num_parameters():,} parameters; lambda_phi {config.lambda_phi:g}; run in {run_dir}")
    print(f"{config.dataset}: tokens {tokens}; {config.max_steps} steps of {per_step:,} tokens are {passes:.2f} passes")


def _finish(
    config: TrainConfig,
    run_dir: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    held_out: HeldOut,
) -> None:
    """Save the checkpoint, the picture and the figures; publish if asked; say where everything is."""
    checkpoint = save_checkpoint(run_dir / "checkpoint", model, tokenizer, config.save_dtype)
    metrics = as_metrics(held_out, "valid")
    write_json(run_dir / "metrics.json", metrics)
    records = read_record(run_dir / "record.jsonl")
    plot_curves(records, f"{config.preset} on {Path(config.dataset).name}", run_dir / "curves.png")
    evaluations = [record for record in records if "eval_bits_per_byte" in record]
    print(
        f"\nHeld-out bits per byte on the first {evaluations[0]['eval_num_tokens']:,} tokens of the valid split: ",
        end="",
    )
    best = min(evaluations, key=lambda record: record["eval_bits_per_byte"])
    print(f"{evaluations[0]['eval_bits_per_byte']:.4f} at the start, ", end="")
    print(f"{best['eval_bits_per_byte']:.4f} at step {best['step']}, the best, which is kept")
    print(
        f"On the whole valid split ({held_out.num_tokens:,} tokens, {held_out.num_bytes:,} bytes), weights as saved: ",
        end="",
    )
    print(f"{held_out.bits_per_byte:.4f} bits per byte, perplexity {held_out.perplexity:.2f} per token")
    print(f"Phi_G {held_out.phi:.4f} nats, null mean {held_out.phi_null_mean:.4f} ({held_out.phi_num_pairs:,} pairs)")
    print(f"Checkpoint: {checkpoint}")
    served = str(checkpoint)
    if config.publish is not None:
        served = _publish(config, checkpoint, corpus, metrics)
    print(f"Serve it:   python -m serve --model {served}")


def save_checkpoint(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: str) -> Path:
    """A plain Hugging Face folder, complete or not there: it is written beside its place and renamed."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.to(getattr(torch, dtype)).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _publish(config: TrainConfig, checkpoint: Path, corpus: Corpus, metrics: dict[str, Any]) -> str:
    assert config.publish is not None
    published = ModelStore(default_root()).publish(
        checkpoint,
        config.publish,
        training=json.loads(config.to_json()),
        dataset=corpus.fingerprint(),
        tokens_seen=config.max_steps * tokens_per_step(config),
        metrics=metrics,
    )
    print(f"Published:  {published.path}")
    return f"{published.name}@{published.version}"


def tokens_per_step(config: TrainConfig) -> int:
    """Tokens that one optimizer step of all processes sees."""
    return num_processes() * config.batch_size * config.gradient_accumulation * config.block_size


def write_json(path: Path, value: Any) -> None:
    """Write a file that is there whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.rename(path)


if __name__ == "__main__":
    sys.exit(main())
