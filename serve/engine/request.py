"""What a caller asks of the engine and what it gets back. Plain dataclasses: no tensors, no clocks, no HTTP.

Every default of a sampling parameter is written here and nowhere else. None means "not given"; zero is a value.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "deadline", "error"]

MAX_SEED = 2**63 - 1
MAX_PRIORITY = 100
MAX_TOP_LOGPROBS = 50


def _require(holds: bool, field_name: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{field_name} is {value!r}: {remedy}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn for one request. Validated: a ValueError names the field, its value and the remedy.

    temperature 0 is greedy (the largest processed logit, the lowest id among equals); truncation and seed then do
    nothing. The processors apply in the order of transformers' generate(): logit_bias, repetition_penalty,
    no_repeat_ngram_size, frequency and presence penalty, temperature, top_k, top_p, min_p, typical_p.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    num_logprobs: int | None = None
    ignore_eos: bool = False
    stop_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        self._check_truncation()
        self._check_penalties()
        n = self.max_new_tokens
        _require(_is_int(n) and n >= 1, "max_new_tokens", n, "give a whole number of at least 1")
        seed = self.seed
        _require(
            seed is None or (_is_int(seed) and 0 <= seed <= MAX_SEED),
            "seed",
            seed,
            f"give a whole number 0..{MAX_SEED}",
        )
        top = self.num_logprobs
        remedy = f"give a whole number 0..{MAX_TOP_LOGPROBS}, or leave it out"
        _require(top is None or (_is_int(top) and 0 <= top <= MAX_TOP_LOGPROBS), "num_logprobs", top, remedy)
        _require(isinstance(self.ignore_eos, bool), "ignore_eos", self.ignore_eos, "give true or false")
        stop = self.stop_token_ids
        listed = isinstance(stop, Sequence) and not isinstance(stop, str | bytes)
        _require(listed and all(_is_int(t) and t >= 0 for t in stop), "stop_token_ids", stop, "give token ids >= 0")

    def _check_truncation(self) -> None:
        value: float = self.temperature
        _require(_is_real(value) and 0 <= value <= 100, "temperature", value, "give a number from 0 (greedy) to 100")
        _require(
            _is_real(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "give a number above 0, at most 1 (off)"
        )
        _require(_is_int(self.top_k) and self.top_k >= 0, "top_k", self.top_k, "give a whole number, 0 for off")
        _require(_is_real(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "give a number from 0 (off) to 1")
        value = self.typical_p
        _require(_is_real(value) and 0 < value <= 1, "typical_p", value, "give a number above 0, at most 1 (off)")

    def _check_penalties(self) -> None:
        value: float = self.repetition_penalty
        _require(_is_real(value) and 0 < value <= 100, "repetition_penalty", value, "give a number above 0, 1 for off")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _require(_is_real(value) and -100 <= value <= 100, name, value, "give a number from -100 to 100, 0 for off")
        n = self.no_repeat_ngram_size
        _require(_is_int(n) and n >= 0, "no_repeat_ngram_size", n, "give a whole number, 0 for off")
        bias = self.logit_bias
        if bias is None:
            return
        _require(isinstance(bias, Mapping), "logit_bias", bias, "give a mapping from token id to a number")
        for token, amount in bias.items():
            _require(_is_int(token) and token >= 0, "logit_bias", token, "its keys are token ids >= 0")
            _require(_is_real(amount), "logit_bias", amount, "its values are finite numbers")


@dataclass(slots=True)
class EngineRequest:
    """One prompt to continue.

    request_id: unique among the requests the engine holds. prompt_ids: at least one token id.
    priority: larger goes first (-100..100); a waiting request still comes to its turn (scheduler.py states the bound).
    deadline: a time on the clock whose reading is handed to Engine.step, None for none; once it has passed, the
    request ends with finish reason "deadline", keeping the tokens it has.
    """

    request_id: int
    prompt_ids: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    deadline: float | None = None

    def __post_init__(self) -> None:
        _require(len(self.prompt_ids) >= 1, "prompt_ids", self.prompt_ids, "give at least one token")
        value = self.priority
        remedy = f"give a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}"
        _require(_is_int(value) and abs(value) <= MAX_PRIORITY, "priority", value, remedy)


@dataclass(slots=True)
class TokenDelta:
    """What one step added to one request. The last delta of a request, and only it, has a finish_reason.

    token_ids, logprobs and entropies have equal lengths (zero for an ending without a token). A stop token (eos or
    stop_token_ids) is part of token_ids: usage counts it and the detokenizer skips special tokens.
    logprobs, entropies: nats, of the model's own distribution, temperature 1, before any penalty or truncation.
    top_logprobs: for each token the likeliest (token id, log-probability), best first; None when not asked for.
    error: a sentence for people when finish_reason is "error".
    """

    request_id: int
    token_ids: list[int]
    logprobs: list[float]
    entropies: list[float]
    top_logprobs: list[list[tuple[int, float]]] | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
