"""The command that searches: arms x seeds, or a sampler over ranges, to the best held-out bits per byte.

    python -m training.search --study runs/lambda --seeds 0-4

The same command again goes on where a killed one stopped; elsewhere, with the same --storage, it joins in.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import transformers

from training.claims import GridBoard, SampledBoard, TrialBoard, open_storage
from training.config import TrainConfig, add_flags
from training.search_cost import describe_plan
from training.search_plan import (
    LAMBDA_GRID,
    NOT_SEARCHED,
    Space,
    Unit,
    grid_arms,
    make_config,
    make_units,
    parse_seeds,
    parse_space,
    read_points,
)
from training.search_worker import SearchWorker, WorkerSettings
from training.selection import describe, rank_arms
from training.train import check_names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. 0: done; 1: some trials failed; 2: bad input; 130: interrupted, resumable."""
    transformers.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return search(parse_search_flags(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; running trials are saved. The same command goes on.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def parse_search_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The search's own options, and under `base` the settings of a run that were given."""
    parser = argparse.ArgumentParser(
        prog="python -m training.search",
        description="Search settings of training by held-out bits per byte. Every flag of training.train is one here.",
        allow_abbrev=False,
    )
    _add_search_flags(parser.add_argument_group("search"))
    add_flags(parser.add_argument_group("settings of every run"), NOT_SEARCHED, only_if_given=True)
    values = vars(parser.parse_args(arguments))
    base = {name: values.pop(name) for name in list(values) if name in TrainConfig.__dataclass_fields__}
    for name in ("workers", "threads", "trials"):
        if values[name] < 1:
            raise ValueError(f"{name}={values[name]}: give 1 or more")
    return argparse.Namespace(**values, base=base)


def _add_search_flags(group: Any) -> None:
    group.add_argument("--study", required=True, type=Path, metavar="DIR", help="where results and trials go")
    group.add_argument("--seeds", metavar="LIST", help="0-4 or 0,3,7: each point runs under each (default: 0-2)")
    group.add_argument(
        "--space",
        action="append",
        default=[],
        metavar="FIELD=VALUES",
        help="field=a,b,c or field=low:high[:log]; repeat for more (default: lambda_phi over 13 values from 0 to 0.3)",
    )
    group.add_argument("--points", type=Path, metavar="FILE", help="JSON file of named arms, instead of --space")
    group.add_argument("--sampler", choices=("grid", "tpe"), default="grid", help="tpe draws --trials points")
    group.add_argument("--trials", type=int, default=30, metavar="N", help="points that tpe draws (default: 30)")
    group.add_argument("--pruner", choices=("none", "hyperband"), default="none", help="stop poor trials early")
    group.add_argument("--storage", metavar="WHERE", help="journal file or database URL (default: DIR/study.journal)")
    group.add_argument("--workers", type=int, default=1, metavar="N", help="trials at once here (default: 1)")
    group.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads a trial; decides the last bits of it"
    )
    group.add_argument(
        "--grace-seconds",
        type=float,
        default=120.0,
        metavar="S",
        help="a trial of another machine that shows no life for this long is taken over (default: 120)",
    )
    group.add_argument("--keep-checkpoints", action="store_true", help="keep each trial's weights")
    group.add_argument("--dry-run", action="store_true", help="print the plan and what it costs, and stop")
    group.add_argument("--tokens-per-second", type=float, metavar="N", help="of one trial, for --dry-run's estimate")


def search(options: argparse.Namespace) -> int:
    """Run a search to its end. Raises ValueError for bad input."""
    base, seeds, arms, spaces = _plan(options)
    sampled = options.sampler == "tpe"
    if sampled:
        units, num_points = [Unit("base", make_config(base, "base", seed)) for seed in seeds], options.trials
    else:
        units, num_points = make_units(base, arms, seeds), 1
    for unit in units:
        check_names(unit.config)
    total_steps = num_points * sum(unit.config.max_steps for unit in units)
    if options.dry_run:
        print(describe_plan(units, num_points, options))
        return 0
    identity: dict[str, Any] = {"threads": options.threads, "sampler": options.sampler, "pruner": options.pruner}
    if sampled:
        identity |= {"space": sorted(options.space), "seeds": list(seeds), "base": units[0].key}
    shared: dict[str, Any] = {
        "identity": identity, "grace_seconds": options.grace_seconds, "pruner": _pruner(options.pruner, units)
    }  # fmt: skip
    storage = open_storage(options.storage or str(options.study / "study.journal"))
    board: TrialBoard
    if sampled:
        board = SampledBoard(storage, spaces, base, seeds, options.trials, **shared)
    else:
        board = GridBoard(storage, units, **shared)
    settings = WorkerSettings(options.study, options.workers, options.threads, options.keep_checkpoints, total_steps)
    with SearchWorker(board, settings) as worker:
        worker.run()
    return _conclude(board, worker, None if sampled else {unit.key for unit in units}, options.study)


def _plan(
    options: argparse.Namespace,
) -> tuple[dict[str, Any], list[int], dict[str, dict[str, Any]], list[Space]]:
    """Base settings, seeds, arms and spaces. Flags beat the base of a points file; its arms beat both."""
    seeds = parse_seeds(options.seeds) if options.seeds else None
    if options.points is not None:
        if options.space or options.sampler != "grid":
            raise ValueError("points: a file of arms is a grid of its own; leave out --space and --sampler tpe")
        base, listed, arms = read_points(options.points)
        return base | options.base, seeds or listed or [0, 1, 2], arms, []
    spaces = [parse_space(text) for text in options.space] or [Space("lambda_phi", LAMBDA_GRID)]
    names = [space.name for space in spaces]
    for name in names:
        if names.count(name) > 1 or name in options.base:
            raise ValueError(f"space={name}: the field is given twice; give it once")
    arms = grid_arms(spaces) if options.sampler == "grid" else {}
    return options.base, seeds or [0, 1, 2], arms, spaces


def _pruner(name: str, units: Sequence[Unit]) -> optuna.pruners.BasePruner:
    if name == "none":
        return optuna.pruners.NopPruner()
    config = units[0].config
    return optuna.pruners.HyperbandPruner(
        min_resource=config.eval_every, max_resource=max(unit.config.max_steps for unit in units)
    )


def _conclude(board: TrialBoard, worker: SearchWorker, keys: set[str] | None, folder: Path) -> int:
    results = [result for key, result in board.results().items() if keys is None or key in keys]
    finished = [result for result in results if result["status"] == "finished"]
    print(f"\n{len(results)} runs, {len(finished)} finished; {folder / 'results.jsonl'}")
    if finished:
        print(describe(rank_arms(results), finished[0]["held_out"]["num_tokens"]))
    for key, log in worker.failed.items():
        print(f"failed twice: {key}, see {log}", file=sys.stderr)
    return 1 if worker.failed else 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
