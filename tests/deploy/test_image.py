"""The Dockerfile and .dockerignore against the repository; scripts/verify-image builds and runs what they make."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()


def test_the_build_gets_what_the_dockerfile_copies_and_nothing_else() -> None:
    copied = {
        name.removeprefix("./").rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
        for name in line.split()
    }
    let_in = {line[1:] for line in IGNORED if line.startswith("!") and "/" not in line}
    assert "*" in IGNORED
    assert let_in == copied


def test_the_image_holds_every_package_but_those_that_serving_does_not_need() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    copied = set(re.findall(r"^COPY (\w+) \./\w+$", DOCKERFILE, re.M)) - {"models"}
    assert {name.partition(".")[0] for name in packages} - copied == {"training", "loadtests"}


def test_no_version_of_a_model_is_written_into_the_build() -> None:
    for text in (DOCKERFILE, *IGNORED):
        assert not re.search(r"tiny_iit[/@]\d", text)
