"""The command that compares two things: two groups of runs, paired by seed, or two checkpoints, paired by passage.

    python -m training.compare runs/lambda/confirm:l0.01 runs/lambda/confirm:none
    python -m training.compare models/a models/b --dataset FOLDER

Below zero, A is better. Trains nothing. Checkpoints may differ in tokenizer: bits per byte of the same passages.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tqdm import tqdm

from training.arm_comparison import compare_arms
from training.corpora import load_corpus
from training.evaluation import Evaluator
from training.packing import TokenStream
from training.report import COMPARISON_HEADER, add_comparison_flags, comparison_row, interval_text, provenance
from training.results import read_results
from training.statistics import Estimate, FloatArray, bootstrap_interval, compare_pairs
from training.tokenizer import encode, load_tokenizer

_PASSAGE_CHARACTERS = 4000
_LEAST_CHARACTERS = 400  # a document's last piece is left out below this
_MOST_CONTEXT = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. 0: compared; 1: these two cannot be compared; 2: bad input; 130: interrupted."""
    parser = argparse.ArgumentParser(prog="python -m training.compare", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for side in ("a", "b"):
        parser.add_argument(side, metavar=side.upper(), help="RUNS:ARM, runs of one arm, or a checkpoint folder")
    add_comparison_flags(parser)
    parser.add_argument("--dataset", default="pydoc", help="checkpoints: text, as in training.train (default: pydoc)")
    parser.add_argument("--split", default="valid", choices=("valid", "test"), help="checkpoints (default: valid)")
    parser.add_argument("--passages", type=int, default=100, metavar="N", help="checkpoints: at most so many")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    try:
        folders = [Path(text) for text in (options.a, options.b)]
        of_models = [(folder / "config.json").is_file() for folder in folders]
        if any(of_models) and not all(of_models):
            raise ValueError(f"a={options.a!r}, b={options.b!r}: one is a checkpoint and one is not; give two alike")
        found = compare_checkpoints(folders, options) if all(of_models) else compare_groups(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was kept. The same command starts again.", file=sys.stderr)
        return 130
    print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(found)))
    return 1 if found.get("refusal") else 0


def compare_groups(options: argparse.Namespace) -> dict[str, Any]:
    """Two arms, paired by seed. Raises ValueError for what is no group of runs."""
    results, arms = [], []
    for text in (options.a, options.b):
        path, _, arm = text.rpartition(":") if not Path(text).exists() else (text, "", "")
        group = read_results([Path(path)])
        names = sorted({run["arm"] for run in group})
        if not arm and len(names) > 1:
            raise ValueError(f"runs={text!r} holds arms {', '.join(names)}: name one behind a colon")
        arms.append(arm or names[0])
        if arms[-1] not in names:
            raise ValueError(f"runs={text!r}: there are {', '.join(names)}")
        results += [run for run in group if run["arm"] == arms[-1]]
    unique = list({(run["arm"], run["key"]): run for run in results}.values())
    found = compare_arms(unique, arms[0], arms[1], options.apart_from, margin=options.margin)
    used = [run for run in unique if run["seed"] in found.seeds]
    table = {} if found.refusal else dict(zip(COMPARISON_HEADER, comparison_row(found), strict=True))
    return {"kind": "runs", "conditions": provenance(used or unique), "table": table, **asdict(found)}


def compare_checkpoints(folders: Sequence[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Two models on the same passages. Raises ValueError for fewer than 3 passages."""
    corpus = load_corpus(options.dataset)
    passages = split_passages(corpus.documents[options.split], options.passages)
    context = _shared_context(folders)
    a, b = (passage_scores(folder, passages, context) for folder in folders)
    bits = [(side[:, 0] / side[:, 1]).tolist() for side in (a, b)]
    pairs = compare_pairs(*bits)

    def whole(rows: FloatArray) -> float:
        return float(rows[:, 0].sum() / rows[:, 1].sum() - rows[:, 2].sum() / rows[:, 3].sum())

    total = bootstrap_interval(whole, np.hstack([a, b]))
    fingerprint: Any = corpus.fingerprint()["splits"]
    conditions = (
        f"{len(passages)} passages of up to {_PASSAGE_CHARACTERS} characters, context {context} tokens, "
        f"{options.split} split, text SHA-256 {fingerprint[options.split]['sha256']}; one checkpoint each, so nothing "
        "here is about the method that trained it"
    )
    names = [str(folder) for folder in folders]
    each = [float(side[:, 0].sum() / side[:, 1].sum()) for side in (a, b)]
    return {
        "kind": "checkpoints", "a": names[0], "b": names[1], "conditions": conditions,
        "bits_per_byte": each, "whole_difference": asdict(total), "pairs": asdict(pairs),
    }  # fmt: skip


def split_passages(documents: Sequence[str], limit: int) -> list[str]:
    """Up to `limit` passages, spread evenly over the documents cut in pieces. Raises ValueError below 3."""
    pieces = [
        text[start : start + _PASSAGE_CHARACTERS]
        for text in documents
        for start in range(0, len(text) - _LEAST_CHARACTERS, _PASSAGE_CHARACTERS)
    ]
    if min(len(pieces), limit) < 3:
        raise ValueError(f"passages={min(len(pieces), limit)}: give 3 or more, in a longer text")
    chosen = np.linspace(0, len(pieces) - 1, min(limit, len(pieces))).round().astype(int)
    return [pieces[index] for index in chosen]


def passage_scores(folder: Path, passages: Sequence[str], block_size: int) -> FloatArray:
    """(P, 2): bits and bytes of each passage. A separator stands before it, so that every byte is predicted."""
    tokenizer = load_tokenizer(str(folder), block_size)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    rows = []
    for ids in tqdm(encode(tokenizer, list(passages)), total=len(passages), desc=folder.name, leave=False):
        stream = TokenStream(np.asarray([tokenizer.eos_token_id, *ids], dtype=np.int32), 0)
        found = Evaluator(stream, tokenizer, block_size)(model)
        rows.append([found.bits_per_byte * found.num_bytes, found.num_bytes])
    return np.asarray(rows, dtype=np.float64)


def _shared_context(folders: Sequence[Path]) -> int:
    """Tokens of context that both models have, at most 256."""
    contexts = [json.loads((folder / "config.json").read_text()).get("max_position_embeddings") for folder in folders]
    return min([_MOST_CONTEXT, *(int(context) for context in contexts if context)])


def _lines(found: dict[str, Any]) -> list[str]:
    """What is printed without --json."""
    if found["kind"] == "runs":
        if found["refusal"]:
            return [f"no comparison of {found['arm']} with {found['reference']}: {found['refusal']}"]
        width = max(map(len, found["table"]))
        return [f"{name:<{width}}  {value}" for name, value in found["table"].items()] + [found["conditions"]]
    pairs = found["pairs"]
    return [
        f"A {found['a']}: {found['bits_per_byte'][0]:.4f} bits per byte",
        f"B {found['b']}: {found['bits_per_byte'][1]:.4f} bits per byte",
        f"A less B over all bytes: {interval_text(Estimate(**found['whole_difference']), '+')}, by bootstrap",
        f"A less B, mean of {pairs['num_pairs']} passages: {interval_text(Estimate(**pairs['difference']), '+')}",
        f"paired d {interval_text(Estimate(**pairs['d']), '+')}; sign flip p {pairs['sign_flip_p']:.4f}; "
        f"t p {pairs['t_p']:.4f}",
        found["conditions"],
    ]


if __name__ == "__main__":
    sys.exit(main())
