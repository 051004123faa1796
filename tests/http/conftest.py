"""One tiny model and one server for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.server_process import ServerProcess
from tests.http.tiny import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    """Few places, so that it is soon full: 4 run, 2 wait. The slower runner, so that long answers last."""
    flags = ("--runner", "torch", "--max-batch-size", "4", "--max-queue", "2", "--drain-seconds", "20", "--step-timing")
    process = ServerProcess(tiny_model, flags).start()
    yield process
    process.stop()
