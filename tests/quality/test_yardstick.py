"""The yardstick of drift is renewed by itself."""

import json
from pathlib import Path

import pytest

from serve.quality.__main__ import main
from tests.test_repository import ROOT

CHECKPOINT = sorted((ROOT / "models" / "tiny_iit").iterdir())[-1]
TEXT = "The old man walked slowly down to the river. He had nowhere else to go, for the morning was cold.\n" * 30


def test_renewing_changes_the_served_scores_and_their_origin_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve.quality.yardstick.NUM_SAMPLES", 8)
    text, output = tmp_path / "held.txt", tmp_path / "quality_reference.json"
    text.write_text("<|endoftext|>".join([TEXT] * 4))
    status = main(["renew", "--checkpoint", str(CHECKPOINT), "--held-out", str(text), "--output", str(output)])
    assert status == 0, capsys.readouterr().err
    before, after = (json.loads(path.read_text()) for path in (CHECKPOINT / "quality_reference.json", output))
    for head in (*before["heads"].values(), *after["heads"].values()):
        scores = head.pop("served_scores")
        assert len(scores) == 101
        assert scores == sorted(scores)
    assert after["origin"].pop("served")["decoding"]["top_p"] == 0.95
    before["origin"].pop("served", None)
    assert after == before
