"""Token ids to text, a piece at a time. Needs `tokenizers` only; runs in the API process, off the engine's thread."""

from collections.abc import Sequence

from tokenizers import Tokenizer


class Detokenizer:
    """The text of one growing sequence.

    Deltas are whole characters and join to tokenizer.decode(all ids), cut before the first stop string.
    tokenizer: shared by any number of detokenizers. stop: non-empty strings that end the text and are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, skip_special_tokens: bool = True) -> None:
        self.finished_by_stop: str | None = None
        """The stop string that ended the text, None while there was none. After it, push() returns ""."""
        raise NotImplementedError

    def push(self, token_ids: Sequence[int]) -> str:
        """The text these tokens make certain: everything but what may still become a character or a stop string."""
        raise NotImplementedError

    def flush(self) -> str:
        """The rest, at the end of the sequence. A cut-off character comes out as U+FFFD, as decode() has it."""
        raise NotImplementedError
