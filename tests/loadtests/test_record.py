"""Thresholds over what users met."""

import json
import math

from loadtests.record import Record, Threshold, spread, thresholds

LIMITS = {"first_token_p99_ms": 100.0, "gap_p99_ms": 10.0, "failures": 0.0, "refused_share": 0.1}


def record(first: float = 50.0, gap: float = 5.0) -> Record:
    made = Record()
    made.kinds["generate"].requests = 2
    made.kinds["generate"].times["first_token"].append(first)
    made.kinds["chat"].requests = 1
    made.kinds["chat"].times["gap"].append(gap)
    return made


def missed(made: Record, unaccounted: int = 0) -> list[str]:
    return [each.name for each in thresholds(made, LIMITS, unaccounted) if not each.kept]


def test_each_limit_is_missed_by_what_it_limits() -> None:
    assert missed(record()) == []
    assert missed(record(first=101)) == ["first token p99"]
    assert missed(record(gap=11)) == ["gap p99"]
    assert missed(record(), unaccounted=1) == ["requests unaccounted for or places kept"]
    failing = record()
    failing.kinds["hostile"].failures["answered 500"] += 1
    assert missed(failing) == ["failures"]
    refused = record()
    refused.kinds["generate"].refused = 1
    refused.kinds["hostile"].requests = 1000  # who asks for nothing reasonable does not thin the share
    assert missed(refused) == ["refused share"]


def test_writers_without_a_single_answer_keep_no_latency_limit() -> None:
    made = Record()
    made.kinds["generate"].requests = 3
    assert missed(made) == ["first token p99", "gap p99"]
    assert json.loads(json.dumps(thresholds(made, LIMITS, 0)[0].to_json(), allow_nan=False))["value"] is None
    assert math.isinf(thresholds(made, LIMITS, 0)[0].value)


def test_a_run_without_writers_has_no_latency_to_judge() -> None:
    made = Record()
    made.kinds["score"].requests = 3
    assert missed(made) == []


def test_a_limit_itself_is_kept() -> None:
    assert Threshold("a", 1.0, 1.0).kept
    assert not Threshold("a", 1.0, 1.001).kept


def test_a_spread_says_how_many_there_are() -> None:
    assert spread([]) == {"n": 0}
    assert spread([3.0, 1.0, 2.0]) == {"n": 3, "p50": 2.0, "p90": 3.0, "p99": 3.0, "max": 3.0}
