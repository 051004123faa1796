"""English prose that every CPython carries: the language reference in pydoc's topics and the docstrings of the standard
library. Read from source files, nothing is imported; the order is that of the sorted paths, so a Python release has one
corpus.
"""

import ast
import inspect
import re
import runpy
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Test suites and generated tables hold little prose; site-packages is not the standard library.
_SKIPPED = frozenset(
    (
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "encodings",
        "lib2to3",
        "pydoc_data",
    )
)
_WORD = re.compile(r"\w+")
_MIN_CHARACTERS = 80  # a shorter docstring is a label, not prose


def read_documents() -> list[tuple[str, str]]:
    """(topic or module, text) pairs, each paragraph kept at its first appearance only.

    Raises ValueError where this Python has no sources of its standard library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    topics_file = root / "pydoc_data" / "topics.py"
    if not topics_file.is_file():
        raise ValueError(
            f"dataset='pydoc': {topics_file} is missing, this Python carries no documentation; install the full "
            "standard library (Debian: apt-get install libpython3-stdlib), or pass --dataset FOLDER"
        )
    seen: set[str] = set()
    named = [*_topics(topics_file), *_modules(root)]
    documents = [(name, _new_paragraphs(text, seen)) for name, text in named]
    return [(name, text) for name, text in documents if len(text) >= _MIN_CHARACTERS]


def _topics(path: Path) -> Iterator[tuple[str, str]]:
    topics: dict[str, str] = runpy.run_path(str(path))["topics"]
    for name in sorted(topics):
        yield f"topic:{name}", topics[name]


def _modules(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED.isdisjoint(parts):
            text = "\n\n".join(_docstrings(path))
            yield f"module:{parts[0]}", text


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # a template or a sample of broken code, of which the library has a few
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and len(text) >= _MIN_CHARACTERS:
                yield inspect.cleandoc(text)


def _new_paragraphs(text: str, seen: set[str]) -> str:
    kept = []
    for paragraph in text.split("\n\n"):
        key = " ".join(_WORD.findall(paragraph.lower()))  # punctuation alone makes no new paragraph
        if key and key not in seen:
            seen.add(key)
            kept.append(paragraph.rstrip())
    return "\n\n".join(kept).strip()
