"""Who runs which trial, kept in an Optuna storage that any number of processes and machines share.

A claim is Optuna's own step from WAITING to RUNNING, which one process wins. Its owner lets it beat; a claim whose
process is gone from this machine, or whose beat has stood still for the grace time wherever it is, is taken over.
Every result is kept in the storage, so results.jsonl can be written anywhere. Knows nothing of how trials are run.
"""

import fcntl
import json
import math
import os
import platform
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from training.search_plan import Space, Unit, make_config, point_name

_RESULT = "result:"
_STUDY = "training.search"


@dataclass
class Claim:
    """A trial that this process runs: its units one after the other, and the results so far by key."""

    trial_id: int
    trial: optuna.Trial
    units: list[Unit]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    beats: int = 0


def open_storage(where: str) -> BaseStorage:
    """A journal file, or a database by its URL. Raises ValueError with the remedy where it cannot be opened."""
    from sqlalchemy.exc import SQLAlchemyError  # comes with optuna

    try:
        if "://" in where:
            return _open_database(where)
        Path(where).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(where))
    except (ImportError, OSError, ValueError, SQLAlchemyError) as error:
        raise ValueError(
            f"storage={where!r}: {str(error).splitlines()[0]}; give a journal file or a database URL"
        ) from None


def _open_database(url: str) -> RDBStorage:
    """Two searches that begin at once may both make the tables: the one that comes second tries again."""
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    for attempt in range(5):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (IntegrityError, OperationalError, ProgrammingError):
            if attempt == 4:
                raise
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("not reached")


class TrialBoard:
    """The trials of a study, seen from one process. Subclasses say which trial comes next."""

    def __init__(
        self,
        storage: BaseStorage,
        *,
        sampler: optuna.samplers.BaseSampler,
        pruner: optuna.pruners.BasePruner,
        identity: Mapping[str, Any],
        grace_seconds: float,
    ) -> None:
        self.study = optuna.create_study(
            storage=storage, study_name=_STUDY, sampler=sampler, pruner=pruner, load_if_exists=True
        )
        self.storage = storage
        self.study_id = storage.get_study_id_from_name(_STUDY)
        self.grace_seconds = grace_seconds
        self._owner = {"machine": _machine(), "pid": os.getpid(), "started": _process_start(os.getpid())}
        self._owner["worker"] = uuid.uuid4().hex
        self._seen: dict[int, tuple[int | None, float]] = {}
        self._check_identity(identity)

    def claim(self, without: Collection[str] = ()) -> Claim | None:
        """The next trial for this process; None where there is none now. `without`: keys to leave alone."""
        raise NotImplementedError

    def unfinished(self, without: Collection[str] = ()) -> bool:
        """Whether any trial still runs or waits, here or elsewhere."""
        raise NotImplementedError

    def trials(self) -> list[FrozenTrial]:
        """All trials by number."""
        return self.storage.get_all_trials(self.study_id, deepcopy=False)

    def results(self) -> dict[str, dict[str, Any]]:
        """Every result in the storage by key, in the order of its trial."""
        found: dict[str, dict[str, Any]] = {}
        for trial in self.trials():
            found |= results_of(trial)
        return found

    def beat(self, claim: Claim) -> bool:
        """Show that a claim's process lives; False where the claim has been taken over."""
        claim.beats += 1
        try:
            self.storage.set_trial_user_attr(claim.trial_id, "beat", claim.beats)
        except UpdateFinishedTrialError:
            return False
        return True

    def save(self, claim: Claim, key: str, result: dict[str, Any]) -> None:
        """Keep the result of one unit of a claim."""
        claim.results[key] = result
        self.storage.set_trial_user_attr(claim.trial_id, _RESULT + key, result)

    def finish(self, claim: Claim, state: TrialState, value: float | None) -> None:
        """End a claim. value: mean held-out bits per byte, infinite where a run diverged."""
        self.storage.set_trial_state_values(claim.trial_id, state, None if value is None else [value])

    def release(self, claim: Claim) -> None:
        """Give a claim back unfinished: whoever comes next goes on with it."""
        self._fail(claim.trial_id)

    def abandon(self, claim: Claim) -> None:
        """Give up on a claim whose process failed again: the next search may try it."""
        self._fail(claim.trial_id)

    def take_over_stale(self) -> None:
        """Free the claims of processes that are gone."""
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self._is_stale(trial):
                self._fail(self._id_of(trial))

    def _fail(self, trial_id: int) -> None:
        try:
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:  # another process was first, and queues it again
            return
        self._queue_again(self.storage.get_trial(trial_id))

    def _queue_again(self, trial: FrozenTrial) -> None:
        """Put a failed trial's point back, with the results it had."""
        attributes = {name: value for name, value in trial.user_attrs.items() if name not in ("claim", "beat")}
        fixed = {"fixed_params": trial.params} if trial.params else {}
        self.storage.create_new_trial(
            self.study_id, create_trial(state=TrialState.WAITING, user_attrs=attributes, system_attrs=fixed)
        )

    def _claimed(self, trial_id: int, trial: optuna.Trial, units: list[Unit]) -> Claim:
        self.storage.set_trial_user_attr(trial_id, "claim", self._owner)
        return Claim(trial_id, trial, units, results_of(self.storage.get_trial(trial_id)))

    def _is_stale(self, trial: FrozenTrial) -> bool:
        owner: dict[str, Any] | None = trial.user_attrs.get("claim")
        if owner is not None and owner["machine"] == self._owner["machine"]:
            started: str | None = owner["started"]
            return _process_start(owner["pid"]) != started
        beat = trial.user_attrs.get("beat")
        last = self._seen.get(trial.number)
        if last is None or last[0] != beat:
            self._seen[trial.number] = (beat, time.monotonic())  # our own clock: other machines' may differ
            return False
        return time.monotonic() - last[1] > self.grace_seconds

    def _id_of(self, trial: FrozenTrial) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, trial.number)

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        """Trials of one study agree in what decides their figures. Raises ValueError where this process differs."""
        known = self.study.user_attrs.get("identity")
        if known is None:
            self.study.set_user_attr("identity", dict(identity))
            return
        for name, value in identity.items():
            if known.get(name) != value:
                raise ValueError(
                    f"{name}={value!r} differs from the study in this storage ({known.get(name)!r}); give the same, or "
                    "another --study and --storage"
                )


class GridBoard(TrialBoard):
    """Trials that are known beforehand: each unit once. Several processes may bring the same units."""

    def __init__(self, storage: BaseStorage, units: Sequence[Unit], **options: Any) -> None:
        super().__init__(storage, sampler=optuna.samplers.RandomSampler(seed=0), **options)
        self.units = {unit.key: unit for unit in units}

    def claim(self, without: Collection[str] = ()) -> Claim | None:
        """The first unit in order that waits."""
        self.take_over_stale()
        trials = self._first_by_key()
        for key, unit in self.units.items():
            if key not in trials:
                attributes = {"key": key, "arm": unit.arm, "seed": unit.config.seed}
                self.storage.create_new_trial(
                    self.study_id, create_trial(state=TrialState.WAITING, user_attrs=attributes)
                )
        trials = self._first_by_key()
        for key, unit in self.units.items():
            if key in without or trials[key].state != TrialState.WAITING:
                continue
            trial_id = self._id_of(trials[key])
            if self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return self._claimed(trial_id, optuna.Trial(self.study, trial_id), [unit])
        return None

    def unfinished(self, without: Collection[str] = ()) -> bool:
        """Whether any unit of this plan is not finished."""
        trials = self._first_by_key()
        return any(
            key not in without and (key not in trials or not trials[key].state.is_finished()) for key in self.units
        )

    def _first_by_key(self) -> dict[str, FrozenTrial]:
        """The trial that counts for each key: two processes may have queued the same one, the first then counts."""
        first: dict[str, FrozenTrial] = {}
        for trial in self.trials():
            if trial.state != TrialState.FAIL and "key" in trial.user_attrs:
                first.setdefault(trial.user_attrs["key"], trial)
        return first


class SampledBoard(TrialBoard):
    """Trials that a sampler draws from ranges, num_trials of them; each runs its point under every seed."""

    def __init__(
        self,
        storage: BaseStorage,
        spaces: Sequence[Space],
        base: Mapping[str, Any],
        seeds: Sequence[int],
        num_trials: int,
        **options: Any,
    ) -> None:
        super().__init__(storage, sampler=optuna.samplers.TPESampler(seed=0), **options)
        self.spaces, self.base, self.seeds, self.num_trials = spaces, base, seeds, num_trials

    def claim(self, without: Collection[str] = ()) -> Claim | None:
        """A point that waits to be taken up again, else a new one while there is room."""
        self.take_over_stale()
        counted = self._counted()
        if len(counted) >= self.num_trials and not any(trial.state == TrialState.WAITING for trial in counted):
            return None
        # Seeded by what is there: one process draws the same points each time, two draw different ones.
        self.study.sampler = optuna.samplers.TPESampler(seed=len(self.trials()), constant_liar=True)
        trial = self.study.ask()
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(self.study_id, trial.number)
        if trial.number not in [known.number for known in self._counted()[: self.num_trials]]:
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)  # two processes took the last place
            return None
        point = {space.name: _suggest(trial, space) for space in self.spaces}
        arm = point_name(point)
        units = [Unit(arm, make_config({**self.base, **point}, arm, seed)) for seed in self.seeds]
        return self._claimed(trial_id, trial, units)

    def abandon(self, claim: Claim) -> None:
        """The worst value for a point that cannot be run: it takes its place among the trials, and has no result."""
        self.finish(claim, TrialState.COMPLETE, math.inf)

    def unfinished(self, without: Collection[str] = ()) -> bool:
        """Whether trials are still to come or to end."""
        counted = self._counted()[: self.num_trials]
        return len(counted) < self.num_trials or any(not trial.state.is_finished() for trial in counted)

    def _counted(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state != TrialState.FAIL]


def results_of(trial: FrozenTrial) -> dict[str, dict[str, Any]]:
    """The results kept with a trial, by key."""
    return {name.removeprefix(_RESULT): value for name, value in trial.user_attrs.items() if name.startswith(_RESULT)}


def write_results(path: Path, results: Mapping[str, dict[str, Any]]) -> None:
    """Add the results that results.jsonl lacks. The file is at any moment whole; processes that share it take turns."""
    with _alone(path):
        lines = path.read_text().splitlines() if path.exists() else []
        known = {json.loads(line)["key"] for line in lines}
        new = [json.dumps(result) for key, result in results.items() if key not in known]
        if new:
            partial = path.with_suffix(".partial")
            partial.write_text("".join(line + "\n" for line in lines + new))
            partial.rename(path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _suggest(trial: optuna.Trial, space: Space) -> Any:
    if not space.is_range:
        chosen: Any = trial.suggest_categorical(space.name, space.values)
        return chosen
    if isinstance(space.low, int):
        return trial.suggest_int(space.name, space.low, int(space.high), log=space.log)
    return trial.suggest_float(space.name, space.low, space.high, log=space.log)


def _machine() -> str:
    """Within one of these, process numbers mean the same: the host, since its last start, in one container."""
    try:
        container = os.readlink("/proc/self/ns/pid")
        return f"{platform.node()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {container}"
    except OSError:  # not Linux
        return platform.node()


def _process_start(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None where there is none, or only its corpse."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
