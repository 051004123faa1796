"""Publish a checkpoint only if it is not worse than the one in use: find both evaluations, ask the gate, record it.

The rule itself is in gate. What is written here: the version, its manifest's metrics["gate"], and then the alias.
"""

import getpass
import os
import shlex
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from model_store.catalog import Entry
from model_store.checkpoint import INDEX_FILE, WEIGHTS_FILE
from model_store.evaluation import EVALUATION_FILE, Evaluation, read_evaluation
from model_store.gate import Comparison, Margins, compare, refuse_few, rule, unlike
from model_store.names import validate_alias, validate_name
from model_store.staging import hash_file
from model_store.store import ModelStore, Published

METRICS_FIELD = "gate"
QUALITY_REFERENCE_FILE = "quality_reference.json"
_EVALUATE = "python -m training.evaluate"
_JUDGED = {
    WEIGHTS_FILE: ("weights_sha256", "weights"),
    "generation_config.json": ("generation_config_sha256", "decoding defaults"),
}
"""Files that an evaluation holds for, the field with their hash, and what they are."""


class UnusableEvaluation(ValueError):
    """There is nothing to judge by: an evaluation is absent, stale, damaged or taken otherwise."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A folder that asks to be published under a name and to become an alias, with its evaluation."""

    source: Path
    name: str
    alias: str
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class Judgement:
    """incumbent: the exact reference the candidate was held against, None if there was none; then no comparisons."""

    incumbent: str | None
    incumbent_evaluation_sha256: str | None
    margins: Margins
    comparisons: tuple[Comparison, ...]

    @property
    def accepted(self) -> bool:
        return all(comparison.accepted for comparison in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what the manifest keeps."""
        return {
            "accepted": self.accepted,
            "incumbent": self.incumbent,
            "incumbent_evaluation_sha256": self.incumbent_evaluation_sha256,
            "rule": {**rule(), "margins": asdict(self.margins)},
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
        }


def read_candidate(source: Path, name: str | None, alias: str) -> Candidate:
    """A folder and the evaluation beside its weights. name: None takes report["name"] of the evaluation.

    Raises UnusableEvaluation if there is none or it is of other weights or decoding defaults; ValueError for a bad or
    absent name.
    """
    validate_alias(alias)
    if not source.is_dir():
        raise ValueError(f"source {str(source)!r} is not a folder; give a folder saved with save_pretrained")
    command = f"{_EVALUATE} {shlex.quote(str(source))} --save"
    if not (source / WEIGHTS_FILE).is_file() or (source / INDEX_FILE).exists():
        raise UnusableEvaluation(
            f"{str(source)!r} is not one plain {WEIGHTS_FILE}, which the gate judges by its hash; "
            "save it again unsharded: model.save_pretrained(FOLDER, max_shard_size='1TB')"
        )
    evaluation = _read(source / EVALUATION_FILE, command)
    files = {name: hash_file(source / name).sha256 for name in _JUDGED if (source / name).is_file()}
    _refuse_stale(evaluation, source / EVALUATION_FILE, files, command)
    try:
        refuse_few(evaluation)
    except ValueError as error:
        raise UnusableEvaluation(f"evaluation {str(source / EVALUATION_FILE)!r}: {error}") from error
    if name is None:
        name = evaluation.report.get("name")
        if not isinstance(name, str):
            raise ValueError(f"NAME is not given, and {EVALUATION_FILE} records none in report.name; give NAME")
    return Candidate(source, validate_name(name), alias, evaluation)


def judge(
    store: ModelStore, candidate: Candidate, margins: Margins, incumbent_evaluation: Path | None = None
) -> Judgement:
    """Hold a candidate against the version its alias points at. Writes nothing.

    incumbent_evaluation: for a version that was published without one. Raises UnusableEvaluation if the two cannot be
    compared, with the command that makes them so.
    """
    version = store.aliases(candidate.name).get(candidate.alias)
    if version is None:
        if incumbent_evaluation is not None:
            raise UnusableEvaluation(
                f"--incumbent-evaluation is given, but alias {candidate.alias!r} of {candidate.name!r} is not set, "
                "so that there is no incumbent; leave it out"
            )
        return Judgement(None, None, margins, ())
    incumbent = store.show(f"{candidate.name}@{version}")
    evaluation = _incumbent_evaluation(incumbent, incumbent_evaluation)
    if differing := unlike(candidate.evaluation, evaluation):
        raise UnusableEvaluation(
            f"{str(candidate.source / EVALUATION_FILE)!r} and that of {_reference(incumbent)} were not taken alike, "
            f"they differ in {', '.join(differing)}; take the candidate's again on the incumbent's texts and with its "
            f"quality reference: {_alike_command(candidate, incumbent, evaluation)}"
        )
    try:
        comparisons = compare(candidate.evaluation, evaluation, margins)
    except ValueError as error:
        raise UnusableEvaluation(str(error)) from error
    return Judgement(_reference(incumbent), evaluation.sha256, margins, comparisons)


def override(reason: str, now: datetime) -> dict[str, str]:
    """Who publishes a refused model, when and why. ValueError without a reason."""
    if not reason.strip():
        raise ValueError("reason is empty; --force records why a refused model is published: give --reason TEXT")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = f"uid {os.getuid()}"
    return {"by": f"{user}@{socket.gethostname()}", "at": now.isoformat(timespec="seconds"), "reason": reason.strip()}


def publish_judged(
    store: ModelStore,
    candidate: Candidate,
    judgement: Judgement,
    *,
    metrics: Mapping[str, Any] | None,
    forced: Mapping[str, str] | None,
    **fields: Any,
) -> Published:
    """Publish what was judged, the judgement in metrics["gate"]. The alias is not moved: see `promote`.

    fields: other arguments of ModelStore.publish. Raises ValueError if it is refused and not forced, or if
    a file changed since it was judged.
    """
    if not judgement.accepted and forced is None:
        raise ValueError(f"{candidate.name!r} is refused by the gate; nothing is published")
    if metrics is not None and METRICS_FIELD in metrics:
        raise ValueError(f"metrics has a field {METRICS_FIELD!r}, which the gate writes; rename it")
    record = {
        **judgement.to_dict(),
        "alias": candidate.alias,
        "forced": None if judgement.accepted or forced is None else dict(forced),
    }
    return store.publish(
        candidate.source,
        candidate.name,
        metrics={**(metrics or {}), METRICS_FIELD: record},
        expected_sha256={
            **{
                name: sha256 for name, (field, _) in _JUDGED.items() if (sha256 := getattr(candidate.evaluation, field))
            },
            EVALUATION_FILE: candidate.evaluation.sha256,
        },
        **fields,
    )


def promote(store: ModelStore, candidate: Candidate, judgement: Judgement, published: Published) -> None:
    """Point the alias at the new version. ValueError if it no longer points at what the candidate was held against."""
    expected = None if judgement.incumbent is None else judgement.incumbent.partition("@")[2]
    try:
        store.move_alias(published.name, candidate.alias, published.version, expected=expected)
    except ValueError as error:
        raise ValueError(
            f"{published.name}@{published.version} is published but not {candidate.alias}: {error}; "
            "publish it again to have it held against the new one"
        ) from error


def _incumbent_evaluation(incumbent: Entry, given: Path | None) -> Evaluation:
    assert incumbent.manifest is not None
    reference, files = _reference(incumbent), incumbent.manifest.files
    command = (
        f"{_EVALUATE} {reference} --output FOLDER, then publish with --incumbent-evaluation FOLDER/evaluation.json"
    )
    if WEIGHTS_FILE not in files:
        raise UnusableEvaluation(f"{reference} has no {WEIGHTS_FILE}, which the gate judges by its hash")
    path = incumbent.path / EVALUATION_FILE if given is None else given
    evaluation = _read(path, command)
    if given is None and (EVALUATION_FILE not in files or files[EVALUATION_FILE].sha256 != evaluation.sha256):
        raise UnusableEvaluation(f"{str(path)!r} is not as it was published; see: python -m model_store verify")
    _refuse_stale(evaluation, path, {name: files[name].sha256 for name in _JUDGED if name in files}, command)
    return evaluation


def _read(path: Path, command: str) -> Evaluation:
    try:
        return read_evaluation(path)
    except FileNotFoundError as error:
        raise UnusableEvaluation(f"evaluation {str(path)!r} does not exist; make it: {command}") from error
    except ValueError as error:
        raise UnusableEvaluation(f"{error}: {command}") from error


def _refuse_stale(evaluation: Evaluation, path: Path, sha256: Mapping[str, str], command: str) -> None:
    """sha256: of those files in _JUDGED that the checkpoint has."""
    for name, (field, what) in _JUDGED.items():
        evaluated, found = getattr(evaluation, field), sha256.get(name)
        if evaluated != found:
            raise UnusableEvaluation(
                f"evaluation {str(path)!r} is of other {what}: {field}={evaluated}, "
                f"{name} beside it has {found}; make it again: {command}"
            )


def _alike_command(candidate: Candidate, incumbent: Entry, evaluation: Evaluation) -> str:
    """What evaluates the candidate as the incumbent was; a word in capitals where the record does not tell."""
    assert incumbent.manifest is not None
    protocol, dataset = evaluation.protocol, evaluation.report.get("dataset")
    # A folder is recorded by its name alone, which finds it only from where it lies.
    found = isinstance(dataset, str) and (dataset == "pydoc" or Path(dataset).exists())
    words = [str(candidate.source), "--dataset", str(dataset) if found else "DATASET"]
    words += ["--splits", *(split.name for split in protocol.splits)]
    for field in ("context", "stride", "num_prompts", "prompt_tokens", "new_tokens", "seed"):
        words += [f"--{field.replace('_', '-')}", str(getattr(protocol, field))]
    if candidate.evaluation.protocol.quality_reference_sha256 != protocol.quality_reference_sha256:
        kept = QUALITY_REFERENCE_FILE in incumbent.manifest.files
        words += ["--quality-reference", str(incumbent.path / QUALITY_REFERENCE_FILE) if kept else "FILE"]
    return f"{_EVALUATE} {shlex.join(words)} --save"


def _reference(entry: Entry) -> str:
    return f"{entry.name}@{entry.version}"
