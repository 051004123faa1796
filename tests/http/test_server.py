"""A real server: real processes, a real port, raw sockets. One server for all of these tests, see conftest.py."""

import contextlib
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.http.server_process import Answer, ServerProcess, chunks_of, read_answer

LONG = {"prompt": "abc", "max_new_tokens": 3000, "ignore_eos": True}


@pytest.fixture(autouse=True)
def _nothing_left_running(server: ServerProcess) -> Any:
    yield
    server.wait_for_metric(0, "phiserve_choices_in_flight")
    server.wait_for_metric(0, "phiserve_running_choices")


def text_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return str(answer.json()["choices"][0]["text"])


def test_json_answer_has_choices_usage_and_timing(server: ServerProcess) -> None:
    answer = server.generate(prompt="abc", max_new_tokens=5, ignore_eos=True)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["model"] == "tiny@local"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert body["choices"][0]["finish_reason"] == "length"
    assert 0 < body["timing"]["time_to_first_token_seconds"] <= body["timing"]["total_seconds"]
    assert set(body["choices"][0]) == {"index", "text", "finish_reason", "seed"}


def test_stream_is_server_sent_events_that_join_to_the_json_answer(server: ServerProcess) -> None:
    asked = {"prompt": "abc", "max_new_tokens": 40, "seed": 5, "ignore_eos": True}
    whole = text_of(server.generate(**asked))
    with server.connect() as connection:
        server.send(connection, "POST", "/generate", json.dumps(asked | {"stream": True}).encode())
        answer = read_answer(connection)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.events()
    assert "".join(event["text"] for event in events) == whole
    assert [e for e in events if "finish_reason" in e] == [events[-1]]
    assert events[-1]["finish_reason"] == "length"
    assert events[-1]["usage"]["completion_tokens"] == 40
    assert events[-1]["seed"] == 5
    assert events[-1]["timing"]["tokens_per_second"] > 0


def test_text_arrives_while_the_answer_is_being_written(server: ServerProcess) -> None:
    with server.connect() as connection:
        server.send(connection, "POST", "/generate", json.dumps(LONG | {"stream": True}).encode())
        seen = b""
        while seen.count(b"data: ") < 3:
            seen += connection.recv(4096)
    assert b"finish_reason" not in seen


def test_each_write_holds_whole_events(server: ServerProcess) -> None:
    with server.connect() as connection:
        body = json.dumps({"prompt": "abc", "max_new_tokens": 30, "n": 3, "ignore_eos": True, "stream": True}).encode()
        server.send(connection, "POST", "/generate", body)
        data = b""
        while chunk := connection.recv(1 << 16):
            data += chunk
    for write in chunks_of(data.partition(b"\r\n\r\n")[2]):
        assert write.startswith(b"data: ")
        assert write.endswith(b"\n\n")


def test_a_reader_that_hangs_up_frees_its_place(server: ServerProcess) -> None:
    with server.streaming(**LONG):
        assert server.metric("phiserve_choices_in_flight") == 1
    server.wait_for_metric(0, "phiserve_running_choices")
    assert server.metric("phiserve_requests_total", route="generate", outcome="cancelled") >= 1


def test_a_reader_of_json_that_hangs_up_frees_its_place(server: ServerProcess) -> None:
    with server.connect() as connection:
        server.send(connection, "POST", "/generate", json.dumps(LONG).encode())
        server.wait_for_metric(1, "phiserve_choices_in_flight")
    server.wait_for_metric(0, "phiserve_choices_in_flight")
    server.wait_for_metric(0, "phiserve_running_choices")


def test_a_client_that_leaves_within_its_body_is_counted_and_no_error(server: ServerProcess) -> None:
    before = server.metric("phiserve_requests_total", route="generate", outcome="cancelled")
    with server.connect() as connection:
        server.send(connection, "POST", "/generate", b'{"prompt":', Content_Length="1000")
    server.wait_for_metric(before + 1, "phiserve_requests_total", route="generate", outcome="cancelled")
    assert not [line for line in server.lines if "Traceback" in line]


def test_a_full_server_answers_429_with_retry_after(server: ServerProcess) -> None:
    with server.streaming(**LONG, n=3), server.streaming(**LONG), server.connect() as waiting:
        server.send(waiting, "POST", "/generate", json.dumps(LONG | {"n": 2}).encode())
        server.wait_for_metric(6, "phiserve_choices_in_flight")
        refused = server.generate(prompt="abc", max_new_tokens=1)
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "server_full"
    server.wait_for_metric(0, "phiserve_choices_in_flight")
    assert server.generate(prompt="abc", max_new_tokens=1).status == 200


def test_same_seed_same_text_whoever_else_is_in_the_batch(server: ServerProcess) -> None:
    asked = {"prompt": "the sea", "max_new_tokens": 60, "seed": 11, "top_p": 0.95, "ignore_eos": True}
    alone = text_of(server.generate(**asked))
    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(server.generate, prompt="x" * i, max_new_tokens=30 + i, seed=i) for i in range(1, 4)]
        together = [pool.submit(server.generate, **asked) for _ in range(2)]
        assert [text_of(answer.result()) for answer in together] == [alone, alone]
        assert all(other.result().status == 200 for other in others)


def test_without_a_seed_the_answer_names_one_that_repeats_it(server: ServerProcess) -> None:
    first = server.generate(prompt="abc", max_new_tokens=20, ignore_eos=True).json()["choices"][0]
    again = server.generate(prompt="abc", max_new_tokens=20, ignore_eos=True, seed=first["seed"])
    assert text_of(again) == first["text"]


def test_n_choices_draw_with_consecutive_seeds(server: ServerProcess) -> None:
    asked = {"prompt": "abc", "max_new_tokens": 12, "ignore_eos": True}
    body = server.generate(**asked, n=3, seed=40).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 36, "total_tokens": 39}
    assert body["choices"][2]["text"] == text_of(server.generate(**asked, seed=42))


def test_a_list_of_prompts_is_answered_in_order(server: ServerProcess) -> None:
    asked = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}
    body = server.generate(prompt=["abc", "xyz"], **asked).json()
    assert [c["text"] for c in body["choices"]] == [text_of(server.generate(prompt=p, **asked)) for p in ("abc", "xyz")]


def test_token_ids_are_a_prompt_too(server: ServerProcess) -> None:
    asked = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(server.model / "tokenizer.json")).encode("abc").ids
    assert text_of(server.generate(prompt=ids, **asked)) == text_of(server.generate(prompt="abc", **asked))


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_and_is_not_part_of_it(server: ServerProcess, stream: bool) -> None:
    asked = {"prompt": "abc", "max_new_tokens": 60, "seed": 3, "ignore_eos": True}
    whole = text_of(server.generate(**asked))
    stop = whole[20:23]  # each letter is a token of its own
    cut = whole[: whole.index(stop)]
    answer = server.generate(**asked, stop=["never there", stop], stream=stream)
    if stream:
        events = answer.events()
        assert "".join(event["text"] for event in events) == cut
        assert events[-1]["finish_reason"] == "stop"
    else:
        assert text_of(answer) == cut
        assert answer.json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_report_each_token_and_its_alternatives(server: ServerProcess, stream: bool) -> None:
    asked = {"prompt": "abc", "max_new_tokens": 4, "temperature": 0, "logprobs": 2, "ignore_eos": True}
    answer = server.generate(**asked, stream=stream)
    parts = (
        [e["logprobs"] for e in answer.events() if "logprobs" in e]
        if stream
        else [answer.json()["choices"][0]["logprobs"]]
    )
    tokens = [token for part in parts for token in part["token_ids"]]
    values = [value for part in parts for value in part["token_logprobs"]]
    top = [row for part in parts for row in part["top_logprobs"]]
    assert len(tokens) == len(values) == len(top) == 4
    for token, value, row in zip(tokens, values, top, strict=True):
        assert row[0]["token_id"] == token  # greedy takes the likeliest
        assert row[0]["logprob"] == pytest.approx(value, abs=1e-5)
        assert row[1]["logprob"] <= row[0]["logprob"]


@pytest.mark.parametrize(
    ("body", "field", "remedy"),
    [
        ({"prompt": "a", "temperature": -1}, "temperature", "at least 0"),
        ({"prompt": "a", "top_p": 0}, "top_p", "more than 0"),
        ({"prompt": "a", "max_new_tokens": "10"}, "max_new_tokens", "integer"),
        ({"prompt": "a", "max_new_tokens": True}, "max_new_tokens", "integer"),
        ({"prompt": "a", "max_tokens": 10}, "max_tokens", "max_new_tokens"),
        ({"prompt": "a", "n": 1000}, "n", "at most"),
        ({"prompt": "a", "stop": [""]}, "stop", "1 to"),
        ({"prompt": "a", "max_new_tokens": 4096}, "max_new_tokens", "at most 4095"),
        ({"prompt": "", "max_new_tokens": 1}, "prompt", "at least one character"),
        ({"prompt": [], "max_new_tokens": 1}, "prompt", "1 to"),
        ({"prompt": [1, 9999]}, "prompt", "0 to 256"),
        ({"prompt": "a" * 5000}, "prompt", "at most 4095 tokens"),
        ({"prompt": 5}, "prompt", "string"),
        ({}, "prompt", "add it"),
    ],
)
def test_bad_input_is_422_naming_field_value_and_remedy(
    server: ServerProcess, body: dict[str, Any], field: str, remedy: str
) -> None:
    answer = server.generate(**body)
    error = answer.json()["error"]
    assert answer.status == error["status"] == 422
    assert error["field"] == field
    assert remedy in error["remedy"]
    assert field in error["message"]
    assert len(json.dumps(error["value"])) < 250


def test_every_problem_of_a_body_is_named(server: ServerProcess) -> None:
    error = server.generate(prompt="a", top_k=-1, min_p=2).json()["error"]
    assert [error["field"], *(problem["field"] for problem in error["more"])] == ["top_k", "min_p"]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/generate", b"{not json", {}, 400),
        ("POST", "/generate", b"[1]", {}, 422),
        ("POST", "/generate", b"prompt=a", {"Content_Type": "text/plain"}, 415),
        ("POST", "/generate", b'"' + b"a" * (1 << 20) + b'"', {}, 413),
        ("GET", "/generate", b"", {}, 405),
        ("GET", "/nowhere", b"", {}, 404),
    ],
)
def test_every_error_has_the_one_shape(
    server: ServerProcess, method: str, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = server.request(method, path, body, **headers)
    assert answer.status == status
    error = answer.json()["error"]
    assert set(error) == {"status", "type", "message", "field", "value", "remedy", "more"}
    assert error["status"] == status
    assert "Traceback" not in answer.body.decode()


def test_a_body_without_a_length_is_limited_too(server: ServerProcess) -> None:
    with server.connect() as connection:
        head = (
            "POST /generate HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode())
        for _ in range(17):
            connection.sendall(b"10000\r\n" + b"a" * 0x10000 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_head_without_end_is_refused(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: t\r\nX-Endless: ")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                connection.sendall(b"a" * (1 << 16))
        assert connection.recv(4096).startswith(b"HTTP/1.1 431")


def test_models_lists_the_served_model(server: ServerProcess) -> None:
    listed = server.request("GET", "/v1/models").json()
    assert listed["object"] == "list"
    assert [(m["id"], m["object"]) for m in listed["data"]] == [("tiny@local", "model")]


def test_health_docs_and_page_answer(server: ServerProcess) -> None:
    assert server.request("GET", "/livez").status == 200
    assert server.request("GET", "/readyz").status == 200
    assert server.request("GET", "/docs").status == 200
    schema = server.request("GET", "/openapi.json").json()
    fields = {
        "/generate": ("prompt", "repetition_penalty"),
        "/v1/completions": ("prompt", "temperature", "stream_options"),
        "/v1/chat/completions": ("messages", "temperature", "quality"),
    }
    for path, names in fields.items():
        body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(names) <= set(body["properties"])
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)))
    assert named <= set(schema["components"]["schemas"])
    assert "$defs" not in json.dumps(schema)
    for path in ("/", "/ui"):
        page = server.request("GET", path)
        assert b"Phiserve" in page.body
        assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")


def test_metrics_count_requests_tokens_and_times(server: ServerProcess) -> None:
    names = (
        ("phiserve_requests_total", {"route": "generate", "outcome": "ok"}, 1),
        ("phiserve_choices_total", {"finish_reason": "length"}, 2),
        ("gen_ai_client_token_usage_sum", {"gen_ai_request_model": "tiny@local", "gen_ai_token_type": "input"}, 3),
        ("gen_ai_client_token_usage_sum", {"gen_ai_request_model": "tiny@local", "gen_ai_token_type": "output"}, 20),
        ("gen_ai_server_time_to_first_token_seconds_count", {"gen_ai_request_model": "tiny@local"}, 1),
        ("gen_ai_server_time_per_output_token_seconds_count", {"gen_ai_request_model": "tiny@local"}, 2),
        ("gen_ai_server_request_duration_seconds_count", {"gen_ai_request_model": "tiny@local"}, 1),
    )
    before = [server.metric(name, **labels) for name, labels, _ in names]
    server.generate(prompt="abc", max_new_tokens=10, n=2, ignore_eos=True)
    after = [server.metric(name, **labels) for name, labels, _ in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [change for _, _, change in names]


def test_the_step_time_breakdown_has_all_phases(server: ServerProcess) -> None:
    server.generate(prompt="abc", max_new_tokens=10, stream=True)
    for phase in ("schedule", "forward", "update", "transport", "detokenise", "write"):
        assert server.metric("phiserve_step_phase_seconds_total", phase=phase) > 0, phase


def test_a_long_prompt_and_garbage_on_the_wire_leave_the_server_well(server: ServerProcess) -> None:
    with server.connect() as connection:
        connection.sendall(b"\x00\x01 garbage\r\n\r\n")
        assert b"400" in connection.recv(100)
    with server.connect() as connection:  # a body that never comes
        server.send(connection, "POST", "/generate", b"", Content_Length="100", Content_Type="application/json")
        connection.shutdown(socket.SHUT_WR)
    assert server.generate(prompt="a" * 4000, max_new_tokens=2).status == 200


def test_no_process_but_the_worker_loads_torch_or_transformers(server: ServerProcess) -> None:
    worker = server.worker()
    for process in server.family():
        mapped = [entry.path for entry in process.memory_maps()]
        if process != worker:
            assert not any("/torch/" in path for path in mapped)


def test_the_start_shows_settings_model_engine_page_and_a_curl_line(server: ServerProcess) -> None:
    text = "".join(server.lines)
    assert f"port={server.port}" in text
    assert "model    tiny@local" in text
    assert "engine   " in text
    assert f"page     http://127.0.0.1:{server.port}/" in text
    assert f"try      curl -N http://127.0.0.1:{server.port}/generate" in text
