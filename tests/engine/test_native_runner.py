"""The native runner computes what transformers computes, row by row the same in any batch, and draws by the rule."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from serve.engine.engine import Engine, EngineLimits
from serve.engine.loader import load_runner
from serve.engine.native.weights import StoredTensor
from serve.engine.native_runner import weight_format
from serve.engine.reference import generate_naively
from serve.engine.request import SamplingParams
from serve.engine.runner import BROKEN_LOGITS, Runner, RunnerOptions
from serve.engine.slot_sampler import SlotSampler
from tests.engine.helpers import run_to_end
from tests.engine.native_models import (
    CONFIGS,
    KERNELS,
    available_kernels,
    model,
    native,
    require_library,
    save,
    step,
)  # fmt: skip
from tests.engine.test_torch_runner import prompt, requests_of_all_kinds

GREEDY = SamplingParams(temperature=0.0)
NEEDS = {"bfloat16": "avx512_bf16", "int8": "avx512_vnni"}


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    require_library()


def true_logits(kind: str, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(kind)(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()


def logits_of(runner, rows, sample=None) -> np.ndarray:
    for slot, _, _ in rows:
        runner.add_request(slot, [1], GREEDY, 0)
    logits = runner.logits(step(runner, rows, sample))[1]
    for slot, _, _ in rows:
        runner.remove_request(slot)
    return logits


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize("kernels", KERNELS)
def test_logits_are_those_of_transformers_on_every_instruction_set(kind: str, kernels: str) -> None:
    if kernels not in available_kernels():
        pytest.skip(f"this processor has no {kernels}")
    runner, ids = native(kind, kernels), prompt(37)
    wanted = true_logits(kind, ids)
    got = logits_of(runner, [(2, 0, ids)])[0]
    np.testing.assert_allclose(got, wanted[-1], atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_bfloat16_weights_stay_near(kind: str) -> None:
    if "avx512_bf16" not in available_kernels():
        with pytest.raises(ValueError, match="no AVX-512 BF16"):
            native(kind, dtype="bfloat16")
        return
    wanted = true_logits(kind, prompt(37))[-1]
    got = logits_of(native(kind, dtype="bfloat16"), [(0, 0, prompt(37))])[0]
    np.testing.assert_allclose(got, wanted, atol=0.05 * np.abs(wanted).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["grouped", "one_key_head_for_twelve"])
def test_a_row_is_bit_for_bit_the_same_in_any_batch_chunk_and_number_of_threads(kind: str, dtype: str) -> None:
    if NEEDS.get(dtype, "portable") not in available_kernels():
        pytest.skip(f"this processor has no {NEEDS[dtype]}")
    ids, runner = prompt(50), native(kind, dtype=dtype)
    alone = logits_of(runner, [(0, 0, ids)])
    for others in (1, 2, 3, 4):
        rows = [(s, 0, prompt(7 * s + 1, s)) for s in range(1, others + 1)]
        crowded = logits_of(runner, [*rows, (0, 0, ids)])
        assert (crowded[-1] == alone[0]).all(), others
    for cuts in ([17], [1, 2, 3], [16, 32, 48], [49]):
        for start, stop in zip([0, *cuts], [*cuts, 50], strict=True):
            chunk = logits_of(runner, [(1, 0, prompt(3)), (0, start, ids[start:stop])])
        assert (chunk[1] == alone[0]).all(), cuts
    threaded = logits_of(native(kind, dtype=dtype, threads=3), [(3, 0, prompt(9)), (0, 0, ids)])
    assert (threaded[1] == alone[0]).all()


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_an_engine_under_preemption_generates_what_the_oracle_does(kind: str) -> None:
    runner = native(kind, num_blocks=6)
    assert isinstance(runner, Runner)
    engine = Engine(runner, EngineLimits(max_tokens_per_step=21))
    requests = requests_of_all_kinds()
    collected = run_to_end(engine, requests)
    assert engine.stats.num_preemptions > 0
    for request in requests:
        wanted = generate_naively(model(kind), request.prompt_ids, request.params, eos_token_ids=(2,))
        i = request.request_id
        assert collected.tokens[i] == wanted.token_ids, i
        assert collected.reasons[i] == wanted.finish_reason
        np.testing.assert_allclose(collected.logprobs[i], wanted.logprobs, atol=2e-4)
        np.testing.assert_allclose(collected.entropies[i], wanted.entropies, atol=2e-4)


SAMPLED = [
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"temperature": 0.6, "top_p": 0.3, "top_k": 40},
    {"temperature": 1.8, "top_k": 7},
    {"top_k": 99, "min_p": 0.02},
    {"min_p": 0.3, "top_p": 0.6},
    {"typical_p": 0.4, "top_k": 50, "temperature": 1.3},
    {"typical_p": 0.9, "top_p": 0.8, "min_p": 0.01},
    {"repetition_penalty": 1.5, "frequency_penalty": 0.3, "presence_penalty": -0.2},
    {"no_repeat_ngram_size": 1, "top_p": 0.7},
    {"no_repeat_ngram_size": 3, "logit_bias": {5: 3.0, 99: -100.0, 6: 2.5}, "repetition_penalty": 0.8},
    {"temperature": 0.0, "no_repeat_ngram_size": 2, "frequency_penalty": 1.0, "num_logprobs": 5},
    {"num_logprobs": 50, "top_p": 0.5},
]


@pytest.mark.parametrize("options", SAMPLED, ids=str)
def test_tokens_and_numbers_are_those_of_the_torch_pipeline_on_the_same_logits(options) -> None:
    runner, params = native("grouped"), SamplingParams(**options)
    torch_sampler, slots = SlotSampler(5, runner.vocab_size), range(5)
    texts = [prompt(5 + s, s) for s in slots]
    for s in slots:
        runner.add_request(s, texts[s], params, 1000 + s, [7, 8, 7])
        torch_sampler.add(s, texts[s], params, 1000 + s, [7, 8, 7])
    rows = [(s, 0, texts[s]) for s in slots]
    for _ in range(40):
        output, logits = runner.logits(step(runner, rows))
        wanted = torch_sampler.sample(torch.from_numpy(logits), np.arange(5, dtype=np.int32))
        assert output.token_ids.tolist() == wanted.token_ids.tolist()
        np.testing.assert_allclose(output.logprobs, wanted.logprobs, atol=1e-5)
        np.testing.assert_allclose(output.entropies, wanted.entropies, atol=1e-5)
        for ours, theirs in zip(output.top_logprobs or [], wanted.top_logprobs or [], strict=True):
            assert [t for t, _ in ours] == [t for t, _ in theirs]
            np.testing.assert_allclose([p for _, p in ours], [p for _, p in theirs], atol=1e-5)
        rows = [(s, start + len(ids), [token]) for (s, start, ids), token in zip(rows, output.token_ids, strict=True)]


def test_a_bad_batch_is_refused_with_a_sentence_and_the_runner_goes_on() -> None:
    runner = native("tied")
    with pytest.raises(ValueError, match="slot is 0: no request was added there"):
        runner.execute(step(runner, [(0, 0, [5])]))
    runner.add_request(0, [5], GREEDY, 0)
    for rows, message in [
        ([(0, 0, [100])], "token id is 100: not below vocab_size"),
        ([(0, 0, [-1])], "token id is -1"),
        ([(0, 256, [5])], "past max_model_len"),
        ([(0, 0, [5]), (0, 1, [6])], "two rows in one batch"),
        ([(7, 0, [5])], "slot is 7"),
    ]:
        with pytest.raises(ValueError, match=message):
            runner.execute(step(runner, rows))
    beyond = step(runner, [(0, 0, [5])])
    beyond.block_tables[0, 0] = 60
    with pytest.raises(ValueError, match="block id is 60: not below num_blocks"):
        runner.execute(beyond)
    with pytest.raises(ValueError, match="logit_bias has token id 100"):
        runner.add_request(1, [5], SamplingParams(logit_bias={100: 1.0}), 0)
    assert len(runner.execute(step(runner, [(0, 0, [5])])).token_ids) == 1


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("broken_id", [0, 37, 99])
def test_one_logit_that_is_not_a_number_is_an_error_on_every_instruction_set(kernels: str, broken_id: int) -> None:
    if kernels not in available_kernels():
        pytest.skip(f"this processor has no {kernels}")
    runner = native("grouped", kernels, broken_id=broken_id)
    for params in (GREEDY, SamplingParams(top_p=0.9)):
        runner.add_request(0, [5], params, 1)
        with pytest.raises(RuntimeError, match=BROKEN_LOGITS):
            runner.execute(step(runner, [(0, 0, [5])]))
        runner.remove_request(0)


@pytest.mark.parametrize(
    ("dtype", "stored", "kernels", "wanted"),
    [
        ("auto", "BF16", "avx512_bf16", "bfloat16"),
        ("auto", "BF16", "avx512", "float32"),
        ("auto", "F32", "avx512_bf16", "float32"),
        ("auto", "F16", "avx512_bf16", "float32"),
        ("float32", "BF16", "avx512_bf16", "float32"),
        ("bfloat16", "F32", "avx512_bf16", "bfloat16"),
        ("int8", "BF16", "avx512_bf16", "int8"),
    ],
)
def test_auto_is_bfloat16_only_where_weights_lose_nothing_and_the_processor_has_it(
    dtype: str, stored: str, kernels: str, wanted: str
) -> None:
    nothing = np.zeros(0, np.uint8)
    stored_tensors = {"a": StoredTensor("BF16", (0,), nothing), "b": StoredTensor(stored, (0,), nothing)}
    assert weight_format(dtype, stored_tensors, kernels) == wanted


def test_the_loader_takes_it_for_a_saved_llama_and_says_why_not_for_others(tmp_path: Path) -> None:
    folder = save("grouped", tmp_path / "m")
    loaded = load_runner(folder, options=RunnerOptions(max_slots=2, num_threads=1))
    assert (loaded.name, loaded.runner.dtype, loaded.runner.eos_token_ids) == ("native", "float32", (2,))
    ids = prompt(30)
    got, wanted = logits_of(loaded.runner, [(0, 0, ids)], [1]), true_logits("grouped", ids)[-1]
    np.testing.assert_allclose(got[0], wanted, atol=2e-5 * np.abs(wanted).max())
    config = json.loads((folder / "config.json").read_text())
    for change, reason in [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not one of LlamaForCausalLM"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 9}, "sliding_window is 9"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope is of type 'yarn'"),
        ({"attention_bias": True}, "attention_bias is True"),
    ]:
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=reason):
            load_runner(folder, "native")
