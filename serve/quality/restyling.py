"""The same human text as another publisher sets it, or as another genre would have it. Offline; plain Python.

A corpus of books knows one way to set quotes, no modern words and few verses. What differs there must not count
against a text, so a share of the human passages is restyled before anything is fitted on them.
"""

import re
from collections.abc import Callable, Sequence
from random import Random

from serve.quality.degradations import Bank

_MARK = re.compile(r"([^\w\s])")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_SHORT = 4


def restyle(text: str, random: Random, bank: Bank) -> str:
    """One of STYLES; a technical text is also spaced or set on one line half of the time."""
    style = random.choice(STYLES)
    text = style(text, random, bank)
    if style is _technical and random.random() < 0.5:
        text = random.choice([_spaced, _one_line])(text, random, bank)
    return text


def _spaced(text: str, random: Random, bank: Bank) -> str:
    """Marks stand alone, as in tokenised corpora."""
    return " ".join(_MARK.sub(r" \1 ", text).split())


def _one_line(text: str, random: Random, bank: Bank) -> str:
    return " ".join(text.split())


def _curly_quotes(text: str, random: Random, bank: Bank) -> str:
    text = re.sub(r'(^|[\s(])"', "\\1“", text).replace('"', "”")
    return text.replace("'", "’")  # noqa: RUF001


def _single_quotes(text: str, random: Random, bank: Bank) -> str:
    return text.replace('"', "'")


def _wrapped(text: str, random: Random, bank: Bank) -> str:
    words, lines, width = text.split(), [""], random.randint(50, 80)
    for word in words:
        lines[-1] += word + " "
        if len(lines[-1]) > width:
            lines.append("")
    return "\n".join(line.rstrip() for line in lines).rstrip()


def _verse(text: str, random: Random, bank: Bank) -> str:
    """Lines of a few words, each with a capital."""
    words, lines = text.split(), []
    while words:
        size = random.randint(5, 9)
        line, words = " ".join(words[:size]), words[size:]
        lines.append(line[:1].upper() + line[1:])
    return "\n".join(lines)


def _speakers(text: str, random: Random, bank: Bank) -> str:
    """A play: names, some in capitals, before every few sentences."""
    names = random.sample(bank.names, 3)
    names = [name.upper() for name in names] if random.random() < 0.5 else names
    end = random.choice([". ", "\n", ": "])
    parts = _SENTENCE_END.split(text.replace('"', ""))
    speeches = []
    while parts:
        size = random.randint(1, 4)
        speeches.append(random.choice(names) + end + " ".join(parts[:size]))
        parts = parts[size:]
    return "\n\n".join(speeches)


def _technical(text: str, random: Random, bank: Bank) -> str:
    """Human grammar about unfamiliar things: longer words give way to rare ones of the same ending, names, numbers."""
    rate, named, numbered = random.uniform(0.1, 0.6), random.uniform(0.0, 0.25), random.uniform(0.0, 0.08)

    def swap(word: str) -> str:
        core = word.strip(",.;:!?\"'()[]")
        if len(core) <= _SHORT or not core.isalpha() or core not in word:
            return word
        draw = random.random()
        if draw < numbered:
            return word.replace(core, str(random.randrange(1, 2100)))
        if draw < numbered + named:
            return word.replace(core, random.choice(bank.names))
        if draw < numbered + named + rate and core.islower():
            return word.replace(core, random.choice(bank.rare.get(core[-2:]) or [core]))
        return word

    return re.sub(r"\S+", lambda match: swap(match.group()), text)


STYLES: Sequence[Callable[[str, Random, Bank], str]] = (
    _spaced,
    _one_line,
    _curly_quotes,
    _single_quotes,
    _wrapped,
    _verse,
    _speakers,
    _technical,
    _technical,
    _technical,
)
