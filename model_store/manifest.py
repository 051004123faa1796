"""What is recorded beside a checkpoint: its files' hashes and where it came from. JSON text only, no folders.

The text has one canonical form and carries a checksum of its own, so that a single changed byte in it is found too.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

MANIFEST_FILE = "manifest.json"
FORMAT = 1
_CHECKSUM = "manifest_sha256"

PROVENANCE_PUBLISHED = "published"
PROVENANCE_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """sha256 in lower-case hexadecimal; size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that a store knows of one version. None means "not recorded".

    created_at: ISO 8601 in UTC with microseconds; within one name it grows from version to version, whatever the clock
    did. files: by path relative to the version's folder, '/' between parts, without manifest.json. parent: an exact
    `name@version`. provenance: "published" by whoever made it, or "unknown" for a folder that was imported.
    library_versions, git_commit: of the process that published or imported it; the commit only for what is published.
    """

    name: str
    version: str
    created_at: str
    provenance: str
    architecture: str
    num_parameters: int
    files: Mapping[str, FileRecord]
    library_versions: Mapping[str, str]
    parent: str | None = None
    training: Mapping[str, Any] | None = None
    dataset: Mapping[str, Any] | None = None
    tokens_seen: int | None = None
    metrics: Mapping[str, Any] | None = None
    notes: str | None = None
    git_commit: str | None = None
    format: int = FORMAT

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def num_bytes(self) -> int:
        return sum(record.size for record in self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the checksum."""
        return asdict(self)

    def to_bytes(self) -> bytes:
        """The canonical text: sorted keys, two spaces, a final newline, checksum included."""
        content = self.to_dict()
        return _canonical({**content, _CHECKSUM: hashlib.sha256(_canonical(content)).hexdigest()})


def parse_manifest(data: bytes) -> Manifest:
    """Read what `to_bytes` wrote. ValueError, saying what is wrong, unless it is byte for byte in that form."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, not an object")
    if content.get("format") != FORMAT:
        raise ValueError(f"its format is {content.get('format')!r}, this program reads format {FORMAT}")
    content.pop(_CHECKSUM, None)
    try:
        manifest = _from_dict(content)
        written = manifest.to_bytes()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a field is absent or of the wrong type ({error})") from error
    if written != data:  # in its checksum, or only in its white space
        raise ValueError("its text is not as it was written: it was damaged or edited")
    return manifest


def to_json_object(field: str, value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A copy of plain JSON values. ValueError when something in it has no JSON form, NaN and infinity included."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"{field} is {type(value).__name__}; give a mapping of names to JSON values")
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{field} cannot be written as JSON ({error}); give plain, finite values") from error
    return copy


def _from_dict(content: dict[str, Any]) -> Manifest:
    known = {field.name for field in fields(Manifest)}
    if content.keys() != known:
        raise TypeError(f"fields differ: {', '.join(sorted(content.keys() ^ known))}")
    for field in ("name", "version", "created_at", "provenance", "architecture"):
        if not isinstance(content[field], str):
            raise TypeError(f"{field} is not text")
    files = {
        path: FileRecord(sha256=record["sha256"], size=record["size"]) for path, record in content["files"].items()
    }
    if datetime.fromisoformat(content["created_at"]).tzinfo is None:
        raise TypeError("created_at has no time zone")
    if not all(isinstance(record.size, int) and isinstance(record.sha256, str) for record in files.values()):
        raise TypeError("files")
    return Manifest(**{**content, "files": files})


def _canonical(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    # A lone surrogate has no UTF-8 form; escaping keeps the text writable and reads back as the same string.
    return (text + "\n").encode("utf-8", errors="backslashreplace")
