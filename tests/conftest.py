"""What every test shares: no network, no stray threads, nothing that depends on how busy the machine is."""

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine makes an example late or slow to draw; neither says anything of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare every later collection, and each training run asks for one, the objects that the imports left."""
    gc.collect()
    gc.freeze()
