"""Frames and credit: what processes say survives the wire, and no stream runs further ahead than its window."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve import channel
from serve.channel import Abort, Acknowledge, Add, CreditLedger, Hello, StepDeltas
from serve.engine.request import TokenDelta

ids = st.integers(0, 2**60)
tokens = st.lists(st.integers(0, 200_000), max_size=5)
floats = st.floats(allow_nan=False, allow_infinity=False)
params = st.dictionaries(
    st.sampled_from(["temperature", "top_p", "seed", "max_new_tokens"]), st.integers(0, 2**63 - 1) | floats
)
commands = st.one_of(
    st.builds(Add, ids, tokens, params, st.none() | floats, st.integers(0, 2**31)),
    st.builds(Abort, st.lists(ids, max_size=4)),
    st.builds(Acknowledge, ids, st.integers(0, 10_000)),
)


@st.composite
def deltas(draw: st.DrawFn) -> TokenDelta:
    token_ids = draw(tokens)
    values = st.lists(floats, min_size=len(token_ids), max_size=len(token_ids))
    return TokenDelta(
        draw(ids),
        token_ids,
        draw(values),
        draw(values),
        None,
        draw(st.sampled_from([None, "stop", "length", "abort", "deadline", "error"])),
        draw(st.none() | st.text()),
    )


@given(st.lists(commands, max_size=6))
def test_commands_survive_the_wire(sent: list[channel.Command]) -> None:
    assert channel.unpack_commands(channel.pack_commands(sent)) == sent


@given(st.lists(deltas(), max_size=6))
def test_a_step_survives_the_wire(sent: list[TokenDelta]) -> None:
    assert channel.unpack_message(channel.pack_step(sent)) == StepDeltas(sent)


def test_a_hello_survives_the_wire() -> None:
    hello = Hello(3, 17, 4711, "ipc:///x", "native", "because", "float32", 4096, 257, 32)
    assert channel.unpack_message(channel.pack_hello(hello)) == hello


def test_logprobs_of_alternatives_survive_the_wire() -> None:
    sent = TokenDelta(1, [5], [-0.5], [1.5], [[(5, -0.5), (6, -1.0)]])
    message = channel.unpack_message(channel.pack_step([sent]))
    assert isinstance(message, StepDeltas)
    assert message.deltas[0].top_logprobs == [[[5, -0.5], [6, -1.0]]]


@given(st.binary(max_size=64))
def test_bytes_that_are_no_frame_are_a_value_error(noise: bytes) -> None:
    for unpack in (channel.unpack_commands, channel.unpack_message):
        try:
            unpack(noise)
        except ValueError:
            continue


def test_a_request_id_names_its_http_process() -> None:
    assert channel.owner_of(5 << channel.ID_BITS | 123) == 5


def test_a_folder_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(ValueError, match="TMPDIR"):
        channel.check_folder(channel.Path("/" + "x" * 120))


class Credit(RuleBasedStateMachine):
    """A model of the ledger: a paused stream sends nothing, a step sends at most STEP tokens."""

    STEP, WINDOW = 3, 8

    def __init__(self) -> None:
        super().__init__()
        self.ledger = CreditLedger(stall_seconds=10)
        self.now = 0.0
        self.unread: dict[int, int] = {}
        self.paused: set[int] = set()
        self.last_taken: dict[int, float] = {}

    @rule(request=st.integers(0, 4))
    def open(self, request: int) -> None:
        if request not in self.unread:
            self.ledger.open(request, self.WINDOW)
            self.unread[request] = 0

    @precondition(lambda self: set(self.unread) - self.paused)
    @rule(data=st.data(), count=st.integers(1, STEP))
    def send(self, data: st.DataObject, count: int) -> None:
        request = data.draw(st.sampled_from(sorted(set(self.unread) - self.paused)))
        self.unread[request] += count
        if self.ledger.spend(request, count, self.now):
            self.paused.add(request)
            self.last_taken[request] = self.now

    @precondition(lambda self: any(self.unread.values()))
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(r for r, n in self.unread.items() if n)))
        count = data.draw(st.integers(1, self.unread[request]))
        self.unread[request] -= count
        if self.ledger.grant(request, count, self.now):
            self.paused.remove(request)
        elif request in self.paused:
            self.last_taken[request] = self.now

    @precondition(lambda self: self.unread)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.unread)))
        self.ledger.close(request)
        del self.unread[request]
        self.paused.discard(request)

    @rule(seconds=st.floats(0.1, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_runs_further_ahead_than_its_window_and_one_step(self) -> None:
        assert all(n < self.WINDOW + self.STEP for n in self.unread.values())

    @invariant()
    def paused_is_exactly_who_has_a_window_unread(self) -> None:
        assert self.paused == {r for r, n in self.unread.items() if n >= self.WINDOW}

    @invariant()
    def the_ledger_counts_what_is_unread(self) -> None:
        assert len(self.ledger) == len(self.unread)
        assert all(self.ledger.outstanding(r) == n for r, n in self.unread.items())

    @invariant()
    def stalled_is_who_is_paused_and_took_nothing_for_ten_seconds(self) -> None:
        late = {r for r in self.paused if self.now - self.last_taken[r] >= 10}
        assert set(self.ledger.stalled(self.now)) == late
        moments = [self.last_taken[r] + 10 for r in self.paused]
        assert self.ledger.next_stall() == (min(moments) if moments else None)


TestCredit = Credit.TestCase
TestCredit.settings = settings(max_examples=40, stateful_step_count=40)


def test_window_zero_is_never_paused() -> None:
    ledger = CreditLedger(stall_seconds=1)
    ledger.open(1, 0)
    assert not ledger.spend(1, 1_000_000, 0.0)
