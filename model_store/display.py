"""Entries of a store and results of verification, for people (rich tables) and as JSON values. Reads no files."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model_store.catalog import Entry
from model_store.gated_publication import Judgement
from model_store.manifest import Manifest
from model_store.verification import Verification

_PIPE_WIDTH = 200  # columns where there is no terminal to ask


def printable(text: str) -> str:
    """The text with control characters escaped: a manifest from elsewhere must not drive the reader's terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def entry_to_dict(entry: Entry) -> dict[str, Any]:
    """Plain JSON values, the manifest nested."""
    return {**asdict(entry), "path": str(entry.path)}


def print_list(root: Path, entries: Sequence[Entry]) -> None:
    """One line per version."""
    console = _console()
    if not entries:
        console.print(Text(f"no models in {root}"))
        return
    table = Table("model", "version", "aliases", "architecture", "parameters", "size", "created", "provenance")
    for entry in entries:
        name, aliases = Text(entry.name), Text(", ".join(entry.aliases))
        if entry.manifest is None:
            table.add_row(name, entry.version, aliases, Text(printable(str(entry.problem)), style="red"))
        else:
            table.add_row(name, entry.version, aliases, *_summary(entry.manifest))
    console.print(table)


def print_entry(entry: Entry) -> None:
    """Every field of one version, then its files."""
    manifest = entry.manifest
    assert manifest is not None
    table = Table(show_header=False, box=None)
    table.add_row("path", Text(str(entry.path)))
    table.add_row("aliases", Text(", ".join(entry.aliases) or "none"))
    for field, value in manifest.to_dict().items():
        if field != "files":
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            table.add_row(field, Text(printable("not recorded" if value is None else shown)))
    files = Table("file", "bytes", "sha256")
    for file, record in sorted(manifest.files.items()):
        files.add_row(Text(printable(file)), str(record.size), Text(printable(record.sha256)))
    console = _console()
    console.print(table)
    console.print(files)


def print_verifications(results: Sequence[Verification]) -> None:
    """One line per intact version, one line per problem of any other."""
    console = _console()
    for result in results:
        reference = f"{result.name}@{result.version}"
        if result.ok:
            console.print(Text(f"{reference}: intact, {result.num_files} files, {result.num_bytes} bytes"))
        for problem in result.problems:
            line = f"{reference}: {problem.kind}: {problem.file}: {problem.detail}"
            console.print(Text(printable(line), style="red"))


def print_judgement(name: str, alias: str, judgement: Judgement) -> None:
    """Both comparisons with intervals and verdicts, or that there was nothing to compare with."""
    console = _console()
    if judgement.incumbent is None:
        console.print(Text(f"{name}@{alias} is not set: no incumbent to compare with, the first model passes"))
        return
    table = Table("quantity", "candidate", judgement.incumbent, "loss", "95 % interval", "margin", "pairs", "verdict")
    for found in judgement.comparisons:
        style = "green" if found.accepted else "red"
        table.add_row(
            found.quantity,
            f"{found.candidate:.4f}",
            f"{found.incumbent:.4f}",
            f"{found.loss:+.4f}",
            f"{found.low:+.4f} to {found.high:+.4f}",
            f"{found.margin:g}",
            f"{found.num_pairs} {found.pairs_of}",
            Text(found.verdict, style=style),
        )
    console.print(table)
    console.print(
        Text("loss > 0: the candidate is worse. Accepted if the interval ends below the margin, in both rows.")
    )
    for found in judgement.comparisons:
        if found.candidate_too_short or found.incumbent_too_short:
            console.print(
                Text(
                    f"too short to score, counted as 0: {found.candidate_too_short} of the candidate's, "
                    f"{found.incumbent_too_short} of the incumbent's"
                )
            )


def _summary(manifest: Manifest) -> list[Text]:
    cells = (
        manifest.architecture,
        f"{manifest.num_parameters:,}",
        f"{manifest.num_bytes / 1e6:,.1f} MB",
        manifest.created_at[:19].replace("T", " ") + " UTC",
        manifest.provenance,
    )
    return [Text(printable(cell)) for cell in cells]


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH, soft_wrap=True)
