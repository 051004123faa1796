"""Connections that send what does not end, or not in time, on a real socket in this process; time is the test's."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from serve.http_protocol import BoundedProtocol, ConnectionLimits

LIMITS = ConnectionLimits(most_message_bytes=1 << 20, most_head_bytes=1 << 12, request_seconds=1000, most_waiting=4)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


class Watched(BoundedProtocol):
    """Notes what came and what was refused: a client that still sends may not see the answer."""

    num_received = 0
    refused: list[int]

    def _refuse(self, status: int, message: str, remedy: str) -> None:
        self.refused.append(status)
        super()._refuse(status, message, remedy)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.num_received += len(data)


class Site:
    """An application that reads and answers requests when it may, and notes readers that left before."""

    def __init__(self) -> None:
        self.may_read, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_read.set()
        self.may_answer.set()
        self.begun = asyncio.Event()
        self.left: list[str] = []
        self.protocols: list[Watched] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.set()
        await self.may_read.wait()
        while (await receive()).get("more_body"):
            pass
        left, may = asyncio.ensure_future(receive()), asyncio.ensure_future(self.may_answer.wait())
        await asyncio.wait([left, may], return_when=asyncio.FIRST_COMPLETED)
        if left.done() and left.result()["type"] == "http.disconnect":
            may.cancel()
            self.left.append(scope["path"])
            return
        left.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def protocol(self) -> Watched:
        config = Config(self, log_config=None, lifespan="off")
        self.protocols.append(Watched(config, ServerState(), {}, limits=LIMITS))
        self.protocols[-1].refused = []
        return self.protocols[-1]


Talk = Callable[[Site, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]]


def talk(conversation: Talk) -> Any:
    """What a conversation over one connection to a Site gives."""

    async def scenario() -> Any:
        site = Site()
        server = await asyncio.get_running_loop().create_server(site.protocol, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            try:
                return await conversation(site, reader, writer)
            finally:
                writer.transport.abort()

    return asyncio.run(asyncio.wait_for(scenario(), 30))


async def told(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and JSON of the last answer on a connection that the server ends."""
    head, _, body = (await reader.read()).rpartition(b"\r\n\r\n")
    return int(head.rpartition(b"HTTP/1.1 ")[2][:3]), json.loads(body)


@pytest.mark.parametrize(
    ("begin", "more", "status"),
    [
        (b"GET /", b"a" * 1024, 431),
        (b"GET / HTTP/1.1\r\nX-A: ", b"a" * 1024, 431),
        (b"GET / HTTP/1.1\r\n", b"X-A: a\r\n" * 128, 431),
        (CHUNKED + b"2\r\n{}\r\n0\r\nX-Trailer: ", b"a" * 65536, 413),
        (CHUNKED + b"1;extension=", b"a" * 65536, 413),
    ],
    ids=["address", "header", "headers", "trailer", "chunk extension"],
)
def test_what_does_not_end_is_refused_and_disconnected(begin: bytes, more: bytes, status: int) -> None:
    async def conversation(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[int]:
        writer.write(begin)
        while not site.protocols or not site.protocols[0].refused:  # it refuses, or the test ends at its deadline
            writer.write(more)
            await asyncio.sleep(0)
        assert site.protocols[0].transport.is_closing()
        return site.protocols[0].refused

    assert talk(conversation) == [status]


@pytest.mark.parametrize("begin", [b"GET / HT", GET[:-2], CHUNKED + b"2\r\n{"], ids=["line", "head", "body"])
def test_a_request_that_is_not_whole_in_time_is_answered_408(begin: bytes) -> None:
    async def conversation(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        writer.write(GET + begin)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        (protocol,) = site.protocols
        while not protocol._is_under_way:
            await asyncio.sleep(0)
        protocol._on_time()
        return await told(reader)

    status, body = talk(conversation)
    assert status == body["error"]["status"] == 408


@pytest.mark.parametrize("begin", [b"", b"\r\n", GET + b"\r\n"], ids=["nothing", "a blank line", "between requests"])
def test_a_connection_that_begins_no_request_is_ended_without_a_word(begin: bytes) -> None:
    async def conversation(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(begin)
        while sum(protocol.num_received for protocol in site.protocols) < len(begin) or not site.protocols:
            await asyncio.sleep(0)
        if begin.startswith(GET):
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            writer.write(b"\r\n")
            while site.protocols[0].num_received < len(begin) + 2:
                await asyncio.sleep(0)
        (protocol,) = site.protocols
        assert protocol._timer is not None
        protocol._on_time()
        return await reader.read()

    assert talk(conversation) == b""


def test_only_bytes_that_are_awaited_are_timed() -> None:
    async def conversation(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        site.may_answer.clear()
        writer.write(GET)
        await site.begun.wait()
        (protocol,) = site.protocols
        assert protocol._timer is None  # the answer is what takes long
        site.may_answer.set()
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        site.may_read.clear()
        size = 1 << 19
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + b"a" * size)
        while not protocol.flow.read_paused:
            await asyncio.sleep(0)
        protocol._on_time()  # it is the application that does not read on
        site.may_read.set()
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")

    talk(conversation)


@pytest.mark.parametrize(("num_waiting", "is_read"), [(LIMITS.most_waiting, True), (LIMITS.most_waiting + 1, False)])
def test_a_few_requests_may_be_sent_ahead_and_no_more(num_waiting: int, is_read: bool) -> None:
    async def conversation(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        site.may_answer.clear()
        writer.write(GET * (num_waiting + 1))
        await site.begun.wait()
        site.may_answer.set()
        if is_read:
            return b"".join([await reader.readuntil(b"ok") for _ in range(num_waiting + 1)])
        return await reader.read()

    assert (b"400 Bad Request" not in talk(conversation)) == is_read


def test_a_request_learns_that_its_reader_left_though_another_was_sent_behind_it() -> None:
    async def conversation(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[str]:
        site.may_answer.clear()
        writer.write(GET.replace(b"/", b"/first", 1) + GET)
        await site.begun.wait()
        (protocol,) = site.protocols
        running = protocol._running
        assert protocol.cycle is not running
        writer.transport.abort()
        while not site.left:
            await asyncio.sleep(0)
        assert not protocol.pipeline
        return site.left

    assert talk(conversation) == ["/first"]
