"""Token ids to text, a piece at a time. Needs `tokenizers` only; runs in the API process, off the engine's thread.

decode() of a whole sequence is not the sum of decode() of its tokens: characters span tokens, sentencepiece-like
decoders drop the first space, and broken bytes turn into U+FFFD by rules of their own. Two ways give exact deltas at a
constant cost per token: byte-level tokenizers are bytes in a row, decoded as UTF-8 as they come; all others are decoded
in a window that begins one piece before the new tokens.
"""

import codecs
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>\Z")
_REPLACEMENT = "�"
_UNKNOWN, _PIECE, _BYTE = 0, 1, 2


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    assert set(table) == set(ByteLevel.alphabet())
    return table


class _Vocabulary:
    """What all detokenizers of one tokenizer share: what each id is."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        state = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
        kinds = [part["type"] for part in state.get("decoders", [state]) if part]
        self.is_byte_level = kinds == ["ByteLevel"]
        self.has_byte_tokens = "ByteFallback" in kinds
        self.special = {i for i, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        self._alphabet = _byte_alphabet()
        self._bytes: dict[int, bytes] = {}
        self._kinds: dict[int, int] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of a byte-level token; none for an id that is not in the vocabulary."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self.tokenizer.id_to_token(token_id) or ""
            try:
                known = bytes([self._alphabet[c] for c in token])
            except KeyError:  # an added token is its own text
                known = token.encode()
            self._bytes[token_id] = known
        return known

    def kind_of(self, token_id: int) -> int:
        """Whether an id is unknown (decode() passes over it), a piece of text, or, with byte fallback, one raw byte."""
        known = self._kinds.get(token_id)
        if known is None:
            token = self.tokenizer.id_to_token(token_id)
            is_byte = token is not None and self.has_byte_tokens and _BYTE_TOKEN.match(token)
            known = _UNKNOWN if token is None else _BYTE if is_byte else _PIECE
            self._kinds[token_id] = known
        return known


@lru_cache(maxsize=8)
def _vocabulary(tokenizer: Tokenizer) -> _Vocabulary:
    return _Vocabulary(tokenizer)


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """The bytes of one token in the middle of a text; none for an id that is not in the vocabulary."""
    vocabulary = _vocabulary(tokenizer)
    if vocabulary.is_byte_level:
        return vocabulary.bytes_of(token_id)
    piece = tokenizer.id_to_token(token_id)
    if piece is None:
        return b""
    if vocabulary.kind_of(token_id) == _BYTE:
        return bytes([int(piece[3:5], 16)])
    text: str = tokenizer.decode([token_id], skip_special_tokens=False)
    # A decoder drops the space that a word at the beginning has.
    return (" " + text if piece.startswith("\u2581") and not text.startswith(" ") else text).encode()


class _Pieces(Protocol):
    def push(self, token_ids: Sequence[int]) -> str: ...
    def flush(self) -> str: ...


class _BytePieces:
    """Byte-level vocabularies: the tokens' bytes in a row are the text in UTF-8."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        self._bytes_of = vocabulary.bytes_of
        self._decoder: Any = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int]) -> str:
        text: str = self._decoder.decode(b"".join([self._bytes_of(t) for t in token_ids]))
        return text

    def flush(self) -> str:
        text: str = self._decoder.decode(b"", final=True)
        return text


class _WindowPieces:
    """Any other vocabulary: decode a window of tokens, of which the first ones' text is out already."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._window: list[int] = []
        self._num_told = 0  # tokens of the window whose text is out
        self._told = ""  # what they decode to when alone

    def push(self, token_ids: Sequence[int]) -> str:
        text = ""
        for token in token_ids:
            kind = self._vocabulary.kind_of(token)
            if kind != _UNKNOWN:
                self._window.append(token)
            # A run of byte tokens is one unit: should any of it be broken, all of it becomes U+FFFD.
            if kind == _PIECE:
                text += self._tell(final=False)
        return text

    def flush(self) -> str:
        return self._tell(final=True)

    def _tell(self, *, final: bool) -> str:
        if len(self._window) == self._num_told:
            return ""
        whole = self._decode(self._window)
        if not final and (whole.endswith(_REPLACEMENT) or not whole.startswith(self._told)):
            return ""
        delta = whole[len(self._told) :]
        if delta:
            # The next window begins with these tokens. Tokens without text stay with those before them: alone at the
            # window's beginning they would not keep the decoder from dropping a leading space.
            del self._window[: self._num_told]
            self._told = self._decode(self._window)
        self._num_told = len(self._window)
        return delta

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._vocabulary.tokenizer.decode(token_ids, skip_special_tokens=False)
        return text


class _StopCutter:
    """Holds back what may become a stop string, and cuts at the first that is complete."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.found: str | None = None

    def push(self, delta: str) -> str:
        text = self._held + delta
        # The first to be complete wins, however the text came in pieces; of two that end together, the longer.
        ends = [(at + len(s), at, s) for s in self._stop if (at := text.find(s)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            self._held = ""
            return text[:at]
        held = max((self._overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """The longest beginning of stop that text ends with."""
        for length in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0


class Detokenizer:
    """The text of one growing sequence.

    Deltas are whole characters and join to tokenizer.decode(all ids), cut before the first stop string.
    tokenizer: shared by any number of detokenizers. stop: non-empty strings that end the text and are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, skip_special_tokens: bool = True) -> None:
        if isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
            raise ValueError(f"stop is {stop!r}: give a list of non-empty strings")
        vocabulary = _vocabulary(tokenizer)
        self._skipped = vocabulary.special if skip_special_tokens else frozenset()
        self._pieces: _Pieces = _BytePieces(vocabulary) if vocabulary.is_byte_level else _WindowPieces(vocabulary)
        self._cutter = _StopCutter(stop) if stop else None

    @property
    def finished_by_stop(self) -> str | None:
        """The stop string that ended the text, None while there was none. After it, push() and flush() return ""."""
        return self._cutter.found if self._cutter else None

    def push(self, token_ids: Sequence[int]) -> str:
        """The text these tokens make certain: everything but what may still become a character or a stop string."""
        if self._skipped:
            token_ids = [t for t in token_ids if t not in self._skipped]
        if self._cutter is None:
            return self._pieces.push(token_ids)
        return "" if self._cutter.found else self._cutter.push(self._pieces.push(token_ids))

    def flush(self) -> str:
        """The rest, at the end of the sequence. A cut-off character comes out as U+FFFD, as decode() has it."""
        if self._cutter is None:
            return self._pieces.flush()
        if self._cutter.found:
            return ""
        text = self._cutter.push(self._pieces.flush())
        return text if self._cutter.found else text + self._cutter.flush()
