"""A server with our routes and counters and no model: what the load tests speak to, and faults that they must find."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web


class FakePhiserve:
    """Answers at once.

    forgets: requests to /generate are not counted. breaks_off: streams end without their last event. full: /generate
    answers 429. waits_for: no answer of /generate begins before so many requests have come.
    """

    def __init__(
        self, *, forgets: bool = False, breaks_off: bool = False, full: bool = False, waits_for: int = 0
    ) -> None:
        self.forgets, self.breaks_off, self.full, self.waits_for = forgets, breaks_off, full, waits_for
        self.counts: Counter[tuple[str, str]] = Counter()
        self.num_generate = 0
        self.url = ""
        self.app = web.Application()
        self.app.router.add_get("/metrics", self.metrics)
        self.app.router.add_post("/generate", self.generate)
        self.app.router.add_get("/v1/models", self.models)
        self.app.router.add_post("/v1/chat/completions", self.chat)
        self.app.router.add_post("/quality/score", self.score)

    async def metrics(self, request: web.Request) -> web.Response:
        lines = [
            f'phiserve_requests_total{{route="{r}",outcome="{o}"}} {n}'
            for (r, o), n in self.counts.items()
            if r != "score"
        ]
        lines += [
            f'phiserve_quality_requests_total{{endpoint="score",outcome="{o}"}} {n}'
            for (r, o), n in self.counts.items()
            if r == "score"
        ]
        lines += ["phiserve_choices_in_flight 0", "phiserve_cache_blocks 8", "phiserve_cache_blocks_free 8", ""]
        return web.Response(text="\n".join(lines))

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.num_generate += 1
        while self.num_generate < self.waits_for:
            await asyncio.sleep(0.001)
        if self.full:
            self.counts["generate", "full"] += 1
            return web.json_response({"error": {"message": "full"}}, status=429)
        if not self.forgets:
            self.counts["generate", "ok"] += 1
        events = [{"index": 0, "text": f" {i}"} for i in range(body["max_new_tokens"])]
        last = {"index": 0, "text": "", "finish_reason": "length", "usage": {"completion_tokens": len(events)}}
        return await stream(request, [*events, *([] if self.breaks_off else [last])])

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake@1", "chat": True}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.counts["chat", "ok"] += 1
        assert body["model"] == "fake@1"
        assert body["stream"] is True
        assert body["messages"][0]["role"] == "user"
        chunks = [{"choices": [{"delta": {"role": "assistant"}, "finish_reason": None}]}]
        chunks += [
            {"choices": [{"delta": {"content": f" {i}"}, "finish_reason": None}]} for i in range(body["max_tokens"])
        ]
        return await stream(request, [*chunks, {"choices": [{"delta": {}, "finish_reason": "length"}]}], b"[DONE]")

    async def score(self, request: web.Request) -> web.Response:
        texts = (await request.json())["texts"]
        self.counts["score", "ok"] += 1
        return web.json_response({"scores": [{"score": 0.5} for _ in texts]})


async def stream(request: web.Request, events: list[dict[str, object]], last: bytes = b"") -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    if last:
        await response.write(b"data: " + last + b"\n\n")
    return response


@contextmanager
def pretending(server: FakePhiserve) -> Iterator[FakePhiserve]:
    """On a port of its own, in a thread of its own."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(server.app)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def end() -> None:
        for _ in range(20):  # the loop needs a few turns to accept and close the connections of those who hung up
            await asyncio.sleep(0)
        await runner.cleanup()
        for _ in range(20):
            await asyncio.sleep(0)

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
