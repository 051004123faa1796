"""POST /quality/diagnose, /quality/compare, and /quality/score with surprise, on a real server."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from starlette.requests import Request

from serve.engine.runner import BROKEN_LOGITS
from serve.errors import ApiError
from serve.quality.model_runs import TextScorer
from serve.quality.surprise import surprise_features
from serve.routes import quality
from serve.routes.quality import QualityRoutes, parse_compare
from tests.http.server_process import ServerProcess, wait_until
from tests.http.tiny import write_tiny_model

CHECKPOINT = Path(__file__).parents[2] / "models" / "tiny_iit" / "3"
PROSE = "The old man walked slowly down to the river, for the morning was cold and he had nowhere else to go. " * 2


@pytest.fixture(scope="module", params=["native", pytest.param("torch", marks=pytest.mark.slow)])
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
        ("compare", {"prompts": ["a"] * 65, "a": {}, "b": {}}, "prompts"),
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


def test_a_model_is_not_chosen_by_the_request() -> None:
    with pytest.raises(ApiError, match="one server serves one model") as refused:
        parse_compare(b'{"prompts": ["a"], "a": {}, "b": {}, "model_b": "other"}', 4)
    assert "python -m serve.quality compare" in str(refused.value.remedy)


def test_a_reader_who_hangs_up_ends_the_comparison_and_frees_its_places(scored: ServerProcess) -> None:
    labels = {"endpoint": "compare", "outcome": "cancelled"}
    before = scored.metric("phiserve_quality_requests_total", **labels)
    body = {"prompts": ["Once upon a time"] * 6, "n": 16, "max_new_tokens": 480, "a": {"ignore_eos": True}, "b": {}}
    with scored.connect() as connection:
        scored.send(connection, "POST", "/quality/compare", json.dumps(body).encode())
        wait_until(lambda: scored.metric("phiserve_choices_in_flight") > 0, "the comparison to begin")
    scored.wait_for_metric(before + 1, "phiserve_quality_requests_total", **labels)
    scored.wait_for_metric(0, "phiserve_choices_in_flight")


def test_a_model_without_preferences_is_found_untrained_by_a_server_of_three_places(tmp_path: Path) -> None:
    """The probes are more than the places: they come in portions."""
    weights = load_file(write_tiny_model(tmp_path) / "model.safetensors")
    weights["lm_head.weight"][:] = 0
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    server = ServerProcess(tmp_path, ("--max-batch-size", "2", "--max-queue", "1")).start()
    try:
        status, answer = ask(server, "diagnose")
        assert server.metric("phiserve_quality_requests_total", endpoint="diagnose", outcome="ok") == 1
    finally:
        server.stop()
    assert status == 200
    assert answer["diagnosis"]["verdict"] == "untrained"
    assert answer["diagnosis"]["evidence"]["entropy_share"] == pytest.approx(1)


def write_broken_model(folder: Path) -> Path:
    weights = load_file(write_tiny_model(folder) / "model.safetensors")
    weights["model.norm.weight"][:] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_of_broken_weights_is_found_collapsed_and_writes_nothing(tmp_path: Path) -> None:
    server = ServerProcess(write_broken_model(tmp_path), ("--runner", "native")).start()
    try:
        status, answer = ask(server, "diagnose")
        failed = server.request("POST", "/generate", {"prompt": "a"})
    finally:
        server.stop()
    assert status == 200
    assert answer["diagnosis"]["verdict"] == "collapsed"
    assert failed.status == 500
    assert BROKEN_LOGITS in failed.json()["error"]["message"]


def test_the_torch_runner_refuses_broken_weights_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=BROKEN_LOGITS):
        ServerProcess(write_broken_model(tmp_path), ("--runner", "torch")).start()


class Stuck:
    """Calls to an engine that never answers."""

    def __init__(self, *unused: object) -> None:
        pass

    async def surprise(self, *unused: object) -> None:
        await asyncio.Event().wait()


def diagnoses(outcomes: list[str], deadlines: list[float], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Statuses of diagnoses begun together on one process, each with its own deadline."""
    monkeypatch.setattr(quality, "EngineCalls", Stuck)
    settings = SimpleNamespace(max_body_bytes=99, max_prompts=2, max_in_flight=9, request_deadline_seconds=0.0)
    metrics = SimpleNamespace(quality_outcome=lambda endpoint, outcome: outcomes.append(f"{endpoint} {outcome}"))
    routes = QualityRoutes(SimpleNamespace(settings=settings, metrics=metrics, limits=lambda: None))  # type: ignore[arg-type]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def one(seconds: float) -> int:
        settings.request_deadline_seconds = seconds
        scope = {"type": "http", "method": "POST", "headers": []}
        return (await routes.diagnose(Request(scope, receive))).status_code

    async def scenario() -> list[int]:
        return [*await asyncio.gather(*(one(seconds) for seconds in deadlines)), await one(0.01)]

    return asyncio.run(scenario())


def test_a_second_diagnosis_is_refused_while_one_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[str] = []
    assert diagnoses(outcomes, [0.05, 60], monkeypatch)[:2] == [503, 429]
    assert outcomes[0] == "diagnose full"


def test_a_diagnosis_that_passes_its_deadline_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[str] = []
    assert diagnoses(outcomes, [0.01], monkeypatch) == [503, 503]
    assert outcomes == ["diagnose unavailable"] * 2


def test_the_docs_show_the_body_of_each_quality_endpoint(scored: ServerProcess) -> None:
    paths = scored.request("GET", "/openapi.json").json()["paths"]
    fields = {"score": "texts", "diagnose": "seed", "compare": "prompts"}
    for endpoint, field in fields.items():
        body = paths[f"/quality/{endpoint}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert field in body["properties"]
