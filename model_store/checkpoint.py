"""Whether a folder is a plain Hugging Face causal language model: configuration, tokenizer, safetensors headers.

Reads headers, never weights. transformers is imported only to ask which architectures it has.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# In these a key may be any token of a vocabulary, so that the word auto_map in them means nothing.
_VOCABULARIES = frozenset({TOKENIZER_FILE, "vocab.json", "added_tokens.json", INDEX_FILE})
_SAVE_AGAIN = "save it again with model.save_pretrained(FOLDER) and tokenizer.save_pretrained(FOLDER)"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The transformers class that loads the folder, and how many numbers its weight files hold."""

    architecture: str
    num_parameters: int


def inspect_checkpoint(folder: Path, files: Iterable[str]) -> Checkpoint:
    """Check the files of a folder that `list_checkpoint_files` let through.

    Raises ValueError, naming the file and the remedy, unless it is a causal language model that transformers loads
    without code of the folder's own, with a fast tokenizer and intact safetensors headers.
    """
    files = sorted(files)
    for required in (CONFIG_FILE, TOKENIZER_FILE):
        if required not in files:
            raise ValueError(f"{required!r} is absent: this is not a plain Hugging Face model folder; {_SAVE_AGAIN}")
    _refuse_remote_code(folder, files)
    architecture = _causal_architecture(_read_json_object(folder / CONFIG_FILE, CONFIG_FILE))
    _check_tokenizer(folder / TOKENIZER_FILE)
    sizes = {name: _tensor_sizes(folder / name, name) for name in files if name.endswith(".safetensors")}
    return Checkpoint(architecture, _count_parameters(folder, sizes))


@cache
def causal_architectures() -> dict[str, tuple[str, ...]]:
    """The causal language model classes of the installed transformers, by model_type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    return {kind: (names,) if isinstance(names, str) else tuple(names) for kind, names in CLASSES.items()}


def _causal_architecture(config: dict[str, Any]) -> str:
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if not isinstance(model_type, str) or not isinstance(architectures, list) or len(architectures) != 1:
        raise ValueError(
            f"'{CONFIG_FILE}' is refused: it has model_type={model_type!r} and architectures={architectures!r}, "
            f"where a checkpoint names its type and one class; {_SAVE_AGAIN}"
        )
    architecture: object = architectures[0]
    if not isinstance(architecture, str) or architecture not in causal_architectures().get(model_type, ()):
        from transformers import __version__

        raise ValueError(
            f"'{CONFIG_FILE}' is refused: architecture {architecture!r} of type {model_type!r} is no causal language "
            f"model that transformers {__version__} has; give one that AutoModelForCausalLM loads without remote code"
        )
    return architecture


def _refuse_remote_code(folder: Path, files: list[str]) -> None:
    for name in files:
        if not name.endswith(".json"):
            continue
        content = _read_json(folder / name, name)
        if name not in _VOCABULARIES and any(key == "auto_map" for key in _keys(content)):
            raise ValueError(
                f"{name!r} is refused: its auto_map asks to run code that comes with the model. Remedy: use a model "
                "whose architecture transformers itself has; if this is one, delete the auto_map entry"
            )


def _keys(content: object) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from _keys(value)
    elif isinstance(content, list):
        for value in content:
            yield from _keys(value)


def _check_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(
            f"'{TOKENIZER_FILE}' is refused: tokenizers cannot read it ({error}); {_SAVE_AGAIN}"
        ) from error


def _tensor_sizes(path: Path, name: str) -> dict[str, int]:
    """Number of elements of every tensor. The library's own reader is the judge: it is what will load the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            return {tensor: math.prod(opened.get_slice(tensor).get_shape()) for tensor in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{name!r} is refused: it is not an intact safetensors file ({error}). Remedy: download or save it again"
        ) from error


def _count_parameters(folder: Path, sizes: dict[str, dict[str, int]]) -> int:
    if INDEX_FILE in {path.name for path in folder.iterdir()}:
        return _count_indexed_parameters(_read_json_object(folder / INDEX_FILE, INDEX_FILE), sizes)
    if WEIGHTS_FILE not in sizes:
        raise ValueError(f"'{WEIGHTS_FILE}' is absent, and so is '{INDEX_FILE}': there are no weights; {_SAVE_AGAIN}")
    if not sizes[WEIGHTS_FILE]:
        raise ValueError(f"'{WEIGHTS_FILE}' is refused: it holds no tensor; {_SAVE_AGAIN}")
    return sum(sizes[WEIGHTS_FILE].values())


def _count_indexed_parameters(index: dict[str, Any], sizes: dict[str, dict[str, int]]) -> int:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"'{INDEX_FILE}' is refused: it has no weight_map; {_SAVE_AGAIN}")
    total = 0
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or shard not in sizes:
            raise ValueError(
                f"{shard!r} is absent, though '{INDEX_FILE}' places {tensor!r} in it; download it or save again"
            )
        if tensor not in sizes[shard]:
            raise ValueError(
                f"{shard!r} is refused: it lacks {tensor!r}, which '{INDEX_FILE}' places in it; {_SAVE_AGAIN}"
            )
        total += sizes[shard][tensor]
    return total


def _read_json(path: Path, name: str) -> object:
    try:
        content: object = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name!r} is refused: it is not JSON ({error}). Remedy: save it again or remove it"
        ) from error
    return content


def _read_json_object(path: Path, name: str) -> dict[str, Any]:
    content = _read_json(path, name)
    if not isinstance(content, dict):
        raise ValueError(f"{name!r} is refused: it holds {type(content).__name__}, not an object; {_SAVE_AGAIN}")
    return content
