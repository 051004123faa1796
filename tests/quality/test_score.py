"""The score: defined for any text, explained exactly, lower for worse text."""

import json
import math
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.quality.corpus import passages, read_corpus
from serve.quality.degradations import FITTED, UNSEEN, Bank
from serve.quality.score import SHORTEST, QualityReport, QualityScorer, measure_text, score_matrix, seed_score, sigmoid
from tests.quality.conftest import PROSE

ODD_TEXTS = {
    "one token repeated": "the " * 5000,
    "no spaces": "a" * 1_000_000,
    "white space": " \n\t" * 1000,
    "control characters": "\x00\x01\x1b[31m\x7f" * 200,
    "right to left": "في البدء خلق الله السماوات والأرض " * 20,
    "emoji": "😀👩‍👩‍👧‍👦🏳️‍🌈 " * 100,
    "German": "Der alte Mann ging langsam zum Fluss hinunter, denn der Morgen war kalt. " * 5,
    "Chinese": "起初神创造天地。地是空虚混沌。" * 30,
    "code": "def f(x):\n    return {k: v for k, v in x.items() if k != 'y'}\n" * 20,
    "lone surrogates": "\ud800\udfff word " * 50,
    "combining marks": "e\u0301\u0323 " * 100,
    "brackets": "((((((((((" * 50,
    "a million full stops": "." * 1_000_000,
    "a million line ends": "x" + "\n" * 1_000_000 + "x",
    "a million quotes": '."' * 500_000,
    "a million apostrophes": "a'" * 500_000,
}


def check(report: QualityReport) -> None:
    json.dumps(report.to_json(), allow_nan=False)
    if report.score is None:
        assert report.reason
        return
    assert 0 <= report.score <= 1
    assert report.grade in {"EXCELLENT", "GOOD", "FAIR", "POOR"}
    assert report.logit is not None
    assert sum(report.contributions.values()) == report.logit
    assert report.score == sigmoid(report.logit)
    assert all(v <= 0 for k, v in report.contributions.items() if k != "baseline")


@given(st.text(max_size=400))
@settings(max_examples=150, deadline=None)
def test_any_text_has_an_answer_whose_parts_add_up(scorer: QualityScorer, text: str) -> None:
    check(scorer.score(text))
    check(scorer.score(text, num_tokens=SHORTEST))


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_texts_have_a_defined_answer(scorer: QualityScorer, name: str) -> None:
    check(scorer.score(ODD_TEXTS[name]))


def test_the_same_text_has_the_same_report(scorer: QualityScorer) -> None:
    assert scorer.score(PROSE) == scorer.score(PROSE)


def test_short_texts_are_not_scored(scorer: QualityScorer) -> None:
    empty = scorer.score("")
    assert (empty.score, empty.num_tokens) == (None, 0)
    assert empty.reason == "too short to score: the text is empty"
    short = scorer.score("Only a few words here.")
    assert short.score is None
    assert short.reason is not None
    assert "32 are needed" in short.reason
    assert scorer.score(PROSE, num_tokens=31).score is None
    assert scorer.score(PROSE, num_tokens=32).score is not None


def test_foreign_text_is_noted(scorer: QualityScorer) -> None:
    assert scorer.score(ODD_TEXTS["German"]).notes
    assert not scorer.score(PROSE).notes


def test_a_long_text_costs_a_bounded_number_of_windows(scorer: QualityScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.quality import score as module

    seen = []

    def counted(text: str, *rest: object) -> object:
        seen.append(len(text))
        return original(text, *rest)  # type: ignore[arg-type]

    original = module.text_features
    monkeypatch.setattr(module, "text_features", counted)
    scorer.score(PROSE * 2000)
    assert len(seen) == 8
    assert max(seen) <= 3000


def test_scores_of_a_batch_equal_single_scores(scorer: QualityScorer) -> None:
    texts = [PROSE, "the cat sat " * 40, PROSE.upper()]
    rows = np.stack([measure_text(scorer.reference, t).deviations_2F for t in texts])
    together = score_matrix(scorer.reference.heads["text"], rows)
    assert together == pytest.approx([scorer.score(t).score for t in texts])


@pytest.mark.parametrize("kind", ["random_fragments", "looped_phrase", "shuffled_words", "keyboard_mash"])
def test_spoiled_text_scores_below_the_text_it_was_made_from(scorer: QualityScorer, corpus: Path, kind: str) -> None:
    documents = read_corpus(corpus).documents
    draw = random.Random(3)
    texts = passages(documents, 12, draw, (150, 300))
    bank = Bank(documents[:20])
    apply = (FITTED | UNSEEN)[kind]
    human = np.mean([scorer.score(t).score for t in texts])
    spoiled = np.mean([scorer.score(apply(t, draw, bank)).score for t in texts])
    assert spoiled < human - 0.3


def test_more_repetition_never_scores_higher(scorer: QualityScorer) -> None:
    words = PROSE.split()
    logits = []
    for looped in (0, 20, 40, 60, 80):
        kept = words[: len(words) - looped]
        logits.append(scorer.score(" ".join(kept + (["and", "so", "on"] * 40)[:looped]), num_tokens=100).logit)
    assert all(a is not None and b is not None and a >= b for a, b in pairwise(logits))


def test_fitted_and_unseen_kinds_are_disjoint() -> None:
    assert not set(FITTED) & set(UNSEEN)
    assert not {f.__name__ for f in FITTED.values()} & {f.__name__ for f in UNSEEN.values()}


def test_seed_score_prefers_gibberish_to_prose() -> None:
    gibberish = " ".join(f"{i:x}zq" for i in range(100))
    assert seed_score(gibberish) == pytest.approx(1.0)
    assert seed_score(PROSE) < 0.95
    assert seed_score("") == pytest.approx(0.3)


def test_sigmoid_is_stable() -> None:
    assert sigmoid(-1e9) == pytest.approx(0.0)
    assert sigmoid(1e9) == 1.0
    assert sigmoid(math.log(3)) == pytest.approx(0.75)
