"""Clients and server must tell the same story, and an idle server must hold nothing."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.accounts import OUTCOMES, ROUTES, Scrape, differences, settled
from tests.loadtests.fake_phiserve import FakePhiserve, pretending

COUNTS = st.dictionaries(st.sampled_from([(r, o) for r in ROUTES for o in OUTCOMES]), st.integers(0, 50))
METRICS = """
phiserve_requests_total{route="generate",outcome="ok"} 7.0
phiserve_requests_total{route="generate",outcome="cancelled"} 2.0
phiserve_quality_requests_total{endpoint="score",outcome="invalid"} 1.0
phiserve_quality_requests_total{endpoint="diagnose",outcome="ok"} 5.0
phiserve_choices_in_flight 0.0
phiserve_queue_length 0.0
phiserve_running_choices 3.0
phiserve_cache_blocks 8.0
phiserve_cache_blocks_free 6.0
"""


@given(COUNTS)
def test_equal_counts_are_no_difference_and_any_other_request_is(counts: dict[tuple[str, str], int]) -> None:
    assert not differences(Counter(counts), Counter(counts))
    for key in [(route, outcome) for route in ROUTES for outcome in OUTCOMES]:
        assert differences(Counter(counts), Counter(counts) + Counter([key]))
        assert differences(Counter(counts) + Counter([key]), Counter(counts))


@given(COUNTS, st.integers(1, 9))
def test_a_hang_up_after_the_last_token_may_be_an_ok_and_nothing_else(
    counts: dict[tuple[str, str], int], late: int
) -> None:
    cancelled, ok = ("generate", "cancelled"), ("generate", "ok")
    client = Counter(counts) + Counter({cancelled: late})
    assert not differences(client, Counter(counts) + Counter({ok: late}))
    assert differences(client, Counter(counts) + Counter({("generate", "error"): late}))
    # The other way round, the server has lost an answer that a client read whole.
    assert differences(Counter(counts) + Counter({ok: late}), Counter(counts) + Counter({cancelled: late}))


def test_counters_are_read_by_route_and_places_still_held_are_named() -> None:
    scrape = Scrape.parse(METRICS)
    assert +scrape.outcomes() == Counter({("generate", "ok"): 7, ("generate", "cancelled"): 2, ("score", "invalid"): 1})
    assert scrape.leaks() == ["phiserve_running_choices is 3, not 0", "6 of 8 cache blocks are free"]
    assert scrape.value("phiserve_quality_requests_total") == 6


def test_a_request_that_the_server_does_not_know_of_is_unaccounted_for() -> None:
    with pretending(FakePhiserve()) as server:
        before = Scrape.of(server.url)
        server.counts["generate", "ok"] = 3
        assert settled(server.url, Counter({("generate", "ok"): 3}), before, 0)[1] == []
        wrong = settled(server.url, Counter({("generate", "ok"): 4}), before, 0)[1]
    assert wrong == ["generate: clients say 4 ok, the server 3"]
    with pytest.raises(OSError, match="refused"):
        Scrape.of(server.url)
