"""The commands as a person starts them: locust against a server without a model, then against the real one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtests.run import main as run
from loadtests.server import ServerProcess
from loadtests.soak import main as soak
from tests.http.server_process import wait_until
from tests.loadtests.fake_phiserve import FakePhiserve, pretending

pytestmark = pytest.mark.slow
PATIENT = ["--", "--max-first-token-p99-ms", "60000", "--max-gap-p99-ms", "60000"]


def result(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


def missed(folder: Path) -> list[str]:
    return [each["name"] for each in result(folder)["thresholds"] if not each["kept"]]


def on_fake(server: FakePhiserve, folder: Path, mix: str) -> int:
    flags = [
        "--shape",
        "soak",
        "--users",
        "4",
        "--seconds",
        "2",
        "--output",
        str(folder),
        *PATIENT,
        "--settle-seconds",
        "1",
        "--mix",
        mix,
    ]
    with pretending(server):
        return run(["--url", server.url, *flags])


def test_writers_chatters_and_scorers_are_timed_and_all_their_requests_accounted_for(tmp_path: Path) -> None:
    assert on_fake(FakePhiserve(), tmp_path, "generate=2,chat=1,score=1") == 0
    found = result(tmp_path)
    assert found["notes"] == []
    assert found["outcomes_by_clients"] == found["outcomes_by_server"]
    for kind in ("generate", "chat"):
        times = found["kinds"][kind]
        assert times["requests"] == times["first_token_ms"]["n"] == times["whole_ms"]["n"] > 0
        assert times["gap_ms"]["n"] >= 7 * times["requests"]  # answers have 8 tokens at least
    assert "first token" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        ({"forgets": True}, ["requests unaccounted for or places kept"]),
        ({"breaks_off": True}, ["failures", "requests unaccounted for or places kept"]),
        ({"full": True}, ["first token p99", "gap p99", "refused share"]),
    ],
)
def test_a_fault_of_the_server_sets_the_exit_code(tmp_path: Path, fault: dict[str, bool], wanted: list[str]) -> None:
    assert on_fake(FakePhiserve(**fault), tmp_path, "generate=1") == 1
    assert missed(tmp_path) == wanted


def test_bad_input_is_one_line_and_code_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--seconds", "2", "--output", str(tmp_path)]
    assert run(["--url", "http://127.0.0.1:9", *flags]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert on_fake(FakePhiserve(), tmp_path, "nobody=1") == 2
    assert "error: mix='nobody=1'" in capfd.readouterr().err


def test_the_shipped_checkpoint_bears_15_seconds_of_every_kind_of_user(tmp_path: Path) -> None:
    flags = ["--shape", "soak", "--users", "12", "--seconds", "15", "--output", str(tmp_path), *PATIENT]
    assert run(flags) == 0
    found = result(tmp_path)
    assert found["unaccounted"] == []
    assert set(found["kinds"]) >= {"generate", "score", "impatient", "hostile"}
    assert found["outcomes_by_server"]["generate"]["cancelled"] > 0
    assert found["outcomes_by_server"]["generate"]["invalid"] > 0


def test_a_minute_of_soak_leaves_nothing_behind(tmp_path: Path) -> None:
    output = tmp_path / "soak.json"
    flags = ["--minutes", "1", "--users", "8", "--folder", str(tmp_path), "--output", str(output)]
    code = soak(flags)
    found = json.loads(output.read_text())
    assert [each for each in found["checks"] if not each["kept"]] == []
    assert code == 0
    assert found["soak"]["outcomes_by_server"]["generate"]["ok"] > 0


def test_an_interrupted_run_stops_the_server_and_ends_with_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests.run", "--seconds", "300", "--output", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    family: list[psutil.Process] = []
    try:
        assert process.stderr is not None
        wait_for_users = process.stderr.readline()  # locust says what chat users post once the server is up
        assert "/v1/completions" in wait_for_users
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("serve" in each.cmdline() for each in family)
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    wait_until(lambda: not any(each.is_running() for each in family), "the end of every process")


def test_a_server_of_our_own_ends_with_all_its_processes(tmp_path: Path) -> None:
    others = psutil.Process(os.getpid()).children(recursive=True)  # of fixtures that live as long as this process
    with ServerProcess("tiny_iit", tmp_path / "server.log") as server:
        family = [child for child in psutil.Process(os.getpid()).children(recursive=True) if child not in others]
        assert len(family) >= 3
        assert server.url.endswith(str(server.port))
    assert not psutil.wait_procs(family, timeout=10)[1]
