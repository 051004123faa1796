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


class Request(Connection):
    """A connection that knows what the server should count for it."""

    def __init__(self, url: str, receive_bytes: int = 0) -> None:
        super().__init__(url, receive_bytes)
        self.begun = time.perf_counter()
        self.outcome: str | None = None
        """None: nothing was sent yet, and the server knows nothing of it."""

    def milliseconds(self) -> float:
        """Since before the connection was made."""
        return 1000 * (time.perf_counter() - self.begun)

    def send(self, method: str, path: str, body: bytes, content_type: str = "application/json", cut: int = 0) -> None:
        self.outcome = "cancelled"  # until something else is known
        super().send(method, path, body, content_type, cut)

    def status(self) -> int:
        status = super().status()
        self.outcome = OUTCOME_OF_STATUS.get(status, "invalid")
        return status

    def expect_ok(self) -> None:
        """Wait for the answer's head. Raises Refused or Failure unless it is 200."""
        status = self.status()
        if status == 429:
            raise Refused("429, full")
        if status != 200:
            raise Failure(f"answered {status}: {self.body()[:120]!r}")

    def fail(self, reason: str) -> Failure:
        """For an answer that was 200 and is no good."""
        self.outcome = "error"
        return Failure(reason[:160])


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
    def request(self, name: str, route: str | None, receive_bytes: int = 0) -> Iterator[Request]:
        """Count what happens inside as one request, whatever happens, a user stopped in the middle of it included.

        route: where the server counts it.
        """
        request = Request(self.url, receive_bytes)
        failure: Exception | None = None
        try:
            with request:
                yield request
        except Refused as refused:
            self.mine.refused += 1
            failure = refused
        except (Failure, *BROKEN) as error:
            if not isinstance(error, Failure):
                request.outcome = request.outcome and "error"
            self.mine.failures[f"{name}: {error if isinstance(error, Failure) else repr(error)}"[:200]] += 1
            failure = error
        finally:
            # locust may end a user that has just woken up, before it has sent anything
            if request.outcome or failure:
                self.mine.requests += 1
                self.report(name, request.milliseconds(), failure)
            if route and request.outcome:
                self.record.outcomes[route, request.outcome] += 1

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
        if name != "whole":  # that is the request itself, which is reported at its end
            self.report(name.replace("_", " "), milliseconds)

    def stream(self, request: Request, read: Callable[[Mapping[str, Any]], tuple[bool, bool]]) -> None:
        """Read and time a stream to its end. Raises Failure if it breaks off.

        An answer may be without text, for a model may end the text at once; then there is no first token to time.

        read: whether an event carries text, and whether it ends the answer.
        """
        last, ended = request.begun, False
        for arrived, event in request.events():
            if "error" in event:
                raise request.fail(f"error in a stream: {event['error']}")
            has_text, ends = read(event)
            ended |= ends
            if has_text:
                self.timed("first_token" if last == request.begun else "gap", 1000 * (arrived - last))
                last = arrived
        if not ended:
            raise request.fail("a stream that breaks off")
        self.timed("whole", request.milliseconds())


class Generate(LoadUser):
    """Streams /generate to the end."""

    kind = "generate"
    weight = 6

    @task
    def generate(self) -> None:
        ask = next(self.asks)
        with self.request("whole answer", "generate") as request:
            request.send("POST", "/generate", body_of(ask))
            request.expect_ok()
            self.stream(request, read_delta)


class Chat(LoadUser):
    """Streams by the OpenAI protocol: /v1/chat/completions, or /v1/completions for a model without a chat template."""

    kind = "chat"
    weight = 2
    route: ClassVar[str] = "chat"
    model: ClassVar[str] = ""  # as the server lists it

    @task
    def chat(self) -> None:
        ask = next(self.asks)
        body = {"model": self.model, "max_tokens": ask.num_tokens, "seed": ask.seed, "stream": True}
        if self.route == "chat":
            path = "/v1/chat/completions"
            body["messages"] = [{"role": "user", "content": ask.prompt}]
        else:
            path = "/v1/completions"
            body["prompt"] = ask.prompt
        with self.request("whole answer", self.route) as request:
            request.send("POST", path, json.dumps(body).encode())
            request.expect_ok()
            self.stream(request, read_chunk)


class Score(LoadUser):
    """Has texts scored by /quality/score."""

    kind = "score"
    weight = 1

    @task
    def score(self) -> None:
        texts = [text_of(self.rng, TEXT_WORDS.draw(self.rng)) for _ in range(self.rng.randint(1, 4))]
        with self.request("scores", "score") as request:
            request.send("POST", "/quality/score", json.dumps({"texts": texts}).encode())
            request.expect_ok()
            scores = json.loads(request.body()).get("scores", [])
            if len(scores) != len(texts):
                raise Failure(f"{len(scores)} scores of {len(texts)} texts")


class Impatient(LoadUser):
    """Hangs up in the middle of a long answer, or before the request is even sent whole."""

    kind = "impatient"
    weight = 2

    @task(4)
    def hang_up_midway(self) -> None:
        ask, num_events = next(self.asks), self.rng.randint(1, 8)
        with self.request("hang-up midway", "generate") as request:
            request.send("POST", "/generate", body_of(ask, num_tokens=240, ignore_eos=True))
            request.expect_ok()
            request.outcome = "cancelled"
            for number, (arrived, event) in enumerate(request.events(), 1):
                if "error" in event:
                    raise request.fail(f"error in a stream: {event['error']}")
                if number == 1:
                    self.timed("first_token", 1000 * (arrived - request.begun))
                if number == num_events:
                    return
            request.outcome = "ok"  # the answer came in fewer events than it had patience for

    @task(1)
    def hang_up_while_asking(self) -> None:
        body = body_of(next(self.asks))
        with self.request("hang-up while asking", "generate") as request:
            request.send("POST", "/generate", body, cut=len(body) // 2)


class Hostile(LoadUser):
    """Sends what must be refused, and reads what it asked for slowly; the refusal that is due is the success."""

    kind = "hostile"
    weight = 1

    @task(8)
    def be_refused(self) -> None:
        hostility = self.rng.choice(HOSTILITIES)
        with self.request(hostility.name, hostility.route) as request:
            content = hostility.body(self.rng)
            request.send(hostility.method, hostility.path, content, hostility.content_type)
            status = request.status()
            self.judge(hostility, status, request.body())

    def judge(self, hostility: Hostility, status: int, body: bytes) -> None:
        """Raises Failure unless the refusal is the one that is due, in the server's error shape."""
        if status not in hostility.statuses:
            raise Failure(f"answered {status}, not {' or '.join(map(str, hostility.statuses))}")
        if b'"error"' not in body and b'"detail"' not in body:
            raise Failure(f"a refusal without a reason: {body[:80]!r}")

    @task(2)
    def read_slowly(self) -> None:
        ask = next(self.asks)
        with self.request("slow reader", "generate", receive_bytes=2048) as request:
            request.send("POST", "/generate", body_of(ask, num_tokens=200, ignore_eos=True))
            request.expect_ok()
            *_, (_, last) = [(0.0, {}), *request.events(pause_seconds=0.02)]
            if last.get("usage", {}).get("completion_tokens") != 200:
                raise request.fail(f"ended without its usage: {last}")


KINDS: Mapping[str, type[LoadUser]] = {user.kind: user for user in (Generate, Chat, Score, Impatient, Hostile)}


def body_of(ask: Ask, num_tokens: int | None = None, **more: Any) -> bytes:
    """The body of a streamed request to /generate."""
    limits = {"max_new_tokens": num_tokens or ask.num_tokens, "seed": ask.seed, "stream": True}
    return json.dumps({"prompt": ask.prompt, **limits, **more}).encode()


def read_delta(event: Mapping[str, Any]) -> tuple[bool, bool]:
    """An event of /generate: whether it carries text, and whether it ends the answer."""
    return bool(event.get("text")), "finish_reason" in event


def read_chunk(event: Mapping[str, Any]) -> tuple[bool, bool]:
    """The same of a chunk of a chat, or of a completion."""
    choice = (event.get("choices") or [{}])[0]
    text = choice.get("text") or (choice.get("delta") or {}).get("content")
    return bool(text), choice.get("finish_reason") is not None
