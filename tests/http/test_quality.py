"""Scores over HTTP: beside an answer, of given texts, and in the metrics."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.completion import Choice
from serve.errors import ApiError, StartupError
from serve.metrics import _registry
from serve.quality.drift import LEAST, DriftWindow, stability_index
from serve.quality.score import QualityReport
from serve.quality.surprise import TokenSurprise
from serve.routes.quality import parse_score
from serve.scoring import BURST_SECONDS, FIRST_COST, MOST_WAITING, Budget, Scoring, load_scorer
from serve.scoring_process import NICENESS, SOCKET_NAME, CountingScorer, answer_all
from tests.http.server_process import ServerProcess

CHECKPOINT = Path(__file__).parents[2] / "models" / "tiny_iit" / "3"
MODEL = "3@local"
EVEN = [i / 100 for i in range(101)]
PROSE = "The old man walked slowly down to the river, for the morning was cold and he had nowhere else to go. " * 3


@pytest.fixture(scope="module")
def scored() -> Iterator[ServerProcess]:
    process = ServerProcess(CHECKPOINT, ("--quality-budget", "1")).start()
    yield process
    process.stop()


def share_below(server: ServerProcess, edge: str, before: tuple[float, float]) -> float:
    below, count = counts(server, edge)
    return (below - before[0]) / (count - before[1])


def counts(server: ServerProcess, edge: str) -> tuple[float, float]:
    below = server.metric("phiserve_quality_score_bucket", gen_ai_request_model=MODEL, le=edge)
    return below, server.metric("phiserve_quality_score_count", gen_ai_request_model=MODEL)


def test_a_hotter_temperature_shows_in_the_histogram_of_scores(scored: ServerProcess) -> None:
    """64 choices each; by chance alone shares that differ by 0.5 have odds far below 1 in a million."""
    shares = []
    for temperature in (0.8, 2.5):
        before = counts(scored, "0.1")
        done = scored.generate(
            prompt=["Once upon a time", "The captain said", "In the evening", "When she came home"],
            n=16,
            max_new_tokens=64,
            temperature=temperature,
            ignore_eos=True,
            seed=1,
        )
        assert done.status == 200
        scored.wait_for_metric(before[1] + 64, "phiserve_quality_score_count", gen_ai_request_model=MODEL)
        shares.append(share_below(scored, "0.1", before))
    assert shares[1] - shares[0] > 0.5
    assert scored.metric("phiserve_quality_drift_psi", gen_ai_request_model=MODEL) > 0


def test_an_answer_carries_its_score_in_json_and_in_the_final_event(scored: ServerProcess) -> None:
    asked = {"prompt": "Once upon a time", "max_new_tokens": 48, "ignore_eos": True, "seed": 3, "quality": True}
    whole = scored.generate(**asked).json()["choices"][0]["quality"]
    events = scored.generate(**asked, stream=True).events()
    assert [event for event in events if "quality" in event] == [events[-1]]
    assert events[-1]["quality"]["score"] == pytest.approx(whole["score"], abs=1e-6)
    assert whole["head"] == "surprise"
    assert whole["num_tokens"] == 48
    assert sum(whole["contributions"].values()) == pytest.approx(whole["logit"])


def test_a_stream_has_running_scores_and_the_last_event_the_final_one(scored: ServerProcess) -> None:
    asked = {"prompt": "Once upon a time", "max_new_tokens": 100, "ignore_eos": True, "seed": 3, "quality": True}
    whole = scored.generate(**asked).json()["choices"][0]
    events = scored.generate(**asked, stream=True, quality_every=32).events()
    running = [event["quality"] for event in events[:-1] if "quality" in event]
    assert "".join(event["text"] for event in events) == whole["text"]
    assert [quality["num_tokens"] // 32 for quality in running] == sorted({q["num_tokens"] // 32 for q in running})
    assert 1 <= len(running) <= 3
    assert all(set(quality) == {"score", "grade", "num_tokens"} and quality["grade"] for quality in running)
    assert events[-1]["quality"]["score"] == pytest.approx(whole["quality"]["score"], abs=1e-6)


@pytest.mark.parametrize("body", [{"quality_every": 31}, {"stream": False}, {"quality": False}])
def test_running_scores_need_a_stream_and_quality_and_32_tokens(scored: ServerProcess, body: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"prompt": "a", "stream": True, "quality": True, "quality_every": 32}
    answer = scored.generate(**(asked | body))
    assert (answer.status, answer.json()["error"]["field"]) == (422, "quality_every")


def test_the_list_of_models_tells_the_page_whether_scores_can_be_had(
    scored: ServerProcess, server: ServerProcess
) -> None:
    answers = [process.request("GET", "/v1/models").json() for process in (scored, server)]
    assert [answer["data"][0]["quality"] for answer in answers] == [True, False]


def test_a_short_answer_has_a_reason_for_having_no_score(scored: ServerProcess) -> None:
    quality = scored.generate(prompt="Once", max_new_tokens=8, quality=True).json()["choices"][0]["quality"]
    assert quality["score"] is None
    assert "too short" in quality["reason"]


def test_given_texts_are_scored_in_their_order(scored: ServerProcess) -> None:
    answer = scored.request("POST", "/quality/score", {"texts": [PROSE, "short", "the the " * 60]})
    assert answer.status == 200
    scores = [entry["score"] for entry in answer.json()["scores"]]
    assert scores[1] is None
    assert scores[0] > scores[2]


def test_without_a_reference_the_answer_names_the_command(server: ServerProcess) -> None:
    for path, body in (("/generate", {"prompt": "abc", "quality": True}), ("/quality/score", {"texts": ["a"]})):
        answer = server.request("POST", path, body)
        assert answer.status == 422
        assert "python -m serve.quality fit" in answer.json()["error"]["remedy"]


def test_a_broken_reference_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "quality_reference.json").write_text("{}")
    with pytest.raises(StartupError, match=r"quality_reference\.json"):
        load_scorer(tmp_path)


@pytest.mark.parametrize("body", [b'{"texts": []}', b'{"texts": ["a", "b", "c"]}', b'{"texts": "a"}', b"{}"])
def test_bad_texts_are_422_and_name_the_field(body: bytes) -> None:
    with pytest.raises(ApiError) as failure:
        parse_score(body, 2)
    assert failure.value.status == 422
    assert failure.value.field is not None
    assert failure.value.field.startswith("texts")


class Counted:
    def __init__(self) -> None:
        self.results: list[str] = []
        self.num_scored = 0

    def result(self, name: str) -> None:
        self.results.append(name)

    def scored(self, report: Any) -> None:
        self.num_scored += 1

    def drift(self, index: float) -> None:
        pass


def choice(num_tokens: int = 40, logprob: float = -2.0) -> Choice:
    detokenizer: Any = None
    made = Choice(0, 0, 3, detokenizer)
    made.text, made.token_ids = [PROSE], list(range(num_tokens))
    made.logprobs, made.entropies = [logprob] * num_tokens, [2.0] * num_tokens
    return made


@asynccontextmanager
async def scoring_of(folder: Path, counted: Any, share: float = 1.0, **named: Any) -> AsyncIterator[Scoring]:
    """An HTTP process' side and the scoring process' side in one loop."""
    scorer, _ = load_scorer(CHECKPOINT)
    assert scorer is not None
    other = CountingScorer(scorer, counted, LEAST)
    server = await asyncio.start_unix_server(partial(answer_all, other), folder / SOCKET_NAME)
    scoring = Scoring(folder, counted, share=share, **({"budget": Budget(1.0)} | named))
    yield scoring
    scoring.close()
    server.close()
    await connections_closed()


async def connections_closed() -> None:
    """Until both ends of every connection have seen its end."""
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
    await asyncio.sleep(0)


def observed(share: float, *choices: Choice, budget: float = 1.0) -> Counted:
    """All that was counted after these choices came at once."""
    counted = Counted()

    async def scenario(folder: Path) -> None:
        async with scoring_of(folder, counted, share, budget=Budget(budget)) as scoring:
            for one in choices:
                scoring.observe(one)
            while scoring._waiting:
                await asyncio.wait(scoring._waiting.values())
                await asyncio.sleep(0)

    with TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))
    return counted


def test_a_score_by_way_of_the_process_is_the_score(tmp_path: Path) -> None:
    scorer, _ = load_scorer(CHECKPOINT)
    assert scorer is not None
    odd = PROSE + "\ud800 \x00 \u202e"  # a lone surrogate can come in JSON
    seen = TokenSurprise(list(range(40)), [-2.5] * 40, [2.0] * 40)

    async def scenario() -> list[QualityReport]:
        async with scoring_of(tmp_path, Counted()) as scoring:
            return await scoring.texts([PROSE, odd]) + await scoring.texts([odd], [seen]) + await scoring.texts([""])

    assert asyncio.run(scenario()) == [
        scorer.score(PROSE),
        scorer.score(odd),
        scorer.score(odd, seen),
        scorer.score(""),
    ]


@pytest.mark.parametrize("ends", [True, False])
def test_a_score_that_nobody_gives_is_an_error_and_the_next_process_is_asked(tmp_path: Path, ends: bool) -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 if ends else -1)
        writer.close()

    async def scenario() -> None:
        counted: Any = Counted()
        path = tmp_path / SOCKET_NAME
        server = await asyncio.start_unix_server(end, path)
        scoring = Scoring(tmp_path, counted, share=1.0, budget=Budget(1.0), longest_seconds=10 if ends else 0.1)
        with pytest.raises(ApiError, match="has ended" if ends else "did not answer") as failure:
            await scoring.report(choice())
        assert failure.value.status == 503
        assert counted.results == ["failed"]
        assert not scoring._waiting
        server.close()
        path.unlink()
        if ends:
            async with scoring_of(tmp_path, counted):
                assert (await scoring.report(choice())).score is not None
                scoring.close()
        scoring.close()
        await connections_closed()

    asyncio.run(scenario())


def test_a_scoring_process_that_is_killed_is_started_again(scored: ServerProcess) -> None:
    def scorers() -> list[psutil.Process]:
        return [process for process in scored.family() if process.nice() == NICENESS]

    (killed,) = scorers()
    killed.kill()
    asked: dict[str, Any] = {"prompt": "Once upon a time", "max_new_tokens": 40, "ignore_eos": True, "quality": True}
    until = time.monotonic() + 20
    while (done := scored.generate(**asked)).status == 503 and time.monotonic() < until:
        pass  # the connection of the killed one
    assert done.json()["choices"][0]["quality"]["score"] is not None
    (fresh,) = scorers()
    assert fresh.pid != killed.pid


def test_what_nobody_asked_for_is_shed_and_counted_when_too_many_wait() -> None:
    counted = observed(1.0, *[choice() for _ in range(MOST_WAITING + 5)])
    assert counted.results == ["shed"] * 5
    assert counted.num_scored == MOST_WAITING


@pytest.mark.parametrize(("share", "num_scored"), [(0.0, 0), (0.25, 5), (1.0, 20)])
def test_the_share_of_the_setting_is_scored(share: float, num_scored: int) -> None:
    assert observed(share, *[choice() for _ in range(20)]).num_scored == num_scored


def test_a_process_without_a_budget_sheds_all_that_nobody_asked_for() -> None:
    counted = observed(1.0, choice(), choice(), budget=0.0)
    assert (counted.results, counted.num_scored) == (["shed"] * 2, 0)


@given(st.floats(0.001, 1), st.lists(st.tuples(st.floats(0, 3), st.floats(1e-5, 0.02)), max_size=300))
def test_the_budget_is_never_overdrawn_by_more_than_one_score(
    share: float, arrivals: list[tuple[float, float]]
) -> None:
    now = spent = 0.0
    budget = Budget(share, lambda: now)
    for seconds, cost in arrivals:
        now += seconds
        taken = budget.take()
        if taken is not None:
            budget.settle(taken, cost)
            spent += cost
        assert spent <= share * (now + BURST_SECONDS) + max(0.02, FIRST_COST) + 1e-9


def test_whether_an_answer_is_shed_does_not_depend_on_the_answer() -> None:
    """Cheap and expensive answers in random order: by chance alone the counts differ by 5 sigma once in 1.7 million."""
    now, scored, draws = 0.0, [0, 0], random.Random(0)
    budget = Budget(0.01, lambda: now)
    for _ in range(20_000):
        now += 0.013
        taken = budget.take()
        kind = draws.randrange(2)
        if taken is not None:
            budget.settle(taken, (0.0005, 0.002)[kind])
            scored[kind] += 1
    assert abs(scored[0] - scored[1]) < 5 * math.sqrt(sum(scored))
    assert scored[0] * 0.0005 + scored[1] * 0.002 == pytest.approx(0.01 * (now + BURST_SECONDS), rel=0.02)


def test_a_score_that_fails_is_counted() -> None:
    assert observed(1.0, choice(logprob=float("nan"))).results == ["failed"]


def test_drift_is_absent_until_a_window_has_enough() -> None:
    window = DriftWindow(EVEN, LEAST)
    assert [window.add(0.5) for _ in range(LEAST - 1)] == [None] * (LEAST - 1)
    found = window.add(0.5)
    assert found is not None
    assert found > 0.25
    with pytest.raises(ValueError, match="size"):
        DriftWindow(EVEN, LEAST - 1)


@given(st.lists(st.floats(0, 1), min_size=LEAST, max_size=3 * LEAST))
def test_the_window_has_the_index_of_its_last_scores(scores: list[float]) -> None:
    window = DriftWindow(EVEN, LEAST)
    found = [window.add(score) for score in scores][-1]
    assert found == pytest.approx(stability_index(scores[-LEAST:], EVEN))


def test_scores_spread_like_the_yardstick_have_no_drift() -> None:
    assert stability_index(EVEN * 10, EVEN) == pytest.approx(0, abs=0.01)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.lists(st.floats(0, 1), min_size=101, max_size=101))
def test_drift_is_finite_and_not_negative_for_any_scores(scores: list[float], yardstick: list[float]) -> None:
    assert 0 <= stability_index(scores, sorted(yardstick)) < 100


def test_the_drift_metric_does_not_exist_before_it_has_a_value() -> None:
    samples = [s for metric in _registry["phiserve_quality_drift_psi"].collect() for s in metric.samples]
    assert samples == []
