"""From a text to the pieces and windows that features are computed on. Pure Python: no model, no reference.

A piece is a word (letters, inner apostrophes kept), a run of digits, or one other visible character. Every rule here is
linear in the text, and the work on a text of any length is bounded by windows():

    A text of at most WINDOW_CHARACTERS * 1.5 characters is one window. A longer one is cut into windows of
    WINDOW_CHARACTERS at evenly spaced starts, first and last included, as many as cover it but at most MAX_WINDOWS.
    Features are means over the windows, so a text of 1 MB costs what 16,000 characters cost.
"""

import re

WINDOW_CHARACTERS = 2000
"""About 512 tokens of English."""
MAX_WINDOWS = 8

PIECE = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|[^\w\s]|_")  # noqa: RUF001
# The same for ASCII, at two thirds of the cost. What splits there is white space to str.isspace() too: \x1c to \x1f.
_ASCII_PIECE = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*|[0-9]+|[^A-Za-z0-9\s]")
_LONG_PIECE = 40


_CLITIC = re.compile(r" '(s|t|re|ve|ll|d|m)\b")


def untokenised(text: str) -> str:
    """Undo what published corpora do to words: clitics set apart, @-@ for a hyphen, <unk> for a rare word.

    Those marks are the corpus maker's. Left in, they would count against human text.
    """
    if " '" in text or " n't" in text:
        text = _CLITIC.sub(r"'\1", text).replace(" n't", "n't")
    if " @" in text:
        text = text.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".")
    return text.replace("<unk>", "Unk")


def split_pieces(text: str) -> list[str]:
    """Words, numbers and marks in order, as written."""
    return (_ASCII_PIECE if text.isascii() else PIECE).findall(text)


def windows(text: str) -> list[str]:
    """The parts of a text that are looked at; see the module's docstring for the rule. Cut at white space if near."""
    length = len(text)
    if length <= WINDOW_CHARACTERS * 3 // 2:
        return [untokenised(text)]
    count = min(MAX_WINDOWS, -(-length // WINDOW_CHARACTERS))
    last = length - WINDOW_CHARACTERS
    return [untokenised(_trimmed(text, round(i * last / (count - 1)))) for i in range(count)]


def _trimmed(text: str, start: int) -> str:
    """WINDOW_CHARACTERS from start, without the broken words at its ends (unless a word fills most of it)."""
    part = text[start : start + WINDOW_CHARACTERS]
    edge = _LONG_PIECE
    if start > 0:
        spaces = [i for i, c in enumerate(part[:edge]) if c.isspace()]
        part = part[spaces[0] + 1 :] if spaces else part
    if start + WINDOW_CHARACTERS < len(text):
        spaces = [i for i, c in enumerate(part[-edge:]) if c.isspace()]
        part = part[: len(part) - edge + spaces[-1]] if spaces else part
    return part


def estimate_num_tokens(text: str) -> int:
    """Tokens a subword tokenizer would make of a text, when nobody counted them.

    The rule: a piece counts one, and one more for every 6 characters beyond its first 6; letters outside ASCII count
    one each beyond that, since subword vocabularies hold few of them. On English prose with a byte-level BPE of 8,192
    ids this is within 7 % on average. Texts longer than the windows are extrapolated from their share of characters.
    """
    parts = windows(text)
    return tokens_of(parts, [split_pieces(part) for part in parts], len(text))


def tokens_of(parts: list[str], pieces: list[list[str]], length: int) -> int:
    """estimate_num_tokens() of a text of `length` characters whose windows and their pieces are at hand."""
    counted = sum(map(_count_tokens, parts, pieces))
    looked_at = WINDOW_CHARACTERS * len(parts)
    return counted if len(parts) == 1 else round(counted * length / max(1, looked_at))


def _count_tokens(text: str, pieces: list[str]) -> int:
    extra = sum([(len(piece) - 1) // 6 for piece in pieces if len(piece) > 6])
    foreign = 0 if text.isascii() else len(text.encode("utf-8", "replace")) - len(text)
    return len(pieces) + extra + foreign // 2
