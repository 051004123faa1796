"""What a soak calls a leak."""

from typing import Any

import pytest

from loadtests.soak import Idle, checks, main

HELD = {"processes": 5, "threads": 24, "files": 98}
PHASES: dict[str, Any] = {"soak": {"kinds": {"generate": {"failures": {}}}, "unaccounted": []}}


def missed(
    before: float = 100.0,
    after: float = 101.9,
    loaded: tuple[float, ...] = (100.0,) * 10,
    held: dict[str, int] | None = None,
    phases: dict[str, Any] = PHASES,
) -> list[str]:
    found = checks(Idle(before, before, HELD), Idle(after, after, HELD | (held or {})), loaded, phases)
    return [each.name for each in found if not each.kept]


def test_two_percent_more_memory_is_flat_and_more_is_growth() -> None:
    assert missed() == []
    assert missed(after=102.1) == ["memory growth, idle to idle"]
    assert missed(after=50.0) == []


def test_growth_under_load_is_that_between_the_first_and_last_fifth() -> None:
    name = "memory growth under load, first to last fifth"
    assert missed(loaded=tuple(100.0 + i / 2 for i in range(10))) == [name]
    # One high sample is no growth.
    assert missed(loaded=(*(100.0,) * 14, 120.0)) == []
    assert missed(loaded=(100.0,)) == []


@pytest.mark.parametrize("name", HELD)
def test_one_more_process_thread_or_file_is_a_leak(name: str) -> None:
    assert missed(held={name: HELD[name] + 1}) == [f"further {name}"]
    assert missed(held={name: HELD[name] - 1}) == []


def test_failures_and_unaccounted_requests_of_any_phase_count() -> None:
    failing = {"warm_up": {"kinds": {"score": {"failures": {"500": 1}}}, "unaccounted": []}, **PHASES}
    assert missed(phases=failing) == ["failures"]
    lost = {"soak": {"kinds": {}, "unaccounted": ["generate: clients say 2 ok, the server 1"]}}
    assert missed(phases=lost) == ["requests unaccounted for or places kept"]


def test_nobody_listening_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:9", "--minutes", "0.01"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
