"""The side-by-side measurement: what it asks of each server, what it counts, what it refuses."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from loadtests.client import DIALECTS, Prompt, Sampling
from loadtests.measurement import Figures, Load, Row, Server, percentile
from loadtests.prompts import main as make_prompts
from loadtests.side_by_side import main
from tests.loadtests.fake_servers import serving

PROMPTS = [{"text": f"prompt {i}", "ids": [i, i + 1]} for i in range(5)]


def run(folder: Path, *flags: str) -> int:
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    common = ["--prompts", str(folder / "prompts.json"), "--output", str(folder / "out"), "--allow-load"]
    small = ["--tokens", "6", "--concurrency", "1", "3", "--rounds", "2", "--idle-seconds", "0"]
    return main([*common, *small, *flags])


def test_two_servers_are_measured_in_every_dialect_and_the_table_has_their_ratio(tmp_path: Path) -> None:
    with serving("phiserve", "/generate") as (ours, asked), serving("llama", "/completion") as (theirs, _):
        assert run(tmp_path, "--ours", f"ours={ours}", "--peer", f"theirs={theirs},llama") == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert [load["load"] for load in result["loads"]] == [
        "greedy, 1 at once", "greedy, 3 at once", "top_p 0.9, 1 at once", "top_p 0.9, 3 at once"
    ]  # fmt: skip
    assert all(len(load["ours"]) == len(load["theirs"]) == 2 for load in result["loads"])
    assert all(figures["counted"] for load in result["loads"] for figures in load["ours"] + load["theirs"])
    # The round that warms up is asked for and not counted.
    assert len(asked) == 3 * sum(load["num_requests"] for load in result["loads"])
    table = (tmp_path / "out.md").read_text()
    assert "| load | ours | theirs | ratio |" in table
    assert "Did not count" not in table


@pytest.mark.parametrize(("dialect", "path"), [("openai", "/v1/completions"), ("lines", "/generate")])
def test_a_server_that_does_not_count_its_tokens_is_named(tmp_path: Path, dialect: str, path: str) -> None:
    with serving(dialect, path) as (url, _):
        assert run(tmp_path, "--ours", f"other={url},{dialect}") == 0
    assert ("Did not count" in (tmp_path / "out.md").read_text()) == (dialect == "lines")


def test_answers_of_another_length_are_no_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving("phiserve", "/generate", given=5) as (url, _):
        assert run(tmp_path, "--ours", f"ours={url}") == 2
    assert "answers of {5} tokens where 6 were asked for" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ours", "a=http://10.0.0.1:80"], "only http on 127.0.0.1"),
        (["--ours", "a=http://example.org:80"], "only http on 127.0.0.1"),
        (["--ours", "a=http://127.0.0.1:9,grpc"], "write name=http"),
        (["--ours", "a=http://127.0.0.1:9", "--peer", "a=http://127.0.0.1:8"], "repeat"),
        (["--ours", "a=http://127.0.0.1:9", "--rounds", "0"], "rounds=0"),
        (["--ours", "a=http://127.0.0.1:9"], "no process of this machine is seen to listen"),
        (["--ours", "a=http://127.0.0.1:9", "--no-greedy", "--top-p"], "nothing is left"),
    ],
)
def test_bad_input_is_refused_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run(tmp_path, *flags) == 2
    assert message in capsys.readouterr().err


def test_greedy_and_nucleus_ask_for_nothing_else_in_any_dialect() -> None:
    for dialect in DIALECTS.values():
        greedy = dialect.body(Prompt("a", [1]), Sampling(None, 4))
        nucleus = dialect.body(Prompt("a", [1]), Sampling(0.9, 4))
        assert greedy["temperature"] == 0.0
        assert (nucleus["temperature"], nucleus["top_p"]) == (1.0, 0.9)
        assert nucleus.get("top_k", 0) == 0
        assert nucleus.get("min_p", 0.0) == 0.0


def figures(tokens_per_second: float, first_token_p99: float) -> Figures:
    return Figures(tokens_per_second, 1.0, first_token_p99, 1.0, 1.0, 1.0, 10.0, 1.0, True)


def test_a_ratio_is_to_the_best_other_of_its_own_round() -> None:
    load = Load(Sampling(None, 4), 1, 8)
    row = Row(
        load,
        {
            "ours": [figures(100, 10), figures(60, 30)],
            "slow": [figures(20, 40), figures(30, 15)],
            "fast": [figures(50, 20), figures(15, 60)],
        },
    )
    assert row.ratios("ours") == [2.0, 2.0]
    assert row.ratios("ours", "first_token_p99", low_is_good=True) == [2.0, 0.5]
    assert row.median("ours", "tokens_per_second") == 80


@pytest.mark.parametrize(("percent", "wanted"), [(50, 2.0), (99, 4.0), (75, 3.0), (1, 1.0)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, wanted: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == wanted


def test_a_server_is_named_by_its_port() -> None:
    assert Server.parse("a=http://127.0.0.1:81/,openai") == Server("a", "http://127.0.0.1:81", "openai")
    assert Server.parse("a=http://localhost:81").port == 81


def test_prompts_are_distinct_and_mean_the_same_as_text_and_as_ids(tmp_path: Path) -> None:
    words = Tokenizer(WordLevel({"[UNK]": 0} | {f"w{i}": i + 1 for i in range(50)}, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(" ".join(f"w{i * i % 50}" for i in range(400)))
    flags = ["--tokenizer", str(tmp_path / "tokenizer.json"), "--text", str(tmp_path / "text.txt")]
    assert make_prompts([*flags, "--prompt-tokens", "5", "--output", str(tmp_path / "prompts.json")]) == 0
    prompts = json.loads((tmp_path / "prompts.json").read_text())
    assert len(prompts) > 5
    assert len({tuple(prompt["ids"]) for prompt in prompts}) == len(prompts)
    assert all(words.encode(prompt["text"]).ids == prompt["ids"] for prompt in prompts)
    assert all(len(prompt["ids"]) == 5 for prompt in prompts)


def test_no_prompt_is_sent_twice_and_a_table_says_so_where_prompts_run_out(tmp_path: Path) -> None:
    with serving("phiserve", "/generate") as (url, asked):
        assert run(tmp_path, "--ours", f"ours={url}", "--no-greedy", "--least-requests", "1") == 0
    assert "Prompts repeat" in (tmp_path / "out.md").read_text()
    first = [body["prompt"][0] for body in asked[: len(PROMPTS)]]
    assert sorted(first) == [0, 1, 2, 3, 4]
