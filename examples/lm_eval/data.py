"""Held-out text as the two tasks' JSON lines: `python examples/lm_eval/data.py test.txt FOLDER`.

last_word.jsonl holds every k-th paragraph of 20 to 200 words that ends in a word which the paragraph had before; 500.
"""

import json
import re
import sys
from pathlib import Path

SEPARATOR = "<|endoftext|>"
NUM_PARAGRAPHS = 500


def last_words(documents: list[str]) -> list[dict[str, str]]:
    """Paragraphs without their last word, and that word."""
    found = []
    for paragraph in (p for document in documents for p in document.split("\n\n")):
        whole = " ".join(paragraph.split())
        match = re.fullmatch(r"(.*) ([A-Za-z]+)[.!?]", whole)
        if match and 20 <= len(whole.split()) <= 200 and match[2] in match[1].split():
            found.append({"context": match[1], "word": match[2]})
    return found[:: max(1, len(found) // NUM_PARAGRAPHS)][:NUM_PARAGRAPHS]


def main() -> None:
    text, folder = Path(sys.argv[1]), Path(sys.argv[2])
    documents = [d for part in text.read_text(encoding="utf-8").split(SEPARATOR) if (d := part.strip("\n"))]
    rows = {"last_word": last_words(documents), "held_out_text": [{"text": d} for d in documents]}
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        print(f"{name}.jsonl: {len(lines)} lines")


if __name__ == "__main__":
    main()
