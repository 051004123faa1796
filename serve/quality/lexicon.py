"""What words and letters of ordinary text follow one another: the language part of a quality reference. numpy only.

Words are mapped to classes: the commonest words and marks are classes of their own, other known words share a class
with words used alike, unknown words fall into classes by their shape. Three small tables say what follows what:
pairs of classes, triples of groups of classes, triples of letters. lexicon_fit.py builds them from a corpus.
"""

import base64
import binascii
import re
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.quality.context_model import CONTEXT, ContextModel

LETTERS = 28
"""a-z, any other letter (26), anything that is no letter (27)."""
STEP = 0.05
"""Nats per unit of the tables, which are int8."""
SHAPES = (
    "digits", "capitalised", "ed", "ing", "ly", "s", "noun", "adjective", "word", "foreign", "mark", "symbol",
)  # fmt: skip
_SUFFIXES = (
    ("ed", re.compile("ed$")),
    ("ing", re.compile("ing$")),
    ("ly", re.compile("ly$")),
    ("noun", re.compile("(?:ions?|ness|ments?|ity|ers?|ism|ance|ence)$")),
    ("adjective", re.compile("(?:al|ous|ive|ful|less|able|ible|ic|est|ish)$")),
    ("s", re.compile("s$")),
)
Int8Array = NDArray[np.int8]
FloatArray = NDArray[np.float64]


def shape_of(piece: str) -> str:
    """The shape of a piece that is not in the vocabulary, one of SHAPES."""
    if not piece.isascii():
        return "foreign" if piece.isalpha() else "symbol"
    if piece.isdigit():
        return "digits"
    if not piece[0].isalpha():
        return "mark"
    if piece[0].isupper():
        return "capitalised"
    for name, pattern in _SUFFIXES:
        if pattern.search(piece):
            return name
    return "word"


def letter_codes(text: str) -> NDArray[np.intp]:
    """Codes 0..LETTERS-1, one a character. Linear; any text, lone surrogates included."""
    points = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return _CODE_OF_POINT[np.minimum(points, 128)]


def _code_table() -> NDArray[np.intp]:
    table = np.full(129, LETTERS - 1, dtype=np.intp)
    table[ord("a") : ord("z") + 1] = np.arange(26)
    # Typographic quotes and dashes count as foreign letters too: rare enough in text that is otherwise ASCII, and a
    # look at the character class of each would cost more than all other features.
    table[128] = 26
    return table


_CODE_OF_POINT = _code_table()


@dataclass(frozen=True)
class Lexicon:
    """The tables, and the numbers of a text read off them.

    words: known words (lower case) and marks, the commonest first. word_class: (words,) class of each.
    word_log_frequency: (words,) natural log of its share of all pieces.
    shape_class: class of each of SHAPES. group: (classes,) coarse group of each class.
    pair_C_C: log p(c2|c1)/p(c2), nats. triple_G_G_G: log p(g3|g1 g2)/p(g3|g2). letter_L_L_L: log p(c|a b).
    log_share_C: log share of each class. context: guesses a class from the eight before.
    """

    words: tuple[str, ...]
    word_class: NDArray[np.intp]
    word_log_frequency: FloatArray
    shape_class: dict[str, int]
    group: NDArray[np.intp]
    pair_C_C: FloatArray
    triple_G_G_G: FloatArray
    letter_L_L_L: FloatArray
    log_share_C: FloatArray
    context: ContextModel
    word_classes: NDArray[np.intp] = field(init=False, repr=False)
    """Class of each index of indices()."""
    is_word: NDArray[np.bool_] = field(init=False, repr=False)
    """Whether an index of indices() is a known word, and not a mark, a number or unknown."""
    name_index: int = field(init=False, repr=False)
    """Index of an unknown word with a capital."""
    _index: dict[str, int] = field(init=False, repr=False)
    _shape_index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Precompute the lookups: unknown shapes sit behind the words in one index."""
        count = len(self.words)
        shapes = {name: count + i for i, name in enumerate(SHAPES)}
        classes = np.concatenate([self.word_class, [self.shape_class[name] for name in SHAPES]]).astype(np.intp)
        object.__setattr__(self, "_index", {word: i for i, word in enumerate(self.words)})
        object.__setattr__(self, "word_classes", classes)
        is_word = [word[0].isalpha() for word in self.words] + [False] * len(SHAPES)
        object.__setattr__(self, "is_word", np.array(is_word))
        object.__setattr__(self, "_shape_index", shapes)
        object.__setattr__(self, "name_index", shapes["capitalised"])

    def indices(self, pieces: list[str], distinct: list[str], ids_N: NDArray[np.int64]) -> NDArray[np.intp]:
        """Index of each piece: below len(words) a known one, else len(words) + its shape.

        distinct, ids_N: the pieces in lower case, each once, and which of them stands where. Shapes tell capitals
        from small letters, so they are found for each piece by itself.
        """
        get, shapes = self._index.get, self._shape_index
        indices = np.array([get(piece, -1) for piece in distinct], dtype=np.intp)[ids_N]
        unknown = np.flatnonzero(indices < 0).tolist()
        if unknown:
            indices[unknown] = [shapes[shape_of(pieces[at])] for at in unknown]
        return indices

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; the tables as zlib + base64 of int8."""
        return {
            "words": " ".join(self.words),
            "word_class": _pack(self.word_class.astype(np.uint8)),
            "word_log_frequency": _pack(np.round(-self.word_log_frequency * 10).astype(np.uint8)),
            "shape_class": self.shape_class,
            "group": [int(g) for g in self.group],
            "pair": _pack(_quantised(self.pair_C_C)),
            "triple": _pack(_quantised(self.triple_G_G_G)),
            "letter": _pack(_quantised(self.letter_L_L_L)),
            "log_share": [round(float(x), 4) for x in self.log_share_C],
            "context": {name: _pack_scaled(array) for name, array in self.context.arrays().items()},
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Lexicon":
        """ValueError naming the field that is missing or has the wrong size."""
        words = tuple(_get(data, "words", str).split(" "))
        group = np.array(_get(data, "group", list), dtype=np.intp)
        classes, groups = len(group), int(group.max(initial=-1)) + 1
        shape_class = _get(data, "shape_class", dict)
        if set(shape_class) != set(SHAPES):
            raise ValueError(f"lexicon.shape_class has {sorted(shape_class)}: it must have {sorted(SHAPES)}")
        word_class = _unpack(data, "word_class", np.uint8, (len(words),)).astype(np.intp)
        biggest = max(int(word_class.max(initial=0)), *shape_class.values())
        if biggest >= classes:
            raise ValueError(f"lexicon.word_class has class {biggest}: lexicon.group knows {classes} classes")
        return Lexicon(
            words=words,
            word_class=word_class,
            word_log_frequency=_unpack(data, "word_log_frequency", np.uint8, (len(words),)) / -10.0,
            shape_class=shape_class,
            group=group,
            pair_C_C=_unpack(data, "pair", np.int8, (classes,) * 2) * STEP,
            triple_G_G_G=_unpack(data, "triple", np.int8, (groups,) * 3) * STEP,
            letter_L_L_L=_unpack(data, "letter", np.int8, (LETTERS,) * 3) * STEP,
            log_share_C=_log_shares(data, classes),
            context=_context(_get(data, "context", dict), classes),
        )


def _quantised(table: FloatArray) -> Int8Array:
    return np.clip(np.round(table / STEP), -127, 127).astype(np.int8)


def _pack_scaled(array: NDArray[np.float32]) -> dict[str, Any]:
    """int8 with one scale: the largest weight becomes 127."""
    scale = float(np.abs(array).max()) / 127 or 1.0
    return {"shape": list(array.shape), "scale": scale, "values": _pack(np.round(array / scale).astype(np.int8))}


def _context(data: dict[str, Any], classes: int) -> ContextModel:
    """The network; its inner widths are read off the arrays and must fit together."""
    arrays = {}
    for name in ContextModel.__dataclass_fields__:
        entry = _get(data, name, dict)
        shape, scale = _get(entry, "shape", list), _get(entry, "scale", float)
        if not all(isinstance(n, int) and 0 < n <= 4096 for n in shape) or not 0 < scale < 1:
            raise ValueError(f"lexicon.context.{name} has shape {shape} and scale {scale}: fit the reference anew")
        arrays[name] = _unpack(entry, "values", np.int8, tuple(shape)).astype(np.float32) * np.float32(scale)
    embed, hidden = arrays["embedding"].shape[-1], arrays["hidden"].shape[-1]
    wanted = [(classes, embed), (CONTEXT * embed, hidden), (hidden,), (hidden, classes), (classes,)]
    found = [array.shape for array in arrays.values()]
    if found != wanted:
        raise ValueError(f"lexicon.context has shapes {found} instead of {wanted}: fit the reference anew")
    return ContextModel(**arrays)


def _log_shares(data: dict[str, Any], classes: int) -> FloatArray:
    shares = _get(data, "log_share", list)
    if len(shares) != classes or not all(isinstance(x, float) and -100 < x <= 0 for x in shares):
        raise ValueError(f"lexicon.log_share must be {classes} logarithms of shares: fit the reference anew")
    return np.array(shares)


def _pack(array: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode("ascii")


def _get(data: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(data, dict) or not isinstance(data.get(name), kind):
        raise ValueError(f"lexicon.{name} is missing or no {kind.__name__}: fit the reference anew")
    return data[name]


def _unpack(data: dict[str, Any], name: str, dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
    size = int(np.prod(shape))
    try:
        inflater = zlib.decompressobj()
        # The bound keeps a hostile file from filling memory.
        raw = inflater.decompress(base64.b64decode(_get(data, name, str), validate=True), size + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"lexicon.{name} cannot be unpacked ({error}): fit the reference anew") from error
    if len(raw) != size:
        raise ValueError(f"lexicon.{name} has {len(raw)} entries instead of {size}: fit the reference anew")
    return np.frombuffer(raw, dtype=dtype).reshape(shape)
