"""Phi beside an answer: what is measured, and what happens when it cannot be."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from iit import MIN_PAIRS, HeadProbe, measure
from serve.errors import ApiError
from serve.phi_client import MOST_WAITING, PhiClient
from serve.phi_process import HELD_OUT_PROJECTIONS, NUM_DROPPED, SOCKET_NAME, PhiMeter, answer_one
from tests.http.server_process import ServerProcess, wait_until

CHECKPOINT = Path(__file__).parents[2] / "models" / "tiny_iit" / "3"
ASKED: dict[str, Any] = {"prompt": "Once upon a time", "max_new_tokens": 100, "ignore_eos": True, "seed": 3}
IDS = [(i * 37) % 4000 for i in range(200)]


@pytest.fixture(scope="module")
def meter() -> PhiMeter:
    return PhiMeter(CHECKPOINT)


@pytest.fixture(scope="module")
def measuring() -> Iterator[ServerProcess]:
    process = ServerProcess(CHECKPOINT, ("--phi-diagnostic",)).start()
    ready = lambda: process.generate(**ASKED, phi=True).json()["choices"][0]["phi"]["phi"] is not None  # noqa: E731
    wait_until(ready, "torch in the Phi process", 120)
    yield process
    family = process.family()
    assert process.stop() == 0
    assert not psutil.wait_procs(family, timeout=10)[1]


@pytest.mark.parametrize("num_prompt", [3, 8, 40])
def test_phi_is_that_of_iit_over_the_answer_without_the_first_positions(meter: PhiMeter, num_prompt: int) -> None:
    found = meter.measure(IDS[:num_prompt], IDS[num_prompt:])
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    with torch.no_grad(), HeadProbe(model) as probe:
        model(input_ids=torch.tensor([IDS]))
        heads_BTKD = probe.read()[:, max(num_prompt, NUM_DROPPED) :]
    record = measure(heads_BTKD, rank=1, num_dropped=0, seed=HELD_OUT_PROJECTIONS)
    assert found["phi"] == pytest.approx(record.phi, abs=1e-5)
    assert found["null_mean"] == record.null_mean
    assert found["num_pairs"] == record.num_pairs == len(IDS) - max(num_prompt, NUM_DROPPED) - 1
    assert found["cut"] == [list(part) for part in record.cut]


def test_below_the_least_number_of_pairs_there_is_no_phi(meter: PhiMeter) -> None:
    just_enough = meter.measure(IDS[:20], IDS[20 : 21 + MIN_PAIRS])
    too_few = meter.measure(IDS[:20], IDS[20 : 20 + MIN_PAIRS])
    assert (just_enough["num_pairs"], just_enough["phi"] is None) == (MIN_PAIRS, False)
    assert (too_few["num_pairs"], too_few["phi"]) == (MIN_PAIRS - 1, None)
    assert f"{MIN_PAIRS} are needed" in too_few["reason"]


@pytest.mark.slow
def test_an_answer_carries_its_phi_in_json_and_in_the_final_event(measuring: ServerProcess) -> None:
    whole = measuring.generate(**ASKED, phi=True).json()["choices"][0]["phi"]
    events = measuring.generate(**ASKED, phi=True, stream=True).events()
    assert [event for event in events if "phi" in event] == [events[-1]]
    assert whole["phi"] >= 0
    assert whole["num_pairs"] > MIN_PAIRS
    assert events[-1]["phi"]["phi"] == pytest.approx(whole["phi"], abs=1e-6)
    assert "phi" not in measuring.generate(**ASKED).json()["choices"][0]


@pytest.mark.slow
def test_a_short_answer_has_null_and_a_reason(measuring: ServerProcess) -> None:
    found = measuring.generate(prompt="Once", max_new_tokens=8, phi=True).json()["choices"][0]["phi"]
    assert found["phi"] is None
    assert "too short" in found["reason"]


@pytest.mark.slow
def test_http_processes_hold_no_torch_and_the_phi_process_is_nice(measuring: ServerProcess) -> None:
    spawned = [p for p in measuring.family()[1:] if "spawn_main" in " ".join(p.cmdline())]
    assert sorted(p.nice() - psutil.Process(os.getpid()).nice() for p in spawned) == [0, 10]


def test_a_server_without_the_diagnostic_names_the_flag(server: ServerProcess) -> None:
    answer = server.generate(prompt="a", phi=True)
    assert answer.status == 422
    assert "--phi-diagnostic" in answer.json()["error"]["remedy"]


def test_an_answer_is_not_lost_with_the_phi_process(tmp_path: Path) -> None:
    found = asyncio.run(PhiClient(tmp_path).measure([1], [2]))
    assert found["phi"] is None
    assert "start the server again" in found["reason"]


def test_a_phi_process_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / SOCKET_NAME))
        silent.listen()
        found = asyncio.run(PhiClient(tmp_path, longest_seconds=0.05).measure([1], [2]))
    assert found["phi"] is None
    assert "0.05 seconds" in found["reason"]


def test_more_choices_than_may_wait_are_429(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(tmp_path / SOCKET_NAME))
            silent.listen()
            client = PhiClient(tmp_path)
            client.check_room()
            waiting = [asyncio.ensure_future(client.measure([1], [2])) for _ in range(MOST_WAITING)]
            await asyncio.wait(waiting, timeout=0)
            with pytest.raises(ApiError) as failure:
                client.check_room()
            assert failure.value.status == 429
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            client.check_room()

    asyncio.run(scenario())


@pytest.mark.parametrize("question", [b"", b'{"prompt_ids": [1]'])
def test_half_a_question_does_not_end_the_phi_process(question: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(question)
        ours.shutdown(socket.SHUT_WR)
        answer_one(theirs, None, "why")
        theirs.close()
        assert ours.recv(100) == b""


def test_a_model_that_could_not_be_loaded_is_the_reason() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b'{"prompt_ids": [1], "answer_ids": [2]}\n')
        answer_one(theirs, None, "the model could not be loaded: no such file")
        assert b"no such file" in ours.recv(1000)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError)):
        PhiMeter(tmp_path)
