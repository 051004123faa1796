"""The sampling pipeline equals transformers' processors row by row, and its draws have the exact distribution.

The chi-square tests refuse a right sampler with probability FALSE_ALARM each; their seeds are fixed, so that a run
repeats the one before.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from serve.engine.reference import choose_naively, process_naively
from serve.engine.request import SamplingParams
from serve.engine.runner import BROKEN_LOGITS
from serve.engine.sampling import NUM_DRAWS, Truncation, draw, kept_mask, uniforms
from serve.engine.slot_sampler import SlotSampler

FALSE_ALARM = 1e-6
VOCAB = 61


def logits(num_rows: int, seed: int, scale: float = 2.0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def truncation(params: list[SamplingParams]) -> Truncation:
    return Truncation(
        np.array([p.top_k for p in params], np.int64),
        np.array([p.top_p for p in params], np.float64),
        np.array([p.min_p for p in params], np.float32),
        np.array([p.typical_p for p in params], np.float64),
    )


# --- uniform numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "index", "draw_index", "value"),
    [
        (0, 0, 0, 0.6524484863740322),
        (1, 0, 0, 0.36818951565166946),
        (1, 1, 0, 0.444489756366946),
        (1, 0, 1, 0.9435642308648544),
        (2**63 - 1, 1000, 16, 0.20138071806413194),
    ],
)
def test_uniform_numbers_are_those_every_runner_must_give(seed, index, draw_index, value) -> None:
    assert uniforms(np.array([seed], np.uint64), np.array([index]), draw_index)[0] == value


@pytest.mark.parametrize("moving", ["seed", "index", "draw"])
def test_uniform_numbers_are_uniform_along_each_argument(moving: str) -> None:
    count = np.arange(20_000)
    zeros = np.zeros_like(count)
    if moving == "draw":
        u = np.array([uniforms(np.array([9], np.uint64), np.array([4]), int(d))[0] for d in count[:4000]])
    else:
        seeds, indices = (count, zeros) if moving == "seed" else (zeros + 9, count)
        u = uniforms(seeds.astype(np.uint64), indices, 0)
    pairs = np.histogram2d(u[::2], u[1::2], bins=8, range=[[0, 1], [0, 1]])[0].ravel()
    statistic = ((pairs - pairs.mean()) ** 2 / pairs.mean()).sum()
    assert statistic < chi2.isf(FALSE_ALARM, 63)


# --- processors ------------------------------------------------------------------------------------------------------

PROCESSORS = {
    "logit_bias": {"logit_bias": {3: 4.0, 60: -100.0}},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "a repetition_penalty that rewards": {"repetition_penalty": 0.6},
    "frequency_penalty": {"frequency_penalty": 0.8},
    "presence_penalty": {"presence_penalty": -0.9},
    "no_repeat_ngram_size 1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram_size 3": {"no_repeat_ngram_size": 3},
    "all at once": {
        "logit_bias": {1: -3.0, 2: 1.0},
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "no_repeat_ngram_size": 2,
    },
    "none": {},
}
PROMPT = [1, 2, 3, 1, 2, 3, 7, 60, 1, 2]
OUTPUT = [5, 5, 2, 3, 1, 2]


@pytest.mark.parametrize("name", sorted(PROCESSORS))
def test_each_processor_equals_transformers_on_the_same_logits(name: str) -> None:
    params = SamplingParams(**PROCESSORS[name])
    sampler = SlotSampler(3, VOCAB)
    sampler.add(1, PROMPT, params, 0, OUTPUT)
    raw = logits(1, 5)
    ours = sampler._process(raw, np.array([1], np.int32), sampler._flags[[1]])[0]
    torch.testing.assert_close(ours, process_naively(raw[0], PROMPT, OUTPUT, params), rtol=0, atol=1e-6)


params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.8]),
    top_k=st.sampled_from([0, 0, 1, 7, 60, 61, 500]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    typical_p=st.sampled_from([1.0, 1.0, 0.6]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.4, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    presence_penalty=st.sampled_from([0.0, -0.5]),
    no_repeat_ngram_size=st.sampled_from([0, 0, 1, 2, 3]),
    logit_bias=st.sampled_from([None, {4: 3.0, 5: -2.0}]),
    num_logprobs=st.sampled_from([None, 0, 3]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(params_strategy, min_size=1, max_size=5), st.integers(0, 10_000))
def test_rows_with_different_parameters_each_get_what_the_literal_rule_gives(params, case) -> None:
    sampler = SlotSampler(8, VOCAB)
    slots = np.array([7, 2, 5, 0, 3][: len(params)], np.int32)
    outputs: list[list[int]] = [[] for _ in params]
    for row, slot in enumerate(slots):
        sampler.add(int(slot), PROMPT, params[row], seed=case + row, output_ids=[])
    for step in range(4):
        raw = logits(len(params), case + step)
        got = sampler.sample(raw, slots)
        for row, p in enumerate(params):
            token = choose_naively(raw[row], PROMPT, outputs[row], p, case + row, step)
            assert got.token_ids[row] == token
            outputs[row].append(token)
        logp = raw.log_softmax(1)
        np.testing.assert_allclose(got.logprobs, logp[range(len(params)), got.token_ids], atol=1e-6)
        np.testing.assert_allclose(got.entropies, -(logp * logp.exp()).sum(1), atol=1e-5)
        for row, p in enumerate(params):
            best = logp[row].topk(p.num_logprobs or 0)
            if got.top_logprobs is not None:
                assert [t for t, _ in got.top_logprobs[row]] == best.indices.tolist()
            else:
                assert not p.num_logprobs


@pytest.mark.parametrize("name", sorted(PROCESSORS))
def test_a_slot_set_up_again_after_preemption_draws_as_if_it_had_never_left(name: str) -> None:
    params = SamplingParams(**PROCESSORS[name], top_p=0.9)
    stayed, back = SlotSampler(2, VOCAB), SlotSampler(2, VOCAB)
    stayed.add(0, PROMPT, params, 3, [])
    output: list[int] = []
    for step in range(12):
        back.add(1, PROMPT, params, 3, output)
        raw = logits(1, step)
        token = int(stayed.sample(raw, np.array([0], np.int32)).token_ids[0])
        assert int(back.sample(raw, np.array([1], np.int32)).token_ids[0]) == token
        back.remove(1)
        output.append(token)


def test_a_slot_keeps_nothing_of_its_former_request() -> None:
    sampler = SlotSampler(1, VOCAB)
    sampler.add(0, PROMPT, SamplingParams(**PROCESSORS["all at once"]), 0, OUTPUT)
    sampler.remove(0)
    sampler.add(0, [9], SamplingParams(frequency_penalty=0.1, repetition_penalty=1.5), 0, [])
    raw = logits(1, 1)
    ours = sampler._process(raw, np.array([0], np.int32), sampler._flags[[0]])[0]
    wanted = process_naively(raw[0], [9], [], SamplingParams(frequency_penalty=0.1, repetition_penalty=1.5))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6)


def test_a_ban_of_the_whole_vocabulary_is_lifted() -> None:
    sampler = SlotSampler(1, 4)
    sampler.add(0, [0, 1, 2, 3], SamplingParams(no_repeat_ngram_size=1, temperature=0.0), 0, [])
    assert sampler.sample(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), np.zeros(1, np.int32)).token_ids[0] == 1


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SamplingParams(top_p=0.9)])
def test_a_row_that_is_not_all_numbers_is_an_error_and_a_masked_id_is_none(
    broken: float, params: SamplingParams
) -> None:
    sampler, slot = SlotSampler(1, VOCAB), np.zeros(1, np.int32)
    sampler.add(0, PROMPT, params, 0, OUTPUT)
    raw = logits(1, 1)
    raw[0, 7] = broken
    with pytest.raises(RuntimeError, match=BROKEN_LOGITS):
        sampler.sample(raw, slot)
    raw[0, 7] = -torch.inf
    assert 0 <= sampler.sample(raw, slot).token_ids[0] < VOCAB


# --- truncation ------------------------------------------------------------------------------------------------------

TRUNCATIONS = [
    SamplingParams(top_k=5),
    SamplingParams(top_k=1),
    SamplingParams(top_k=500),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.3),
    SamplingParams(min_p=0.1),
    SamplingParams(typical_p=0.8),
    SamplingParams(typical_p=0.2),
    SamplingParams(top_k=20, top_p=0.7),
    SamplingParams(top_k=9, top_p=0.95, min_p=0.2),
    SamplingParams(top_k=30, top_p=0.9, min_p=0.01, typical_p=0.9),
    SamplingParams(),
]


def transformers_mask(z: torch.Tensor, p: SamplingParams) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(1.0)])
    if p.top_k:
        warpers.append(TopKLogitsWarper(p.top_k))
    if p.top_p < 1:
        warpers.append(TopPLogitsWarper(p.top_p))
    if p.min_p:
        warpers.append(MinPLogitsWarper(p.min_p))
    if p.typical_p < 1:
        warpers.append(TypicalLogitsWarper(p.typical_p))
    return warpers(None, z) > -torch.inf


def test_the_kept_set_of_each_row_is_that_of_transformers() -> None:
    for case in range(30):
        z = logits(len(TRUNCATIONS), case, scale=0.5 + case / 8)
        ours = kept_mask(z, truncation(TRUNCATIONS))
        for row, params in enumerate(TRUNCATIONS):
            assert torch.equal(ours[row], transformers_mask(z[row : row + 1], params)[0]), params


@pytest.mark.parametrize("params", [SamplingParams(top_k=3), SamplingParams(top_p=0.5), SamplingParams(min_p=1.0)])
def test_tokens_of_equal_logits_are_kept_or_dropped_together(params: SamplingParams) -> None:
    z = torch.tensor([[2.0, 1.0, 2.0, 2.0, 1.0, 2.0, 0.0]])
    assert kept_mask(z, truncation([params]))[0].tolist() == [True, False, True, True, False, True, False]


# --- draws -----------------------------------------------------------------------------------------------------------


def chi_square_holds(tokens: np.ndarray, probabilities: np.ndarray) -> bool:
    counts = np.bincount(tokens, minlength=len(probabilities))
    if counts[probabilities == 0].any():
        return False
    # Cells with few expected counts are joined: the statistic's law is then what it should be.
    order = np.argsort(probabilities)
    expected, observed = probabilities[order] * len(tokens), counts[order]
    first = int(np.searchsorted(np.cumsum(expected), 20.0)) + 1
    expected = np.r_[expected[:first].sum(), expected[first:]]
    observed = np.r_[observed[:first].sum(), observed[first:]]
    expected, observed = expected[expected > 0], observed[expected > 0]
    if len(expected) == 1:
        return True
    return float(((observed - expected) ** 2 / expected).sum()) < chi2.isf(FALSE_ALARM, len(expected) - 1)


def exact(z: torch.Tensor, params: SamplingParams) -> np.ndarray:
    mask = kept_mask(z, truncation([params]))
    return z.masked_fill(~mask, -torch.inf).double().softmax(1)[0].numpy()


LOW_MASS = SamplingParams(top_p=0.02)  # accepted so rarely that the restricted draw after 16 refusals is common


@pytest.mark.parametrize(
    "params", [*TRUNCATIONS, LOW_MASS], ids=lambda p: f"k{p.top_k} p{p.top_p} m{p.min_p} y{p.typical_p}"
)
def test_draws_have_the_exact_distribution(params: SamplingParams) -> None:
    num = 30_000
    z = logits(1, 3, scale=1.0)
    seeds = np.arange(num, dtype=np.uint64) * 7
    tokens = draw(z.expand(num, -1), truncation([params] * num), seeds, np.full(num, 5)).numpy()
    assert chi_square_holds(tokens, exact(z, params))


def test_the_chi_square_test_sees_a_wrong_sampler() -> None:
    num, z = 30_000, logits(1, 3, scale=1.0)
    seeds = np.arange(num, dtype=np.uint64)
    tokens = draw(z.expand(num, -1), truncation([SamplingParams(top_p=0.88)] * num), seeds, np.zeros(num, int)).numpy()
    assert not chi_square_holds(tokens, exact(z, SamplingParams(top_p=0.9)))
    assert not chi_square_holds(tokens, exact(z * 1.05, SamplingParams(top_p=0.88)))


def test_the_low_mass_case_reaches_the_restricted_draw(monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("serve.engine.sampling.uniforms", lambda s, i, d: asked.append(d) or uniforms(s, i, d))
    draw(
        logits(1, 3, 1.0).expand(50, -1), truncation([LOW_MASS] * 50), np.arange(50, dtype=np.uint64), np.zeros(50, int)
    )
    assert NUM_DRAWS in asked


def test_nucleus_and_top_k_sampling_never_sort_the_vocabulary(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("sorted the vocabulary")

    monkeypatch.setattr(torch.Tensor, "sort", refuse)
    monkeypatch.setattr(torch.Tensor, "argsort", refuse)
    params = [SamplingParams(top_p=0.9), SamplingParams(top_k=50), SamplingParams(top_p=0.95, top_k=40, min_p=0.02)] * 8
    draw(logits(24, 1, vocab=5000), truncation(params), np.arange(24, dtype=np.uint64), np.zeros(24, int))


def test_a_row_is_drawn_alike_alone_and_among_others() -> None:
    params = [*TRUNCATIONS, LOW_MASS]
    n = len(params)
    z, seeds, indices = logits(n, 11, 1.0), np.arange(n, dtype=np.uint64), np.arange(n)
    together = draw(z, truncation(params), seeds, indices)
    for row in range(n):
        alone = draw(z[row : row + 1], truncation(params[row : row + 1]), seeds[row : row + 1], indices[row : row + 1])
        assert alone[0] == together[row]


def test_a_number_at_the_very_top_of_its_range_gives_a_token_that_is_allowed(monkeypatch) -> None:
    monkeypatch.setattr("serve.engine.sampling.uniforms", lambda s, i, d: np.full(len(s), 1.0))
    z = torch.tensor([[0.0, 1.0, 2.0, -200.0, -300.0]])
    assert draw(z, truncation([SamplingParams()]), np.zeros(1, np.uint64), np.zeros(1, int)).tolist() == [2]


def test_the_number_zero_gives_the_first_token_that_is_allowed(monkeypatch) -> None:
    monkeypatch.setattr("serve.engine.sampling.uniforms", lambda s, i, d: np.zeros(len(s)))
    z = torch.tensor([[-300.0, 0.0, 2.0, 1.5]])
    assert draw(z, truncation([SamplingParams(top_k=2)]), np.zeros(1, np.uint64), np.zeros(1, int)).tolist() == [2]
    assert draw(z, truncation([SamplingParams()]), np.zeros(1, np.uint64), np.zeros(1, int)).tolist() == [1]
