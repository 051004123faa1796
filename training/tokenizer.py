"""Tokenizers for training: a byte-level BPE trained on the train split, or any Hugging Face tokenizer. Text to ids."""

import os
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from training.corpora import SEPARATOR

_PIECE_CHARACTERS = 50_000  # the trainer reads in parallel over pieces; one book would be one piece


def train_tokenizer(documents: list[str], vocab_size: int, model_max_length: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of exactly vocab_size ids, one of them the document separator, trained on these documents.

    Raises ValueError where the text is too small for so many ids.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(_pieces(documents), trainer)
    if bpe.get_vocab_size() != vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is more than this text yields ({bpe.get_vocab_size()}); "
            f"give --vocab-size {bpe.get_vocab_size() // 64 * 64} or more text"
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=SEPARATOR, bos_token=SEPARATOR, model_max_length=model_max_length
    )


def load_tokenizer(name: str, model_max_length: int) -> PreTrainedTokenizerBase:
    """A Hugging Face tokenizer by folder or id. Raises ValueError where it cannot be had or lacks an eos_token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise ValueError(
            f"tokenizer={name!r} cannot be loaded ({str(error).splitlines()[0]}); give a folder with tokenizer.json, "
            f"or on a machine with access run: hf download {name}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer={name!r} has no eos_token, which must stand between documents; choose another")
    tokenizer.model_max_length = model_max_length
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, documents: list[str]) -> Iterator[list[int]]:
    """Token ids of each document, without special tokens, in parallel over pieces that end at a line."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield from (tokenizer(document, add_special_tokens=False)["input_ids"] for document in documents)
        return
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # threads live in this call only, so a later fork is safe
    try:
        for document in documents:
            pieces = backend.encode_batch_fast(list(_line_pieces(document)), add_special_tokens=False)
            yield [token for piece in pieces for token in piece.ids]
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM") if before is None else os.environ.update(TOKENIZERS_PARALLELISM=before)


def _pieces(documents: list[str]) -> Iterator[str]:
    for document in documents:
        yield from _line_pieces(document)


def _line_pieces(document: str) -> Iterator[str]:
    """Cut a document just before a line break that follows a character that is no space.

    There a byte-level BPE cuts words anyway: a run of white space before a word stays whole, so the ids are those of
    the whole document.
    """
    start = 0
    while len(document) - start > _PIECE_CHARACTERS:
        cut = document.find("\n", start + _PIECE_CHARACTERS)
        while cut > 0 and document[cut - 1].isspace():
            cut = document.find("\n", cut + 1)
        if cut < 0:
            break
        yield document[start:cut]
        start = cut
    yield document[start:]
