"""How an HTTP process asks the Phi process, without waiting for ever and without torch."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.errors import ApiError
from serve.phi_process import SOCKET_NAME, unmeasured

MOST_WAITING = 32
"""Choices of this HTTP process. With so many waiting for their Phi, requests that ask for it are answered 429."""
LONGEST_SECONDS = 30.0
"""Wait of a choice for its Phi, with those before it."""


class PhiClient:
    """Asks one question at a time; the others of this HTTP process wait here."""

    def __init__(self, folder: Path, longest_seconds: float = LONGEST_SECONDS) -> None:
        self._path = folder / SOCKET_NAME
        self._longest_seconds = longest_seconds
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0

    def check_room(self) -> None:
        """Raises ApiError 429 if many wait."""
        if self._waiting >= MOST_WAITING:
            raise ApiError(429, f"{self._waiting} answers wait for their Phi", remedy="try again later", retry_after=2)

    async def measure(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> dict[str, Any]:
        """What PhiMeter.measure says; phi None and a reason if no answer comes, for the text is there all the same."""
        self._waiting += 1
        try:
            async with asyncio.timeout(self._longest_seconds), self._turn:
                return await self._ask({"prompt_ids": list(prompt_ids), "answer_ids": list(answer_ids)})
        except TimeoutError:
            return unmeasured(f"the Phi process did not answer within {self._longest_seconds:g} seconds")
        except OSError:
            return unmeasured("the Phi process has ended: start the server again")
        finally:
            self._waiting -= 1

    async def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        try:
            writer.write(json.dumps(question).encode() + b"\n")
            await writer.drain()
            line = await reader.readline()
            if not line:
                raise ConnectionResetError("no answer")
            answer: dict[str, Any] = json.loads(line)
            return answer
        finally:
            writer.close()
