"""The record of a measurement, and the command that prints and plots it."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from iit import MIN_PAIRS, measure, measure_states
from iit.__main__ import cut_name, main
from tests.phi.models import NUM_HEADS, tiny_model


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_record_holds_its_measures_to_their_bounds() -> None:
    record = measure(noise(4, 100, 4, 8), rank=2)
    assert 0 <= record.phi <= record.time_delayed_mutual_information
    assert 0 <= record.phi01 < 1
    assert 1 <= record.effective_rank <= record.num_channels == 8
    assert (record.num_units, record.rank, record.num_pairs) == (4, 2, 4 * 91)
    assert record.surrogate_p_value is None


def test_seed_fixes_projections_and_surrogates() -> None:
    heads = noise(2, 100, 4, 8)
    first, again, other = (measure(heads, seed=seed, num_surrogates=3) for seed in (0, 0, 1))
    assert first == again != other


def test_pooled_batches_count_as_one_body_of_text() -> None:
    heads = noise(6, 60, 3, 4)
    assert measure([heads[:2], heads[2:]]).phi == pytest.approx(measure(heads).phi, rel=1e-9)


def test_batches_may_have_different_lengths() -> None:
    assert measure([noise(2, 60, 3, 4), noise(1, 30, 3, 4)]).num_pairs == 2 * 51 + 21


def test_no_phi_is_reported_below_eighty_pairs() -> None:
    measure(noise(1, MIN_PAIRS + 9, 4, 8))
    with pytest.raises(ValueError, match=f"num_pairs={MIN_PAIRS - 1}"):
        measure(noise(1, MIN_PAIRS + 8, 4, 8))


def test_more_than_eight_units_are_measured_with_surrogates() -> None:
    record = measure_states([noise(4, 100, 9).double()], 9, num_surrogates=3)
    assert record.num_units == 9
    assert record.surrogate_p_value is not None


@pytest.mark.parametrize("heads", [[], noise(2, 40, 4), noise(2, 40, 1, 4)])
def test_shapes_that_do_not_fit_are_named(heads: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="heads"):
        measure(heads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model("llama").save_pretrained(folder)
    Tokenizer(models.BPE(vocab={chr(32 + i): i for i in range(95)}, merges=[])).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held_out.txt"
    ids = torch.randint(0, 95, (1500,), generator=torch.Generator().manual_seed(0))
    path.write_text("".join(chr(32 + i) for i in ids.tolist()), encoding="utf-8")
    return path


def test_command_prints_every_layer_with_its_null_and_writes_plot_and_values(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot, values = tmp_path / "phi.png", tmp_path / "phi.json"
    arguments = ["measure", "--model", str(checkpoint), "--text", str(text), "--length", "64", "--surrogates", "9"]
    assert main([*arguments, "--plot", str(plot), "--json", str(values)]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    records = json.loads(values.read_text())
    assert len(records) == 2
    out = capsys.readouterr().out
    for record in records:
        assert len(record["phi_of_cuts"]) == 2 ** (NUM_HEADS - 1) - 1
        assert f"{record['phi']:.4f}" in out
        assert f"{record['null_mean']:.4f}" in out
        assert f"{record['surrogate_p_value']:.3f}" in out
        assert record["num_pairs"] == 23 * (64 - 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "nowhere"}, "no config.json"),
        ({"--text": "nowhere"}, "cannot be read"),
        ({"--length": "65"}, "at most 64 positions"),
        ({"--length": "8"}, "sequences of at least 10"),
        ({"--max-tokens": "20"}, "20 tokens"),
        ({"--surrogates": "-1"}, "--surrogates=-1"),
        ({"--layers": "7"}, "layer=7"),
        ({"--rank": "9"}, "rank=9"),
        ({"--plot": "nowhere/phi.png"}, "nowhere does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_command_names_what_is_wrong_and_fails(
    checkpoint: Path, text: Path, changes: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"--model": str(checkpoint), "--text": str(text), "--length": "64", **changes}
    arguments = ["measure", *(word for pair in options.items() for word in pair)]
    assert main(arguments if "--plot" in changes else [*arguments, "--no-plot"]) == 2
    assert message in capsys.readouterr().err


def test_cut_is_readable() -> None:
    assert cut_name(((0,), (1, 2))) == "0 | 1 2"
