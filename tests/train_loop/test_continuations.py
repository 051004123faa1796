"""Prompts are what they say; a continuation depends on nothing but its prompt, setting and seed; MAUVE is MAUVE."""

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from serve.engine.request import SamplingParams
from tests.train_loop.small_model import byte_tokenizer, save_small_model
from training.continuations import PRESETS, Continuer, Prompt, continue_prompts, prompts_from
from training.mauve import LastHiddenStates, area_of_histograms, mauve_of_features, mauve_score

RNG = Random(0)
DOCUMENTS = ["".join(RNG.choices("abcdefgh .,", k=length)) for length in (400, 7, 250, 90)]
HOT = {"temperature": 1.3, "top_p": 0.9, "frequency_penalty": 0.2}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return prompts_from(DOCUMENTS, byte_tokenizer(), 30, 8, 12, seed=1)


def test_prompts_are_places_in_the_text_that_never_overlap(prompts: list[Prompt]) -> None:
    spans = []
    for prompt in prompts:
        found = [(d, document.find(prompt.text + prompt.human)) for d, document in enumerate(DOCUMENTS)]
        [place] = [(d, at) for d, at in found if at >= 0]
        spans.append(place)
        assert (len(prompt.ids), len(prompt.text), len(prompt.human), prompt.human_tokens) == (8, 8, 12, 12)
    taken = Counter((d, character) for d, at in spans for character in range(at, at + 20))
    assert max(taken.values()) == 1


def test_prompts_repeat_by_their_seed_and_more_than_the_text_holds_is_an_error(prompts: list[Prompt]) -> None:
    tokenizer = byte_tokenizer()
    assert prompts_from(DOCUMENTS, tokenizer, 30, 8, 12, seed=1) == prompts
    assert prompts_from(DOCUMENTS, tokenizer, 30, 8, 12, seed=2) != prompts
    with pytest.raises(ValueError, match="num_prompts is 40: the text holds 36 windows of 20 tokens"):
        prompts_from(DOCUMENTS, tokenizer, 40, 8, 12, seed=1)
    with pytest.raises(ValueError, match="prompt_tokens is 0"):
        prompts_from(DOCUMENTS, tokenizer, 1, 0, 12, seed=1)


@pytest.mark.parametrize("runner", ["auto", "torch"])
def test_a_continuation_is_the_same_alone_and_in_any_company(
    model_dir: Path, prompts: list[Prompt], runner: str
) -> None:
    continuer = Continuer(model_dir, runner, num_threads=1)
    seeds = list(range(100, 130))
    together = continuer(prompts, HOT, seeds=seeds)
    order = Random(5).sample(range(30), 30)
    shuffled = continuer([prompts[i] for i in order], HOT, seeds=[seeds[i] for i in order])
    assert [together[i].token_ids for i in order] == [c.token_ids for c in shuffled]
    alone = [continuer([prompts[i]], HOT, seeds=[seeds[i]])[0] for i in range(4)]
    assert [c.token_ids for c in alone] == [c.token_ids for c in together[:4]]
    assert len({tuple(c.token_ids) for c in together}) == 30


def test_a_continuation_has_the_length_of_the_human_one_and_a_number_for_each_token(
    model_dir: Path, prompts: list[Prompt]
) -> None:
    counts: list[int] = []
    params = {**PRESETS["aggressive"], "ignore_eos": True, "logit_bias": {256: -100.0}}
    found = continue_prompts(model_dir, prompts[:3], params, seeds=[1, 2, 3], progress=counts.append)
    assert [len(c.token_ids) for c in found] == [12, 12, 12]
    assert all(len(c.logprobs) == len(c.entropies) == 12 for c in found)
    assert sum(counts) == 36
    short = continue_prompts(model_dir, prompts[:1], SamplingParams(max_new_tokens=2, temperature=0.0), seeds=[0])
    assert len(short[0].token_ids) <= 2


def test_bad_settings_are_named_and_leave_the_engine_usable(model_dir: Path, prompts: list[Prompt]) -> None:
    continuer = Continuer(model_dir, num_threads=1)
    with pytest.raises(ValueError, match="params has 'temprature'"):
        continuer(prompts[:2], {"temprature": 1.0}, seeds=[1, 2])
    with pytest.raises(ValueError, match=r"top_p is 1\.7"):
        continuer(prompts[:2], {"top_p": 1.7}, seeds=[1, 2])
    with pytest.raises(ValueError, match="max_new_tokens is 500"):
        continuer(prompts[:2], {"max_new_tokens": 500}, seeds=[1, 2])
    with pytest.raises(ValueError, match="seeds has 1 entries"):
        continuer(prompts[:2], {}, seeds=[1])
    assert len(continuer(prompts[:2], {}, seeds=[1, 2])) == 2


def features(shift: float, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    drawn = np.random.default_rng(seed).normal(size=(120, 6))
    return (drawn + np.array([shift, 0, 0, 0, 0, 0])).astype(np.float32)


def test_the_area_of_histograms_is_the_packages_mauve() -> None:
    from mauve.compute_mauve import compute_mauve

    for shift in (0.0, 0.7, 3.0):
        found = compute_mauve(p_features=features(shift, 0), q_features=features(0.0, 1), seed=4)
        area = area_of_histograms(found.p_hist[None], found.q_hist[None])
        assert area[0] == pytest.approx(found.mauve, abs=1e-9)


def test_mauve_falls_with_distance_and_its_interval_holds_it() -> None:
    results = [mauve_of_features(features(shift, 0), features(0.0, 1), seed=2) for shift in (0.0, 1.0, 4.0)]
    assert results[0].value > results[1].high
    assert results[1].value > results[2].high
    for result in results:
        assert 0 <= result.low <= result.value <= result.high <= 1
        assert (result.num_texts, result.num_clusters, len(result.draws)) == (120, 12, 1000)
    again = mauve_of_features(features(1.0, 0), features(0.0, 1), seed=2)
    assert (again.value, again.low, again.high) == (results[1].value, results[1].low, results[1].high)


def test_features_of_a_text_do_not_depend_on_the_texts_beside_it(model_dir: Path) -> None:
    states = LastHiddenStates(model_dir)
    texts = ["", "a", "abc def", "hgf" * 60, "b" * 5]
    together = states(texts)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_allclose(states([text])[0], row, atol=1e-5)
    np.testing.assert_allclose(states(["hgf" * 32])[0], together[3], atol=1e-5)  # cut at 96 tokens


def test_mauve_of_texts_tells_like_from_unlike_and_refuses_too_few(
    model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = Random(1)
    one, two = (["".join(rng.choices("abcd ", k=30)) for _ in range(60)] for _ in range(2))
    other = ["".join(rng.choices("wxyz.", k=30)) for _ in range(60)]
    like, unlike = (mauve_score(one, texts, model_dir, seed=0, num_bootstrap=50) for texts in (two, other))
    assert like.value > unlike.high
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError, match="MAUVE of 19 texts: give at least 20"):
        mauve_score(one, other[:19], model_dir, seed=0, num_bootstrap=50)
