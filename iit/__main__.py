"""The command line: `python -m iit measure --model DIR --text FILE` prints and plots Phi by layer.

The one room that reads models and text; it needs transformers, tokenizers, rich, and matplotlib for the plot.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iit.measurement import Phi, measure_states, project_units
from iit.partitions import Cut
from iit.probe import HeadProbe, decoder_layers

WINDOWS_PER_FORWARD = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 2 with one line on stderr where an argument or file does not fit."""
    options = _parser().parse_args(arguments)
    try:
        _check_outputs(options)
        records = run_measure(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print_table(records, options)
    if options.json is not None:
        options.json.write_text(json.dumps([_as_json(record) for record in records], indent=1) + "\n")
        print(f"wrote {options.json}")
    if options.plot is not None:
        from iit.plots import plot_layers  # matplotlib is slow to import and not needed for the table

        plot_layers(records, options.plot, title=f"{options.model.name}, {options.text.name}", layers=options.layers)
        print(f"wrote {options.plot}")
    return 0


def run_measure(options: argparse.Namespace) -> list[Phi]:
    """Measure every layer asked for. Raises ValueError where a path, layer or setting does not fit."""
    for name, lowest in (("length", 1), ("max_tokens", 1), ("surrogates", 0)):
        if getattr(options, name) < lowest:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(options, name)}: use {lowest} or more")
    token_ids, model = _read_tokens(options), _load_model(options.model)
    num_layers = len(decoder_layers(model))
    layers = options.layers or list(range(num_layers))
    windows_WT = _windows(token_ids, options.length, model)
    states, num_units = read_states(model, windows_WT, layers, rank=options.rank, seed=options.seed)
    return [
        measure_states(
            states[layer],
            num_units[layer],
            lag=options.lag,
            num_dropped=options.num_dropped,
            seed=options.seed,
            num_surrogates=options.surrogates,
        )
        for layer in layers
    ]


@torch.no_grad()
def read_states(
    model: nn.Module, windows_WT: Tensor, layers: Sequence[int], *, rank: int, seed: int
) -> tuple[dict[int, list[Tensor]], dict[int, int]]:
    """Projected states (B, T, K * rank) and number of units of each layer, over all windows of token ids (W, T)."""
    states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    with ExitStack() as stack:
        probes = {layer: stack.enter_context(HeadProbe(model, layer)) for layer in layers}
        for start in range(0, len(windows_WT), WINDOWS_PER_FORWARD):
            model(input_ids=windows_WT[start : start + WINDOWS_PER_FORWARD])
            for layer, probe in probes.items():
                states[layer].append(project_units(probe.read(), rank, seed))
        return states, {layer: probe.num_units for layer, probe in probes.items()}


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse before the work what could not be written after it."""
    for name in ("plot", "json"):
        path = getattr(options, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"--{name}={path}: the folder {path.parent} does not exist; create it first")


def _load_model(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, KeyError) as error:
        raise ValueError(f"--model={folder}: the checkpoint cannot be loaded: {error}") from error
    return model.eval()


def _read_tokens(options: argparse.Namespace) -> list[int]:
    from tokenizers import Tokenizer

    if not (options.model / "config.json").is_file():
        raise ValueError(f"--model={options.model}: no config.json there; give a folder with a Hugging Face checkpoint")
    tokenizer_path = options.model / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise ValueError(f"--model={options.model}: no tokenizer.json there; save the tokenizer beside the model")
    try:
        text = options.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--text={options.text}: cannot be read as UTF-8 text: {error}") from error
    token_ids: list[int] = Tokenizer.from_file(str(tokenizer_path)).encode(text, add_special_tokens=False).ids
    return token_ids[: options.max_tokens]


def _windows(token_ids: list[int], length: int, model: nn.Module) -> Tensor:
    """Cut the text into windows of equal length: (W, length). A shorter rest is left out."""
    config: Any = model.config
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and length > longest:
        raise ValueError(f"--length={length}: the model reads at most {longest} positions")
    if len(token_ids) < length:
        raise ValueError(f"--text has {len(token_ids)} tokens: give at least --length={length}, or a smaller --length")
    whole = len(token_ids) // length
    return torch.tensor(token_ids[: whole * length]).view(whole, length)


def _print_table(records: list[Phi], options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    first = records[0]
    table = Table(
        title=f"Phi_G by layer, nats: {options.model} on {options.text}",
        caption=f"{first.num_pairs} pairs at lag {first.lag}, rank {first.rank}, projections of seed {options.seed}; "
        f"{options.surrogates} time-shift surrogates. An observational statistic of hidden states, nothing more.",
    )
    names = ["layer", "units", "Phi", "null", "p (chi2)", "phi01", "Phi^R", "I(X;Y)", "rank used", "minimum cut"]
    surrogate_names = ["surrogates' 95 %", "p (shift)"] if options.surrogates else []
    for name in [*names[:5], *surrogate_names, *names[5:]]:
        table.add_column(name, justify="right")
    for layer, record in zip(options.layers or range(len(records)), records, strict=True):
        shifted = [f"{record.surrogate_quantile_95:.4f}", f"{record.surrogate_p_value:.3f}"] if surrogate_names else []
        table.add_row(
            str(layer),
            str(record.num_units),
            f"{record.phi:.4f}",
            f"{record.null_mean:.4f}",
            f"{record.p_value:.3g}",
            *shifted,
            f"{record.phi01:.4f}",
            f"{record.phi_r:.4f}",
            f"{record.time_delayed_mutual_information:.4f}",
            f"{record.effective_rank:.1f} of {record.num_channels}",
            cut_name(record.cut),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def cut_name(cut: Cut) -> str:
    """A cut as people write it: "0 1 | 2 3"."""
    return " | ".join(" ".join(map(str, part)) for part in cut)


def _as_json(record: Phi) -> dict[str, Any]:
    fields = asdict(record)
    fields["phi_of_cuts"] = {cut_name(cut): value for cut, value in record.phi_of_cuts.items()}
    return fields


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m iit", description="Integrated information of hidden states.")
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "measure",
        help="Phi by layer, with its null, of a model on a text",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--model", type=Path, required=True, help="folder of a Hugging Face causal language model")
    command.add_argument("--text", type=Path, required=True, help="UTF-8 text, held out from training")
    command.add_argument("--layers", type=int, nargs="+", help="layers to measure (default: all)")
    command.add_argument("--rank", type=int, default=1, help="channels each unit is projected to")
    command.add_argument("--lag", type=int, default=1, help="positions between x and y")
    command.add_argument("--num-dropped", type=int, default=8, help="first positions of a window left out")
    command.add_argument("--length", type=int, default=256, help="tokens of a window")
    command.add_argument("--max-tokens", type=int, default=65536, help="tokens of the text to read")
    command.add_argument("--surrogates", type=int, default=100, help="time-shift surrogates; 0 for none")
    command.add_argument("--seed", type=int, default=0, help="fixes projections and surrogates")
    command.add_argument("--plot", type=Path, default=Path("phi.png"), help="PNG to write")
    command.add_argument("--no-plot", dest="plot", action="store_const", const=None, help="write no PNG")
    command.add_argument("--json", type=Path, help="also write all values to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
