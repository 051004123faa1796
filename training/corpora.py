"""Text for training: a named source becomes documents in three splits. Knows nothing of tokens.

No source stands in for another: what cannot be had is an error that says what to run.
"""

import hashlib
import lzma
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training import pydoc_text

SEPARATOR = "<|endoftext|>"  # stands between documents in local files, and between documents of packed tokens
SPLITS = ("train", "valid", "test")
# Hub data sets by short name: (hub id, configuration, text column).
_HUB = {
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "text"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1", "text"),
    "tinystories": ("roneneldan/TinyStories", None, "text"),
}
_SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
_SUFFIXES = (".txt", ".txt.xz", ".txt.zst")


@dataclass(frozen=True)
class Corpus:
    """Documents by split (train, valid, test), and what they were made from."""

    name: str
    documents: dict[str, list[str]]

    def fingerprint(self) -> dict[str, object]:
        """sha256 over every split's documents, with their number and bytes: the identity of the data."""
        splits: dict[str, object] = {}
        for split, documents in self.documents.items():
            digest, size = hashlib.sha256(), 0
            for document in documents:
                data = document.encode()
                digest.update(len(data).to_bytes(8, "little") + data)
                size += len(data)
            splits[split] = {"documents": len(documents), "bytes": size, "sha256": digest.hexdigest()}
        return {"name": self.name, "splits": splits}


def load_corpus(dataset: str) -> Corpus:
    """The corpus a --dataset value names. Raises ValueError, with the remedy, where it cannot be had."""
    if dataset == "pydoc":
        documents = pydoc_text.read_documents()
        return _checked(dataset, _split_by_key((name, text) for name, text in documents))
    paths = [Path(part).expanduser() for part in dataset.split(",")]
    if dataset not in _HUB and all(path.exists() for path in paths):
        # The name alone: where the text lay on one machine is no part of its identity.
        return _checked(",".join(path.name for path in paths), _local(paths))
    if dataset not in _HUB and (dataset.count("/") != 1 or dataset.startswith((".", "/", "~"))):
        raise ValueError(
            f"dataset={dataset!r} is neither a file or folder here nor a known name; give a path to .txt, .txt.xz or "
            f".txt.zst files, or one of pydoc, {', '.join(_HUB)}, or a hub id owner/name"
        )
    return _checked(dataset, _from_hub(dataset))


def split_of(key: str) -> str:
    """The split a document with this key belongs to: a fixed hash, 84 % train, 8 % valid, 8 % test."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    return "train" if bucket < 84 else "valid" if bucket < 92 else "test"


def _split_by_key(keyed: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    documents: dict[str, list[str]] = {split: [] for split in SPLITS}
    for key, text in keyed:
        documents[split_of(key)].append(text)
    return documents


def _local(paths: list[Path]) -> dict[str, list[str]]:
    """Files become documents. In one folder, files named train, valid and test are the splits; else we split."""
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if _is_text(file))
    if not files:
        shown = ",".join(map(str, paths))
        raise ValueError(f"dataset={shown!r} holds no {', '.join(_SUFFIXES)} file; give one that does")
    named = {file: _SPLIT_NAMES.get(file.name.split(".")[0].lower()) for file in files}
    if not (len(paths) == 1 and paths[0].is_dir() and "train" in named.values()):
        return _split_unsplit([document for file in files for document in _documents(file)])
    by_split: dict[str, list[str]] = {}
    for file, split in named.items():
        if split is None:
            raise ValueError(f"dataset: {file} stands beside split files but names no split; rename or remove it")
        by_split.setdefault(split, []).extend(_documents(file))
    missing = [split for split in SPLITS if split not in by_split]
    if missing:
        raise ValueError(f"dataset: there is no {missing[0]}.txt beside the other splits in {paths[0]}; add it")
    return by_split


def _split_unsplit(documents: list[str]) -> dict[str, list[str]]:
    """Split by a hash of each document's text; a text of few documents is cut at 90 % and 95 % of its paragraphs."""
    unique = list(dict.fromkeys(documents))
    by_split = _split_by_key((text, text) for text in unique)
    if all(by_split.values()):
        return by_split
    paragraphs = list(dict.fromkeys(p for document in unique for p in document.split("\n\n") if p.strip()))
    first, second = int(len(paragraphs) * 0.9), int(len(paragraphs) * 0.95)
    parts = (paragraphs[:first], paragraphs[first:second], paragraphs[second:])
    return {split: ["\n\n".join(part)] if part else [] for split, part in zip(SPLITS, parts, strict=True)}


def _is_text(path: Path) -> bool:
    return path.is_file() and path.name.endswith(_SUFFIXES)


def _documents(path: Path) -> list[str]:
    return [document for part in read_text(path).split(SEPARATOR) if (document := part.strip("\n"))]


def read_text(path: Path) -> str:
    """The text of a .txt, .txt.xz or .txt.zst file. Raises ValueError where it is not UTF-8 or not whole."""
    try:
        if path.suffix == ".xz":
            data = lzma.decompress(path.read_bytes())
        elif path.suffix == ".zst":
            import zstandard

            with path.open("rb") as file:
                data = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(file).read()
        else:
            data = path.read_bytes()
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); convert it first, for example with iconv") from error
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}); check that the file is whole") from error


def _from_hub(dataset: str) -> dict[str, list[str]]:
    import datasets

    hub_id, configuration, column = _HUB.get(dataset, (dataset, None, "text"))
    try:
        loaded = datasets.load_dataset(hub_id, configuration, trust_remote_code=False)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"dataset={dataset!r} cannot be had from the hub ({reason}). "
            f"On a machine with access run: hf download --repo-type dataset {hub_id}   "
            "or pass --dataset with local .txt files"
        ) from error
    by_split: dict[str, list[str]] = {}
    for name, rows in loaded.items():
        if column not in rows.column_names:
            raise ValueError(
                f"dataset={dataset!r} has no column {column!r} (it has {rows.column_names}); export it to .txt"
            )
        if name in _SPLIT_NAMES:
            by_split[_SPLIT_NAMES[name]] = _articles(rows[column]) if "wikitext" in hub_id else list(rows[column])
    if set(by_split) == {"train", "valid"}:  # as published, TinyStories has no test split
        half = len(by_split["valid"]) // 2
        by_split["valid"], by_split["test"] = by_split["valid"][:half], by_split["valid"][half:]
    return by_split if set(by_split) == set(SPLITS) else _split_unsplit([d for part in by_split.values() for d in part])


def _articles(lines: Iterable[str]) -> list[str]:
    """WikiText comes line by line; an article begins at a line like ` = Title = `."""
    articles: list[list[str]] = []
    for line in lines:
        if not articles or (line.startswith(" = ") and not line.startswith(" = = ")):
            articles.append([])
        articles[-1].append(line)
    return ["".join(article) for article in articles]


def _checked(name: str, documents: dict[str, list[str]]) -> Corpus:
    for split in SPLITS:
        if not any(document.strip() for document in documents.get(split, [])):
            raise ValueError(f"dataset={name!r} has no text for its {split} split; give more text")
    return Corpus(name, {split: [d for d in documents[split] if d.strip()] for split in SPLITS})
