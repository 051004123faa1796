"""Compile the native library into its folder: python -m serve.engine.native.build. Needs a C++17 compiler, no more.

The library carries the hash of the sources and flags it was made from, so that library.py can tell a stale one.
"""

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY_NAME = "libphiserve_native.so"
COMMAND = "python -m serve.engine.native.build"

_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-Wall", "-Wextra", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
_AVX2 = ["-mavx2", "-mfma"]
# gcc 12's own AVX-512 headers raise the warning that is switched off.
_AVX512 = [*_AVX2, *["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-Wno-maybe-uninitialized"]]
_FLAGS_OF_FILE = {
    "kernels_avx2.cpp": _AVX2,
    "kernels_avx512.cpp": _AVX512,
    "kernels_avx512_vnni.cpp": [*_AVX512, "-mavx512vnni"],
    "kernels_avx512_bf16.cpp": [*_AVX512, "-mavx512vnni", "-mavx512bf16"],
}


class BuildError(RuntimeError):
    """The library could not be built; the message says why and what to do."""


def source_hash() -> str:
    """A hash of everything the library is made from."""
    digest = hashlib.sha256(repr((_FLAGS, sorted(_FLAGS_OF_FILE.items()))).encode())
    for path in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find_compiler() -> list[str]:
    """$CXX (a command, maybe with flags), else c++, else g++ or clang++. BuildError when there is none."""
    named = os.environ.get("CXX", "").strip()
    for command in [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    wanted = f"CXX is '{named}', which is not a command here" if named else "no c++, g++ or clang++ on the PATH"
    raise BuildError(f"the native library needs a C++17 compiler: {wanted}; install one (Debian: apt install g++)")


def build(folder: Path = FOLDER) -> Path:
    """Compile into folder and return the library's path. The old library stays in place until the new one is whole."""
    compiler, sources = find_compiler(), sorted(FOLDER.glob("*.cpp"))
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
        # Its parts appear under temporary names and move to their own at the end, in one step.
        def compile_one(source: Path) -> str:
            output = str(Path(scratch) / f"{source.stem}.o")
            extra = _FLAGS_OF_FILE.get(source.name, []) if is_x86 else []
            if source.name == "api.cpp":
                extra = [*extra, f'-DNATIVE_SOURCE_HASH="{source_hash()}"']
            _run([*compiler, *_FLAGS, *extra, "-c", str(source), "-o", output])
            return output

        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            objects = list(threads.map(compile_one, sources))
        library = Path(scratch) / LIBRARY_NAME
        _run([*compiler, "-shared", "-pthread", *objects, "-o", str(library)])
        return library.replace(folder / LIBRARY_NAME)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"the compiler failed: {shlex.join(command)}\n{done.stderr.strip()}")
    if done.stderr:
        print(done.stderr.strip(), file=sys.stderr)


def main() -> int:
    """The command line. Exit status 1 with a sentence when it cannot be built."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Compile the native library of the engine.")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder to put it in (default: the package)")
    try:
        print(build(parser.parse_args().output))
    except (BuildError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
