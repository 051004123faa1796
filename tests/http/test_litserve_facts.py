"""Facts about LitServe that serve/litserve_shell.py rests on. One that fails after an upgrade says where to look."""

import inspect
import multiprocessing
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import litserve
import pytest
from litserve.loops import LitLoop, loops
from litserve.specs.base import LitSpec
from starlette.middleware.gzip import GZipMiddleware
from starlette.testclient import TestClient

from serve.litserve_shell import EngineAPI, EngineLoop, Face, Front, Server, WorkerConfig, build_server
from serve.processes import SharedState
from serve.served_model import load_served_model
from serve.service import Service
from serve.settings import load_settings


@pytest.fixture
def server(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("PHISERVE_API_KEYS", "sesame")
    settings = load_settings([])
    service = Service(settings, load_served_model(str(tiny_model)), tiny_model, SharedState(1))
    monkeypatch.setattr(service, "metrics", SimpleNamespace(key_refused=lambda: None), raising=False)
    config = WorkerConfig(tiny_model, tiny_model, "auto", "cpu", "auto", 1, None, None, 4, 1, 60.0, False, "warning")
    return build_server(config, service)


def test_the_version_is_the_one_that_was_measured() -> None:
    from importlib.metadata import version

    assert version("litserve") == "0.2.19"


def test_a_loop_is_called_with_the_api_a_device_and_the_workers_number() -> None:
    parameters = list(inspect.signature(LitLoop.__call__).parameters)
    assert parameters[1:4] == ["lit_api", "device", "worker_id"]
    assert "loop(" in inspect.getsource(loops.inference_worker)


def test_a_spec_may_register_any_number_of_endpoints(server: Server) -> None:
    paths = {route.path for route in _routes(server)}
    assert {"/generate", "/v1/models", "/livez", "/readyz", "/metrics", "/ui", "/docs", "/health"} <= paths


def _routes(server: Server) -> list[Any]:
    document = server.app.openapi()
    found = [type("Route", (), {"path": path}) for path in document["paths"]]
    return [*found, *(route for route in server.app.routes if hasattr(route, "path"))]


def test_litserve_has_the_path_of_the_page(server: Server) -> None:
    """Else Front need not rewrite it."""
    assert server.app.openapi()["paths"]["/"]["get"]["operationId"].startswith("index")


def test_authorize_guards_our_endpoints_and_litserves(server: Server) -> None:
    client = TestClient(server.app)  # not entered: no lifespan, so no service
    for path in ("/v1/models", "/health", "/info"):
        answer = client.get(path)
        assert answer.status_code == 401, path
        wanted = "authentication_error" if path.startswith("/v1/") else "unauthorized"
        assert answer.json()["error"]["type"] == wanted
    assert client.post("/generate", json={}).status_code == 401
    assert client.get("/").status_code == 200


def test_an_unknown_path_under_v1_is_answered_in_openais_shape(server: Server) -> None:
    answer = TestClient(server.app).get("/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


def test_a_streaming_spec_keeps_litserve_from_compressing(server: Server) -> None:
    assert GZipMiddleware not in [m.cls for m in server.app.user_middleware]
    assert Front in [m.cls for m in server.app.user_middleware]


def test_a_middleware_sees_the_lifespan_and_the_number_of_its_http_process(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr(Service, "start", lambda self, api: started.append(api))
    monkeypatch.setattr(Service, "stop", lambda self: None)
    server.app.response_queue_id = 7
    with pytest.raises(RuntimeError, match="Response queues"), TestClient(server.app):
        pass  # LitServe's own part of the lifespan wants its manager, after ours ran
    assert started == [7]


def test_what_a_worker_is_sent_holds_no_settings_and_no_tokenizer(server: Server) -> None:
    sent = pickle.dumps(server.lit_api)
    assert b"sesame" not in sent
    assert len(sent) < 10_000
    received = pickle.loads(sent)
    assert isinstance(received, EngineAPI)
    assert isinstance(received.spec, Face)
    assert isinstance(received.loop, EngineLoop)
    assert received.spec.service is None


def test_litserve_restarts_workers_through_the_method_that_we_override() -> None:
    assert "self.launch_single_inference_worker(" in inspect.getsource(litserve.LitServer._start_worker_monitoring)
    assert "launch_single_inference_worker" in vars(Server)


def test_litserve_does_not_come_back_from_waiting_for_a_worker_that_died(server: Server) -> None:
    """Else Stopper.watch_startup need not look."""
    assert "while not any" in inspect.getsource(litserve.LitServer.verify_worker_status)


def test_litserve_refuses_port_zero_and_names_of_hosts(server: Server) -> None:
    for arguments in ({"port": 0}, {"port": 80}, {"port": 8000, "host": "localhost"}):
        with pytest.raises(ValueError, match="must be"):
            server.run(generate_client_file=False, **arguments)


def test_http_processes_are_forked_so_that_they_inherit_the_service() -> None:
    assert 'get_context("fork")' in inspect.getsource(litserve.LitServer._start_server)
    assert "fork" in multiprocessing.get_all_start_methods()


def test_a_spec_is_pickled_through_getstate_without_its_server() -> None:
    assert LitSpec().__getstate__()["_server"] is None
