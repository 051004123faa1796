"""The command that reports runs: what they scored, which differences hold, and which comparisons there cannot be.

    python -m training.report runs/lambda/confirm --contrast l0.01:none --contrast l0.01:sham --apart-from learning_rate

Leaves report.md, its pictures and report.html, one page that needs no other file. Trains and evaluates nothing.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.arm_comparison import MIN_PAIRS, TESTS, ArmComparison, compare_arms, with_holm
from training.report_figures import curves, forest, phi_against_null
from training.report_page import Section, to_html, to_markdown
from training.results import Result, finished, num_training_tokens, read_results, rerun_command
from training.statistics import EQUIVALENCE_MARGIN_NATS, Estimate, t_interval


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. 0: the report is written; 2: bad input."""
    parser = argparse.ArgumentParser(prog="python -m training.report", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="results.jsonl, study or run folders")
    parser.add_argument("--output", type=Path, default=Path("report"), metavar="DIR", help="default: report")
    add_comparison_flags(parser)
    parser.add_argument("--contrast", action="append", default=[], metavar="ARM:REFERENCE", help="test it; may repeat")
    parser.add_argument(
        "--describe",
        action="append",
        default=[],
        metavar="A:B[:C:D]",
        help="the interval of A - B, or of (A - B) - (C - D), with no test",
    )
    options = parser.parse_args(arguments)
    try:
        sections = report_sections(read_results(options.runs), options)
        write_report(options.output, sections)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output / 'report.md'}, {options.output / 'report.html'}")
    return 0


def add_comparison_flags(parser: argparse.ArgumentParser) -> None:
    """What training.compare takes too."""
    parser.add_argument(
        "--apart-from",
        action="append",
        default=[],
        metavar="NAME",
        help="a setting or condition (learning_rate, commit, versions) that may differ beside the thing compared; "
        "each comparison says so",
    )
    parser.add_argument("--test", choices=TESTS, default="sign_flip", help="whose p-values Holm adjusts")
    parser.add_argument(
        "--margin", type=float, default=EQUIVALENCE_MARGIN_NATS, metavar="NATS", help="of equivalence, per token"
    )


def report_sections(results: Sequence[Result], options: argparse.Namespace) -> list[Section]:
    """The whole report. Raises ValueError for arms that are not there and options out of range."""
    named = [_names(text, (2,)) for text in options.contrast]
    tested = with_holm(
        [compare_arms(results, a, b, options.apart_from, margin=options.margin) for a, b in named], options.test
    )
    sections = [_summary(results), _arms(results)]
    if tested:
        sections += _comparisons(tested, results, options)
    if options.describe:
        sections.append(_described(results, options))
    return [*sections, *_pictures(results), _guards(results), _runs(results)]


def write_report(folder: Path, sections: Sequence[Section]) -> None:
    """report.md, its pictures and report.html."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {section.file_name: section.picture for section in sections if section.picture}
    title = "Report of training runs"
    files |= {"report.md": to_markdown(title, sections), "report.html": to_html(title, sections)}
    for name, text in files.items():
        partial = folder / f"{name}.partial"
        partial.write_text(text or "")
        partial.replace(folder / name)


def _names(text: str, counts: Sequence[int]) -> list[str]:
    names = text.split(":")
    if len(names) not in counts or not all(names):
        raise ValueError(f"contrast={text!r}: name {' or '.join(map(str, counts))} arms with colons between them")
    return names


def provenance(results: Sequence[Result]) -> str:
    """Budget, split and commit of these runs, in one line."""
    budgets = sorted({num_training_tokens(run["config"]) for run in results})
    tokens = sorted({run["held_out"]["num_tokens"] for run in results if run["held_out"]})
    commits = sorted({str(run["commit"])[:12] + ("-dirty" if "dirty" in str(run["commit"]) else "") for run in results})
    seeds = sorted({run["seed"] for run in results})
    return (
        f"{len(results)} runs, seeds {', '.join(map(str, seeds))}; trained on {_either(budgets)} tokens each; "
        f"{_either(sorted({run['split'] for run in results}))} split, {_either(tokens)} tokens; "
        f"commit {_either(commits)}"
    )


def _either(values: Sequence[object]) -> str:
    return " or ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in values) or "none"


def _by_arm(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    for arm in dict.fromkeys(run["arm"] for run in results):
        yield arm, list(finished(results, arm).values())


def _summary(results: Sequence[Result]) -> Section:
    texts = sorted(
        {f"{name} {split['sha256'][:16]}" for run in results for name, split in run["dataset"]["splits"].items()}
    )
    lost = sum(run["status"] != "finished" for run in results)
    software = _either(sorted({str(run["versions"] and f"torch {run['versions'].get('torch')}") for run in results}))
    return Section(
        "What was run",
        f"{provenance(results)}. {lost} of the runs diverged or were pruned and have no figure.\n\n"
        f"Text by SHA-256 of its documents: {'; '.join(texts)}. {software}; threads "
        f"{_either(sorted({str(run['threads']) for run in results}))}; device "
        f"{_either(sorted({str(run['device']) for run in results}))}.\n\n"
        "Intervals are 95 % Student t over seeds. Phi is a statistic of hidden states, on held-out text with held-out "
        "projections; it never decides. Lower bits per byte are better.",
    )


def _arms(results: Sequence[Result]) -> Section:
    rows = []
    for arm, runs in _by_arm(results):
        lost = sum(run["arm"] == arm and run["status"] != "finished" for run in results)
        if not runs:
            rows.append([arm, "0", "no finished run", "", "", "", str(lost)])
            continue
        bits = [run["held_out"]["bits_per_byte"] for run in runs]
        phi = [run["phi"]["phi"] for run in runs]
        null = sum(run["phi"]["null_mean"] for run in runs) / len(runs)
        budget = _either(sorted({num_training_tokens(run["config"]) for run in runs}))
        rows.append([arm, str(len(runs)), mean_or_values(bits), mean_or_values(phi), f"{null:.4f}", budget, str(lost)])
    header = ["arm", "n", "held-out bits per byte", "Phi_G, nats", "its null mean", "training tokens", "lost runs"]
    text = "Each arm by itself; that one stands above another is no comparison (those are below, or refused)."
    return Section("Arms", f"{text} {provenance(results)}.", header, rows)


def mean_or_values(values: Sequence[float]) -> str:
    """Mean and interval from three values up, below that the values themselves."""
    if len(values) < MIN_PAIRS:
        return ", ".join(f"{value:.4f}" for value in values) + f" (n = {len(values)}: no interval)"
    return interval_text(t_interval(values))


def interval_text(estimate: Estimate, sign: str = "") -> str:
    """`value (low to high)`."""
    return f"{estimate.value:{sign}.4f} ({estimate.low:{sign}.4f} to {estimate.high:{sign}.4f})"


def _comparisons(
    comparisons: Sequence[ArmComparison], results: Sequence[Result], options: argparse.Namespace
) -> list[Section]:
    made = [c for c in comparisons if c.pairs is not None]
    sections = []
    if made:
        names = {name for c in made for name in (c.arm, c.reference)}
        used = [run for run in results if run["arm"] in names and run["status"] == "finished"]
        text = (
            f"Arm less reference in held-out bits per byte, paired by seed; below zero is better. Holm over the "
            f"{len(made)} {options.test} p-values here. Equivalence: two one-sided t tests, margin {options.margin:g} "
            f"nats per token. {provenance(used)}."
        )
        picture = forest(made, provenance(used))
        sections.append(
            Section("Comparisons", text, COMPARISON_HEADER, [comparison_row(c) for c in made], picture, "forest.svg")
        )
    refused = [[f"{c.arm} less {c.reference}", c.refusal] for c in comparisons if c.refusal]
    if refused:
        sections.append(Section("Comparisons refused", "", ["comparison", "what is missing"], refused))
    return sections


COMPARISON_HEADER = (
    "comparison", "what differs", "pairs", "difference", "paired d", "sign flip p (least possible)", "t p", "Holm p",
    "equivalence p", "phi01 difference", "seeds without a pair",
)  # fmt: skip


def comparison_row(c: ArmComparison) -> list[str]:
    """A comparison that was made, under COMPARISON_HEADER."""
    assert c.pairs is not None
    assert c.phi01 is not None
    apart = f" (besides: {', '.join(c.apart_from)})" if c.apart_from else ""
    return [
        f"{c.arm} less {c.reference}", ", ".join(c.different) + apart, str(len(c.seeds)),
        interval_text(c.pairs.difference, "+"), interval_text(c.pairs.d, "+"),
        f"{c.pairs.sign_flip_p:.4f} ({c.pairs.least_sign_flip_p:.4f})", f"{c.pairs.t_p:.4f}",
        "" if c.holm_p is None else f"{c.holm_p:.4f}", f"{c.equivalence_p:.4f}",
        interval_text(c.phi01.difference, "+"), str(c.num_unpaired),
    ]  # fmt: skip


def _described(results: Sequence[Result], options: argparse.Namespace) -> Section:
    rows = []
    for text in options.describe:
        names = _names(text, (2, 4))
        sides = [
            compare_arms(results, a, b, options.apart_from, margin=options.margin)
            for a, b in zip(names[::2], names[1::2], strict=True)
        ]
        label = " less ".join(f"({c.arm} less {c.reference})" for c in sides)
        by_seed = [dict(zip(c.seeds, c.differences, strict=True)) for c in sides if c.refusal is None]
        seeds = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
        refusals = [c.refusal for c in sides if c.refusal]
        if not refusals and len(seeds) < MIN_PAIRS:
            refusals = [f"{len(seeds)} seeds have all four runs; {MIN_PAIRS} are needed"]
        if refusals:
            rows.append([label, "", f"refused: {'; '.join(refusals)}"])
            continue
        values = [by_seed[0][s] - (by_seed[1][s] if len(by_seed) > 1 else 0.0) for s in seeds]
        rows.append([label, str(len(seeds)), interval_text(t_interval(values), "+")])
    text = f"Held-out bits per byte, paired by seed, with no test. {provenance(results)}."
    return Section("Described", text, ["difference", "seeds", "mean and 95 % interval"], rows)


def _pictures(results: Sequence[Result]) -> list[Section]:
    """Curves, a picture for each budget so that none sets unequal budgets beside each other, and Phi."""
    budgets: dict[int, list[Result]] = {}
    for run in results:
        if run["status"] == "finished":
            budgets.setdefault(num_training_tokens(run["config"]), []).append(run)
    sections = []
    for budget, runs in sorted(budgets.items()):
        arms, caption = dict(_by_arm(runs)), provenance(runs)
        where = "first eval_tokens of the split at each evaluation; mean with 95 % t band from 3 seeds up"
        sections += [
            Section(f"Learning curves, {budget:,} tokens", f"{caption}; {where}.", picture=curves(arms, caption),
                    file_name=f"curves-{budget}.svg"),
            Section(f"Phi against its null, {budget:,} tokens", f"{caption}.", picture=phi_against_null(arms, caption),
                    file_name=f"phi-{budget}.svg"),
        ]  # fmt: skip
    return sections


def _guards(results: Sequence[Result]) -> Section:
    rows = []
    for arm, runs in _by_arm(results):
        cells = []
        for name in ("phi_r", "effective_rank", "gradient_ratio"):
            values = [run["guards"][name] for run in runs if run["guards"].get(name) is not None]
            cells.append(mean_or_values(values) if values else "not measured")
        warned = sorted({warning for run in runs for warning in run["warnings"]})
        count = sum(bool(run["warnings"]) for run in runs)
        rows.append([arm, str(len(runs)), *cells, f"{', '.join(warned)} ({count} runs)" if warned else "none"])
    header = ["arm", "n", "Phi^R, nats", "effective rank", "gradient ratio at the heads", "warnings"]
    text = "What gives a gamed Phi away. Held out, but for the gradient ratio, which is of the last training records."
    return Section("Guards", f"{text} {provenance(results)}.", header, rows)


def _runs(results: Sequence[Result]) -> Section:
    rows = []
    for run in results:
        bits = f"{run['held_out']['bits_per_byte']:.6f}" if run["held_out"] else run["status"]
        commit = str(run["commit"])[:12]
        rows.append([run["arm"], str(run["seed"]), bits, commit, f"`{rerun_command(run)}`"])
    text = "Each command gives its number again on CPU with the same versions, from the commit named."
    return Section("Runs", text, ["arm", "seed", "held-out bits per byte", "commit", "command"], rows)


if __name__ == "__main__":
    sys.exit(main())
