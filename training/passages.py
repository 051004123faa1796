"""Nats of held-out text, passage by passage, under one causal language model. Knows nothing of generation or scores.

Passages are cut by bytes of text, so that models with other tokenizers are compared on the same ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

PASSAGE_BYTES = 2048
"""A passage ends with the first line that brings it to this many bytes, or with its document."""
_LOGITS_PER_PASS = 1 << 26  # 256 MiB in float32


@dataclass(frozen=True, slots=True)
class SplitNats:
    """bytes_P, nats_P: of each passage, in order of the text. num_words: runs of characters without white space."""

    bytes_P: NDArray[np.int64]
    nats_P: NDArray[np.float64]
    num_documents: int
    num_tokens: int
    num_words: int


@dataclass(frozen=True, slots=True)
class _Document:
    """ids_T: the lead token, then the text's. passage_of_T: the passage of each token of the text."""

    ids_T: NDArray[np.int64]
    passage_of_T: NDArray[np.int64]


def passage_ends(document: str) -> list[int]:
    """Index of the character behind each passage of a document."""
    ends: list[int] = []
    start = size = 0
    while start < len(document):
        end = document.find("\n", start) + 1 or len(document)
        size += len(document[start:end].encode())
        start = end
        if size >= PASSAGE_BYTES or start == len(document):
            ends.append(start)
            size = 0
    return ends


def windows(num_tokens: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """(begin, first, end) of each pass over a lead token and num_tokens of text.

    The pass reads places begin to end - 1 of lead and text, and predicts the text's tokens first to end - 1. It has
    up to context tokens to read, of which stride are predicted: each token once, and all but a document's first with
    at least context - stride + 1 tokens before them. With stride = context these are the windows of
    lm-evaluation-harness's loglikelihood_rolling.
    """
    found = []
    for first in range(0, num_tokens, stride):
        end = min(first + stride, num_tokens)
        found.append((max(0, end - context), first, end))
    return found


def split_nats(
    model: nn.Module,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    lead_id: int,
    *,
    context: int,
    stride: int,
    progress: Callable[[int], object] | None = None,
) -> SplitNats:
    """Cross-entropy of every token of every document, in nats, summed by passage; each document stands behind lead_id.

    A token belongs to the passage of its first character. The end of a document is not predicted: it has no bytes.
    progress: called with the number of bytes whose tokens are done. ValueError for a stride outside 1..context.
    """
    if not 1 <= stride <= context:
        raise ValueError(f"stride is {stride}: give 1 to {context}, the context; {context} means no overlap")
    bytes_P, parts = _cut(documents, tokenizer, lead_id)
    nats_P = np.zeros(len(bytes_P))
    jobs = [(part, *window) for part in parts for window in windows(len(part.passage_of_T), context, stride)]
    jobs.sort(key=lambda job: job[1] - job[3])  # longest first; stable, so the same batches each time
    config: Any = model.config
    rows = max(1, _LOGITS_PER_PASS // (context * config.get_text_config(decoder=True).vocab_size))
    done, num_tokens = 0, sum(len(part.passage_of_T) for part in parts)
    for at in range(0, len(jobs), rows):
        batch = jobs[at : at + rows]
        for (part, _, first, end), nats_T in zip(batch, _token_nats(model, batch), strict=True):
            np.add.at(nats_P, part.passage_of_T[first:end], nats_T)
            before, done = done, done + end - first
            if progress is not None:
                total = int(bytes_P.sum())
                progress(total * done // num_tokens - total * before // num_tokens)
    num_words = sum(len(document.split()) for document in documents)
    return SplitNats(bytes_P, nats_P, len(documents), num_tokens, num_words)


def _cut(documents: Sequence[str], tokenizer: Tokenizer, lead_id: int) -> tuple[NDArray[np.int64], list[_Document]]:
    sizes: list[int] = []
    parts = []
    for document in documents:
        ends = passage_ends(document)
        encoded = tokenizer.encode(document, add_special_tokens=False)
        starts_T = np.array([start for start, _ in encoded.offsets], dtype=np.int64)
        place_T = np.minimum(np.searchsorted(ends, starts_T, side="right"), len(ends) - 1)
        parts.append(_Document(np.array([lead_id, *encoded.ids], dtype=np.int64), place_T + len(sizes)))
        sizes += [len(document[a:b].encode()) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    return np.array(sizes, dtype=np.int64), parts


def _token_nats(model: nn.Module, batch: Sequence[tuple[_Document, int, int, int]]) -> list[NDArray[np.float64]]:
    """Nats of each window's predicted tokens. Padding stands behind the text and attention is causal: no mask."""
    width = max(end - begin for _, begin, _, end in batch)
    ids_BT = torch.zeros((len(batch), width), dtype=torch.long)
    next_BT = torch.zeros((len(batch), width), dtype=torch.long)
    for row, (part, begin, _, end) in enumerate(batch):
        ids_BT[row, : end - begin] = torch.from_numpy(part.ids_T[begin:end])
        next_BT[row, : end - begin] = torch.from_numpy(part.ids_T[begin + 1 : end + 1])
    with torch.inference_mode():
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
        nats_BT = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), next_BT.flatten(), reduction="none")
    found = nats_BT.view(ids_BT.shape).double().numpy()
    return [found[row, first - begin : end - begin] for row, (_, begin, first, end) in enumerate(batch)]
