"""What a run leaves to look at: record.jsonl, a line on the progress bar, and a picture of the curves."""

import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


class RecordCallback(TrainerCallback):
    """Append every logged record to a JSON-lines file. A resumed run drops the lines after the step it resumes from."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Cut what an interrupted run wrote beyond its last saved step."""
        if state.is_world_process_zero:
            kept = [line for line in read_record(self.path) if line["step"] <= state.global_step and state.global_step]
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One line: the step, the seconds since 1970, and the figures."""
        if state.is_world_process_zero and logs:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, "time": round(time.time(), 3), **logs}) + "\n")


class ProgressLines(TrainerCallback):
    """A tqdm bar over steps with the running loss, and one printed line per evaluation and per warning."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar where the run stands."""
        if state.is_world_process_zero:
            step = state.global_step
            self._bar = tqdm(total=state.max_steps, initial=step, desc="train", unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss on the bar, an evaluation above it."""
        if self._bar is None or not logs:
            return
        if "eval_bits_per_byte" in logs:
            tqdm.write(
                f"step {state.global_step:>6}  held-out bits per byte {logs['eval_bits_per_byte']:.4f}  perplexity "
                f"{logs['eval_perplexity']:.2f}  phi {logs['eval_phi']:.4f} (null {logs['eval_phi_null_mean']:.4f})"
            )
        elif "warning" in logs:
            tqdm.write(f"step {state.global_step:>6}  WARNING {logs['warning']}: {logs['message']}")
        elif "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def read_record(path: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line that a kill cut short is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def plot_curves(records: list[dict[str, Any]], title: str, path: Path) -> None:
    """Held-out bits per byte and training loss, and Phi against its null mean, by step, as a PNG."""
    from matplotlib.figure import Figure

    evaluations = [r for r in records if "eval_bits_per_byte" in r]
    losses = [r for r in records if "loss" in r]
    figure = Figure(figsize=(10, 4), layout="constrained")
    quality, phi = figure.subplots(1, 2)
    steps = [r["step"] for r in evaluations]
    quality.plot(steps, [r["eval_bits_per_byte"] for r in evaluations], "o-", ms=3)
    quality.set(xlabel="step", ylabel="bits per byte", title=title)
    training = quality.twinx()
    training.plot(
        [r["step"] for r in losses], [r.get("cross_entropy", r["loss"]) for r in losses], color="0.7", lw=0.8, zorder=0
    )
    training.set_ylabel("training cross-entropy, nats per token (grey)")
    phi.plot(steps, [r["eval_phi"] for r in evaluations], "o-", ms=3, label="Phi_G, held out")
    phi.plot(steps, [r["eval_phi_null_mean"] for r in evaluations], "--", color="0.4", label="mean under the null")
    phi.set(xlabel="step", ylabel="nats", title="Phi_G of the last layer's heads")
    phi.set_ylim(bottom=0)
    phi.legend()
    figure.savefig(path, dpi=110)
