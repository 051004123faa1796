"""Run the trials of a board, several at once, each in a process of its own with a stated number of threads."""

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from tqdm import tqdm

from training.claims import Claim, TrialBoard, write_results
from training.record import read_record
from training.search_plan import Unit
from training.trial import TrialRequest, pruned_result

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 2.0  # between looks into the records of running trials, and into the storage for work
_BEAT_SECONDS = 15.0
_ATTEMPTS = 2  # of one unit in one process: a machine may run out of memory once
_STOP_SECONDS = 60.0


@dataclass(frozen=True)
class WorkerSettings:
    """How trials are run; none of it changes a figure but threads, which is recorded."""

    folder: Path
    slots: int
    threads: int
    keep_checkpoints: bool
    total_steps: int


@dataclass
class _Slot:
    """One place for a running trial. process is the unit's, the first of `waiting`."""

    claim: Claim
    waiting: list[Unit]
    process: subprocess.Popen[bytes] | None = None
    step: int = 0
    reported: set[int] = field(default_factory=set)


class SearchWorker:
    """Takes trials off the board until none is left anywhere. A context manager: leaving it gives claims back."""

    def __init__(self, board: TrialBoard, settings: WorkerSettings) -> None:
        self.board, self.settings = board, settings
        self.failed: dict[str, Path] = {}
        self._failures: Counter[str] = Counter()
        self._slots: list[_Slot] = []
        self._looked = self._beaten = -math.inf
        self._bar: Any = None

    def __enter__(self) -> "SearchWorker":
        done = self._steps_done(self.board.results())  # as the bar's start: it says nothing of the pace
        self._bar = tqdm(
            total=self.settings.total_steps,
            initial=done,
            desc="search",
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        """Let running trials save and stop, and give their claims back."""
        for slot in self._slots:
            if slot.process is not None:
                slot.process.terminate()
        for slot in self._slots:
            if slot.process is not None:
                _wait_or_kill(slot.process)
            self.board.release(slot.claim)
        self._slots.clear()
        self._bar.close()

    def run(self) -> None:
        """Work until every trial is finished, here or elsewhere. Raises ValueError for bad input to a trial."""
        while True:
            now = time.monotonic()
            looks = now - self._looked > _LOOK_SECONDS
            for slot in list(self._slots):
                self._advance(slot, looks)
            if looks:
                self._looked = now
                self._fill()
                self._sync()
            if now - self._beaten > _BEAT_SECONDS:
                self._beaten = now
                self._beat()
            if not self._slots and looks and not self.board.unfinished(self.failed):
                return
            time.sleep(_POLL_SECONDS)

    def _fill(self) -> None:
        while len(self._slots) < self.settings.slots:
            claim = self.board.claim(self.failed)
            if claim is None:
                return
            known = self.board.results()
            for unit in claim.units:
                if unit.key in known and unit.key not in claim.results:  # a sampler may draw a point again
                    self.board.save(claim, unit.key, known[unit.key])
            self._slots.append(_Slot(claim, [unit for unit in claim.units if unit.key not in claim.results]))

    def _advance(self, slot: _Slot, looks: bool) -> None:
        if slot.process is None:
            if slot.waiting:
                self._start(slot)
            else:
                self._finish(slot)
            return
        status = slot.process.poll()
        if status is not None:
            self._ended(slot, status)
        elif looks:
            self._watch(slot)

    def _start(self, slot: _Slot) -> None:
        unit, settings = slot.waiting[0], self.settings
        folder = self._folder(unit)
        request = TrialRequest(unit.arm, unit.key, settings.threads, settings.keep_checkpoints, unit.config)
        request.write(folder)
        threads = {name: str(settings.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        with (folder / "log.txt").open("ab") as log:
            slot.process = subprocess.Popen(
                [sys.executable, "-m", "training.trial", str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false"},
                start_new_session=True,  # Ctrl-C is ours to pass on
            )

    def _watch(self, slot: _Slot) -> None:
        """Follow the record; report its evaluations to the pruner, which looks at a trial's first seed only."""
        unit = slot.waiting[0]
        records = read_record(self._folder(unit) / "run" / "record.jsonl")
        slot.step = records[-1]["step"] if records else 0
        if unit is not slot.claim.units[0]:
            return
        for record in records:
            step = record["step"]
            if "eval_bits_per_byte" in record and step and step not in slot.reported:
                slot.reported.add(step)
                slot.claim.trial.report(record["eval_bits_per_byte"], step)
        if slot.reported and max(slot.reported) < unit.config.max_steps and slot.claim.trial.should_prune():
            self._prune(slot, unit)

    def _prune(self, slot: _Slot, unit: Unit) -> None:
        assert slot.process is not None
        slot.process.terminate()
        _wait_or_kill(slot.process)
        if (self._folder(unit) / "result.json").exists():  # it was done before it was told
            self._ended(slot, 0)
            return
        self.board.save(slot.claim, unit.key, pruned_result(self._folder(unit)))
        self.board.finish(slot.claim, TrialState.PRUNED, None)
        self._slots.remove(slot)

    def _ended(self, slot: _Slot, status: int) -> None:
        unit = slot.waiting[0]
        folder = self._folder(unit)
        slot.process, slot.step = None, 0
        if status == 0:
            self.board.save(slot.claim, unit.key, json.loads((folder / "result.json").read_text()))
            slot.waiting.pop(0)
            return
        if status == 2:
            raise ValueError(f"trial {folder.name}: {_last_line(folder / 'log.txt')}")
        self._failures[unit.key] += 1
        tqdm.write(f"trial {folder.name} ended with status {status}; see {folder / 'log.txt'}")
        if self._failures[unit.key] < _ATTEMPTS:
            self.board.release(slot.claim)
        else:
            self.failed[unit.key] = folder / "log.txt"
            self.board.abandon(slot.claim)
        self._slots.remove(slot)

    def _finish(self, slot: _Slot) -> None:
        results = [slot.claim.results[unit.key] for unit in slot.claim.units]
        finished = [result["held_out"]["bits_per_byte"] for result in results if result["status"] == "finished"]
        value = sum(finished) / len(finished) if len(finished) == len(results) else math.inf
        self.board.finish(slot.claim, TrialState.COMPLETE, value)
        self._slots.remove(slot)

    def _beat(self) -> None:
        for slot in list(self._slots):
            if not self.board.beat(slot.claim):
                tqdm.write("a trial of this process was taken over: it had not shown life for the grace time")
                if slot.process is not None:
                    slot.process.kill()
                    slot.process.wait()
                self._slots.remove(slot)

    def _sync(self) -> None:
        """Write results.jsonl, and move the bar to all steps done: here, elsewhere, and in running trials."""
        results = self.board.results()
        write_results(self.settings.folder / "results.jsonl", results)
        self._bar.set_postfix_str(f"{len(results)} runs done, {len(self._slots)} running", refresh=False)
        self._bar.update(self._steps_done(results) - self._bar.n)

    def _steps_done(self, results: dict[str, dict[str, Any]]) -> int:
        done: int = sum(result["config"]["max_steps"] for result in results.values())
        running = sum(slot.step for slot in self._slots if slot.waiting and slot.waiting[0].key not in results)
        return min(done + running, self.settings.total_steps)

    def _folder(self, unit: Unit) -> Path:
        return self.settings.folder / "trials" / unit.folder_name


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"see {log}"
