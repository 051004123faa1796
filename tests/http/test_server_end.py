"""How the server loses a worker, gets it back, and ends. Runs after test_server.py; the last test stops it."""

import json
import os
import signal

import psutil
import pytest

from tests.http.server_process import ServerProcess, read_answer, wait_until

LONG = {"prompt": "abc", "max_new_tokens": 4000, "ignore_eos": True}


@pytest.mark.slow
def test_a_killed_worker_fails_its_requests_at_once_and_the_server_recovers(server: ServerProcess) -> None:
    worker = server.worker()
    deaths = server.metric("phiserve_worker_deaths_total")
    with server.streaming(**LONG) as stream, server.connect() as whole:
        server.send(whole, "POST", "/generate", json.dumps(LONG).encode())
        server.wait_for_metric(2, "phiserve_choices_in_flight")
        worker.kill()
        answer = read_answer(whole)
        tail = b""
        while chunk := stream.recv(1 << 16):
            tail += chunk
    assert answer.status == 503
    assert "stopped" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1
    assert b"event: error\ndata: " in tail
    assert server.request("GET", "/livez").status == 200
    assert server.request("GET", "/readyz").status == 503
    assert server.generate(prompt="abc").status == 503
    wait_until(lambda: server.request("GET", "/readyz").status == 200, "a new worker", 60)
    assert server.worker().pid != worker.pid
    assert server.generate(prompt="abc", max_new_tokens=3, ignore_eos=True).status == 200
    assert server.metric("phiserve_worker_deaths_total") == deaths + 1
    server.wait_for_metric(0, "phiserve_running_choices")


def test_sigterm_lets_streams_finish_refuses_new_requests_and_leaves_nothing(server: ServerProcess) -> None:
    family = server.family()
    folder = next(line for line in _open_files(family) if "phiserve-" in line)
    with server.streaming(prompt="abc", max_new_tokens=800, ignore_eos=True) as stream:
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.request("GET", "/readyz").status == 503, "draining")
        refused = server.generate(prompt="abc")
        assert refused.status == 503
        assert "shutting down" in refused.json()["error"]["message"]
        assert server.request("GET", "/livez").status == 200
        tail = b""
        while chunk := stream.recv(1 << 16):
            tail += chunk
    assert b'"finish_reason":"length"' in tail
    assert server.stop() == 0
    assert "Traceback" not in "".join(server.lines)
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert not psutil.pid_exists(server.process.pid)
    assert not os.path.exists(folder.partition("/metrics")[0])


def _open_files(family: list[psutil.Process]) -> list[str]:
    return [entry.path for process in family for entry in process.memory_maps() if "phiserve-" in entry.path]
