"""Prometheus, Alertmanager and a receiver of their notifications as real processes on free ports of this machine."""

import json
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.alert_rules import rules_file, shortened
from tests.http.server_process import free_port, wait_until

PROGRAMS = {"prometheus": "prometheus", "prometheus-alertmanager": "prometheus-alertmanager"}
"""Program: the Debian package that has it."""


class Receiver:
    """Takes Alertmanager's webhook: (status, alert's name, alert's identity) in their order."""

    def __init__(self) -> None:
        self.notifications: list[tuple[str, str, str]] = []
        self._news = threading.Condition()

    def firing(self) -> set[str]:
        """Names of the alerts of which the last notification said so."""
        last = {(name, identity): status for status, name, identity in self.notifications}
        return {name for (name, _), status in last.items() if status == "firing"}

    def fired_since(self, mark: int) -> set[str]:
        return {name for status, name, _ in self.notifications[mark:] if status == "firing"}

    def wait_for(self, holds: Callable[[], bool], what: str, seconds: float) -> None:
        """Ask again at each notification."""
        with self._news:
            came = self._news.wait_for(holds, seconds)
        assert came, f"waited in vain for {what}; came: {self.notifications}"

    def _take(self, message: dict[str, Any]) -> None:
        with self._news:
            for alert in message["alerts"]:
                self.notifications.append((alert["status"], alert["labels"]["alertname"], alert["fingerprint"]))
            self._news.notify_all()

    @contextmanager
    def listening(self) -> Iterator[int]:
        """The port."""
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                take(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@dataclass(frozen=True)
class Stack:
    """Addresses of what watches one server, and who hears of its alerts."""

    prometheus: str
    alertmanager: str
    receiver: Receiver

    def value(self, expression: str) -> float:
        """The only value of an instant query; 0 if there is none."""
        asked = urllib.parse.urlencode({"query": expression})
        found = get_json(f"{self.prometheus}/api/v1/query?{asked}")["data"]["result"]
        return float(found[0]["value"][1]) if found else 0.0

    def firing(self) -> set[str]:
        """Names of the alerts that Alertmanager holds as active."""
        return {alert["labels"]["alertname"] for alert in get_json(f"{self.alertmanager}/api/v2/alerts?active=true")}


def get_json(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)


@contextmanager
def monitoring(folder: Path, target: str, factor: float, scrape_seconds: float) -> Iterator[Stack]:
    """Watch `target` (host:port) with the shipped rules. Skips the test if a program is missing."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: apt-get install {package}")
    receiver = Receiver()
    with ExitStack() as stack:
        hook = f"http://127.0.0.1:{stack.enter_context(receiver.listening())}"
        alerts = stack.enter_context(_alertmanager(folder, hook))
        metrics = stack.enter_context(_prometheus(folder, target, alerts, factor, scrape_seconds))
        yield Stack(metrics, alerts, receiver)


@contextmanager
def _alertmanager(folder: Path, hook: str) -> Iterator[str]:
    route = {"receiver": "hook", "group_by": ["..."], "group_wait": "100ms", "group_interval": "200ms"}
    receivers = [{"name": "hook", "webhook_configs": [{"url": hook, "send_resolved": True}]}]
    config = folder / "alertmanager.yaml"
    config.write_text(yaml.safe_dump({"route": route, "receivers": receivers}))
    port = free_port()
    flags = ["--cluster.listen-address=", f"--config.file={config}", f"--storage.path={folder / 'alertmanager'}"]
    with _running("prometheus-alertmanager", port, folder, flags) as address:
        yield address


@contextmanager
def _prometheus(folder: Path, target: str, alertmanager: str, factor: float, scrape_seconds: float) -> Iterator[str]:
    rules = folder / "rules.yaml"
    rules.write_text(yaml.safe_dump(shortened(rules_file(), factor)))
    tick = f"{round(1000 * scrape_seconds)}ms"
    managers = [{"static_configs": [{"targets": [alertmanager.removeprefix("http://")]}]}]
    content = {
        "global": {"scrape_interval": tick, "scrape_timeout": tick, "evaluation_interval": tick},
        "rule_files": [str(rules)],
        "alerting": {"alertmanagers": managers},
        "scrape_configs": [{"job_name": "phiserve", "static_configs": [{"targets": [target]}]}],
    }
    config = folder / "prometheus.yaml"
    config.write_text(yaml.safe_dump(content))
    flags = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'prometheus'}"]
    with _running("prometheus", free_port(), folder, flags) as address:
        yield address


@contextmanager
def _running(program: str, port: int, folder: Path, flags: list[str]) -> Iterator[str]:
    """The program's address, once it is ready; what it says is in a file of its name."""
    address = f"http://127.0.0.1:{port}"
    said = folder / f"{program}.log"
    with said.open("wb") as log:
        command = [program, f"--web.listen-address=127.0.0.1:{port}", *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or _is_ready(address), f"{program} to be ready")
        assert process.poll() is None, said.read_text()
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
