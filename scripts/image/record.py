"""What was measured, with the conditions it was measured under, as a file."""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

from image.build import revision


def conditions(repository: Path) -> dict[str, object]:
    """When, from which command and commit, and on what machine. Memory in units of 10^6 bytes."""
    processor = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["scripts/verify-image", *sys.argv[1:]]),
        "commit": revision(repository),
        "machine": {
            "processor": processor[0].partition(": ")[2] if processor else platform.machine(),
            "cores": os.cpu_count(),
            "memory in MB": memory // 1_000_000,
            "system": platform.freedesktop_os_release()["PRETTY_NAME"],
            "kernel": platform.release(),
            "load average at the start": [round(load, 2) for load in os.getloadavg()],
        },
    }


def write_record(path: Path, results: dict[str, object]) -> None:
    """Atomically, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    partial.replace(path)
