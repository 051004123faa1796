"""Whole servers with other shapes: two workers and two HTTP processes, keys, a slow reader, and bad ends."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.http.server_process import ServerProcess, free_port, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wide(tiny_model: Path) -> Iterator[ServerProcess]:
    flags = ("--runner", "torch", "--workers", "2", "--api-servers", "2", "--stream-window", "64", "--metrics-need-key")
    server = ServerProcess(tiny_model, flags, {"PHISERVE_API_KEYS": "sesame"}).start()
    try:
        wait_until(lambda: metric(server, "phiserve_workers_ready") == 2, "both workers", 90)
        yield server
    finally:
        code = server.stop()
    assert code == 0


def metric(server: ServerProcess, name: str) -> float:
    answer = server.request("GET", "/metrics", Authorization="Bearer sesame")
    assert answer.status == 200, answer.body
    lines = answer.body.decode().splitlines()
    # a process that has just begun may not have written its metrics yet
    return float(next((line for line in lines if line.startswith(name + " ")), "- 0").rpartition(" ")[2])


def generate(server: ServerProcess, **body: object) -> str:
    answer = server.request("POST", "/generate", body, X_API_Key="sesame")
    assert answer.status == 200, answer.body
    return str(answer.json()["choices"][0]["text"])


def workers(server: ServerProcess) -> list[psutil.Process]:
    return [p for p in server.family()[1:] if "spawn_main" in " ".join(p.cmdline())]


def test_many_requests_over_two_workers_and_two_http_processes_give_the_text_of_their_seeds(
    wide: ServerProcess,
) -> None:
    asked = [{"prompt": "p" * (1 + i % 7), "max_new_tokens": 40, "seed": i % 10, "ignore_eos": True} for i in range(60)]
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda body: generate(wide, **body), asked))
    by_request: dict[str, set[str]] = {}
    for body, text in zip(asked, texts, strict=True):
        by_request.setdefault(json.dumps(body), set()).add(text)
    assert all(len(found) == 1 for found in by_request.values())
    wait_until(lambda: metric(wide, "phiserve_choices_in_flight") == 0, "nothing in flight")


def test_both_workers_worked(wide: ServerProcess) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: generate(wide, prompt="x", max_new_tokens=200, seed=i, ignore_eos=True), range(8)))
    used = [sum(p.cpu_times()[:2]) for p in workers(wide)]
    assert len(used) == 2
    wait_until(lambda: metric(wide, "phiserve_running_choices") == 0, "both idle")


def test_a_key_is_asked_for_everywhere_but_on_health_and_page(wide: ServerProcess) -> None:
    for method, path in (("POST", "/generate"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/health")):
        answer = wide.request(method, path, {} if method == "POST" else None)
        assert answer.status == 401, path
        expected = "authentication_error" if path.startswith("/v1/") else "unauthorized"  # as OpenAI names it
        assert answer.json()["error"]["type"] == expected
    for path in ("/livez", "/readyz", "/"):
        assert wide.request("GET", path).status == 200


def test_the_key_is_in_no_output_of_the_server(wide: ServerProcess) -> None:
    assert not any("sesame" in line for line in wide.lines)
    assert any("api_keys=1" in line for line in wide.lines)


def test_a_slow_reader_stops_its_own_stream_and_no_other(wide: ServerProcess) -> None:
    """Its buffers fill, its window closes, the engine holds it; when it reads on, it gets every token."""
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.settimeout(60)
    slow.connect(("127.0.0.1", wide.port))
    num_tokens, choices = 2500, 4
    body = {
        "prompt": "abc",
        "max_new_tokens": num_tokens,
        "n": choices,
        "logprobs": 20,
        "ignore_eos": True,
        "stream": True,
    }
    wide.send(slow, "POST", "/generate", json.dumps(body).encode(), X_API_Key="sesame")
    seen = slow.recv(64)

    def settled() -> bool:
        before = metric(wide, "phiserve_sampled_tokens_total")
        generate(wide, prompt="other", max_new_tokens=50, ignore_eos=True)  # the others go on
        return metric(wide, "phiserve_sampled_tokens_total") - before == 50

    wait_until(settled, "the slow stream to stand still", 120)
    assert metric(wide, "phiserve_choices_in_flight") == choices
    with slow:
        parts = [seen]
        while chunk := slow.recv(1 << 20):
            parts.append(chunk)
    data = b"".join(parts)
    assert data.count(b'"finish_reason":"length"') == choices
    assert data.count(b'"completion_tokens":%d' % num_tokens) == choices
    wait_until(lambda: metric(wide, "phiserve_choices_in_flight") == 0, "nothing in flight")


def test_one_worker_of_two_may_die(wide: ServerProcess) -> None:
    victim = workers(wide)[0]
    victim.kill()
    wait_until(lambda: metric(wide, "phiserve_workers_ready") == 1, "one worker to be gone")
    assert wide.request("GET", "/readyz").status == 200
    generate(wide, prompt="abc", max_new_tokens=3, ignore_eos=True)
    wait_until(lambda: metric(wide, "phiserve_workers_ready") == 2, "two workers again", 90)


def test_an_idle_server_uses_less_than_one_percent_of_a_core(wide: ServerProcess) -> None:
    def used() -> float:
        return sum(sum(p.cpu_times()[:2]) for p in wide.family())

    wait_until(lambda: metric(wide, "phiserve_choices_in_flight") == 0, "nothing in flight")
    before = used()
    with pytest.raises(subprocess.TimeoutExpired):
        wide.process.wait(20)
    assert used() - before < 0.01 * 20


def test_killing_the_main_process_leaves_no_process_and_no_folder(tiny_model: Path) -> None:
    server = ServerProcess(tiny_model).start()
    family = server.family()
    maps = [entry.path for process in family for entry in process.memory_maps() if "phiserve-" in entry.path]
    server.stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive
    wait_until(lambda: not os.path.exists(maps[0].partition("/metrics")[0]), "the private folder to be gone")


def test_a_deadline_ends_answers_and_a_drain_that_is_too_long_ends_streams_with_an_error(
    tiny_model: Path,
) -> None:
    flags = ("--runner", "torch", "--drain-seconds", "0.5", "--request-deadline-seconds", "3")
    server = ServerProcess(tiny_model, flags).start()
    family = server.family()
    late = server.generate(prompt="abc", max_new_tokens=4000, n=8, ignore_eos=True)
    assert {choice["finish_reason"] for choice in late.json()["choices"]} == {"deadline"}
    with server.streaming(prompt="abc", max_new_tokens=4000, ignore_eos=True) as stream:
        server.process.send_signal(signal.SIGTERM)
        tail = b""
        while chunk := stream.recv(1 << 16):
            tail += chunk
    assert b"event: error" in tail
    assert b"shutting down" in tail
    assert server.stop() == 0
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_ctrl_c_ends_like_sigterm(tiny_model: Path) -> None:
    server = ServerProcess(tiny_model).start()
    family = server.family()
    for process in family:  # a terminal sends it to the whole group
        process.send_signal(signal.SIGINT)
    assert server.stop(signal.SIGINT) == 0
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert "Traceback" not in "".join(server.lines)


def test_weights_that_cannot_be_loaded_are_one_line_and_exit_code_2(tiny_model: Path, tmp_path: Path) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    server = ServerProcess(tmp_path, port=free_port())
    with pytest.raises(RuntimeError, match="did not start"):
        server.start()
    assert server.process.returncode == 2
    said = [line for line in server.lines if line.startswith("phiserve: ")]
    assert len(said) == 1
    assert not any("Traceback" in line for line in server.lines)
