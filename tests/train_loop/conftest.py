"""Runs happen in a temporary folder."""

from pathlib import Path

import pytest
import torch

from tests.train_loop.runs import flags, write_text
from training.train import main


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # a trial before may have set its own


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes half of a tiny run; finished_run, which is made before this, has them drawn."""
    monkeypatch.setattr("training.train.plot_curves", lambda *unused: None)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def finished_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with the defaults' dropout and objective."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(flags(data, folder / "run")) == 0
    return folder / "run"
