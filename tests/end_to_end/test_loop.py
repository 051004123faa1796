"""The loop in real processes: train 30 steps, publish, serve, stream over a socket, read /metrics, stop by SIGTERM."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.http.server_process import ROOT, ServerProcess
from tests.train_loop.runs import flags, write_text


@pytest.mark.slow
def test_a_model_is_trained_published_served_streamed_watched_and_stopped(tmp_path: Path) -> None:
    store = {"MODEL_STORE_ROOT": str(tmp_path / "store")}
    environment = {**os.environ, **store, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    arguments = flags(write_text(tmp_path / "text"), tmp_path / "run", max_steps=30, eval_every=15, publish="loop")
    trained = subprocess.run(
        [sys.executable, "-m", "training.train", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "python -m serve --model loop@1" in trained.stdout
    verified = subprocess.run(
        [sys.executable, "-m", "model_store", "verify", "loop"], cwd=ROOT, env=environment, check=False
    )
    assert verified.returncode == 0

    server = ServerProcess("loop@1", environment=store).start()
    try:
        answer = server.generate(prompt="Bace difo", max_new_tokens=12, seed=7, stream=True, ignore_eos=True)
        events = answer.events()
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert len(events) > 1
        assert events[-1]["finish_reason"] == "length"
        assert events[-1]["usage"]["completion_tokens"] == 12
        streamed = "".join(event["text"] for event in events)

        whole = server.generate(prompt="Bace difo", max_new_tokens=12, seed=7, ignore_eos=True).json()
        assert whole["choices"][0]["text"] == streamed

        metrics = server.request("GET", "/metrics").body.decode()
        assert 'phiserve_requests_total{outcome="ok",route="generate"} 2.0' in metrics
        assert "gen_ai_server_time_to_first_token_seconds_count" in metrics
        assert server.request("GET", "/v1/models").json()["data"][0]["id"] == "loop@1"
        family = server.family()
    finally:
        code = server.stop()
    assert code == 0
    assert "Traceback" not in "".join(server.lines)
    assert not psutil.wait_procs(family, timeout=10)[1]
