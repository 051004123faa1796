"""POST /quality/diagnose, /quality/compare, and /quality/score with surprise, on a real server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.quality.model_runs import TextScorer
from serve.quality.surprise import surprise_features
from tests.http.server_process import ServerProcess

CHECKPOINT = Path(__file__).parents[2] / "models" / "tiny_iit" / "2"
PROSE = "The old man walked slowly down to the river, for the morning was cold and he had nowhere else to go. " * 2


@pytest.fixture(scope="module", params=["native", "torch"])
def scored(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    process = ServerProcess(CHECKPOINT, ("--runner", request.param, "--dtype", "float32", "--max-queue", "64")).start()
    yield process
    process.stop()


def ask(server: ServerProcess, path: str, **body: Any) -> Any:
    answer = server.request("POST", f"/quality/{path}", body)
    return answer.status, answer.json()


def test_surprise_of_a_given_text_is_that_of_a_plain_forward_pass(scored: ServerProcess) -> None:
    status, answer = ask(scored, "score", texts=[PROSE, "short"], surprise=True)
    assert status == 200
    got = answer["scores"][0]
    assert got["head"] == "surprise"
    wanted = surprise_features(TextScorer(CHECKPOINT).score([PROSE])[0].surprise)
    names = ["logprob", "logprob_spread", "entropy", "entropy_spread", "entropy_gap", "typical_share", "certain_share"]
    np.testing.assert_allclose([got["features"][name] for name in names], wanted[: len(names)], atol=1e-4)
    assert answer["scores"][1]["score"] is None
    assert "too short" in answer["scores"][1]["reason"]


def test_the_shipped_model_is_found_healthy_with_the_numbers_that_say_so(scored: ServerProcess) -> None:
    status, answer = ask(scored, "diagnose")
    assert status == 200
    found = answer["diagnosis"]
    assert found["verdict"] == "healthy"
    assert 0.1 < found["evidence"]["entropy_share"] < 0.8
    assert found["evidence"]["surprise"] < found["evidence"]["log_vocabulary"]
    assert 0 < found["evidence"]["top_probability"] < 1


def test_a_hot_setting_loses_against_a_mild_one_and_like_does_not_differ_from_like(scored: ServerProcess) -> None:
    prompts = ["Once upon a time", "The captain said", "In the evening", "When she came home"]
    common = {"prompts": prompts, "n": 3, "max_new_tokens": 48, "seed": 5}
    status, answer = ask(scored, "compare", a={"temperature": 0.8}, b={"temperature": 2.5}, **common)
    assert status == 200
    assert answer["difference"]["interval"][1] < -0.3
    assert answer["b"]["distinct_1"] > answer["a"]["distinct_1"]
    _, same = ask(scored, "compare", a={"temperature": 0.8}, b={"temperature": 0.8}, **common)
    assert same["difference"]["mean_score"] == 0
    assert same["a"] == same["b"] == answer["a"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("compare", {"prompts": ["a"], "a": {"temperature": -1}, "b": {}}, "a.temperature"),
        ("compare", {"prompts": ["a"], "a": {}, "b": {"model": "other"}}, "b.model"),
        ("compare", {"prompts": [], "a": {}, "b": {}}, "prompts"),
        ("compare", {"prompts": ["a"], "a": {}, "b": {}, "n": 100_000}, "n"),
        ("compare", {"prompts": ["a"], "a": {}}, "b"),
        ("diagnose", {"model": "x"}, "model"),
        ("score", {"texts": ["word " * 2000], "surprise": True}, "texts[0]"),
        ("score", {"texts": []}, "texts"),
    ],
)
def test_bad_input_is_named(scored: ServerProcess, path: str, body: dict[str, Any], field: str) -> None:
    status, answer = ask(scored, path, **body)
    assert (status, answer["error"]["field"]) == (422, field)
    assert answer["error"]["remedy"]
