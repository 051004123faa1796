"""int8 weights: what they compute, that no batch or schedule changes it, and what they refuse."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from serve.engine.engine import Engine, EngineLimits
from serve.engine.loader import load_runner, load_tokenizer
from serve.engine.native_runner import load_native_runner
from serve.engine.request import SamplingParams
from serve.engine.runner import BROKEN_LOGITS, RunnerOptions
from tests.engine.helpers import run_to_end
from tests.engine.native_models import CONFIGS, KERNELS, available_kernels, model, native, require_library, save, step
from tests.engine.test_native_runner import GREEDY, logits_of
from tests.engine.test_torch_runner import prompt, requests_of_all_kinds

GROUP = 64  # inputs of a row that share a scale


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    require_library()


def require_int8() -> None:
    if "avx512_vnni" not in available_kernels():
        pytest.skip("this processor has no AVX-512 VNNI")


def rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """Each group of the last axis to 255 steps, its largest number at 127."""
    parts = torch.nn.functional.pad(x, (0, -x.shape[-1] % group)).unflatten(-1, (-1, group))
    scale = parts.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((parts / scale).round() * scale).flatten(-2)[..., : x.shape[-1]]


def attend_to_bfloat16(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **named: Any
) -> Any:
    """Attention over keys and values as the pool keeps them."""
    key, value = (kept.to(torch.bfloat16).to(query.dtype) for kept in (key, value))
    return sdpa_attention_forward(module, query, key, value, *rest, **named)


AttentionInterface.register("to_bfloat16", attend_to_bfloat16)


def rounded_logits(kind: str, ids: list[int]) -> np.ndarray:
    """Transformers' last logits in float64, the weights of each matrix rounded by output and its inputs by group."""
    reduced = copy.deepcopy(model(kind))
    reduced.config._attn_implementation = "to_bfloat16"
    reduced.lm_head.weight = torch.nn.Parameter(reduced.lm_head.weight.detach().clone())  # the embedding stays exact
    for layer in reduced.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = rounded(layer.weight.data, layer.in_features)
            layer.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], GROUP),))
    with torch.inference_mode():
        return reduced(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_logits_are_those_of_transformers_with_the_same_rounding(kind: str) -> None:
    require_int8()
    wanted = rounded_logits(kind, prompt(37))
    got = logits_of(native(kind, dtype="int8"), [(0, 0, prompt(37))])[0]
    # Mostly equal to 5 digits. The sums are float32 here: a number on the edge of two steps may fall to the other side,
    # which moves the logits of so small a model by up to this much, a quarter of what the rounding itself does.
    np.testing.assert_allclose(got, wanted, atol=0.01 * np.abs(wanted).max())


def test_logits_of_the_shipped_checkpoint_stay_within_three_hundredths_of_the_largest() -> None:
    require_int8()
    folder = Path(__file__).parents[2] / "models" / "tiny_iit" / "3"
    ids = load_tokenizer(folder).encode("When he had come into that fallen quarter his industry had").ids
    options = RunnerOptions(max_slots=5, num_blocks=60, max_model_len=192, num_threads=1)
    exact, reduced = (
        logits_of(load_native_runner(folder, replace(options, dtype=dtype)), [(0, 0, ids)])[0]
        for dtype in ("float32", "int8")
    )
    np.testing.assert_allclose(reduced, exact, atol=0.03 * np.abs(exact).max(), rtol=0)


def test_every_instruction_set_that_has_it_computes_the_same() -> None:
    require_int8()
    able = [name for name in available_kernels() if name in ("avx512_vnni", "avx512_bf16")]
    logits = [logits_of(native("grouped", name, "int8"), [(0, 0, prompt(37))]) for name in able]
    assert all((other == logits[0]).all() for other in logits)


@pytest.mark.parametrize("kind", ["grouped", "one_key_head_for_twelve"])
def test_preemption_chunks_and_cached_prefixes_change_no_token(kind: str) -> None:
    require_int8()
    crowded = Engine(native(kind, dtype="int8", num_blocks=6), EngineLimits(max_tokens_per_step=21))
    requests = requests_of_all_kinds()
    together = run_to_end(crowded, requests)
    assert crowded.stats.num_preemptions > 0
    for request in requests:
        alone = run_to_end(Engine(native(kind, dtype="int8"), EngineLimits(prefix_caching=False)), [request])
        i = request.request_id
        assert together.tokens[i] == alone.tokens[i], i
        assert together.logprobs[i] == alone.logprobs[i], i


@pytest.mark.parametrize("part", ["lm_head.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("broken_by", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_in_weights_or_activations_is_not_rounded_away(part: str, broken_by: float) -> None:
    require_int8()
    runner = native("grouped", dtype="int8", broken_id=5, broken_part=part, broken_by=broken_by)
    for params in (GREEDY, SamplingParams(top_p=0.9)):
        runner.add_request(0, [5], params, 1)
        with pytest.raises(RuntimeError, match=BROKEN_LOGITS):
            runner.execute(step(runner, [(0, 0, [5])]))
        runner.remove_request(0)


@pytest.mark.parametrize("kernels", [name for name in KERNELS if name not in ("avx512_vnni", "avx512_bf16")])
def test_a_processor_without_the_instructions_is_told_what_to_choose(kernels: str) -> None:
    if kernels not in available_kernels():
        pytest.skip(f"this processor has no {kernels}")
    with pytest.raises(ValueError, match=r"dtype is 'int8': this processor has no AVX-512 VNNI.*choose auto"):
        native("grouped", kernels, "int8")


def test_the_loader_serves_it_natively_or_says_why_not(tmp_path: Path) -> None:
    require_int8()
    options = RunnerOptions(max_slots=2, num_threads=1, dtype="int8")
    folder = save("grouped", tmp_path)
    assert load_runner(folder, options=options).runner.dtype == "int8"
    with pytest.raises(ValueError, match="'int8', which only the native runner computes in: it was not asked for"):
        load_runner(folder, "torch", options)
