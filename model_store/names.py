"""What a model, a version and an alias may be called, and how a reference to one is read. Strings only, no files."""

import re
from dataclasses import dataclass

LATEST = "latest"
PRODUCTION = "production"
ALIASES_FOLDER = "aliases"
LOCAL_VERSION = "local"
MAX_NAME_LENGTH = 96
MAX_VERSION_LENGTH = 64

_PLAIN_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_NOT_VERSIONS = frozenset({ALIASES_FOLDER, LOCAL_VERSION, LATEST, PRODUCTION})


@dataclass(frozen=True, slots=True)
class StoreReference:
    """`name` (selector None), `name@version` or `name@alias`."""

    name: str
    selector: str | None


def validate_name(name: str) -> str:
    """The name itself. ValueError unless it is a plain word that cannot leave its folder."""
    return _plain_word("name", name, MAX_NAME_LENGTH)


def validate_version(version: str) -> str:
    """The version itself. ValueError unless it is a plain word that means nothing else in a store."""
    _plain_word("version", version, MAX_VERSION_LENGTH)
    if version in _NOT_VERSIONS:
        raise ValueError(
            f"version={version!r} has a meaning of its own in a store; give another, or none to be numbered"
        )
    return version


def validate_alias(alias: str) -> str:
    """The alias itself. ValueError unless it is a plain word that can be set and cannot be taken for a version."""
    _plain_word("alias", alias, MAX_VERSION_LENGTH)
    if alias == LATEST:
        raise ValueError(f"alias={alias!r} always means the version published last; set {PRODUCTION!r} to choose one")
    if alias == LOCAL_VERSION or alias.isdigit():
        raise ValueError(f"alias={alias!r} could be taken for a version; give it a word such as {PRODUCTION!r}")
    return alias


def looks_like_path(reference: str) -> bool:
    """Whether a reference means a folder and not a model of the store: it has a slash, or starts with '.' or '~'."""
    return "/" in reference or "\\" in reference or reference.startswith((".", "~"))


def parse_reference(reference: str) -> StoreReference:
    """Read `name`, `name@version` or `name@alias`. ValueError when it is none of them."""
    name, at_sign, selector = reference.partition("@")
    validate_name(name)
    if not at_sign:
        return StoreReference(name, None)
    return StoreReference(name, validate_selector(selector))


def validate_selector(selector: str) -> str:
    """What stands behind the '@'. ValueError unless it is a plain word, so that it can only name a version or alias."""
    return _plain_word("version or alias", selector, MAX_VERSION_LENGTH)


def _plain_word(field: str, value: str, max_length: int) -> str:
    if not isinstance(value, str) or not _PLAIN_WORD.fullmatch(value) or len(value) > max_length:
        shown = value if not isinstance(value, str) or len(value) <= 120 else value[:120] + "..."
        raise ValueError(
            f"{field}={shown!r} is not usable; give 1 to {max_length} letters, digits, '.', '_' or '-', "
            "beginning with a letter or a digit"
        )
    return value
