"""Write to a store: publish and import checkpoints, switch aliases. Its reading half, and its layout, are in catalog.

A version appears whole, by one rename, and is never written again. Safe to use from several processes at once.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from model_store.catalog import Catalog, Entry, Resolved
from model_store.checkpoint import inspect_checkpoint
from model_store.environment import git_commit, library_versions
from model_store.folder_rules import DEFAULT_MAX_BYTES, list_checkpoint_files, refuse_by_size
from model_store.manifest import (
    MANIFEST_FILE,
    PROVENANCE_PUBLISHED,
    PROVENANCE_UNKNOWN,
    FileRecord,
    Manifest,
    to_json_object,
)
from model_store.names import ALIASES_FOLDER, LATEST, validate_alias, validate_name, validate_selector, validate_version
from model_store.staging import (
    CopyFile,
    copy_and_hash,
    flush_folder,
    flush_tree,
    replace_file,
    staging_folder,
    write_file,
)

__all__ = ["Entry", "ModelStore", "Published", "Resolved", "default_root"]

ROOT_VARIABLE = "MODEL_STORE_ROOT"


@dataclass(frozen=True, slots=True)
class Published:
    """A version that is now visible. left_out: entries of the source that are no part of a checkpoint."""

    path: Path
    name: str
    version: str
    manifest: Manifest
    left_out: tuple[str, ...]


def default_root() -> Path:
    """MODEL_STORE_ROOT, else the folder `models` of this repository. ValueError if the variable is set to nothing."""
    root = os.environ.get(ROOT_VARIABLE)
    if root is None:
        return Path(__file__).resolve().parent.parent / "models"
    if not root:
        raise ValueError(f"{ROOT_VARIABLE} is set to ''; give a folder, or unset it to use the repository's models/")
    return Path(root).expanduser()


class ModelStore(Catalog):
    """A store at a root, which need not exist yet.

    clock and copy_file are arguments for tests: the first is a manifest's time, the second copies and hashes one file.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        copy_file: CopyFile = copy_and_hash,
    ) -> None:
        super().__init__(root)
        self._clock = clock
        self._copy_file = copy_file

    def publish(
        self,
        source_dir: Path | str,
        name: str,
        *,
        version: str | None = None,
        parent: str | None = None,
        training: Mapping[str, Any] | None = None,
        dataset: Mapping[str, Any] | None = None,
        tokens_seen: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        notes: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        expected_sha256: Mapping[str, str] | None = None,
    ) -> Published:
        """Copy a checkpoint folder into the store as a new version: whole and checked, or not at all.

        version: None takes the next number. parent: a reference to a version of this store. max_bytes: refuse more.
        expected_sha256: of files that were judged, which must be what is published.
        Raises ValueError, with the file and the remedy, for anything but a plain safetensors causal language model
        without code, for a bad argument, and for a version that is taken; OSError if the disk refuses.
        """
        if tokens_seen is not None and tokens_seen < 0:
            raise ValueError(f"tokens_seen={tokens_seen} is negative; give the number of training tokens, or None")
        draft = partial(
            Manifest,
            name=validate_name(name),
            provenance=PROVENANCE_PUBLISHED,
            parent=None if parent is None else self._exact_reference(parent),
            training=to_json_object("training", training),
            dataset=to_json_object("dataset", dataset),
            tokens_seen=tokens_seen,
            metrics=to_json_object("metrics", metrics),
            notes=notes,
            git_commit=git_commit(),
        )
        return self._publish(Path(source_dir), name, version, draft, max_bytes, expected_sha256 or {})

    def import_folder(
        self,
        source_dir: Path | str,
        name: str | None = None,
        *,
        version: str | None = None,
        notes: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> Published:
        """Take in a Hugging Face folder from anywhere: checked as in `publish`, and marked as of unknown provenance.

        name: None takes the folder's own.
        """
        source = Path(source_dir)
        name = validate_name(source.resolve().name if name is None else name)
        draft = partial(Manifest, name=name, provenance=PROVENANCE_UNKNOWN, notes=notes)
        return self._publish(source, name, version, draft, max_bytes, {})

    def copy_from(self, source: Catalog, reference: str) -> Resolved:
        """Take over one version of another store as it is: every byte, its manifest, the aliases that point at it.

        A version that is here already is checked and kept. Raises ValueError if the reference leads nowhere, or if the
        bytes there or here are not those of the manifest; OSError if the disk refuses.
        """
        entry = source.show(reference)
        assert entry.manifest is not None  # show() raises for one that cannot be read
        name, version, manifest = entry.name, entry.version, entry.manifest
        if not os.path.lexists(self.root / name / version):
            with staging_folder(self.root) as staging:
                records = {file: self._copy(entry.path, staging, file) for file in manifest.files}
                if records != dict(manifest.files):
                    raise ValueError(
                        f"{str(entry.path)!r} is not what its manifest says; verify it and publish it again"
                    )
                self._make_visible(staging, name, version, lambda **_: manifest)
        found = self.verify(f"{name}@{version}")
        if not found.ok or self.show(f"{name}@{version}").manifest != manifest:
            raise ValueError(
                f"{str(self.root / name / version)!r} is not {name}@{version} of the other store; remove it"
            )
        for alias in entry.aliases:
            if alias != LATEST:
                self.set_alias(name, alias, version)
        return Resolved(self.root / name / version, name, version)

    def set_alias(self, name: str, alias: str, version: str) -> Resolved:
        """Point an alias at a version (or at what `latest` or another alias means now), atomically.

        Raises ValueError for an unknown version or an alias that could be taken for a version.
        """
        target = self._alias_target(name, alias, version)
        with self._locked_aliases(name) as folder:
            replace_file(folder / alias, f"{target.version}\n".encode())
        return target

    def move_alias(self, name: str, alias: str, version: str, *, expected: str | None) -> Resolved:
        """As `set_alias`, if the alias still points at the version expected (None: is not set).

        Raises ValueError, with the alias as it was, if another process moved it meanwhile.
        """
        target = self._alias_target(name, alias, version)
        with self._locked_aliases(name) as folder:
            found = self._read_alias(name, alias)
            if found != expected:
                raise ValueError(f"alias {alias!r} of {name!r} is {found or 'not set'} now, not {expected or 'unset'}")
            replace_file(folder / alias, f"{target.version}\n".encode())
        return target

    def remove_alias(self, name: str, alias: str) -> None:
        """Forget an alias. ValueError if it is not set."""
        path = self.root / validate_name(name) / ALIASES_FOLDER / validate_alias(alias)
        try:
            path.unlink()
        except FileNotFoundError as error:
            raise ValueError(f"alias={alias!r} of {name!r} is not set; nothing to remove") from error
        flush_folder(path.parent)

    def _alias_target(self, name: str, alias: str, version: str) -> Resolved:
        target = self.resolve(f"{validate_name(name)}@{validate_selector(version)}")
        if validate_alias(alias) in self._versions(name):
            raise ValueError(f"alias={alias!r} is a version of {name!r}; give the alias another name")
        return target

    @contextmanager
    def _locked_aliases(self, name: str) -> Iterator[Path]:
        """The aliases' folder, in the hands of this process alone among those that set one."""
        folder = self.root / name / ALIASES_FOLDER
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(descriptor)

    def _publish(
        self,
        source: Path,
        name: str,
        version: str | None,
        draft: Callable[..., Manifest],
        max_bytes: int,
        expected_sha256: Mapping[str, str],
    ) -> Published:
        if version is not None:
            self._refuse_taken(name, validate_version(version))
        listing = list_checkpoint_files(source, max_bytes)
        with staging_folder(self.root) as staging:
            records = {file: self._copy(source, staging, file) for file in listing.files}
            refuse_by_size(source, sum(record.size for record in records.values()), max_bytes)
            _refuse_changed(source, records, expected_sha256)
            # The copy is judged, not the source: what was checked is what is published, whoever writes there meanwhile.
            checkpoint = inspect_checkpoint(staging, listing.files)
            draft = partial(
                draft,
                architecture=checkpoint.architecture,
                num_parameters=checkpoint.num_parameters,
                files=records,
                library_versions=dict(library_versions()),
            )
            manifest = self._make_visible(staging, name, version, draft)
        return Published(self.root / name / manifest.version, name, manifest.version, manifest, listing.left_out)

    def _copy(self, source: Path, staging: Path, file: str) -> FileRecord:
        destination = staging / file
        destination.parent.mkdir(parents=True, exist_ok=True)
        return self._copy_file(source / file, destination)

    def _make_visible(self, staging: Path, name: str, version: str | None, draft: Callable[..., Manifest]) -> Manifest:
        """Write the manifest and rename the staged folder to the version given or the next free number."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        while True:
            manifest = draft(version=version or self._next_number(name), created_at=self._next_time(name))
            write_file(staging / MANIFEST_FILE, manifest.to_bytes())
            flush_tree(staging)
            try:
                # Renaming a folder over one that holds something fails: this is what decides between two publishers.
                os.rename(staging, folder / manifest.version)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                if version is not None:
                    self._refuse_taken(name, version)
                    raise
                continue
            flush_folder(folder)
            flush_folder(self.root)
            return manifest

    def _refuse_taken(self, name: str, version: str) -> None:
        if os.path.lexists(self.root / name / version) or version in self._alias_files(name):
            raise ValueError(f"version={version!r} of {name!r} exists already; give another, or none to be numbered")

    def _next_number(self, name: str) -> str:
        names = (path.name for path in (self.root / name).iterdir())
        taken = [int(name) for name in names if name.isascii() and name.isdecimal()]
        return validate_version(str(max(taken, default=0) + 1))

    def _next_time(self, name: str) -> str:
        """The clock's time, or a microsecond after the last version's where the clock is behind it."""
        now = self._clock().astimezone(UTC)
        times = [found.created_at for found in self._manifests(name).values() if isinstance(found, Manifest)]
        if times:
            now = max(now, datetime.fromisoformat(max(times)) + timedelta(microseconds=1))
        return now.isoformat(timespec="microseconds")

    def _exact_reference(self, reference: str) -> str:
        resolved = self._resolve_stored(reference)
        return f"{resolved.name}@{resolved.version}"


def _refuse_changed(source: Path, records: Mapping[str, FileRecord], expected_sha256: Mapping[str, str]) -> None:
    for file, sha256 in expected_sha256.items():
        if file not in records or records[file].sha256 != sha256:
            raise ValueError(f"{str(source / file)!r} changed while it was being published; publish it again")
