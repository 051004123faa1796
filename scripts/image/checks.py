"""What an image must be and do: small, confined, answering, streaming, draining, restarted when it hangs."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from image.client import Client, Event
from image.tools import Containers, VerificationError, say

MEGABYTE = 1_000_000
MEMORY_LIMIT = 1 << 30
CONFINED = (
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=64m,mode=1777"),  # noqa: S108
    *("--cap-drop=ALL", "--security-opt=no-new-privileges", f"--memory={MEMORY_LIMIT}", "--pids-limit=256"),
)
ABSENT = ("training", "tests", "loadtests", "scripts", "docs")
START_SECONDS = 120
PROMPT = "Once upon a time"
# Twice as many answers as run at once: a second of work for two quiet cores, far more than a signal takes.
LONG_REQUEST = {"prompt": [PROMPT] * 4, "n": 16, "max_new_tokens": 400, "seed": 1}
LONG_CHOICES = 64

# Runs in the container: what the kernel says about its first process, and what can be written where.
_LOOK_INSIDE = """
import json, os, shutil
status = dict(line.split(':', 1) for line in open('/proc/1/status'))
def writable(path):
    try:
        open(path + '/probe', 'w').close()
    except OSError as error:
        return error.strerror
    os.unlink(path + '/probe')
    return True
print(json.dumps({
    'uid': int(status['Uid'].split()[0]),
    'capabilities': status['CapEff'].strip(), 'bounding': status['CapBnd'].strip(),
    'no_new_privileges': status['NoNewPrivs'].strip(), 'app': sorted(os.listdir('/app')), 'tmp': writable('/tmp'),
    'root': writable('/'), 'code': writable('/app'), 'compiler': shutil.which('g++') or shutil.which('gcc'),
}))
"""


@dataclass
class Findings:
    """Numbers worth keeping, by name."""

    values: dict[str, object] = field(default_factory=dict)

    def keep(self, name: str, value: object) -> None:
        """Keep and print one."""
        self.values[name] = value
        say(f"{name}: {value}")


def require(condition: bool, otherwise: str) -> None:
    """Raises VerificationError with a sentence unless the condition holds."""
    if not condition:
        raise VerificationError(otherwise)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(containers: Containers, image: str, *options: str) -> Iterator[tuple[str, Client, float]]:
    """A confined container that is ready: its name, a client, and the seconds from `podman run` to ready."""
    port = free_port()
    name = f"phiserve-verify-{os.getpid()}-{port}"
    begin = time.monotonic()
    try:
        containers.podman(
            "run", "--detach", "--name", name, f"--publish=127.0.0.1:{port}:8000", *CONFINED, *options, image
        )
        client = Client(port)
        client.wait_ready(START_SECONDS)
        yield name, client, time.monotonic() - begin
    except VerificationError as error:
        log = containers.run("podman", "logs", name, check=False)
        raise VerificationError(f"{error}\nthe container said:\n{(log.stdout + log.stderr)[-3000:]}") from error
    finally:
        containers.run("podman", "rm", "--force", "--time", "5", name, check=False)


def check_image(containers: Containers, image: str, max_megabytes: int, findings: Findings) -> None:
    """Size, user, health check, stop signal and labels, as the image says."""
    known = containers.inspect("image", image)
    size = int(str(known["Size"])) // MEGABYTE
    findings.keep("image size in MB", size)
    require(size <= max_megabytes, f"the image has {size} MB, more than {max_megabytes}")
    layers = known["RootFS"]
    assert isinstance(layers, dict)
    findings.keep("layers", len(layers["Layers"]))
    config = known["Config"]
    assert isinstance(config, dict)
    user = str(config.get("User", "")).partition(":")[0]
    require(user.isdigit() and int(user) > 0, f"the image's user is {user!r}; Kubernetes needs a number other than 0")
    require(config["Entrypoint"][0] != "/bin/sh", "the entry point is a shell: it would not pass SIGTERM on")
    checks = known.get("Healthcheck") or {}
    assert isinstance(checks, dict)
    health = checks.get("Test", ["NONE"])
    require(health[0] == "CMD", f"the health check is {health[:2]}, which is none or needs a shell")
    labels = known.get("Labels") or {}
    assert isinstance(labels, dict)
    wanted = ("title", "description", "licenses", "version", "revision")
    missing = [name for name in wanted if not labels.get(f"org.opencontainers.image.{name}")]
    require(not missing, f"labels are missing: {missing}")


def check_confinement(containers: Containers, name: str, findings: Findings) -> None:
    """Not root, no capability, nothing written but /tmp, only what serving needs, and the memory limit in force."""
    seen = json.loads(containers.podman("exec", name, "python", "-c", _LOOK_INSIDE))
    require(seen["uid"] > 0, "the server runs as root")
    require(int(seen["capabilities"], 16) == int(seen["bounding"], 16) == 0, f"capabilities are left: {seen}")
    require(seen["no_new_privileges"] == "1", "the server can gain privileges")
    require(seen["tmp"] is True, f"the folder for temporary files cannot be written: {seen['tmp']}")
    require(seen["root"] is not True and seen["code"] is not True, "the root file system can be written")
    present = [folder for folder in ABSENT if folder in seen["app"]]
    require(not present, f"the image holds {present}, which serving does not need")
    require(seen["compiler"] is None, f"the image holds a compiler, {seen['compiler']}")
    findings.keep("folders in /app", " ".join(seen["app"]))
    limit, used = _memory(containers, name)
    if limit is None:
        findings.keep("memory limit", "NOT enforced: this machine has no memory controller for containers")
    else:
        require(limit == MEMORY_LIMIT, f"the memory limit in force is {limit} bytes, not {MEMORY_LIMIT}")
        findings.keep("memory limit in MB", limit // MEGABYTE)
        findings.keep("memory at idle in MB, before the first answer", used // MEGABYTE)


def _memory(containers: Containers, name: str) -> tuple[int | None, int]:
    """Limit and use in bytes as the kernel has them for the container, cgroup version 1 or 2.

    Use is what Kubernetes calls the working set: without files that the kernel would drop before it kills anybody.
    """
    pid = containers.podman("inspect", "--format", "{{.State.Pid}}", name)
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            folder, limit, used = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
        elif controllers == "":
            folder, limit, used = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        else:
            continue
        place = folder / path.lstrip("/")
        if (place / limit).is_file() and (said := (place / limit).read_text().strip()) != "max":
            pages = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            droppable = int(pages.get("total_inactive_file", pages["inactive_file"]))
            return int(said), int((place / used).read_text()) - droppable
    return None, 0


def check_answers(client: Client, findings: Findings) -> None:
    """Health, one completion, metrics."""
    for path in ("/livez", "/readyz", "/metrics", "/v1/models"):
        require(client.status(path) == 200, f"{path} did not answer 200")
    status, body = client.generate(prompt=PROMPT, max_new_tokens=32, seed=7, quality=True)
    require(status == 200, f"/generate answered {status}: {body}")
    text, tokens = body["choices"][0]["text"], body["usage"]["completion_tokens"]
    require(bool(text.strip()) and tokens > 0, f"/generate wrote nothing: {body}")
    findings.keep("a completion", f"{tokens} tokens, {text[:60]!r}")
    status, body = client.generate(prompt=PROMPT, top_p=1.7)
    require(status == 422 and body["error"]["field"] == "top_p", f"top_p=1.7 was answered {status}: {body}")


def check_stream(client: Client, findings: Findings) -> None:
    """Text arrives in pieces, the first well before the last, and ends with a reason."""
    events = list(client.stream(prompt=PROMPT, max_new_tokens=256, seed=7))
    pieces = [event for event in events if event.data.get("text")]
    require(len(pieces) >= 8, f"256 tokens came in {len(pieces)} pieces; something on the way collects them")
    require(pieces[-1].at > pieces[0].at, "all pieces came at once")
    require(events[-1].data.get("finish_reason") in ("length", "stop"), f"the stream ended with {events[-1]}")
    findings.keep("a stream", f"{len(pieces)} pieces in {events[-1].at - pieces[0].at:.3f} s")


def check_drain(containers: Containers, name: str, client: Client, findings: Findings) -> None:
    """SIGTERM during a long stream: new requests are refused, the stream ends well, the exit code is 0."""
    stream = client.stream(**LONG_REQUEST)
    pid = int(containers.podman("inspect", "--format", "{{.State.Pid}}", name))
    first = next(stream)
    os.kill(pid, signal.SIGTERM)
    told = time.monotonic()
    while (refused := client.status("/readyz")) == 200:
        require(time.monotonic() < told + 2, "/readyz still answers 200 two seconds after SIGTERM")
    require(refused == 503, f"/readyz answered {refused} while draining")
    events = [first, *stream]
    after = [event for event in events if event.at > told]
    require(bool(after), "the stream was over before the signal: nothing was drained")
    check_ended_well(events, LONG_CHOICES)
    code = containers.podman("wait", name, timeout=60)
    require(code == "0", f"the container exited with {code} after SIGTERM")
    findings.keep(
        "drain",
        f"{len(after)} of {len(events)} events of the stream after SIGTERM, over {events[-1].at - told:.2f} s; exit 0",
    )


def check_ended_well(events: list[Event], expected: int) -> None:
    """Every choice has a finish reason among the events, and none is an error."""
    errors = [event.data for event in events if event.name == "error"]
    require(not errors, f"the stream ended with an error: {errors[:1]}")
    reasons = [event.data["finish_reason"] for event in events if event.data.get("finish_reason")]
    require(len(reasons) == expected, f"{len(reasons)} of {expected} choices ended")
    require(set(reasons) <= {"length", "stop"}, f"choices ended with {sorted(set(reasons))}")


def liveness_options(containers: Containers, image: str) -> list[str]:
    """The image's own health check with the patience of a test; podman takes new times only with the command.

    Podman's timer, which needs systemd, is off: whoever checks runs the probe.
    """
    known = containers.inspect("image", image)
    health = known["Healthcheck"]
    assert isinstance(health, dict)
    return [
        *("--health-on-failure=restart", "--stop-timeout=3", f"--health-cmd={json.dumps(health['Test'][1:])}"),
        *("--health-start-period=0s", "--health-interval=disable", "--health-timeout=5s", "--health-retries=2"),
    ]


def check_liveness(containers: Containers, name: str, client: Client, findings: Findings) -> None:
    """A server that hangs fails its health check, is killed and started again, and answers (see liveness_options)."""

    def probe() -> int:
        return containers.run("podman", "healthcheck", "run", name, check=False, timeout=30).returncode

    require(probe() == 0, "the health check of a healthy server fails")
    first = containers.podman("inspect", "--format", "{{.State.Pid}}", name)
    for pid in containers.podman("top", name, "hpid").split()[1:]:
        os.kill(int(pid), signal.SIGSTOP)
    begin = time.monotonic()
    failures = 0
    while containers.podman("inspect", "--format", "{{.State.Pid}}", name) in (first, "0"):
        require(time.monotonic() < begin + 60, f"not restarted after {failures} failed health checks")
        failures += probe() != 0
    client.wait_ready(START_SECONDS)
    seconds = time.monotonic() - begin
    findings.keep("liveness", f"{failures} failed probes, killed, started again, ready {seconds:.1f} s after it hung")
    status, body = client.generate(prompt=PROMPT, max_new_tokens=8)
    require(status == 200, f"after the restart /generate answered {status}: {body}")
