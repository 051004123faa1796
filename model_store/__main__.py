"""The command line of the model store: arguments in, a table or JSON out. Every rule lives in the modules it calls.

Exit status: 0 done, 1 refused or not intact, 2 wrong usage.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_store import display
from model_store.catalog import Catalog
from model_store.folder_rules import DEFAULT_MAX_BYTES
from model_store.gate import CONFIDENCE, DEFAULT_BITS_MARGIN, DEFAULT_SCORE_MARGIN, Margins
from model_store.gated_publication import (
    METRICS_FIELD,
    UnusableEvaluation,
    judge,
    override,
    promote,
    publish_judged,
    read_candidate,
)
from model_store.gguf import converted, find_gguf
from model_store.names import validate_alias, validate_name, validate_version
from model_store.store import ROOT_VARIABLE, ModelStore, Published, default_root

OK, REFUSED, USAGE = 0, 1, 2

_GATE = f"""the gate: with --gate ALIAS, DIR/evaluation.json (made by python -m training.evaluate DIR --save) is
compared with that of the version ALIAS points at, by paired bootstrap over passages (bits per byte) and over prompts
(quality score; a text too short to score counts as 0). The candidate is accepted if for both the upper end of the
{CONFIDENCE:.0%} interval of its loss lies below the margin: then it is published and ALIAS is moved to it. Otherwise
nothing is published and the exit status is 1. Where ALIAS is not set there is nothing to compare with and the candidate
is accepted. An evaluation that is absent, of other weights or not taken alike gives exit status 2. See docs/gate.md."""


class UsageError(ValueError):
    """Flags that do not go together, or lack one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. Errors go to standard error, one line each."""
    options = _parse(arguments)
    try:
        store = ModelStore(default_root() if options.root is None else options.root)
        status: int = options.run(store, options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`| head`); nothing may be left to flush at exit, or the interpreter complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {display.printable(str(error))}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError | UnusableEvaluation) else REFUSED
    except Exception as error:  # a defect of this program: still no traceback on the user
        print(f"error: unexpected {type(error).__name__}: {error}; please report this", file=sys.stderr)
        return REFUSED
    return status


def _list(store: ModelStore, options: argparse.Namespace) -> int:
    entries = store.list()
    if options.json:
        _print_json([display.entry_to_dict(entry) for entry in entries])
    else:
        display.print_list(store.root, entries)
    return OK


def _show(store: ModelStore, options: argparse.Namespace) -> int:
    entry = store.show(options.reference)
    if options.json:
        _print_json(display.entry_to_dict(entry))
    else:
        display.print_entry(entry)
    return OK


def _verify(store: ModelStore, options: argparse.Namespace) -> int:
    references = options.references or [f"{entry.name}@{entry.version}" for entry in store.list()]
    results = [store.verify(reference) for reference in references]
    if options.json:
        _print_json([{**asdict(result), "ok": result.ok} for result in results])
    else:
        display.print_verifications(results)
    return OK if all(result.ok for result in results) else REFUSED


def _publish(store: ModelStore, options: argparse.Namespace) -> int:
    _refuse_contradictions(options)
    fields: dict[str, Any] = {
        "version": options.version,
        "parent": options.parent,
        "training": _read_object("--training", options.training),
        "dataset": _read_object("--dataset", options.dataset),
        "tokens_seen": options.tokens_seen,
        "metrics": _read_object("--metrics", options.metrics),
        "notes": options.notes,
        "max_bytes": options.max_bytes,
    }
    if options.gate is not None:
        return _publish_gated(store, options, fields)
    return _report(store, store.publish(options.source, options.name, **fields), options)


def _publish_gated(store: ModelStore, options: argparse.Namespace, fields: dict[str, Any]) -> int:
    try:
        margins = Margins(
            DEFAULT_BITS_MARGIN if options.margin_bits is None else options.margin_bits,
            DEFAULT_SCORE_MARGIN if options.margin_score is None else options.margin_score,
        )
        forced = override(options.reason, datetime.now(UTC)) if options.force else None
        candidate = read_candidate(options.source, options.name, options.gate)
    except ValueError as error:
        raise UsageError(str(error)) from error
    judgement = judge(store, candidate, margins, options.incumbent_evaluation)
    if not options.json:
        display.print_judgement(candidate.name, candidate.alias, judgement)
    if not judgement.accepted and forced is None:
        if options.json:
            _print_json({"published": False, "gate": judgement.to_dict()})
        print("refused: nothing is published (--force --reason TEXT overrides, and is recorded)", file=sys.stderr)
        return REFUSED
    published = publish_judged(store, candidate, judgement, forced=forced, **fields)
    promote(store, candidate, judgement, published)
    if not options.json:
        forced_by = "" if judgement.accepted or forced is None else f", against the gate, by {forced['by']}"
        print(f"{published.name}@{candidate.alias} is {published.name}@{published.version}{forced_by}")
    return _report(store, published, options)


def _refuse_contradictions(options: argparse.Namespace) -> None:
    if options.gate is None:
        gate_only = {"--force": options.force, "--reason": options.reason, "--margin-bits": options.margin_bits}
        gate_only |= {"--margin-score": options.margin_score, "--incumbent-evaluation": options.incumbent_evaluation}
        if given := [flag for flag, value in gate_only.items() if value is not None and value is not False]:
            raise UsageError(f"{', '.join(given)} is for the gate; add --gate ALIAS or leave it out")
        if options.name is None:
            raise UsageError("NAME is not given; give the name to publish under")
    elif options.alias is not None:
        raise UsageError(f"--alias {options.alias} and --gate {options.gate}: the gate moves its own alias; give one")
    elif options.force != (options.reason is not None):
        raise UsageError("--force and --reason TEXT go together: who overrides the gate records why")


def _import(store: ModelStore, options: argparse.Namespace) -> int:
    file = find_gguf(options.source)
    with nullcontext(options.source) if file is None else converted(file) as folder:
        published = store.import_folder(
            folder, options.name, version=options.version, notes=options.notes, max_bytes=options.max_bytes
        )
    return _report(store, published, options)


def _copy(store: ModelStore, options: argparse.Namespace) -> int:
    copied = store.copy_from(Catalog(options.source), options.reference)
    print(f"{copied.name}@{copied.version} is in {copied.path}")
    return OK


def _report(store: ModelStore, published: Published, options: argparse.Namespace) -> int:
    name, version = published.name, published.version
    if options.json:
        gate = (published.manifest.metrics or {}).get(METRICS_FIELD)
        facts = {"name": name, "version": version, "path": str(published.path), "left_out": published.left_out}
        _print_json(facts if gate is None else {**facts, "published": True, "gate": gate})
    else:
        for entry in published.left_out:
            print(f"left out: {entry}")
        print(f"{name}@{version} is in {published.path}")
    if options.alias is not None:
        store.set_alias(name, options.alias, version)
    return OK


def _alias(store: ModelStore, options: argparse.Namespace) -> int:
    if options.remove:
        store.remove_alias(options.name, options.alias)
        print(f"{options.name}@{options.alias} is removed")
    else:
        target = store.set_alias(options.name, options.alias, options.version)
        print(f"{options.name}@{options.alias} is {target.name}@{target.version}")
    return OK


def _read_object(flag: str, value: str | None) -> dict[str, Any] | None:
    """A JSON object given on the command line: itself, or the file that holds it."""
    if value is None:
        return None
    try:
        content = json.loads(value if value.lstrip().startswith("{") else Path(value).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{flag} {value!r} is not JSON ({error}); give an object or a file that holds one") from error
    if not isinstance(content, dict):
        raise ValueError(f"{flag} {value!r} holds {type(content).__name__}; give a JSON object")
    return content


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _checked(validate: Callable[[str], str]) -> Callable[[str], str]:
    """A validator for argparse, which hides the text of a ValueError."""

    def check(value: str) -> str:
        try:
            return validate(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return check


def _count(value: str) -> int:
    if not (value.isascii() and value.isdecimal()):
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of 0 or more")
    return int(value)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """parse_args, and NAME of publish behind flags: argparse (before 3.13) then takes an optional word for absent."""
    parser = _parser()
    options, left = parser.parse_known_args(arguments)
    if options.run is _publish and options.name is None and len(left) == 1 and not left[0].startswith("-"):
        try:
            options.name = validate_name(left.pop())
        except ValueError as error:
            parser.error(str(error))
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return options


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--root", type=Path, help=f"the store's folder (default: ${ROOT_VARIABLE}, else models/)")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON")
    parser = argparse.ArgumentParser(prog="python -m model_store", description="Keep versioned model checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    readers, name = [common, as_json], _checked(validate_name)

    command = commands.add_parser("list", parents=readers, help="every version of every model")
    command.set_defaults(run=_list)

    command = commands.add_parser("show", parents=readers, help="all that is recorded of one version")
    command.add_argument("reference", help="NAME, NAME@VERSION or NAME@ALIAS")
    command.set_defaults(run=_show)

    command = commands.add_parser("verify", parents=readers, help="hold every byte against the manifests")
    command.add_argument("references", nargs="*", metavar="reference", help="NAME@VERSION ... (default: all)")
    command.set_defaults(run=_verify)

    _add_publish(commands, readers)

    command = commands.add_parser("import", parents=readers, help="take in a Hugging Face folder or a GGUF file")
    command.add_argument("source", type=Path, help="a Hugging Face model folder, a GGUF file, or a folder with one")
    command.add_argument("--name", type=name, help="default: the folder's or the GGUF file's name")
    _add_source_options(command)
    command.set_defaults(run=_import)

    command = commands.add_parser("copy", parents=[common], help="take over a version of another store, as it is")
    command.add_argument("reference", help="NAME, NAME@VERSION or NAME@ALIAS, as the other store has it")
    command.add_argument("--from", dest="source", type=Path, required=True, metavar="ROOT", help="the other store")
    command.set_defaults(run=_copy)

    command = commands.add_parser("alias", parents=[common], help="point an alias at a version")
    command.add_argument("name", type=name)
    command.add_argument("alias", type=_checked(validate_alias))
    target = command.add_mutually_exclusive_group(required=True)
    target.add_argument("version", nargs="?", help="a version, or what latest or another alias means now")
    target.add_argument("--remove", action="store_true", help="forget the alias")
    command.set_defaults(run=_alias)
    return parser


def _add_publish(commands: Any, readers: list[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "publish", parents=readers, help="add a checkpoint folder as a new version", epilog=_GATE
    )
    command.add_argument("source", type=Path, help="a folder saved with save_pretrained")
    command.add_argument(
        "name", nargs="?", type=_checked(validate_name), help="default with --gate: report.name of the evaluation"
    )
    command.add_argument("--parent", help="the version this one was made from, as NAME@VERSION")
    for flag, what in (
        ("training", "training configuration"),
        ("dataset", "data set's fingerprint"),
        ("metrics", "scores"),
    ):
        command.add_argument(f"--{flag}", metavar="JSON", help=f"the {what}: a JSON object or a file with one")
    command.add_argument("--tokens-seen", type=_count, help="number of training tokens")
    _add_source_options(command)
    _add_gate_options(command)
    command.set_defaults(run=_publish)


def _add_gate_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("gate")
    add = group.add_argument
    add("--gate", metavar="ALIAS", type=_checked(validate_alias), help="publish if not worse, then move this alias")
    add("--margin-bits", type=float, help=f"bits per byte (default: {DEFAULT_BITS_MARGIN})")
    add("--margin-score", type=float, help=f"quality score (default: {DEFAULT_SCORE_MARGIN})")
    add("--incumbent-evaluation", type=Path, metavar="FILE", help="for a version that was published without one")
    add("--force", action="store_true", help="publish a refused model; needs --reason")
    add("--reason", metavar="TEXT", help="why; recorded with user, host and time")


def _add_source_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--version", type=_checked(validate_version), help="default: the next number")
    command.add_argument("--alias", type=_checked(validate_alias), help="point this alias at the new version")
    command.add_argument("--notes", help="a sentence for people")
    command.add_argument(
        "--max-bytes", type=_count, default=DEFAULT_MAX_BYTES, help="refuse more (default: %(default)s)"
    )


if __name__ == "__main__":
    sys.exit(main())
