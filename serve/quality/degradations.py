"""Known ways in which generated text goes wrong, made from human text. Offline; deterministic in the Random.

FITTED kinds serve as negatives of the fit. UNSEEN kinds are never fitted: they show what the score makes of damage that
it was not taught. A test holds the two sets apart.
"""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from random import Random

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_KEY_ROWS = ("qwertyuiop", "asdfghjkl;", "zxcvbnm,./")
_LEET = str.maketrans("aeiost", "431057")


class Bank:
    """What degradations and restylings draw from: words, their frequencies and chains, all of human text.

    rare: words seen once or twice, by their last two letters. names: capitalised words never seen in lower case.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.words = " ".join(texts).split()
        self.vocabulary = sorted(Counter(self.words))
        self.text = " ".join(self.words)
        counts = Counter(self.words)
        self.rare = defaultdict[str, list[str]](list)
        for word in self.vocabulary:
            if counts[word] <= 2 and len(word) > 4 and word.isalpha() and word.islower():
                self.rare[word[-2:]].append(word)
        self.names = [w for w in self.vocabulary if w.istitle() and w.isalpha() and w.lower() not in counts] or [
            "Anna",
            "Maria",
            "Peter",
        ]

    @cached_property
    def after_one(self) -> dict[str, list[str]]:
        """Words that follow a word."""
        chain = defaultdict[str, list[str]](list)
        for a, b in pairwise(self.words):
            chain[a].append(b)
        return chain

    @cached_property
    def after_two(self) -> dict[tuple[str, str], list[str]]:
        """Words that follow two words."""
        chain = defaultdict[tuple[str, str], list[str]](list)
        for a, b, c in zip(self.words, self.words[1:], self.words[2:], strict=False):
            chain[a, b].append(c)
        return chain

    @cached_property
    def after_letters(self) -> dict[str, list[str]]:
        """Characters that follow four characters."""
        chain = defaultdict[str, list[str]](list)
        for i in range(len(self.text) - 4):
            chain[self.text[i : i + 4]].append(self.text[i + 4])
        return chain


Apply = Callable[[str, Random, Bank], str]


def _random_words(text: str, random: Random, bank: Bank) -> str:
    return " ".join(random.choices(bank.vocabulary, k=len(text.split())))


def _random_fragments(text: str, random: Random, bank: Bank) -> str:
    """What random token ids decode to: bits of words from anywhere, glued."""
    parts: list[str] = []
    length = 0
    while length < len(text):
        start = random.randrange(len(bank.text) - 10)
        parts.append(bank.text[start : start + random.randint(1, 8)])
        length += len(parts[-1])
    return "".join(parts)


def _word_salad(text: str, random: Random, bank: Bank) -> str:
    return " ".join(random.choices(bank.words, k=len(text.split())))


def _shuffled_words(text: str, random: Random, bank: Bank) -> str:
    words = text.split()
    random.shuffle(words)
    return " ".join(words)


def _locally_shuffled(text: str, random: Random, bank: Bank) -> str:
    words, size = text.split(), random.randint(3, 6)
    parts = [words[i : i + size] for i in range(0, len(words), size)]
    for part in parts:
        random.shuffle(part)
    return " ".join(word for part in parts for word in part)


def _looped_phrase(text: str, random: Random, bank: Bank) -> str:
    words = text.split()
    size = random.randint(1, min(20, max(1, len(words) // 3)))
    start = random.randrange(max(1, len(words) - size))
    phrase = words[start : start + size]
    return " ".join((phrase * (len(words) // size + 1))[: len(words)])


def _falls_into_loop(text: str, random: Random, bank: Bank) -> str:
    words = text.split()
    kept = int(len(words) * random.uniform(0.2, 0.5))
    size = random.randint(2, max(2, min(15, kept)))
    phrase = words[max(0, kept - size) : kept] or words[:1]
    return " ".join((words[:kept] + phrase * len(words))[: len(words)])


def _letter_noise(text: str, random: Random, bank: Bank) -> str:
    rate = random.uniform(0.05, 0.3)
    letters = string.ascii_lowercase + " "
    return "".join(random.choice(letters) if random.random() < rate else c for c in text)


def _random_letters(text: str, random: Random, bank: Bank) -> str:
    return "".join(random.choices(string.ascii_lowercase + "    ", k=len(text)))


def _random_characters(text: str, random: Random, bank: Bank) -> str:
    return "".join(random.choices(string.printable[:95], k=len(text)))


def _markov_words(text: str, random: Random, bank: Bank) -> str:
    words = [random.choice(bank.words)]
    for _ in text.split():
        words.append(random.choice(bank.after_one.get(words[-1]) or bank.words))
    return " ".join(words)


def _dropped_words(text: str, random: Random, bank: Bank) -> str:
    rate = random.uniform(0.3, 0.6)
    return " ".join(word for word in text.split() if random.random() > rate)


def _replaced_words(text: str, random: Random, bank: Bank) -> str:
    rate = random.uniform(0.3, 0.8)
    return " ".join(random.choice(bank.words) if random.random() < rate else word for word in text.split())


def _cut_words(text: str, random: Random, bank: Bank) -> str:
    rate = random.uniform(0.2, 0.6)
    cut = (w[: random.randint(1, len(w))] if random.random() < rate else w for w in text.split())
    return " ".join(cut)


def _lost_spaces(text: str, random: Random, bank: Bank) -> str:
    rate = random.uniform(0.3, 0.9)
    return "".join("" if c == " " and random.random() < rate else c for c in text)


def _stray_marks(text: str, random: Random, bank: Bank) -> str:
    rate = random.uniform(0.2, 0.6)
    stray = (word + random.choice(' ,.;:!?"()[]*-') if random.random() < rate else word for word in text.split())
    return " ".join(stray)


def _half_spoiled(text: str, random: Random, bank: Bank) -> str:
    """Human up to somewhere before the middle, then another fitted kind."""
    words = text.split()
    kept = int(len(words) * random.uniform(0.2, 0.5))
    spoil = random.choice([_word_salad, _random_fragments, _markov_words, _shuffled_words, _letter_noise])
    return " ".join(words[:kept]) + " " + spoil(" ".join(words[kept:]), random, bank)


def _all_capitals(text: str, random: Random, bank: Bank) -> str:
    return text.upper()


def _random_case(text: str, random: Random, bank: Bank) -> str:
    return "".join(c.upper() if random.random() < 0.3 else c for c in text)


FITTED: Mapping[str, Apply] = {
    "random_words": _random_words,
    "random_fragments": _random_fragments,
    "word_salad": _word_salad,
    "shuffled_words": _shuffled_words,
    "locally_shuffled": _locally_shuffled,
    "looped_phrase": _looped_phrase,
    "falls_into_loop": _falls_into_loop,
    "letter_noise": _letter_noise,
    "random_letters": _random_letters,
    "random_characters": _random_characters,
    "markov_words": _markov_words,
    "dropped_words": _dropped_words,
    "replaced_words": _replaced_words,
    "cut_words": _cut_words,
    "lost_spaces": _lost_spaces,
    "stray_marks": _stray_marks,
    "half_spoiled": _half_spoiled,
    "all_capitals": _all_capitals,
    "random_case": _random_case,
}


def _keyboard_mash(text: str, random: Random, bank: Bank) -> str:
    out: list[str] = []
    while len(out) < len(text):
        row = random.choice(_KEY_ROWS)
        at = random.randrange(len(row))
        for _ in range(random.randint(3, 12)):
            at = max(0, min(len(row) - 1, at + random.choice([-2, -1, 1, 2])))
            out.append(row[at])
        out += [" "] * (random.random() < 0.7)
    return "".join(out)[: len(text)]


def _markov_letters(text: str, random: Random, bank: Bank) -> str:
    out = bank.text[(start := random.randrange(len(bank.text) - 5)) : start + 4]
    parts = [out]
    for _ in range(len(text) - 4):
        following = random.choice(bank.after_letters.get(out) or [" "])
        parts.append(following)
        out = out[1:] + following
    return "".join(parts)


def _markov_words_2(text: str, random: Random, bank: Bank) -> str:
    start = random.randrange(len(bank.words) - 1)
    words = bank.words[start : start + 2]
    for _ in text.split():
        words.append(random.choice(bank.after_two.get((words[-2], words[-1])) or bank.words))
    return " ".join(words)


def _edited_repeats(text: str, random: Random, bank: Bank) -> str:
    """One sentence again and again, a word or two changed each time."""
    words = text.split()
    sentence = words[: random.randint(8, 16)]
    out: list[str] = []
    while len(out) < len(words):
        copy = list(sentence)
        for _ in range(random.randint(1, 2)):
            copy[random.randrange(len(copy))] = random.choice(bank.words)
        out += copy
    return " ".join(out[: len(words)])


def _reversed_words(text: str, random: Random, bank: Bank) -> str:
    return " ".join(reversed(text.split()))


def _stutter(text: str, random: Random, bank: Bank) -> str:
    rate = random.uniform(0.2, 0.6)
    return " ".join(f"{word} {word}" if random.random() < rate else word for word in text.split())


def _no_vowels(text: str, random: Random, bank: Bank) -> str:
    return re.sub("[aeiou]", "", text)


def _leet(text: str, random: Random, bank: Bank) -> str:
    return text.translate(_LEET)


def _scrambled_inside(text: str, random: Random, bank: Bank) -> str:
    """The inner letters of every word shuffled."""
    words = []
    for word in text.split():
        inner = list(word[1:-1])
        random.shuffle(inner)
        words.append(word[:1] + "".join(inner) + word[1:][-1:])
    return " ".join(words)


def _spliced_phrases(text: str, random: Random, bank: Bank) -> str:
    """Runs of 2 to 4 words from anywhere."""
    words: list[str] = []
    while len(words) < len(text.split()):
        start = random.randrange(len(bank.words) - 4)
        words += bank.words[start : start + random.randint(2, 4)]
    return " ".join(words)


def _swapped_neighbours(text: str, random: Random, bank: Bank) -> str:
    words = text.split()
    for i in range(0, len(words) - 1, 2):
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def _no_function_words(text: str, random: Random, bank: Bank) -> str:
    common = {word for word, _ in Counter(bank.words).most_common(40)}
    return " ".join(word for word in text.split() if word.lower() not in common)


def _numbered_loop(text: str, random: Random, bank: Bank) -> str:
    phrase = " ".join(text.split()[: random.randint(2, 6)])
    return " ".join(f"{i}. {phrase}" for i in range(1, 2 + len(text) // (len(phrase) + 4)))


UNSEEN: Mapping[str, Apply] = {
    "keyboard_mash": _keyboard_mash,
    "markov_letters": _markov_letters,
    "markov_words_2": _markov_words_2,
    "edited_repeats": _edited_repeats,
    "reversed_words": _reversed_words,
    "stutter": _stutter,
    "no_vowels": _no_vowels,
    "leet": _leet,
    "scrambled_inside": _scrambled_inside,
    "spliced_phrases": _spliced_phrases,
    "swapped_neighbours": _swapped_neighbours,
    "no_function_words": _no_function_words,
    "numbered_loop": _numbered_loop,
}


def shuffled_sentences(text: str, random: Random) -> str:
    """The sentences in another order. Reported apart: every sentence is human, only their order is not."""
    sentences = _SENTENCE_END.split(text)
    random.shuffle(sentences)
    return " ".join(sentences)
