"""The settings of a training run: one frozen dataclass, and the command line derived from its fields. No torch.

Each default is written here and nowhere else. The defaults of the objective and the optimisation are those of the 2025
report this project grew from; docs/training.md says what better ones buy.
"""

import argparse
import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "linear", "constant")
LAMBDA_SCHEDULES = ("constant", "linear", "cosine", "closed_loop")
SAVE_DTYPES = ("float32", "bfloat16")


def _option(default: Any, help_text: str, choices: Sequence[str] | None = None) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. Two runs with equal configurations on equal software give equal weights (CPU)."""

    preset: str = _option("tiny_iit", "model size: tiny_iit, small_iit or large_iit")
    dataset: str = _option(
        "pydoc", "pydoc, wikitext-2, wikitext-103, tinystories, a hub id, or local files or a folder"
    )
    tokenizer: str | None = _option(None, "Hugging Face tokenizer, folder or id; without it one is trained on the data")
    vocab_size: int = _option(8192, "ids of the tokenizer that is trained")
    block_size: int = _option(256, "tokens per training window; also the longest context of the model")

    lambda_phi: float = _option(0.01, "weight of the Phi objective: loss = cross-entropy - lambda * phi01; 0 for none")
    lambda_schedule: str = _option(
        "constant", "lambda over the run; closed_loop holds its share of the gradient", LAMBDA_SCHEDULES
    )
    lambda_final: float = _option(0.0, "lambda at the last step, with the linear and cosine schedules")
    lambda_warmup_steps: int = _option(0, "steps over which lambda first rises from 0")
    lambda_target_share: float = _option(
        0.05, "closed_loop: the objective's gradient at the heads over cross-entropy's; lambda_phi is where it starts"
    )
    phi_rank: int = _option(4, "channels each head is projected to before Phi is taken")
    phi_lag: int = _option(1, "positions between the two states whose integration is taken")
    phi_target: float | None = _option(None, "hinge: phi01 beyond this, in (0, 1], is not rewarded")
    phi_max_share: float | None = _option(
        None, "clip the objective's gradient at the heads to this share of cross-entropy's (0.1 is a safe one)"
    )
    phi_sham: bool = _option(False, "turn the later states in time: same cost and gradient path, no integration")

    dropout: float = _option(0.25, "embedding and residual dropout, in training only")
    optimizer: str = _option("adamw", "muon: torch's Muon for hidden matrices, AdamW for the rest", OPTIMIZERS)
    learning_rate: float = _option(2e-4, "peak learning rate")
    lr_schedule: str = _option("cosine", "shape of the learning rate after warm-up", SCHEDULES)
    warmup_steps: int = _option(100, "steps of linear warm-up (at most a tenth of the run is used)")
    weight_decay: float = _option(0.1, "decoupled weight decay of matrices")
    adam_beta1: float = _option(0.9, "AdamW's first moment")
    adam_beta2: float = _option(0.95, "AdamW's second moment")
    max_grad_norm: float = _option(1.0, "gradient norm is clipped to this")
    max_steps: int = _option(2000, "optimizer steps")
    batch_size: int = _option(16, "windows per device and forward pass")
    gradient_accumulation: int = _option(1, "forward passes per optimizer step")
    seed: int = _option(0, "of initialisation, data order, dropout and projections")

    bf16: bool = _option(False, "forward pass in bfloat16 autocast")
    compile: bool = _option(False, "torch.compile the forward pass (a minute at the start, then faster)")

    eval_every: int = _option(100, "steps between evaluations on the validation split")
    eval_tokens: int = _option(65536, "validation tokens used during training; the final figure uses the whole split")
    log_every: int = _option(10, "steps between records of the training loss")

    output_dir: str | None = _option(None, "where the run goes (default: runs/ and a name from the settings and time)")
    resume: bool = _option(False, "continue the run in --output-dir from its last saved step")
    save_dtype: str = _option("float32", "dtype of the saved weights", SAVE_DTYPES)
    publish: str | None = _option(None, "publish the checkpoint in the model store under this name")

    def __post_init__(self) -> None:
        positive = (
            "vocab_size block_size phi_rank learning_rate max_steps batch_size gradient_accumulation eval_every "
            "eval_tokens log_every max_grad_norm phi_lag lambda_target_share"
        )
        for name in positive.split():
            _require(getattr(self, name) > 0, name, getattr(self, name), "give a number above 0")
        for name in ["lambda_phi", "lambda_final", "lambda_warmup_steps", "warmup_steps", "weight_decay", "seed"]:
            _require(getattr(self, name) >= 0, name, getattr(self, name), "give 0 or a positive number")
        for name in ("dropout", "adam_beta1", "adam_beta2"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "give a number from 0 to below 1")
        for name, value in vars(self).items():
            _require(not isinstance(value, float) or math.isfinite(value), name, value, "give a finite number")
        for spec in dataclasses.fields(self):
            choices = spec.metadata["choices"]
            if choices:
                value = getattr(self, spec.name)
                _require(value in choices, spec.name, value, f"choose from {', '.join(choices)}")
        _require(self.block_size >= 16, "block_size", self.block_size, "give at least 16 tokens")
        _require(self.vocab_size >= 512, "vocab_size", self.vocab_size, "give at least 512 (256 of them are the bytes)")
        self._check_objective()
        _require(not self.resume or self.output_dir is not None, "resume", True, "name the run with --output-dir DIR")

    def _check_objective(self) -> None:
        for name in ("phi_target", "phi_max_share"):
            value = getattr(self, name)
            _require(value is None or 0 < value <= 1, name, value, "give a number above 0, at most 1, or leave it out")
        warmup, share = self.lambda_warmup_steps, self.lambda_target_share
        _require(warmup <= self.max_steps, "lambda_warmup_steps", warmup, f"give at most max_steps={self.max_steps}")
        _require(self.phi_lag + 10 <= self.block_size, "phi_lag", self.phi_lag, "give at most block_size - 10")
        if self.lambda_schedule == "closed_loop":
            _require(self.lambda_phi <= 1, "lambda_phi", self.lambda_phi, "a closed loop starts at 1 or below")
            most = 1.0 if self.phi_max_share is None else self.phi_max_share
            _require(share <= most, "lambda_target_share", share, f"give at most {most:g}, where it would be clipped")

    def key(self) -> str:
        """Ten hex digits of a hash of all that a result depends on: equal keys, equal results."""
        omitted = ("output_dir", "resume", "publish")
        computed = {name: value for name, value in dataclasses.asdict(self).items() if name not in omitted}
        return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:10]

    def to_json(self) -> str:
        """The configuration as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


# Fields that may differ between a run and its continuation without changing what is computed.
NOT_COMPUTED = ("output_dir", "resume", "publish", "save_dtype")


def check_same_run(config: TrainConfig, saved: Path) -> None:
    """Raise ValueError unless the configuration saved in this file computes what `config` computes."""
    before = json.loads(saved.read_text())
    for name, value in dataclasses.asdict(config).items():
        if name not in NOT_COMPUTED and before.get(name) != value:
            raise ValueError(
                f"{name}={value!r} differs from the run to resume ({before.get(name)!r} in {saved}); give the same "
                "flags, or start a new run in another --output-dir"
            )


def flag_parser() -> argparse.ArgumentParser:
    """The command line of a run: one flag per field of TrainConfig."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description="Train a small language model with the Phi objective and leave a plain Hugging Face checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(parser)
    return parser


def add_flags(parser: argparse._ActionsContainer, without: Sequence[str] = (), *, only_if_given: bool = False) -> None:
    """One flag per field, but for those in `without`. only_if_given: what is not given is not in the namespace."""
    for spec in dataclasses.fields(TrainConfig):
        if spec.name in without:
            continue
        kind = field_type(spec.name)
        options: dict[str, Any] = {"help": spec.metadata["help"], "default": spec.default}
        if only_if_given:
            options["default"] = argparse.SUPPRESS
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": kind, "choices": spec.metadata["choices"], "metavar": kind.__name__.upper()}
        parser.add_argument(f"--{spec.name.replace('_', '-')}", **options)


def field_type(name: str) -> type:
    """The type of a field's value where it is given: str, int, float or bool. Raises ValueError for no field."""
    hints = get_type_hints(TrainConfig)
    _require(name in hints, "field", name, f"TrainConfig has {', '.join(hints)}")
    found: type = next(t for t in (get_args(hints[name]) or (hints[name],)) if t is not NoneType)
    return found


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r}: {remedy}")
