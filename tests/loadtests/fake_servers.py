"""Servers that speak each dialect and stream numbered words, without a model, on a port of their own."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web


async def _events(
    response: web.StreamResponse, request: web.Request, events: list[dict[str, Any]], prefix: str
) -> None:
    response.headers["content-type"] = "text/event-stream"
    await response.prepare(request)
    for event in events:
        await response.write(f"{prefix}{json.dumps(event)}\n\n".encode())


def _handler(dialect: str, given: int | None, seen: list[dict[str, Any]]) -> Any:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen.append(body)
        asked = next(body[name] for name in ("max_new_tokens", "n_predict", "max_tokens") if name in body)
        count = asked if given is None else given
        words = [f" {i}" for i in range(count)]
        events: dict[str, list[dict[str, Any]]] = {
            "phiserve": [{"index": 0, "text": word} for word in words]
            + [{"index": 0, "text": "", "finish_reason": "length", "usage": {"completion_tokens": count}}],
            "llama": [{"content": word, "stop": False} for word in words]
            + [{"content": "", "stop": True, "tokens_predicted": count}],
            "openai": [{"choices": [{"text": word}]} for word in words]
            + [{"choices": [], "usage": {"completion_tokens": count}}],
            "lines": [{"text": word} for word in words],
        }
        response = web.StreamResponse()
        await _events(response, request, events[dialect], "" if dialect == "lines" else "data: ")
        return response

    return answer


@contextmanager
def serving(dialect: str, path: str, given: int | None = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server's URL and the bodies it has seen. given: write so many tokens whatever is asked for."""
    seen: list[dict[str, Any]] = []
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post(path, _handler(dialect, given, seen))
    runner = web.AppRunner(app)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        yield f"http://127.0.0.1:{port}", seen
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
