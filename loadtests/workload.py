"""What users ask for: prompts and lengths drawn from seeded distributions, and how many users there are when. Pure.

The same seed gives the same requests in the same order for each user, whatever the server does.
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

VOCABULARY = """
the a old young small great quiet long dark bright house river road garden window door morning evening winter
summer man woman child friend doctor captain teacher stranger letter story voice hand heart face water fire stone
tree horse ship town street city market school church field hill and but when while because before after under
over beside near without walked ran stood looked spoke asked answered laughed waited remembered forgot carried
opened closed found lost gave took saw heard knew thought slowly quickly again always never once there here home
"""
WORDS = VOCABULARY.split()
OPENINGS = ("Once upon a time", "The old man said", "In the morning", "Nobody knew why", "She opened the letter and")
SHAPES = ("ramp", "spike", "soak")


@dataclass(frozen=True)
class Lengths:
    """A log-normal distribution of whole numbers, cut at both ends: many short, few long, as lengths of texts are."""

    median: float
    sigma: float
    least: int
    most: int

    def draw(self, rng: random.Random) -> int:
        return min(self.most, max(self.least, round(rng.lognormvariate(math.log(self.median), self.sigma))))


@dataclass(frozen=True)
class Ask:
    """One request: a prompt's text and the tokens to write at most."""

    prompt: str
    num_tokens: int
    seed: int


# Sized for a model of 512 tokens: 120 of these words are at most 250 tokens.
PROMPT_WORDS = Lengths(median=20, sigma=0.8, least=2, most=120)
ANSWER_TOKENS = Lengths(median=48, sigma=0.7, least=8, most=200)
TEXT_WORDS = Lengths(median=80, sigma=0.5, least=10, most=300)


def rng_of(seed: int, *who: object) -> random.Random:
    """A stream of random numbers of one's own."""
    return random.Random("/".join(map(str, (seed, *who))))


def text_of(rng: random.Random, num_words: int) -> str:
    """So many words in sentences, no two texts alike."""
    words = [*rng.choice(OPENINGS).split()]
    while len(words) < num_words:
        sentence = rng.choices(WORDS, k=rng.randint(4, 12))
        words += [sentence[0].capitalize(), *sentence[1:-1], sentence[-1] + "."]
    return " ".join(words[:num_words])


def asks(rng: random.Random) -> Iterator[Ask]:
    """Requests without end."""
    for _ in itertools.count():
        yield Ask(text_of(rng, PROMPT_WORDS.draw(rng)), ANSWER_TOKENS.draw(rng), rng.randrange(2**32))


def users_at(shape: str, second: float, seconds: float, users: int) -> int:
    """How many users a shape has at a time of a run of so many seconds; `users` is the most it ever has.

    ramp: from one to all over the first three quarters, then all. spike: a quarter of them, and all of them in the
    third quarter of the time. soak: all of them throughout.
    """
    share = second / seconds
    if shape == "ramp":
        return max(1, min(users, math.ceil(users * share / 0.75)))
    if shape == "spike":
        return users if 0.5 <= share < 0.75 else max(1, users // 4)
    if shape == "soak":
        return users
    raise ValueError(f"shape={shape!r}: give one of {', '.join(SHAPES)}")


def parse_mix(text: str, kinds: tuple[str, ...]) -> dict[str, int]:
    """`generate=6,score=1` as weights; kinds left out have none. Raises ValueError naming what is wrong."""
    mix: dict[str, int] = {}
    for part in text.split(","):
        kind, _, weight = part.partition("=")
        if kind not in kinds or kind in mix or not weight.isdecimal():
            raise ValueError(f"mix={text!r}: {part!r} is none of KIND=WEIGHT, each once; kinds: {', '.join(kinds)}")
        mix[kind] = int(weight)
    if not any(mix.values()):
        raise ValueError(f"mix={text!r}: give at least one kind a weight above 0")
    return mix
