"""transformers' Trainer with the Phi objective: loss = cross-entropy - lambda_phi * phi01. The data are token windows.

With lambda_phi = 0 nothing of Phi is computed in a step, and the run is bit for bit that of the plain Trainer.
"""

import dataclasses
import math
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from training.config import TrainConfig
from training.evaluation import Evaluator, HeldOut
from training.objective import StepObjective, new_warnings
from training.optimizers import build_optimizer
from training.record import ProgressLines, RecordCallback


class Diverged(ValueError):
    """The run has left the finite numbers: no further step can bring it back."""


class PhiTrainer(Trainer):
    """Trains `model` as configured. A context manager, since it holds hooks on the last layer's heads."""

    def __init__(
        self, model: nn.Module, config: TrainConfig, train_windows: Any, evaluator: Evaluator, run_dir: Path
    ) -> None:
        self.config = config
        self.evaluator = evaluator
        self.interrupt = InterruptCallback()
        self.last_held_out: HeldOut | None = None
        super().__init__(
            model=model,
            args=_arguments(config, run_dir),
            train_dataset=train_windows,
            eval_dataset=train_windows,  # never read: evaluate() has its own data, Trainer only asks that one exists
            callbacks=[RecordCallback(run_dir / "record.jsonl"), self.interrupt],
        )
        _show_progress(self)
        self._resources = ExitStack()
        self._objective: StepObjective | None = None
        self._forward: Callable[..., Tensor] = _cross_entropy

    def __enter__(self) -> "PhiTrainer":
        if self.config.lambda_phi > 0:
            self._objective = self._resources.enter_context(StepObjective(self.model, self.config))
            self.add_callback(self._objective)
        if self.config.compile:  # after the objective: hooks that come later are not traced
            torch.compiler.reset()  # the graph of an earlier run in this process fits, but has not this run's hooks
            self._forward = torch.compile(_cross_entropy)
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def take_up_finished(self, saved: str) -> None:
        """Load the best weights of a run whose last step is saved: train() would make one step more."""
        self.state = TrainerState.load_from_json(str(Path(saved) / "trainer_state.json"))
        self._load_best_model()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of the configuration."""
        self.optimizer: torch.optim.Optimizer = self.optimizer or build_optimizer(self.model, self.config)
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy less the weighted objective, of one forward pass. Raises Diverged where it is not finite.

        The objective enters the value only: its gradient joins the backward pass at the heads.
        """
        assert not return_outputs
        if self._objective is not None:
            self._objective.prepare(inputs["input_ids"])
        with torch.autocast(self.args.device.type, dtype=torch.bfloat16, enabled=self.config.bf16):
            loss = self._forward(model, inputs["input_ids"], inputs["labels"], num_items_in_batch)
        if not math.isfinite(float(loss.detach())):
            raise Diverged(_divergence(self.state.global_step, f"cross-entropy is {float(loss.detach())}"))
        if self._objective is None:
            return loss
        return loss - self._objective.add(self.state.global_step, 1 / self.current_gradient_accumulation_steps)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """A forward and a backward pass."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self._objective is not None:
            self._objective.measure()
        return loss

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add the objective's means since the last record, `loss` being the whole loss; name what its guards see."""
        figures = {} if self._objective is None or "loss" not in logs else self._objective.take_figures()
        if not figures:
            super().log(logs, start_time)
            return
        cross_entropy = logs["loss"] + figures.pop("reward")
        super().log(logs | {"cross_entropy": cross_entropy} | figures, start_time)
        for name in new_warnings(self.state.log_history):
            super().log({"warning": name, "message": _WARNING})

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out figures on the validation split, logged under eval_*. Raises Diverged if a weight is not finite."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise Diverged(_divergence(self.state.global_step, "a weight is not finite"))
        self.last_held_out = self.evaluator(self.accelerator.unwrap_model(self.model))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in vars(self.last_held_out).items()}
        self.log(dict(metrics))
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class InterruptCallback(TrainerCallback):
    """Turns the first Ctrl-C or SIGTERM into: finish this step, save, stop. A second one interrupts at once."""

    def __init__(self) -> None:
        self.interrupted = False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the signals while training runs."""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(number, self._before[number])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop once asked to."""
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True


_WARNING = (
    "Phi may be gained by collapse: compare held-out bits per byte with lambda_phi 0; lower lambda_phi, or set "
    "phi_max_share or phi_target"
)


def _divergence(step: int, what: str) -> str:
    return f"the run diverged at step {step}: {what}; lower learning_rate or lambda_phi, or lengthen the warm-up"


def _cross_entropy(model: nn.Module, ids_BT: Tensor, labels_BT: Tensor, num_items: Any) -> Tensor:
    """The loss alone: when this is compiled, no logits leave the graph."""
    loss: Tensor = model(input_ids=ids_BT, labels=labels_BT, num_items_in_batch=num_items, use_cache=False).loss
    return loss


def num_processes() -> int:
    """Processes that train this run together, as torchrun says; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def _show_progress(trainer: Trainer) -> None:
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressLines())


def _arguments(config: TrainConfig, run_dir: Path) -> TrainingArguments:
    interval = min(config.eval_every, config.max_steps)
    on_cpu = not torch.cuda.is_available()
    return TrainingArguments(
        use_cpu=on_cpu,
        ddp_find_unused_parameters=False,
        ddp_backend="gloo" if on_cpu and num_processes() > 1 else None,
        output_dir=str(run_dir / "resume"),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        max_steps=config.max_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule,
        warmup_steps=min(config.warmup_steps, config.max_steps // 10),
        max_grad_norm=config.max_grad_norm,
        average_tokens_across_devices=False,
        logging_steps=config.log_every,
        eval_strategy="steps",
        eval_steps=interval,
        eval_on_start=not config.resume,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="bits_per_byte",
        greater_is_better=False,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        seed=config.seed,
        data_seed=config.seed,
        disable_tqdm=True,
    )


def as_metrics(held_out: HeldOut, split: str) -> dict[str, Any]:
    """A HeldOut as a record that names its split."""
    return {"split": split, **dataclasses.asdict(held_out)}
