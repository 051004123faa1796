"""Whether a server and its clients tell the same story: requests by outcome, and places given back. Reads /metrics."""

import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

OUTCOMES = ("ok", "invalid", "full", "unavailable", "cancelled", "error")
ROUTES: Mapping[str, tuple[str, dict[str, str]]] = {
    "generate": ("phiserve_requests_total", {"route": "generate"}),
    "completions": ("phiserve_requests_total", {"route": "completions"}),
    "chat": ("phiserve_requests_total", {"route": "chat"}),
    "score": ("phiserve_quality_requests_total", {"endpoint": "score"}),
}
"""Routes whose requests the server counts: counter, labels beside the outcome."""
BUSY = ("phiserve_choices_in_flight", "phiserve_queue_length", "phiserve_running_choices")

Counts = Counter[tuple[str, str]]
"""(route, outcome) -> requests."""


@dataclass(frozen=True)
class Scrape:
    """The samples of one GET /metrics."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def of(cls, url: str) -> "Scrape":
        """Raises OSError if the server does not answer."""
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:  # noqa: S310 (http on this machine)
            return cls.parse(response.read().decode())

    @classmethod
    def parse(cls, text: str) -> "Scrape":
        """From Prometheus' text format."""
        samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        return cls(samples)

    def value(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 if there are none."""
        wanted = set(labels.items())
        return sum(value for (found, has), value in self.samples.items() if found == name and wanted <= has)

    def outcomes(self) -> Counts:
        """Requests so far, by route and outcome."""
        counts: Counts = Counter()
        for route, (name, labels) in ROUTES.items():
            for outcome in OUTCOMES:
                counts[route, outcome] = int(self.value(name, **labels, outcome=outcome))
        return counts

    def leaks(self) -> list[str]:
        """What an idle server still holds."""
        found = [f"{name} is {self.value(name):g}, not 0" for name in BUSY if self.value(name)]
        free, blocks = self.value("phiserve_cache_blocks_free"), self.value("phiserve_cache_blocks")
        if free != blocks:
            found.append(f"{free:g} of {blocks:g} cache blocks are free")
        return found


def settled(url: str, client: Counts, before: Scrape, patience_seconds: float) -> tuple[Scrape, list[str]]:
    """The scrape once server and clients agree and nothing is held, or the last one and what is wrong with it.

    A server notices a hang-up a little later than the one who hung up.
    """
    until = time.monotonic() + patience_seconds
    while True:
        scrape = Scrape.of(url)
        wrong = [*differences(client, scrape.outcomes() - before.outcomes()), *scrape.leaks()]
        if not wrong or time.monotonic() > until:
            return scrape, wrong
        time.sleep(0.1)


def differences(client: Counts, server: Counts) -> list[str]:
    """Requests that one side knows of and the other does not. Empty: every request is accounted for.

    One difference is none: who hung up cannot know whether the answer was already complete. So, of the requests
    that a client cancelled, the server may call some ok, and each of them must be missing from those it cancelled.
    """
    found = []
    for route in ROUTES:
        late = max(0, client[route, "cancelled"] - server[route, "cancelled"])
        expected = {outcome: client[route, outcome] for outcome in OUTCOMES}
        expected["cancelled"] -= late
        expected["ok"] += late
        found += [
            f"{route}: clients say {expected[outcome]} {outcome}, the server {server[route, outcome]}"
            for outcome in OUTCOMES
            if expected[outcome] != server[route, outcome]
        ]
    return found


def by_route(counts: Counts) -> dict[str, dict[str, int]]:
    """For a JSON result."""
    return {route: {outcome: counts[route, outcome] for outcome in OUTCOMES} for route in ROUTES}
