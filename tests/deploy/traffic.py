"""Plain users of a server: so many requests a second, whose sampling settings can be changed while they run."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.http.server_process import ServerProcess

# Written for this test.
PROMPTS = (
    "The old man closed the door behind him and looked out over the wet street.",
    "She had never seen so many people in one room, and none of them spoke to her.",
    "When the boat came back to the harbour, the whole village was standing on the shore.",
    "The road ran along the river for a mile or two, and then it turned into the hills.",
    "In the morning the snow had gone, and the fields were green again under the sun.",
    "He took the letter out of his pocket and read it once more by the light of the fire.",
    "There was a garden behind the house, with a high wall round it and a gate of iron.",
    "They walked on in silence until they came to the place where the two roads meet.",
    "After supper we sat round the table, and my uncle told us a story about the war.",
    "It was nearly dark when the carriage drew up before the inn, and a young lady got down.",
)


class Traffic:
    """Users that each ask at a steady pace, whatever the answer; a slow server makes them later, not more."""

    def __init__(self, server: ServerProcess, users: int, requests_per_second: float, **headers: str) -> None:
        self.settings: dict[str, Any] = {}
        self.statuses: Counter[int] = Counter()
        self._server = server
        self._headers = headers
        self._pause = users / requests_per_second
        self._users = users
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator["Traffic"]:
        threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(self._users)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _ask(self, number: int) -> None:
        turn = number
        due = time.monotonic()
        while not self._stop.is_set():
            body = {"prompt": PROMPTS[turn % len(PROMPTS)], "max_new_tokens": 64, "seed": turn, **self.settings}
            answer = self._server.request("POST", "/generate", body, **self._headers)
            self.statuses[answer.status] += 1
            turn += self._users
            due = max(due + self._pause, time.monotonic() - self._pause)
            self._stop.wait(due - time.monotonic())
