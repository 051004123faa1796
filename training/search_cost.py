"""What a search will cost: units, tokens and hours, from runs already made, a stated pace, or a few timed steps."""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from training.config import TrainConfig
from training.record import read_record
from training.search_plan import Unit
from training.train import tokens_per_step
from training.trial import TrialRequest

_TIMED_STEPS = 12
_WARM_STEPS = 4
_PASS_SHARE = 1 / 3  # a forward pass alone costs a third of a training step


def describe_plan(units: Sequence[Unit], num_points: int, options: argparse.Namespace) -> str:
    """The plan as text: every arm, and what all of it costs. Raises ValueError where the timed steps fail."""
    done = {result["key"]: result for result in read_record(options.study / "results.jsonl")}
    left = [unit for unit in units if unit.key not in done]
    lines = [f"{num_points} points drawn from {', '.join(options.space)}"] if num_points > 1 else []
    for arm in dict.fromkeys(unit.arm for unit in units):
        seeds = [unit.config.seed for unit in units if unit.arm == arm]
        config = next(unit.config for unit in units if unit.arm == arm)
        lines.append(f"  {arm}: seeds {', '.join(map(str, seeds))}; {config.max_steps:,} steps")
    steps = num_points * sum(unit.config.max_steps for unit in units)
    tokens = num_points * sum(unit.config.max_steps * tokens_per_step(unit.config) for unit in units)
    lines.append(
        f"{num_points * len(units)} runs, {steps:,} steps, {tokens:,} tokens; {len(units) - len(left)} are done"
    )
    if not left:
        return "\n".join([*lines, "nothing is left to run"])
    seconds, source = _seconds_per_run(left, list(done.values()), options)
    total = num_points * sum(seconds) / options.workers
    lines.append(
        f"about {total / 3600:.2f} hours for what is left, {options.workers} at a time, {options.threads} thread(s) "
        f"each ({source})"
    )
    return "\n".join(lines)


def _seconds_per_run(
    left: Sequence[Unit], done: Sequence[dict[str, Any]], options: argparse.Namespace
) -> tuple[list[float], str]:
    whole = [result for result in done if result["status"] == "finished" and result["resumed_from_step"] == 0]
    if options.tokens_per_second is not None:
        if not options.tokens_per_second > 0:
            raise ValueError(f"tokens_per_second={options.tokens_per_second}: give a number above 0")
        pace = options.tokens_per_second
        source = f"{pace:,.0f} training tokens a second as stated; start-up and the last evaluation not counted"
    elif whole:
        work = sum(_work(Unit(result["arm"], TrainConfig(**result["config"]))) for result in whole)
        pace, source = work / sum(result["seconds"] for result in whole), f"the pace of {len(whole)} runs made here"
    else:
        pace, source = _timed_pace(left[0], options.threads)
        source += "; start-up, compilation and the last evaluation, of the whole split, not counted"
    return [_work(unit) / pace for unit in left], source


def _work(unit: Unit) -> float:
    """Tokens trained on, and a third of those evaluated on, during the run (the last, whole pass is left out)."""
    config = unit.config
    evaluations = config.max_steps // min(config.eval_every, config.max_steps) + 1
    return config.max_steps * tokens_per_step(config) + _PASS_SHARE * evaluations * config.eval_tokens


def _timed_pace(unit: Unit, threads: int) -> tuple[float, str]:
    """Tokens a second of a few steps of this unit, in a process like a trial's."""
    config = replace(
        unit.config,
        max_steps=_TIMED_STEPS,
        eval_every=_TIMED_STEPS,
        eval_tokens=min(unit.config.eval_tokens, 1024),
        log_every=1,
        lambda_warmup_steps=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        TrialRequest(unit.arm, config.key(), threads, False, config).write(Path(folder))
        log = Path(folder) / "log.txt"
        command = [sys.executable, "-m", "training.trial", folder]
        with (
            log.open("wb") as output,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output) as process,
        ):
            status = process.wait()
        records = [record for record in read_record(Path(folder) / "run" / "record.jsonl") if "loss" in record]
        said = log.read_text(errors="replace").strip().splitlines()
    if status or len(records) <= _WARM_STEPS + 1:
        raise ValueError(f"the timed steps failed: {said[-1] if said else f'status {status}'}")
    times = [record["time"] for record in records[_WARM_STEPS:]]
    seconds = statistics.median(after - before for before, after in pairwise(times))
    pace = tokens_per_step(config) / seconds
    return pace, f"{seconds:.3f} s a step, the median of {len(times) - 1} timed steps of {unit.arm}"
