"""Documents become one stream of token ids per split, and the stream becomes windows. No model.

A separator token follows every document, so a model can learn where one ends.
"""

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from training.corpora import Corpus
from training.tokenizer import encode, load_tokenizer, train_tokenizer


@dataclass(frozen=True)
class TokenStream:
    """A split as token ids (int32, 1-D), with the bytes of text they stand for (a separator stands for none)."""

    ids: NDArray[np.int32]
    num_bytes: int


class WindowDataset(Dataset[dict[str, torch.Tensor]]):
    """Consecutive windows of block_size tokens, as input_ids and labels (transformers shifts the labels itself)."""

    def __init__(self, stream: TokenStream, block_size: int) -> None:
        self.num_windows = len(stream.ids) // block_size
        if self.num_windows == 0:
            raise ValueError(f"block_size={block_size} is more than the train split has tokens ({len(stream.ids)})")
        self.ids_WT = stream.ids[: self.num_windows * block_size].reshape(self.num_windows, block_size)

    def __len__(self) -> int:
        return self.num_windows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids_T = torch.from_numpy(self.ids_WT[index].astype(np.int64))
        return {"input_ids": ids_T, "labels": ids_T}


def prepare(
    corpus: Corpus, tokenizer_name: str | None, vocab_size: int, block_size: int, cache_dir: Path
) -> tuple[PreTrainedTokenizerBase, dict[str, TokenStream]]:
    """Tokenizer and token streams of a corpus, kept in cache_dir under the fingerprint of text and tokenizer.

    Processes may prepare the same streams at once (torchrun does): each works in a folder of its own and the first
    rename wins.
    """
    given = None if tokenizer_name is None else load_tokenizer(tokenizer_name, block_size)
    identity = [corpus.fingerprint(), vocab_size if given is None else sorted(given.get_vocab().items())]
    folder = cache_dir / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    if not folder.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=cache_dir, prefix=".partial-"))
        _write_streams(corpus, given, vocab_size, block_size, partial)
        try:
            partial.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(partial)
    streams = {split: _load_stream(folder / f"{split}.npy", docs) for split, docs in corpus.documents.items()}
    return load_tokenizer(str(folder), block_size), streams


def _write_streams(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, block_size: int, folder: Path
) -> None:
    if tokenizer is None:
        print(f"Training a tokenizer of {vocab_size} ids on the train split", flush=True)
        tokenizer = train_tokenizer(corpus.documents["train"], vocab_size, block_size)
    tokenizer.save_pretrained(folder)
    for split, documents in corpus.documents.items():
        np.save(folder / f"{split}.npy", _stream_ids(tokenizer, documents, split), allow_pickle=False)


def _stream_ids(tokenizer: PreTrainedTokenizerBase, documents: list[str], split: str) -> NDArray[np.int32]:
    separator = np.array([tokenizer.eos_token_id], dtype=np.int32)
    parts: list[NDArray[Any]] = []
    for ids in tqdm(encode(tokenizer, documents), total=len(documents), desc=f"tokenize {split}", leave=False):
        parts += [np.asarray(ids, dtype=np.int32), separator]
    return np.concatenate(parts)


def _load_stream(path: Path, documents: list[str]) -> TokenStream:
    ids = np.load(path, allow_pickle=False, mmap_mode="r")
    return TokenStream(ids, sum(len(document.encode()) for document in documents))
