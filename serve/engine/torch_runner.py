"""Run any transformers decoder-only model with standard attention. The reference runner: CPU now, CUDA by device.

A step is one packed forward, (1, total tokens), whatever mix of decodes and chunks. transformers' own modelling code
runs unchanged; only the attention function is ours, registered through its AttentionInterface: it writes this step's
keys and values to the block pool and reads each row's context back from there.
"""

import inspect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from serve.engine.model_files import read_config, read_eos_token_ids, read_max_model_len
from serve.engine.paged_attention import ATTENTION_NAME, KVPool, PagedStep
from serve.engine.request import SamplingParams
from serve.engine.runner import BLOCK_SIZE, BROKEN_LOGITS, RunnerOptions, StepBatch, StepOutput, default_num_blocks
from serve.engine.slot_sampler import SlotSampler

_DTYPES = {
    "auto": torch.float32,
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# How far the paged forward may be from the plain one, as a share of the largest logit.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_REMEDY = "serve a decoder-only model with standard attention (Llama, Qwen, Mistral, GPT-2 and their like)"


def why_unsupported(config: dict[str, Any]) -> str | None:
    """Why this runner cannot serve a model with this config.json, or None. What is left is found by the self-check."""
    name = (config.get("architectures") or [config.get("model_type", "unknown")])[0]
    if config.get("is_encoder_decoder"):
        return f"architecture {name} is an encoder-decoder: {_REMEDY}"
    strange = sorted(set(config.get("layer_types") or ()) - {"full_attention", "sliding_attention"})
    if strange:
        return f"architecture {name} has layers of type {', '.join(strange)}, which keep no block-wise keys: {_REMEDY}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None
    if kind in ("dynamic", "longrope"):
        return (
            f"architecture {name} uses {kind} rotary scaling, whose angles depend on the longest text in the batch: "
            "set rope_scaling to null in config.json and max_model_len to the unscaled length"
        )
    return None


class TorchRunner:
    """Runner over a transformers model. See runner.py for the protocol.

    model: in evaluation mode on its device; its attention implementation is replaced. ValueError when the model's
    own forward and the paged one differ, so an architecture is never served wrongly.
    """

    name = "torch"
    block_size = BLOCK_SIZE

    def __init__(self, model: Any, options: RunnerOptions, eos_token_ids: tuple[int, ...] = ()) -> None:
        config = model.config
        reason = why_unsupported(config.to_dict())
        if reason is None and "logits_to_keep" not in inspect.signature(model.forward).parameters:
            reason = f"architecture {type(model).__name__} cannot compute single logits (logits_to_keep): {_REMEDY}"
        if reason is not None:
            raise ValueError(f"model: {reason}")
        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        self._model = model.eval()
        self._device = next(model.parameters()).device
        weight = model.get_output_embeddings().weight
        self.dtype = str(weight.dtype).removeprefix("torch.")
        self.vocab_size = weight.shape[0]
        longest = read_max_model_len(config.to_dict()) if options.max_model_len is None else options.max_model_len
        self.max_model_len = longest
        self.max_slots = options.max_slots
        self.num_blocks = options.num_blocks or default_num_blocks(options.max_slots, longest)
        self.eos_token_ids = eos_token_ids
        self._pool = KVPool(self.num_blocks, BLOCK_SIZE, self._device)
        self._sampler = SlotSampler(options.max_slots, self.vocab_size, str(self._device))
        self._use_paged_attention(_TOLERANCE[weight.dtype])

    @classmethod
    def load(cls, model_dir: Path, options: RunnerOptions) -> "TorchRunner":
        """Load a Hugging Face folder (safetensors only) in the dtype asked for, whatever dtype it is stored in."""
        config = read_config(model_dir)
        reason = why_unsupported(config)
        if reason is not None:
            raise ValueError(f"model '{model_dir}': {reason}")
        if options.dtype not in _DTYPES:
            raise ValueError(f"dtype is '{options.dtype}': give one of {', '.join(_DTYPES)}")
        transformers.logging.disable_progress_bar()  # a worker's start is told by its server, in one block
        model = transformers.AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype=_DTYPES[options.dtype],
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
        )
        return cls(model.to(options.device), options, read_eos_token_ids(model_dir))

    def add_request(
        self, slot: int, prompt_ids: Sequence[int], params: SamplingParams, seed: int, output_ids: Sequence[int] = ()
    ) -> None:
        """See Runner."""
        self._sampler.add(slot, prompt_ids, params, seed, output_ids)

    def remove_request(self, slot: int) -> None:
        """See Runner."""
        self._sampler.remove(slot)

    @torch.inference_mode()
    def execute(self, batch: StepBatch) -> StepOutput:
        """See Runner."""
        logits_NV = self._forward(batch)
        return self._sampler.sample(logits_NV, batch.slots[batch.sample == 1])

    def _forward(self, batch: StepBatch) -> Tensor:
        """The logits after the last token of each row that samples: (N, V)."""
        step = PagedStep(batch, self._pool)
        ends = np.cumsum(batch.num_tokens)[batch.sample == 1] - 1
        with step:
            output = self._model(
                input_ids=self._to_device(batch.token_ids)[None],
                position_ids=step.positions_T[None],
                use_cache=False,
                logits_to_keep=self._to_device(ends),
            )
        logits: Tensor = output.logits[0]
        return logits

    def _to_device(self, numbers: Any) -> Tensor:
        return torch.from_numpy(numbers.astype(np.int64)).to(self._device)

    @torch.inference_mode()
    def _use_paged_attention(self, tolerance: float) -> None:
        """Switch the model to the pool, and compare: a short text in chunks and decodes against one plain forward."""
        length = min(20, self.max_model_len, self.num_blocks * BLOCK_SIZE)
        ids = np.arange(length, dtype=np.int32) * 7919 % self.vocab_size
        cuts = sorted({0, *range(length // 2, length, max(1, length // 4)), length - 1, length})
        name = type(self._model).__name__
        try:
            plain = self._model(input_ids=self._to_device(ids)[None], use_cache=False).logits[0].float()
            self._model.set_attn_implementation(ATTENTION_NAME)
            paged = self._logits_in_pieces(ids, cuts)
        except (AttributeError, RuntimeError, TypeError) as error:
            raise ValueError(f"architecture {name} does not run over a block pool ({error}): {_REMEDY}") from error
        wanted = plain[torch.tensor(cuts[1:], device=plain.device) - 1]
        if not bool(wanted.logsumexp(1).isfinite().all()):
            raise ValueError(f"{BROKEN_LOGITS}; give another checkpoint")
        error_size = (paged - wanted).abs().max().item()
        limit = tolerance * max(1e-3, wanted.abs().max().item())
        if not error_size <= limit:
            raise ValueError(
                f"architecture {name}: its logits through the block pool differ from its plain forward by "
                f"{error_size:.3g} (allowed {limit:.3g}), so its attention is not standard: {_REMEDY}"
            )

    def _logits_in_pieces(self, ids: NDArray[np.int32], cuts: Sequence[int]) -> Tensor:
        """The logits at the end of each piece of a text that is computed piece by piece: (pieces, V)."""
        table = np.arange(-(-len(ids) // BLOCK_SIZE), dtype=np.int32)[None]
        one = np.ones(1, dtype=np.int32)
        logits = []
        for start, stop in itertools.pairwise(cuts):
            step = StepBatch(
                one * 0, one * (stop - start), one * start, ids[start:stop], np.ones(1, np.uint8), table, 1
            )
            logits.append(self._forward(step)[0].float())
        return torch.stack(logits)
