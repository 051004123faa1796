"""Read human text and cut passages from it: .txt, .xz and .zst files, documents parted by a marker. Offline only."""

import hashlib
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from serve.quality.words import estimate_num_tokens

DOCUMENT_END = "<|endoftext|>"
_LEAST_DOCUMENT = 2_000
_LARGE_DOCUMENT = 60_000


@dataclass(frozen=True, slots=True)
class Corpus:
    """A file of human text. documents: in file order, those of a few lines left out. sha256: of the plain text."""

    name: str
    documents: tuple[str, ...]
    sha256: str
    num_characters: int

    def identity(self) -> dict[str, str | int]:
        """What a reference says of the text it was made from."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "num_documents": len(self.documents),
            "num_characters": self.num_characters,
        }


def read_corpus(path: Path | str) -> Corpus:
    """ValueError for a file that is missing, of another kind, or without a document of 2,000 characters."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"corpus is '{path}': there is no such file")
    text = _read_bytes(path).decode("utf-8")
    documents = tuple(d for d in text.split(DOCUMENT_END) if len(d) >= _LEAST_DOCUMENT)
    if not documents:
        raise ValueError(f"corpus is '{path}': it has no document of {_LEAST_DOCUMENT} characters")
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return Corpus(path.name.split(".")[0], documents, digest, len(text))


def _read_bytes(path: Path) -> bytes:
    if path.suffix == ".txt":
        return path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        import zstandard

        with path.open("rb") as file:
            return bytes(zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(file).read())
    raise ValueError(f"corpus is '{path}': give a .txt, .xz or .zst file")


def passages(
    documents: Sequence[str], count: int, random: Random, num_tokens: tuple[int, int] = (32, 512)
) -> list[str]:
    """Passages from any place of the documents, from word to word, lengths log-uniform in (estimated) tokens.

    Long documents are drawn oftener than short ones, but not in proportion: one book must not be the corpus.
    They begin and end amid sentences, as generations do.
    """
    weights = [min(len(d), _LARGE_DOCUMENT) for d in documents]
    low, high = num_tokens
    found = []
    for document in random.choices(documents, weights, k=count):
        wanted = round(low * (high / low) ** random.random())
        found.append(cut(document, random, wanted))
    return found


def cut(document: str, random: Random, num_tokens: int) -> str:
    """One passage of about num_tokens (within 3 %, if the document is long enough), starting at a word."""
    start = random.randrange(max(1, len(document) - 5 * num_tokens))
    while start < len(document) and not document[start].isspace():
        start += 1
    return shorten(document[start : start + 8 * num_tokens].lstrip(), num_tokens)


def shorten(text: str, num_tokens: int) -> str:
    """The beginning of a text, to the last word within num_tokens (estimated)."""
    low, high = 0, len(text)
    if estimate_num_tokens(text) <= num_tokens:
        return text.rstrip()
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if estimate_num_tokens(text[:middle]) <= num_tokens else (low, middle)
    end = low
    while end > 0 and not text[end].isspace():
        end -= 1
    return text[: end or low].rstrip()
