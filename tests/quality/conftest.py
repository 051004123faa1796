"""A reference fitted on the only English text that every Python has: the help topics of pydoc."""

from pathlib import Path
from pydoc_data.topics import topics

import pytest

from serve.quality.corpus import DOCUMENT_END
from serve.quality.fit import FitConfig, fit
from serve.quality.reference import QualityReference
from serve.quality.score import QualityScorer

PROSE = (
    "The old man walked slowly down to the river, for the morning was cold and he had nowhere else to go. "
    "When he came to the bridge he stopped and looked at the water. It was brown and quick after the rain, and he "
    "thought of the winter when he and his brother had crossed it on the ice. Nobody in the village believed them "
    "then. Now his brother was dead, and there was nobody left who could say whether it was true or not. He laughed "
    "a little at that, put his hands in his pockets, and went on towards the town."
)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quality") / "topics.txt"
    path.write_text(DOCUMENT_END.join(topics[name] for name in sorted(topics)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def reference(corpus: Path) -> QualityReference:
    return fit(FitConfig(corpora=(corpus,), held_out=(), num_passages=300, num_ranges=80, context_steps=40))


@pytest.fixture(scope="session")
def scorer(reference: QualityReference) -> QualityScorer:
    return QualityScorer(reference)
