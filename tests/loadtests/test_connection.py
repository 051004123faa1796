"""The one-request connection that locust's users send by."""

from pathlib import Path

import pytest

from loadtests.connection import BROKEN, Connection
from loadtests.results import write_json
from loadtests.server import ServerProcess
from tests.loadtests.fake_phiserve import FakePhiserve, pretending

BODY = b'{"max_new_tokens": 3}'


def test_events_come_one_by_one_with_their_arrival() -> None:
    with pretending(FakePhiserve()) as server, Connection(server.url) as connection:
        connection.send("POST", "/generate", BODY)
        assert connection.status() == 200
        events = list(connection.events())
    assert [event["text"] for _, event in events] == [" 0", " 1", " 2", ""]
    assert [arrived for arrived, _ in events] == sorted(arrived for arrived, _ in events)


def test_a_request_sent_in_part_is_never_answered() -> None:
    with pretending(FakePhiserve()) as server:
        with Connection(server.url) as connection:
            connection.send("POST", "/generate", BODY, cut=5)
        assert server.num_generate == 0


def test_nobody_listening_is_a_broken_connection() -> None:
    with pytest.raises(BROKEN), Connection("http://127.0.0.1:9"):
        pass


def test_a_server_that_does_not_start_is_quoted_and_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with (
        pytest.raises(ValueError, match=r"did not start: .*no-such-model"),
        ServerProcess("no-such-model", log, ["--log-level=error"]),
    ):
        pass


def test_a_result_that_is_no_json_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n "a": 1\n}\n'
