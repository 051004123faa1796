"""What is in a store: names, versions, aliases, where a reference leads. Reads only; neither torch nor transformers.

    root/name/version/{the files of a plain Hugging Face folder, manifest.json}
    root/name/aliases/alias       a small file that holds a version
    root/.staging/                where publishers work before one rename shows the result

`latest` is no file: it is the version published last, so that it switches with the rename that publishes. A name alone
means the alias `production` if it is set, else `latest`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model_store.checkpoint import CONFIG_FILE
from model_store.gguf import find_gguf
from model_store.manifest import MANIFEST_FILE, Manifest, parse_manifest
from model_store.names import (
    ALIASES_FOLDER,
    LATEST,
    LOCAL_VERSION,
    PRODUCTION,
    looks_like_path,
    parse_reference,
    validate_alias,
    validate_name,
    validate_version,
)
from model_store.verification import Verification, verify_folder


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a model is. version is "local" for a folder outside any store, whose name is the folder's."""

    path: Path
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One version as listed. manifest is None exactly if it cannot be read; problem then says why."""

    path: Path
    name: str
    version: str
    aliases: tuple[str, ...]
    manifest: Manifest | None
    problem: str | None


class Catalog:
    """The reading half of a store at a root, which need not exist yet."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def resolve(self, reference: str | Path) -> Resolved:
        """Find `name`, `name@version`, `name@alias`, or a folder outside the store.

        A reference with a slash, or beginning with '.' or '~', or given as a Path, is a folder; any other is a name in
        the store. Raises ValueError, saying what there is, if it leads nowhere.
        """
        if isinstance(reference, Path) or looks_like_path(reference):
            return _resolve_local(Path(reference).expanduser())
        parsed = parse_reference(reference)
        if not self._versions(parsed.name):
            known = ", ".join(self.names()) or "none"
            raise ValueError(
                f"model {parsed.name!r} is not in the store {str(self.root)!r} (it has: {known}); "
                f"publish or import it, or write './{parsed.name}' for a folder of that name"
            )
        version = self._select(parsed.name, parsed.selector)
        path = self.root / parsed.name / version
        if not (path / MANIFEST_FILE).is_file():
            raise ValueError(
                f"{parsed.name}@{version} has no {MANIFEST_FILE}: remove {str(path)!r} and publish it again"
            )
        return Resolved(path, parsed.name, version)

    def names(self) -> list[str]:
        """Names that have at least one version, sorted."""
        return [name for name in _folders(self.root) if _is_valid(validate_name, name) and self._versions(name)]

    def list(self) -> tuple[Entry, ...]:
        """Every version of every name: by name, oldest first, then those whose manifest cannot be read."""
        return tuple(entry for name in self.names() for entry in self._entries(name))

    def show(self, reference: str) -> Entry:
        """One version. ValueError as in `resolve`, or if it is not in the store or its manifest cannot be read."""
        resolved = self._resolve_stored(reference)
        entry = next(entry for entry in self._entries(resolved.name) if entry.version == resolved.version)
        if entry.manifest is None:
            raise ValueError(f"{resolved.name}@{resolved.version}: {entry.problem}")
        return entry

    def verify(self, reference: str) -> Verification:
        """Hold every byte of a version against its manifest. ValueError as in `show`, a broken manifest aside."""
        resolved = self._resolve_stored(reference)
        return verify_folder(resolved.path, resolved.name, resolved.version)

    def aliases(self, name: str) -> dict[str, str]:
        """Version by alias, without the implied `latest`. ValueError if an alias file was damaged."""
        found = {alias: self._read_alias(name, alias) for alias in self._alias_files(validate_name(name))}
        return {alias: version for alias, version in found.items() if version is not None}

    def _versions(self, name: str) -> set[str]:
        return {folder for folder in _folders(self.root / name) if _is_valid(validate_version, folder)}

    def _manifests(self, name: str) -> dict[str, Manifest | str]:
        """By version: the manifest, or what is wrong with it. Oldest first, then the unreadable ones."""
        found = {version: _read_manifest(self.root, name, version) for version in sorted(self._versions(name))}
        readable = {version: manifest for version, manifest in found.items() if isinstance(manifest, Manifest)}
        oldest_first = sorted(readable, key=lambda version: readable[version].created_at)
        return {version: found[version] for version in [*oldest_first, *(found.keys() - readable.keys())]}

    def _entries(self, name: str) -> Iterator[Entry]:
        manifests = self._manifests(name)
        versions = self.aliases(name)
        if all(isinstance(found, Manifest) for found in manifests.values()):
            versions[LATEST] = next(reversed(manifests))
        for version, found in manifests.items():
            aliases = tuple(sorted(alias for alias, target in versions.items() if target == version))
            manifest, problem = (found, None) if isinstance(found, Manifest) else (None, found)
            yield Entry(self.root / name / version, name, version, aliases, manifest, problem)

    def _latest(self, name: str) -> str:
        manifests = self._manifests(name)
        for version, found in manifests.items():
            if not isinstance(found, Manifest):
                raise ValueError(
                    f"which version of {name!r} is the latest cannot be told: {name}@{version}: {found}; "
                    f"remove {str(self.root / name / version)!r}, or name the version you want"
                )
        return next(reversed(manifests))

    def _select(self, name: str, selector: str | None) -> str:
        if selector is None:
            selector = LATEST if self._read_alias(name, PRODUCTION) is None else PRODUCTION
        # Looked up on the disk each time: what was listed a moment ago may lack what an alias has been switched to.
        if selector not in {LATEST, ALIASES_FOLDER} and (self.root / name / selector).is_dir():
            return selector
        if selector == LATEST:
            return self._latest(name)
        version = self._read_alias(name, selector)
        if version is None:
            known = ", ".join([*sorted(self._versions(name)), LATEST, *self._alias_files(name)])
            raise ValueError(f"{name}@{selector} is not in the store {str(self.root)!r}; {name!r} has: {known}")
        if not (self.root / name / version).is_dir():
            raise ValueError(
                f"alias {selector!r} of {name!r} points at version {version!r}, which is gone; set it again"
            )
        return version

    def _alias_files(self, name: str) -> Iterator[str]:
        folder = self.root / name / ALIASES_FOLDER
        if folder.is_dir():
            yield from sorted(path.name for path in folder.iterdir() if _is_valid(validate_alias, path.name))

    def _read_alias(self, name: str, alias: str) -> str | None:
        """The version an alias points at, None if it is not set. ValueError if its file was damaged."""
        try:
            version = (self.root / name / ALIASES_FOLDER / alias).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        try:
            return validate_version(version.removesuffix("\n"))
        except ValueError as error:
            raise ValueError(f"alias {alias!r} of {name!r} is damaged ({error}); set it again") from error

    def _resolve_stored(self, reference: str) -> Resolved:
        if looks_like_path(reference):
            raise ValueError(
                f"reference={reference!r} is a folder; give a model of the store: name, name@version or name@alias"
            )
        return self.resolve(reference)


def _resolve_local(folder: Path) -> Resolved:
    if not (folder / CONFIG_FILE).is_file():
        file = find_gguf(folder)
        if file is not None:
            raise ValueError(f"model {str(folder)!r} is GGUF; convert it once: python -m model_store import {file}")
        raise ValueError(
            f"model folder {str(folder)!r} {'has no ' + CONFIG_FILE if folder.is_dir() else 'does not exist'}; "
            "give a folder saved with save_pretrained, or the name of a model in the store"
        )
    folder = folder.resolve()
    return Resolved(folder, folder.name, LOCAL_VERSION)


def _read_manifest(root: Path, name: str, version: str) -> Manifest | str:
    """The manifest, or what is wrong with it."""
    try:
        manifest = parse_manifest((root / name / version / MANIFEST_FILE).read_bytes())
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is absent"
    except ValueError as error:
        return f"{MANIFEST_FILE} is unusable: {error}"
    if (manifest.name, manifest.version) != (name, version):
        return f"{MANIFEST_FILE} is that of {manifest.reference}: the folder was copied or renamed by hand"
    return manifest


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _is_valid(validate: Callable[[str], str], word: str) -> bool:
    try:
        validate(word)
    except ValueError:
        return False
    return True
