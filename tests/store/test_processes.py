"""What other processes see while one publishes, and after it was killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from model_store.staging import STAGING_AREA
from model_store.store import ModelStore

REPOSITORY = Path(__file__).parents[2]
PAUSES = ["copy:1", "copy:5", "clock", "rename"]


@contextmanager
def publisher(store: ModelStore, source: Path, where: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.publisher", str(store.root), str(source), where],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_pause(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "paused\n"


@pytest.mark.parametrize("where", PAUSES)
def test_a_publisher_killed_at_any_point_leaves_nothing_visible(store: ModelStore, source: Path, where: str) -> None:
    with publisher(store, source, where) as process:
        wait_for_pause(process)
        assert store.list() == ()
        process.kill()
        process.wait()
    assert any((store.root / STAGING_AREA).iterdir())  # it did die in the middle
    assert store.list() == ()
    with pytest.raises(ValueError, match="not in the store"):
        store.resolve("m")
    assert store.publish(source, "m").version == "1"
    assert store.verify("m").ok
    assert list((store.root / STAGING_AREA).iterdir()) == []  # and the next publisher has cleaned up


def test_a_publisher_spares_the_work_of_another_that_lives(store: ModelStore, source: Path) -> None:
    with publisher(store, source, "rename") as process:
        wait_for_pause(process)
        assert store.publish(source, "other").version == "1"
        answer, _ = process.communicate("go\n")
    assert answer == "1\n"
    assert store.verify("m@1").ok


def test_two_publishers_at_once_both_get_versions_and_readers_see_only_whole_ones(
    store: ModelStore, source: Path
) -> None:
    rounds = 6
    store.publish(source, "m")
    store.set_alias("m", "production", "1")
    where = f"rounds:{rounds}"
    with publisher(store, source, where) as first, publisher(store, source, where) as second:
        for process in (first, second):
            wait_for_pause(process)
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        while first.poll() is None or second.poll() is None:
            assert store.verify("m").ok
            assert store.verify("m@latest").ok
            assert all(entry.problem is None for entry in store.list())
        versions = [line for process in (first, second) for line in process.communicate()[0].split()]
    assert sorted(map(int, versions)) == list(range(2, 2 + 2 * rounds))
    assert store.resolve("m@latest").version == str(1 + 2 * rounds)
    assert all(store.verify(f"m@{version}").ok for version in versions)


def test_finding_a_model_imports_neither_torch_nor_transformers(store: ModelStore, source: Path) -> None:
    store.publish(source, "m")
    code = (
        "import sys; import model_store.presets, model_store.__main__; from model_store.store import ModelStore\n"
        f"store = ModelStore({str(store.root)!r}); store.resolve('m'); store.list(); store.verify('m')\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=REPOSITORY, check=True)
