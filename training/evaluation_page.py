"""An evaluation as one self-contained HTML page, and as lines for a terminal. Takes evaluation.json's content only."""

import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd }
th { text-align: left } td { text-align: right; font-variant-numeric: tabular-nums } td:first-child { text-align: left }
.note { color: #555; font-size: .9em } pre { white-space: pre-wrap; background: #f6f6f6; padding: .6rem }
"""
Figures = Mapping[str, Any]


def summary(content: Figures) -> list[str]:
    """The main figures, each with its interval and number."""
    report = content["report"]
    lines = [_line_of_split(name, found) for name, found in report["splits"].items()]
    for name, found in report["decodings"].items():
        lines.append(
            f"{name}: mean score {_shown(found['score'])}, MAUVE {_shown(found['mauve'])}, "
            f"n = {found['num_texts']} prompts"
        )
    human = report["human"]
    return [*lines, f"people: mean score {_shown(human['score'])}, n = {human['num_texts']}", _scope(content)]


def page(content: Figures) -> str:
    """The whole evaluation as HTML that loads nothing."""
    report = content["report"]
    title = f"Evaluation of {html.escape(report['model'])}"
    parts = [
        f"<h1>{title}</h1>",
        f"<p class='note'>{html.escape(_scope(content))} Weights {content['weights_sha256']}.</p>",
        "<h2>Held-out text</h2>",
        _splits(content),
        "<h2>Phi by layer</h2>",
        _phi(report),
        "<h2>What it writes</h2>",
        _decodings(content),
        _plot(report),
        "<h2>Samples</h2>",
        "<p class='note'>The first prompts in the order they were drawn: not chosen, not edited.</p>",
        *(_sample(sample) for sample in report["samples"]),
    ]
    body = "\n".join(parts)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _line_of_split(name: str, found: Figures) -> str:
    return (
        f"{name}: {_shown(found['bits_per_byte'])} bits per byte, token perplexity {found['token_perplexity']:.2f}, "
        f"word perplexity {found['word_perplexity']:.1f} ({found['tokens_per_word']:.3f} tokens per word), "
        f"n = {found['num_passages']} passages"
    )


def _scope(content: Figures) -> str:
    protocol, report = content["protocol"], content["report"]
    splits = ", ".join(
        f"{s['name']} (SHA-256 {s['sha256'][:12]}, {s['num_bytes']:,} bytes)" for s in protocol["splits"]
    )
    return (
        f"{report['dataset']}: {splits}; context {protocol['context']}, stride {protocol['stride']}; "
        f"{protocol['num_prompts']} prompts of {report['prompts_of']}, {protocol['prompt_tokens']} tokens each, "
        f"at most {protocol['new_tokens']} written; seed {protocol['seed']}; {report['runner']['name']} runner, "
        f"{report['runner']['dtype']}. "
        f"In brackets: 95 % intervals, {report['num_bootstrap']} bootstrap resamples of passages or prompts."
    )


def _shown(interval: Figures | None) -> str:
    if interval is None:
        return "none"
    return f"{interval['value']:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(x))}</td>" for x in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _splits(content: Figures) -> str:
    titles = ["split", "bits per byte", "token perplexity", "word perplexity", "tokens per word", "tokens"]
    rows = [
        [
            name,
            _shown(found["bits_per_byte"]),
            f"{found['token_perplexity']:.2f}",
            f"{found['word_perplexity']:.1f}",
            f"{found['tokens_per_word']:.4f}",
            f"{found['num_tokens']:,}",
            f"{found['num_passages']:,}",
            f"{found['num_documents']:,}",
        ]
        for name, found in content["report"]["splits"].items()
    ]
    note = (
        "Words are runs of characters without white space. The interval is over passages of these documents: it says "
        "nothing of other documents."
    )
    return _table([*titles, "passages", "documents"], rows) + f"<p class='note'>{note}</p>"


def _phi(report: Figures) -> str:
    titles = ["layer", "units", "Phi, nats", "null mean", "p", "phi01", "Phi^R", "effective rank", "pairs"]
    rows = [
        [
            found["layer"],
            found["num_units"],
            f"{found['phi']:.4f}",
            f"{found['null_mean']:.4f}",
            f"{found['p_value']:.2g}",
            f"{found['phi01']:.4f}",
            f"{found['phi_r']:.4f}",
            f"{found['effective_rank']:.1f}",
            f"{found['num_pairs']:,}",
        ]
        for found in report["phi"]
    ]
    first = report["phi"][0]
    note = (
        f"Phi_G over the minimum cut, lag {first['lag']}, {first['rank']} projected channels a unit, on the first "
        f"windows of {report['prompts_of']}. Null mean: of Phi where there is nothing to find; p: chi-square, which "
        "takes neighbouring positions for independent. A statistic of hidden states, nothing more."
    )
    return _table(titles, rows) + f"<p class='note'>{html.escape(note)}</p>"


def _decodings(content: Figures) -> str:
    report = content["report"]
    grades = list(report["human"]["grades"])
    titles = ["decoding", "setting", "mean score", *grades, "distinct-1", "-2", "-3", "-4", "self-BLEU", "MAUVE"]
    rows = []
    for name, found in [*report["decodings"].items(), ("people", report["human"])]:
        setting = ", ".join(f"{key} {value:g}" for key, value in found.get("setting", {}).items())
        rows.append(
            [
                name,
                setting or ("the text itself" if name == "people" else "plain sampling"),
                _shown(found["score"]),
                *(f"{found['grades'][grade]:.0%}" for grade in grades),
                *(f"{found['distinct'][n]:.3f}" for n in ("1", "2", "3", "4")),
                f"{found['self_bleu']:.3f}",
                _shown(found.get("mauve")) if "mauve" in found else "",
                found["num_texts"],
                found["num_too_short"],
            ]
        )
    note = (
        "Score: text head of the quality reference "
        f"{content['protocol']['quality_reference_sha256'][:12]}. MAUVE against the human continuations of the same "
        "prompts, with the model's own last hidden states as features: compare it only within this page."
    )
    return _table([*titles, "n", "too short"], rows) + f"<p class='note'>{note}</p>"


def _plot(report: Figures) -> str:
    """Mean scores with intervals, and the distribution of scores, as inline SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    means, spread = figure.subplots(1, 2)
    named = [(n, f["score"]) for n, f in [*report["decodings"].items(), ("people", report["human"])] if f["score"]]
    at = list(range(len(named), 0, -1))
    around = [[s["value"] - s["low"] for _, s in named], [s["high"] - s["value"] for _, s in named]]
    means.errorbar([s["value"] for _, s in named], at, xerr=around, fmt="o", capsize=3)
    means.set_yticks(at, [name for name, _ in named])
    means.set_xlabel("mean score, 95 % interval over prompts")
    for name, scores in report["scores"].items():
        found = [score for score in scores if score is not None]
        spread.hist(found, bins=[i / 20 for i in range(21)], histtype="step", label=name)
    spread.set(xlabel="score", ylabel="texts")
    spread.legend(fontsize=7)
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "evaluation", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _sample(sample: Figures) -> str:
    parts = [("prompt", sample["prompt"]), ("people", sample["human"]), *sample["continuations"].items()]
    return "".join(f"<h4>{html.escape(name)}</h4><pre>{html.escape(text)}</pre>" for name, text in parts) + "<hr>"
