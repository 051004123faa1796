"""The fast CPU route: Llama-family decoders on our own C++ library. No torch. See runner.py for the protocol.

One call of the library per step, for the whole batch, without the interpreter's lock: chunks of prompts and decodes
together, keys and values in a float32 block pool, logits only for rows that sample, and the draw by sampling.py's rule.
A row's result is bit for bit the same whatever else is in the batch.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.engine.model_files import read_config, read_eos_token_ids, read_max_model_len
from serve.engine.native import library as lib
from serve.engine.native.weights import StoredTensor, files_of, read_tensors
from serve.engine.request import SamplingParams
from serve.engine.runner import BLOCK_SIZE, RunnerOptions, StepBatch, StepOutput, default_num_blocks

_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
_DTYPES = ("auto", *lib.FORMATS)
_LAYER_TENSORS = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def why_unsupported(model_dir: Path) -> str | None:
    """Why this runner cannot serve a model folder, in a sentence, or None."""
    reason = why_unsupported_config(read_config(model_dir))
    if reason is None and not files_of(model_dir):
        reason = "the model folder has no model.safetensors: save it with save_pretrained"
    return reason or lib.why_missing()


def why_unsupported_config(config: dict[str, Any]) -> str | None:
    """The part of why_unsupported that config.json decides."""
    name = (config.get("architectures") or [config.get("model_type", "unknown")])[0]
    if name not in _ARCHITECTURES:
        return f"architecture {name} is not one of {', '.join(_ARCHITECTURES)}"
    window = config.get("sliding_window")
    if name.startswith("Mistral") and window is not None and window < read_max_model_len(config):
        return f"sliding_window is {window}: it attends to all positions only"
    neutral = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "quantization_config": None}
    for field, wanted in neutral.items():
        if config.get(field, wanted) not in (wanted, None):
            return f"{field} is {config[field]!r}: it computes {wanted!r} only"
    rope = _rope(config)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0) != 1.0:
        return f"rope is of type '{kind}' or partial: it computes plain rotary positions only"
    if _head_dim(config) % 2 != 0:
        return f"head_dim is {_head_dim(config)}: rotary positions need an even one"
    return None


def load_native_runner(model_dir: Path, options: RunnerOptions) -> "NativeRunner":
    """Load a Hugging Face folder. ValueError when it cannot be served; for dtype "auto" see weight_format."""
    reason = why_unsupported(model_dir)
    if reason is not None:
        raise ValueError(f"model '{model_dir}': {reason}")
    return NativeRunner(read_config(model_dir), read_tensors(model_dir), options, read_eos_token_ids(model_dir))


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _angles(config: dict[str, Any], max_model_len: int) -> NDArray[np.float32]:
    """Rotary angles in radians, (max_model_len, head_dim / 2), in float32 as transformers computes them."""
    dim = _head_dim(config)
    theta = float(_rope(config).get("rope_theta") or config.get("rope_theta") or 10000.0)
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    inverse = np.float32(1.0) / np.power(np.float32(theta), exponents)
    angles: NDArray[np.float32] = np.arange(max_model_len, dtype=np.float32)[:, None] * inverse
    return angles


def weight_format(dtype: str, tensors: dict[str, StoredTensor], kernels: str) -> str:
    """What products are taken in: "float32", "bfloat16" or "int8". kernels: the instruction set in use.

    "auto" takes bfloat16 where that loses nothing of the weights, for they are stored so, and the processor multiplies
    bfloat16; only activations are rounded then. ValueError for a dtype that this runner does not have.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is '{dtype}': the native runner has {', '.join(_DTYPES)}")
    if dtype != "auto":
        return dtype
    stored_so = all(tensor.dtype == "BF16" for tensor in tensors.values())
    return "bfloat16" if stored_so and kernels == "avx512_bf16" else "float32"


class NativeRunner:
    """Runner over the library. config: config.json. tensors: the weights by their names in transformers.

    kernels: an instruction set by name, for tests; None takes the best this processor has.
    """

    name = "native"
    block_size = BLOCK_SIZE

    def __init__(
        self,
        config: dict[str, Any],
        tensors: dict[str, StoredTensor],
        options: RunnerOptions,
        eos_token_ids: tuple[int, ...] = (),
        kernels: str | None = None,
    ) -> None:
        self._library = lib.load_library()
        self._model = ctypes.c_void_p()
        chosen: bytes | None = self._library.native_kernels(kernels.encode() if kernels else None)
        self.dtype = weight_format(options.dtype, tensors, (chosen or b"").decode())
        self.vocab_size = int(config["vocab_size"])
        self.max_model_len = options.max_model_len or read_max_model_len(config)
        self.max_slots = options.max_slots
        self.num_blocks = options.num_blocks or default_num_blocks(options.max_slots, self.max_model_len)
        self.eos_token_ids = eos_token_ids
        self._num_logprobs = [0] * options.max_slots
        self._create(config, options, kernels)
        self._set_weights(config, tensors)

    def __del__(self) -> None:
        model = getattr(self, "_model", None)
        if model:
            self._library.native_destroy(model)

    def _create(self, config: dict[str, Any], options: RunnerOptions, kernels: str | None) -> None:
        angles = _angles(config, self.max_model_len)
        cosines, sines = np.cos(angles), np.sin(angles)
        heads = int(config["num_attention_heads"])
        native = lib.Config(
            vocab_size=self.vocab_size,
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=_head_dim(config),
            intermediate_size=config["intermediate_size"],
            max_model_len=self.max_model_len,
            max_slots=self.max_slots,
            num_blocks=self.num_blocks,
            num_threads=options.num_threads or len(os.sched_getaffinity(0)),
            format=lib.FORMATS.index(self.dtype),
            norm_eps=config.get("rms_norm_eps", 1e-6),
            cosines=cosines.ctypes.data,
            sines=sines.ctypes.data,
            kernels=kernels.encode() if kernels else None,
        )
        lib.check(self._library, self._library.native_create(ctypes.byref(native), ctypes.byref(self._model)))

    def _set_weights(self, config: dict[str, Any], tensors: dict[str, StoredTensor]) -> None:
        tied = bool(config.get("tie_word_embeddings")) or "lm_head.weight" not in tensors
        names = {
            ("embedding", 0): "model.embed_tokens.weight",
            ("head", 0): "model.embed_tokens.weight" if tied else "lm_head.weight",
            ("final_norm", 0): "model.norm.weight",
        }
        for layer in range(config["num_hidden_layers"]):
            names |= {(p, layer): f"model.layers.{layer}.{name}.weight" for p, name in _LAYER_TENSORS.items()}
        for (part, layer), name in names.items():
            tensor = tensors.get(name)
            if tensor is None:
                raise ValueError(f"the model's weights have no '{name}': save the whole model")
            self._set_part(part, layer, name, tensor)
        lib.check(self._library, self._library.native_check_complete(self._model))

    def _set_part(self, part: str, layer: int, name: str, tensor: StoredTensor) -> None:
        if tensor.dtype not in lib.STORED_TYPES:
            raise ValueError(f"'{name}' is stored as {tensor.dtype}: save it as one of {', '.join(lib.STORED_TYPES)}")
        rows, columns = tensor.shape if len(tensor.shape) == 2 else (1, *tensor.shape)
        code = self._library.native_set_part(
            self._model, lib.PARTS.index(part), layer, tensor.data.ctypes.data, lib.STORED_TYPES[tensor.dtype], rows,
            columns,
        )  # fmt: skip
        try:
            lib.check(self._library, code)
        except ValueError as error:
            raise ValueError(f"'{name}': {error}") from error

    def add_request(
        self, slot: int, prompt_ids: Sequence[int], params: SamplingParams, seed: int, output_ids: Sequence[int] = ()
    ) -> None:
        """See Runner."""
        bias = dict(params.logit_bias or {})
        beyond = [token for token in bias if token >= self.vocab_size]
        if beyond:
            raise ValueError(f"logit_bias has token id {beyond[0]}: give ids below {self.vocab_size}")
        bias_ids, bias_values = np.array(list(bias), np.int32), np.array(list(bias.values()), np.float32)
        prompt, output = np.array(prompt_ids, np.int32), np.array(output_ids, np.int32)
        native = lib.SlotParams(
            seed=seed,
            top_p=params.top_p,
            typical_p=params.typical_p,
            temperature=params.temperature,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            top_k=min(params.top_k, self.vocab_size),
            ngram_size=min(params.no_repeat_ngram_size, 2**31 - 1),
            num_logprobs=min(params.num_logprobs or 0, self.vocab_size),
            num_biases=len(bias),
            bias_ids=bias_ids.ctypes.data,
            bias_values=bias_values.ctypes.data,
        )
        code = self._library.native_add_request(
            self._model, slot, ctypes.byref(native), prompt.ctypes.data, len(prompt), output.ctypes.data, len(output)
        )
        lib.check(self._library, code)
        self._num_logprobs[slot] = native.num_logprobs

    def remove_request(self, slot: int) -> None:
        """See Runner."""
        lib.check(self._library, self._library.native_remove_request(self._model, slot))
        self._num_logprobs[slot] = 0

    def execute(self, batch: StepBatch) -> StepOutput:
        """See Runner."""
        return self._step(batch, None)

    def logits(self, batch: StepBatch) -> tuple[StepOutput, NDArray[np.float32]]:
        """execute(), and the logits the draws were made from: (N, vocab_size). For tests and measurements."""
        logits = np.empty((batch.num_samples, self.vocab_size), np.float32)
        return self._step(batch, logits), logits

    def _step(self, batch: StepBatch, logits: NDArray[np.float32] | None) -> StepOutput:
        n, width = batch.num_samples, max(self._num_logprobs)
        tokens, numbers = np.empty(n, np.int32), np.empty((2, n), np.float32)
        top_ids, top_logprobs = np.empty((n, width), np.int32), np.empty((n, width), np.float32)
        results = lib.Results(
            tokens.ctypes.data, numbers.ctypes.data, numbers[1:].ctypes.data, top_ids.ctypes.data,
            top_logprobs.ctypes.data, width, None if logits is None else logits.ctypes.data,
        )  # fmt: skip
        slots, tables = batch.slots, batch.block_tables
        arrays = (slots, batch.num_tokens, batch.start_positions, batch.token_ids, batch.sample, tables)
        native = lib.Batch(len(slots), len(batch.token_ids), *tables.shape, n, *(a.ctypes.data for a in arrays))
        code = self._library.native_step(self._model, ctypes.byref(native), ctypes.byref(results))
        lib.check(self._library, code)
        top = self._top(batch, top_ids, top_logprobs) if width else None
        return StepOutput(tokens, numbers[0], numbers[1], top, results.sample_seconds)

    def _top(
        self, batch: StepBatch, ids: NDArray[np.int32], logprobs: NDArray[np.float32]
    ) -> list[list[tuple[int, float]]]:
        sampling = batch.slots[batch.sample == 1].tolist()
        return [
            list(zip(ids[i, : self._num_logprobs[s]].tolist(), logprobs[i].tolist(), strict=False))
            for i, s in enumerate(sampling)
        ]
