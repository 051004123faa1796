"""One measurement of one server under one load, and what rounds of them say. No command line, no files."""

import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from loadtests.client import DIALECTS, Answer, Prompt, Sampling, ServerError, ask
from loadtests.processes import PeakMemory, cpu_seconds, root_behind, tree_of

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Server:
    """A server under test, on this machine."""

    name: str
    url: str
    dialect: str

    @classmethod
    def parse(cls, text: str) -> "Server":
        """`name=url,dialect`. Raises ValueError naming what is wrong; other machines are refused."""
        name, equals, rest = text.partition("=")
        url, _, dialect = rest.partition(",")
        dialect = dialect or "phiserve"
        if not name or not equals or dialect not in DIALECTS:
            raise ValueError(f"server={text!r}: write name=http://127.0.0.1:PORT,{'|'.join(DIALECTS)}")
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname not in LOOPBACK or parts.port is None:
            raise ValueError(f"server={text!r}: only http on 127.0.0.1 with a port is measured; name this machine")
        return cls(name, url.rstrip("/"), dialect)

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port


@dataclass(frozen=True)
class Load:
    """`concurrency` users, each sending its next request when the last is answered, `num_requests` in all."""

    sampling: Sampling
    concurrency: int
    num_requests: int

    @property
    def name(self) -> str:
        return f"{self.sampling.name}, {self.concurrency} at once"


@dataclass(frozen=True)
class Figures:
    """Milliseconds but for the names that say otherwise. counted: the server itself said how many tokens it wrote."""

    tokens_per_second: float
    first_token_p50: float
    first_token_p99: float
    gap_p50: float
    gap_p99: float
    whole_p50: float
    peak_megabytes: float
    cpu_seconds: float
    counted: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


async def measure(server: Server, load: Load, prompts: Sequence[Prompt], first_prompt: int) -> Figures:
    """Run a load on a server. Prompts are taken in turn from `first_prompt` on. Raises ServerError."""
    dialect = DIALECTS[server.dialect]
    waiting = iter(range(load.num_requests))  # shared by the users
    answers: list[Answer] = []

    async def user(session: aiohttp.ClientSession) -> None:
        for number in waiting:
            prompt = prompts[(first_prompt + number) % len(prompts)]
            answers.append(await ask(session, server.url, dialect, prompt, load.sampling))

    timeout = aiohttp.ClientTimeout(total=None, sock_read=300)
    root = root_behind(server.port)
    processes = tree_of(root)
    before = cpu_seconds(processes)
    with PeakMemory(processes) as memory:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            try:
                await asyncio.gather(*(user(session) for _ in range(load.concurrency)))
            except (aiohttp.ClientError, TimeoutError) as error:
                raise ServerError(f"{server.name} at {server.url}: {error!r}; is it running, and is it well?") from None
    spent = cpu_seconds(tree_of(root)) - before
    return figures_of(answers, load, memory.megabytes, spent)


def figures_of(answers: Sequence[Answer], load: Load, megabytes: float, cpu: float) -> Figures:
    """Raises ServerError if an answer has another length than was asked for: then servers did different work."""
    asked = load.sampling.num_tokens
    wrong = {answer.num_tokens for answer in answers if answer.num_tokens not in (asked, None)}
    if wrong:
        raise ServerError(f"answers of {wrong} tokens where {asked} were asked for: the work is not the same")
    seconds = max(answer.ended for answer in answers) - min(answer.begun for answer in answers)
    firsts = [1e3 * (answer.arrivals[0] - answer.begun) for answer in answers]
    gaps = [1e3 * (b - a) for answer in answers for a, b in zip(answer.arrivals, answer.arrivals[1:], strict=False)]
    return Figures(
        tokens_per_second=asked * len(answers) / seconds,
        first_token_p50=percentile(firsts, 50),
        first_token_p99=percentile(firsts, 99),
        gap_p50=percentile(gaps, 50),
        gap_p99=percentile(gaps, 99),
        whole_p50=percentile([1e3 * (answer.ended - answer.begun) for answer in answers], 50),
        peak_megabytes=megabytes,
        cpu_seconds=cpu,
        counted=all(answer.num_tokens is not None for answer in answers),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of 100 of them do not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


@dataclass(frozen=True)
class Row:
    """A load over all rounds. figures: server -> one Figures a round, in the order of rounds."""

    load: Load
    figures: dict[str, list[Figures]]

    def median(self, server: str, name: str) -> float:
        """Median over rounds of one figure."""
        return float(statistics.median(getattr(figures, name) for figures in self.figures[server]))

    def ratios(self, ours: str, name: str = "tokens_per_second", *, low_is_good: bool = False) -> list[float]:
        """In each round, ours over the best of the others in that round; above 1 is better for us either way."""
        found = []
        for number, mine in enumerate(self.figures[ours]):
            others = [getattr(rounds[number], name) for server, rounds in self.figures.items() if server != ours]
            if low_is_good:
                found.append(min(others) / getattr(mine, name))
            else:
                found.append(getattr(mine, name) / max(others))
        return found
