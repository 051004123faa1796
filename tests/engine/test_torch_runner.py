"""The torch runner serves each family of models as its own plain forward would, and says which it cannot serve."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.engine import Engine, EngineLimits
from serve.engine.reference import generate_naively
from serve.engine.request import EngineRequest, SamplingParams
from serve.engine.runner import Runner, RunnerOptions, StepBatch
from serve.engine.torch_runner import TorchRunner
from tests.engine.helpers import CONFIGS, VOCAB, fresh_model, run_to_end, tiny_model

PARAMS = [
    SamplingParams(max_new_tokens=12, temperature=0.0),
    SamplingParams(max_new_tokens=20, top_p=0.8, seed=1, ignore_eos=True),
    SamplingParams(max_new_tokens=9, temperature=1.7, top_k=20, seed=2, repetition_penalty=1.3),
    SamplingParams(max_new_tokens=14, temperature=0.7, min_p=0.05, seed=3, no_repeat_ngram_size=2, ignore_eos=True),
    SamplingParams(max_new_tokens=30, frequency_penalty=0.7, presence_penalty=0.4, seed=4, ignore_eos=True),
    SamplingParams(max_new_tokens=11, typical_p=0.7, seed=5, logit_bias={3: 2.0, 9: -50.0}),
    SamplingParams(max_new_tokens=25, top_k=30, top_p=0.5, min_p=0.02, seed=6, stop_token_ids=(4, 5, 6, 7)),
    SamplingParams(max_new_tokens=8, temperature=0.0, repetition_penalty=2.0, presence_penalty=-1.0),
]


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start + 31 * i) % 90 + 5 for i in range(length)]


def requests_of_all_kinds() -> list[EngineRequest]:
    lengths = [1, 40, 17, 33, 16, 5, 48, 64]
    mixed = [EngineRequest(i, prompt(n, i // 2), p) for i, (n, p) in enumerate(zip(lengths, PARAMS, strict=True))]
    # Three that start small and together outgrow the cache: one must give way.
    growing = [SamplingParams(max_new_tokens=40, top_p=0.9, seed=i, ignore_eos=True) for i in range(3)]
    return [*mixed, *(EngineRequest(8 + i, prompt(4, 50 + i), p) for i, p in enumerate(growing))]


@pytest.fixture(scope="module")
def runners() -> dict[str, TorchRunner]:
    options = RunnerOptions(max_slots=5, num_blocks=11)
    return {"llama": TorchRunner(fresh_model("llama"), options, eos_token_ids=(2,))}


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_every_family_generates_what_the_oracle_does_under_preemption(kind: str) -> None:
    runner = TorchRunner(fresh_model(kind), RunnerOptions(max_slots=5, num_blocks=6), eos_token_ids=(2,))
    engine = Engine(runner, EngineLimits(max_tokens_per_step=21))
    requests = requests_of_all_kinds()
    collected = run_to_end(engine, requests)
    assert engine.stats.num_preemptions > 0
    for request in requests:
        wanted = generate_naively(tiny_model(kind), request.prompt_ids, request.params, eos_token_ids=(2,))
        i = request.request_id
        assert collected.tokens[i] == wanted.token_ids, i
        assert collected.reasons[i] == wanted.finish_reason
        np.testing.assert_allclose(collected.logprobs[i], wanted.logprobs, atol=1e-5)
        np.testing.assert_allclose(collected.entropies[i], wanted.entropies, atol=1e-5)


SPECS = [(prompt(n, s), p) for p, (n, s) in zip(PARAMS, [(3, 0), (35, 1), (40, 1), (19, 2)] * 2, strict=True)]


@pytest.fixture(scope="module")
def oracle() -> list[list[int]]:
    return [generate_naively(tiny_model("llama"), ids, params, (2,)).token_ids for ids, params in SPECS]


@settings(max_examples=15, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, len(SPECS) - 1), st.integers(0, 6)), min_size=1, max_size=7),
    budget=st.integers(5, 60),
    caching=st.booleans(),
)
def test_random_arrivals_on_a_tiny_cache_generate_what_the_oracle_does(
    runners, oracle, arrivals, budget, caching
) -> None:
    engine = Engine(runners["llama"], EngineLimits(max_tokens_per_step=budget, prefix_caching=caching))
    texts: dict[int, list[int]] = {}
    for request_id, (spec, steps_before) in enumerate(arrivals):
        for _ in range(steps_before):
            for delta in engine.step():
                texts.setdefault(delta.request_id, []).extend(delta.token_ids)
            engine.check_integrity()
        engine.add(EngineRequest(request_id, *SPECS[spec]))
    for request_id, tokens in run_to_end(engine).tokens.items():
        texts.setdefault(request_id, []).extend(tokens)
    assert texts == {i: oracle[spec] for i, (spec, _) in enumerate(arrivals)}


@pytest.mark.parametrize("params", PARAMS[1:3])
def test_the_same_seed_gives_the_same_text_whoever_else_is_in_the_batch(runners, params: SamplingParams) -> None:
    alone = run_to_end(Engine(runners["llama"]), [EngineRequest(7, prompt(20), params)]).tokens[7]
    others = [EngineRequest(i, prompt(3 + 9 * i, i), PARAMS[i]) for i in range(3)]
    crowded = run_to_end(Engine(runners["llama"]), [*others, EngineRequest(7, prompt(20), params)]).tokens[7]
    assert crowded == alone


def test_a_prefix_found_in_the_cache_changes_no_token(runners) -> None:
    engine = Engine(runners["llama"])
    first, second = (EngineRequest(i, prompt(40), SamplingParams(max_new_tokens=20, seed=3)) for i in (0, 1))
    uncached = run_to_end(engine, [first]).tokens[0]
    assert engine.stats.prefix_tokens_hit == 0
    assert run_to_end(engine, [second]).tokens[1] == uncached
    assert engine.stats.prefix_tokens_hit == 32


def test_only_the_last_logits_of_sampling_rows_are_computed(runners, monkeypatch) -> None:
    runner = runners["llama"]
    shapes: list[tuple[int, ...]] = []
    head = runner._model.lm_head
    hook = head.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape[:2])))
    try:
        engine = Engine(runner, EngineLimits(max_tokens_per_step=16))
        run_to_end(engine, [EngineRequest(0, prompt(40), SamplingParams(max_new_tokens=2, temperature=0.0))])
    finally:
        hook.remove()
    assert shapes == [(1, 0), (1, 0), (1, 1), (1, 1)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.15)])
def test_other_dtypes_agree_with_their_plain_forward(dtype: torch.dtype, tolerance: float) -> None:
    runner = TorchRunner(fresh_model("qwen2", dtype), RunnerOptions(max_slots=2))
    ids = np.array(prompt(12), dtype=np.int32)
    one = np.ones(1, dtype=np.int32)
    batch = StepBatch(one * 0, one * 12, one * 0, ids, one.astype(np.uint8), np.zeros((2, 16), np.int32), 1)
    with torch.inference_mode():
        logits = runner._forward(batch)[0].float()
        plain = tiny_model("qwen2", dtype)(torch.from_numpy(ids)[None].long()).logits[0, -1].float()
    torch.testing.assert_close(logits, plain, atol=tolerance, rtol=tolerance)


def test_weights_stored_in_bf16_load_in_the_dtype_asked_for(tmp_path: Path) -> None:
    fresh_model("llama", torch.bfloat16).save_pretrained(tmp_path)
    assert TorchRunner.load(tmp_path, RunnerOptions(max_slots=1)).dtype == "float32"
    runner = TorchRunner.load(tmp_path, RunnerOptions(max_slots=1, dtype="bfloat16"))
    assert runner.dtype == "bfloat16"
    assert runner._pool._layers[0][0].dtype == torch.bfloat16
    assert isinstance(runner, Runner)
    assert runner.eos_token_ids == (2,)
    assert runner.vocab_size == VOCAB


REFUSED = {
    "encoder-decoder": transformers.T5Config(),
    "linear_attention": transformers.Qwen3NextConfig(),
    "dynamic rotary": transformers.LlamaConfig(
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    ),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_an_architecture_that_cannot_be_served_is_named_with_a_remedy(what: str, tmp_path: Path) -> None:
    config = REFUSED[what]
    config.architectures = ["SomeModel"]
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"SomeModel.*{what}.*: (serve a decoder-only|set rope_scaling)"):
        TorchRunner.load(tmp_path, RunnerOptions())


NOT_STANDARD = {
    "Gemma2Attention: its attention uses softcap": lambda: transformers.Gemma2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, attn_logit_softcapping=0.5, pad_token_id=0,
    ),
    "BloomForCausalLM: its logits .* differ": lambda: transformers.BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=2
    ),
    "MambaForCausalLM: its logits .* differ": lambda: transformers.MambaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, state_size=4, pad_token_id=0
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", sorted(NOT_STANDARD))
def test_a_model_whose_attention_is_not_standard_fails_the_self_check(message: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(NOT_STANDARD[message]())
    with pytest.raises(ValueError, match=f"architecture {message}"):
        TorchRunner(model, RunnerOptions(max_slots=1, max_model_len=64))


def test_a_step_outside_the_engine_is_refused(runners) -> None:
    with pytest.raises(AssertionError, match="outside a step"):
        runners["llama"]._model(torch.tensor([[1, 2]]))
