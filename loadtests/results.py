"""How results are kept: whole or not at all, and with the machine they were taken on."""

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def machine() -> str:
    """Processor and cores."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0].partition(':')[2].strip() if names else 'unknown'}"


def provenance() -> dict[str, Any]:
    """When, where and with which code a measurement begins."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "commit": git.stdout.strip() or None,
    }


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Plain values, for people too; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
