"""The kinds of users that locust runs: writers, chatters, scorers, the impatient and the hostile. HTTP only.

Importing this module imports locust, which makes the process' sockets and sleeps cooperative.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from locust import User, task

from loadtests.connection import BROKEN, Connection
from loadtests.hostilities import HOSTILITIES, Hostility
from loadtests.record import KindRecord, Record
from loadtests.workload import TEXT_WORDS, Ask, asks, rng_of, text_of

OUTCOME_OF_STATUS = {200: "ok", 429: "full", 500: "error", 503: "unavailable"}
"""As the server counts them; others are "invalid"."""
THINK_SECONDS = 0.25
"""Mean pause between a user's requests; exponential, so that users do not fall into step."""


class Failure(Exception):
    """An answer other than the one expected; the text is the reason that is counted."""


class Refused(Exception):
    """The server was full and said so."""


class Outcome:
    """What the server should count for a request; "cancelled" until something else is known."""

    def __init__(self) -> None:
        self.name = "cancelled"

    def of_status(self, status: int) -> None:
        self.name = OUTCOME_OF_STATUS.get(status, "invalid")


class LoadUser(User):
    """What all kinds share: requests of their own, and the run's record."""

    abstract = True
    kind: ClassVar[str]
    numbers: ClassVar[Iterator[int]]
    record = Record()
    """Shared by all users of the process."""
    seed: ClassVar[int] = 0

    def __init_subclass__(cls) -> None:
        cls.numbers = itertools.count()

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.rng = rng_of(self.seed, self.kind, next(type(self).numbers))
        self.asks = asks(self.rng)
        self.url = str(self.host).rstrip("/")

    def wait_time(self) -> float:
        """Seconds until the next request."""
        return self.rng.expovariate(1 / THINK_SECONDS)

    @property
    def mine(self) -> KindRecord:
        return self.record.kinds[self.kind]

    @contextmanager
    def counted(self, name: str, route: str | None) -> Iterator[Outcome]:
        """Count what happens inside as one request, whatever happens, a user stopped in the middle of it included."""
        outcome, begun = Outcome(), time.perf_counter()
        failure: Exception | None = None
        self.mine.requests += 1
        try:
            yield outcome
        except Refused as refused:
            self.mine.refused += 1
            failure = refused
        except (Failure, *BROKEN) as error:
            outcome.name = "error" if isinstance(error, BROKEN) else outcome.name
            self.mine.failures[f"{name}: {error if isinstance(error, Failure) else repr(error)}"[:200]] += 1
            failure = error
        finally:
            if route is not None:
                self.record.outcomes[route, outcome.name] += 1
            self.report(name, 1000 * (time.perf_counter() - begun), failure)

    def report(self, name: str, milliseconds: float, failure: BaseException | None = None) -> None:
        """To locust's own statistics, for its report; they round to milliseconds, ours do not."""
        self.environment.events.request.fire(
            request_type=self.kind,
            name=name,
            response_time=milliseconds,
            response_length=0,
            exception=failure,
            context={},
        )

    def timed(self, name: str, milliseconds: float) -> None:
        self.mine.times[name].append(milliseconds)
        if name != "whole":  # that is the request itself, which counted() reports
            self.report(name.replace("_", " "), milliseconds)

    def check(self, connection: Connection, outcome: Outcome) -> None:
        """Wait for the answer's head. Raises Refused or Failure unless it is 200."""
        status = connection.status()
        outcome.of_status(status)
        if status == 429:
            raise Refused("429, full")
        if status != 200:
            raise Failure(f"answered {status}: {connection.body()[:120]!r}")

    def stream(self, connection: Connection, begun: float, text_in: Callable[[Mapping[str, Any]], bool]) -> None:
        """Read and time a stream to its end. Raises Failure if it breaks off with an error or is empty."""
        last = begun
        for arrived, event in connection.events():
            if "error" in event:
                raise Failure(f"error in a stream: {str(event['error'])[:120]}")
            if text_in(event):
                self.timed("first_token" if last == begun else "gap", 1000 * (arrived - last))
                last = arrived
        if last == begun:
            raise Failure("a stream without text")
        self.timed("whole", 1000 * (time.perf_counter() - begun))


class Generate(LoadUser):
    """Streams /generate to the end."""

    kind = "generate"
    weight = 6

    @task
    def generate(self) -> None:
        ask = next(self.asks)
        with self.counted("whole answer", "generate") as outcome, Connection(self.url) as connection:
            begun = time.perf_counter()
            connection.send("POST", "/generate", body_of(ask))
            self.check(connection, outcome)
            try:
                self.stream(connection, begun, lambda event: bool(event.get("text")))
            except Failure:
                outcome.name = "error"
                raise


class Chat(LoadUser):
    """Streams /v1/chat/completions by the OpenAI protocol to its end, [DONE]."""

    kind = "chat"
    weight = 2
    path = "/v1/chat/completions"

    @task
    def chat(self) -> None:
        ask = next(self.asks)
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": ask.prompt}],
            "max_tokens": ask.num_tokens,
            "seed": ask.seed,
            "stream": True,
        }
        with self.counted("whole answer", None) as outcome, Connection(self.url) as connection:
            begun = time.perf_counter()
            connection.send("POST", self.path, json.dumps(body).encode())
            self.check(connection, outcome)
            self.stream(connection, begun, chat_text)


class Score(LoadUser):
    """Has texts scored by /quality/score."""

    kind = "score"
    weight = 1

    @task
    def score(self) -> None:
        texts = [text_of(self.rng, TEXT_WORDS.draw(self.rng)) for _ in range(self.rng.randint(1, 4))]
        with self.counted("scores", "score") as outcome, Connection(self.url) as connection:
            connection.send("POST", "/quality/score", json.dumps({"texts": texts}).encode())
            self.check(connection, outcome)
            scores = json.loads(connection.body()).get("scores", [])
            if len(scores) != len(texts):
                raise Failure(f"{len(scores)} scores of {len(texts)} texts")


class Impatient(LoadUser):
    """Hangs up in the middle of a long answer, or before the request is even sent whole."""

    kind = "impatient"
    weight = 2

    @task(4)
    def hang_up_midway(self) -> None:
        ask, num_events = next(self.asks), self.rng.randint(1, 8)
        with self.counted("hang-up midway", "generate") as outcome, Connection(self.url) as connection:
            begun = time.perf_counter()
            connection.send("POST", "/generate", body_of(ask, num_tokens=240, ignore_eos=True))
            self.check(connection, outcome)
            outcome.name = "cancelled"
            for number, (arrived, event) in enumerate(connection.events(), 1):
                if "error" in event:
                    outcome.name = "error"
                    raise Failure(f"error in a stream: {str(event['error'])[:120]}")
                if number == 1:
                    self.timed("first_token", 1000 * (arrived - begun))
                if number == num_events:
                    return
            outcome.name = "ok"  # the answer came in fewer events than it had patience for

    @task(1)
    def hang_up_while_asking(self) -> None:
        body = body_of(next(self.asks))
        with self.counted("hang-up while asking", "generate"), Connection(self.url) as connection:
            connection.send("POST", "/generate", body, cut=len(body) // 2)


class Hostile(LoadUser):
    """Sends what must be refused, and reads what it asked for slowly; the refusal that is due is the success."""

    kind = "hostile"
    weight = 1

    @task(8)
    def be_refused(self) -> None:
        hostility = self.rng.choice(HOSTILITIES)
        with self.counted(hostility.name, hostility.route) as outcome, Connection(self.url) as connection:
            content = hostility.body(self.rng)
            connection.send(hostility.method, hostility.path, content, hostility.content_type)
            status = connection.status()
            outcome.of_status(status)
            self.judge(hostility, status, connection)

    def judge(self, hostility: Hostility, status: int, connection: Connection) -> None:
        """Raises Failure unless the refusal is the one that is due, in the server's error shape."""
        body = connection.body()
        if status not in hostility.statuses:
            raise Failure(f"answered {status}, not {' or '.join(map(str, hostility.statuses))}")
        if b'"error"' not in body and b'"detail"' not in body:
            raise Failure(f"a refusal without a reason: {body[:80]!r}")

    @task(2)
    def read_slowly(self) -> None:
        ask = next(self.asks)
        with self.counted("slow reader", "generate") as outcome, Connection(self.url, receive_bytes=2048) as connection:
            connection.send("POST", "/generate", body_of(ask, num_tokens=200, ignore_eos=True))
            self.check(connection, outcome)
            *_, (_, last) = [(0.0, {}), *connection.events(pause_seconds=0.02)]
            if last.get("usage", {}).get("completion_tokens") != 200:
                outcome.name = "error"
                raise Failure(f"ended without its usage: {str(last)[:120]}")


KINDS: Mapping[str, type[LoadUser]] = {user.kind: user for user in (Generate, Chat, Score, Impatient, Hostile)}


def body_of(ask: Ask, num_tokens: int | None = None, **more: Any) -> bytes:
    """The body of a streamed request to /generate."""
    limits = {"max_new_tokens": num_tokens or ask.num_tokens, "seed": ask.seed, "stream": True}
    return json.dumps({"prompt": ask.prompt, **limits, **more}).encode()


def chat_text(event: Mapping[str, Any]) -> bool:
    """Whether a chunk of a chat carries text."""
    choices = event.get("choices") or [{}]
    return bool((choices[0].get("delta") or {}).get("content"))
