"""Keys, room and readiness, without any process."""

from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from serve.errors import ApiError
from serve.metrics import ApiMetrics
from serve.processes import SharedState
from serve.served_model import load_served_model
from serve.service import Service
from serve.settings import load_settings


def service(monkeypatch: pytest.MonkeyPatch, keys: str = "", *flags: str) -> Service:
    monkeypatch.setenv("PHISERVE_API_KEYS", keys)
    model: Any = SimpleNamespace(full_name="m@1")
    made = Service(load_settings(flags), model, Path(), SharedState(2))
    made.metrics = Mock(spec=ApiMetrics)
    return made


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sesame"},
        {"authorization": "bearer  sesame"},
        {"x-api-key": "sesame"},
        {"x-api-key": "two"},
        {"x-api-key": "schlüssel".encode().decode("latin-1")},  # as headers are read
    ],
)
def test_a_key_is_taken_as_bearer_and_as_x_api_key(monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]) -> None:
    service(monkeypatch, "sesame,two,schlüssel").check_key("/generate", headers)


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-api-key": "sesam"}, {"authorization": "sesame"}, {"authorization": "Basic sesame"}, {"x-api-key": ""}],
)
def test_without_a_valid_key_the_answer_is_401(monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]) -> None:
    with pytest.raises(ApiError) as failure:
        service(monkeypatch, "sesame").check_key("/v1/models", headers)
    assert failure.value.status == 401
    assert failure.value.headers()["WWW-Authenticate"] == "Bearer"


def test_only_refused_keys_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    keyed = service(monkeypatch, "sesame")
    counted: Any = keyed.metrics.key_refused
    keyed.check_key("/generate", {"x-api-key": "sesame"})
    assert counted.call_count == 0
    with pytest.raises(ApiError):
        keyed.check_key("/generate", {})
    assert counted.call_count == 1


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compare(a: bytes, b: bytes) -> bool:
        seen.append((a, b))
        return a == b

    monkeypatch.setattr("serve.service.hmac.compare_digest", compare)
    service(monkeypatch, "one,two,three").check_key("/generate", {"x-api-key": "one"})
    assert [b for _, b in seen] == [b"one", b"two", b"three"]


def test_health_and_page_need_no_key_and_metrics_only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    keyed = service(monkeypatch, "sesame")
    for path in ("/", "/ui", "/livez", "/readyz", "/metrics"):
        keyed.check_key(path, {})
    with pytest.raises(ApiError):
        service(monkeypatch, "sesame", "--metrics-need-key").check_key("/metrics", {})


def test_no_keys_means_open(monkeypatch: pytest.MonkeyPatch) -> None:
    service(monkeypatch).check_key("/generate", {})


def test_room_counts_all_http_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = service(monkeypatch, "", "--max-batch-size", "3", "--max-queue", "2")
    one.shared.add_in_flight(0, 2)
    one.shared.add_in_flight(1, 1)
    one.check_room(2)
    with pytest.raises(ApiError) as failure:
        one.check_room(3)
    assert failure.value.status == 429
    assert int(failure.value.headers()["Retry-After"]) >= 1
    one.shared.add_in_flight(1, -1)
    one.check_room(3)


def test_draining_is_seen_by_every_holder_of_the_shared_state(monkeypatch: pytest.MonkeyPatch) -> None:
    one = service(monkeypatch)
    one.shared.start_draining()
    with pytest.raises(ApiError) as failure:
        one.limits()
    assert failure.value.status == 503


def test_a_model_of_the_store_was_created_when_it_was_published() -> None:
    from model_store.store import ModelStore, default_root

    manifest = ModelStore(default_root()).show("tiny_iit").manifest
    assert manifest is not None
    model = load_served_model("tiny_iit")
    assert model.created == int(datetime.fromisoformat(manifest.created_at).timestamp())
