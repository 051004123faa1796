"""Prompts of an exact number of tokens, cut from a text, none twice.

python -m loadtests.prompts --tokenizer MODEL/tokenizer.json --text FILE --output prompts.json
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

MARGIN = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """0: written; 2: bad input."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.prompts", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--text", type=Path, required=True, help="any text file")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--count", type=int, default=2000, help="at most so many")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        if options.prompt_tokens < 1 or options.count < 1:
            raise ValueError("prompt_tokens and count: give 1 or more")
        tokenizer, text = Tokenizer.from_file(str(options.tokenizer)), options.text.read_text()
    except Exception as error:  # tokenizers raises bare Exception
        print(f"error: {error}", file=sys.stderr)
        return 2
    prompts = list(cut(tokenizer, text, options.prompt_tokens, options.count))
    options.output.write_text(json.dumps(prompts) + "\n")
    print(f"{options.output}: {len(prompts)} prompts of {options.prompt_tokens} tokens")
    return 0


def cut(tokenizer: Tokenizer, text: str, num_tokens: int, count: int) -> Iterator[dict[str, object]]:
    """Pieces whose text, tokenised again, gives the same ids: servers that take text and those that take ids agree."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    seen: set[tuple[int, ...]] = set()
    for start in range(0, len(ids) - num_tokens + 1, num_tokens + MARGIN):
        piece = ids[start : start + num_tokens]
        words = tokenizer.decode(piece, skip_special_tokens=False)
        if tuple(piece) in seen or tokenizer.encode(words).ids != piece:
            continue
        seen.add(tuple(piece))
        yield {"text": words, "ids": piece}
        if len(seen) == count:
            return


if __name__ == "__main__":
    sys.exit(main())
