"""A store and a source folder for each test."""

from pathlib import Path

import pytest

from model_store.store import ModelStore
from tests.store.folders import write_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")
