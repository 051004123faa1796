"""buildah and podman as root without a daemon, with configuration, storage and caches of their own. Knows no image."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = {
    "buildah": "buildah",
    "podman": "podman",
    "runc": "runc",
    "conmon": "conmon",
    "debootstrap": "debootstrap",
    "catatonit": "catatonit",
    "git": "git",
}


class VerificationError(Exception):
    """A check failed or cannot be made; the message says what was seen and what to do."""


@contextmanager
def stage(title: str, times: dict[str, float]) -> Iterator[None]:
    """Print what is being done and, afterwards, how long it took (kept in times)."""
    print(f"== {title}", flush=True)
    begin = time.monotonic()
    yield
    times[title] = round(time.monotonic() - begin, 1)
    print(f"   ok, {times[title]:.1f} s", flush=True)


def say(text: str) -> None:
    """One line below the stage's title."""
    print(f"   {text}", flush=True)


def check_machine() -> None:
    """Raises VerificationError unless we are root and the programs are there."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise VerificationError("this needs Linux and root: containers are made without a daemon; run it with sudo")
    missing = sorted(package for program, package in PROGRAMS.items() if not shutil.which(program))
    if not importlib.util.find_spec("pip"):
        missing.append("python3-pip")
    if missing:
        raise VerificationError(
            f"missing: {', '.join(missing)}; run: apt-get install -y --no-install-recommends {' '.join(missing)}"
        )


class Containers:
    """Runs buildah and podman with everything they read and write under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run = folder / "run"
        for name in ("storage", "tmp", "run", "volumes"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._write_configuration()
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "TMPDIR": str(folder / "tmp"),
        }
        if not Path("/run/systemd/system").is_dir():
            # podman asks systemd to run health checks; without it, we run them ourselves.
            self.environment["DISABLE_HC_SYSTEMD"] = "true"

    def _write_configuration(self) -> None:
        (self.folder / "containers.conf").write_text(
            "[containers]\n"
            'default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]\n'
            'log_driver = "k8s-file"\n'
            "[engine]\n"
            'cgroup_manager = "cgroupfs"\n'
            'runtime = "runc"\n'
            'events_logger = "file"\n'
            f'tmp_dir = "{self._run / "libpod"}"\n'
            f'volume_path = "{self.folder / "volumes"}"\n'
        )
        (self.folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.folder / "storage"}"\n'
            f'runroot = "{self._run / "storage"}"\n'
        )

    def run(self, *command: str, timeout: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One command with its output captured. Raises VerificationError with the output when it fails or hangs."""
        try:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise VerificationError(f"{' '.join(command)} did not end within {timeout:.0f} s") from error
        if check and done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip())[-2000:]
            raise VerificationError(f"{' '.join(command)} exited with {done.returncode}: {said}")
        return done

    def remove_all(self) -> None:
        """What still runs or stands in this folder's storage, where nothing but these checks has containers."""
        for command in (("podman", "pod", "rm"), ("podman", "rm"), ("buildah", "rm")):
            force = ("--force",) if command[0] == "podman" else ()
            with contextlib.suppress(VerificationError):  # the next run tries again, and there is nobody to tell
                self.run(*command, "--all", *force, check=False)

    def run_logged(self, command: Sequence[str], log: Path) -> None:
        """A long command, its output in a file. Raises VerificationError with the last lines when it fails."""
        with log.open("w") as output:
            process = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                raise
        if code != 0:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
            raise VerificationError(f"{' '.join(command[:3])} ... exited with {code}; the end of {log}:\n{last}")

    def podman(self, *arguments: str, timeout: float = 120, check: bool = True) -> str:
        """podman's standard output, stripped."""
        return self.run("podman", *arguments, timeout=timeout, check=check).stdout.strip()

    def inspect(self, kind: str, name: str) -> dict[str, object]:
        """What podman knows of an image, a container or a pod."""
        found: list[dict[str, object]] = json.loads(self.podman(kind, "inspect", name))
        return found[0]

    def has_image(self, name: str) -> bool:
        """Whether the private storage holds it."""
        return self.run("podman", "image", "exists", name, check=False).returncode == 0
