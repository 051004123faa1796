"""What a checkpoint folder says about itself. Reads JSON files only: no torch, no transformers, no network."""

import json
from pathlib import Path
from typing import Any

from serve.engine.request import SamplingParams

_FROM_GENERATION_CONFIG = (
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
)
_WHOLE_NUMBERS = {"max_new_tokens", "top_k", "no_repeat_ngram_size"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. ValueError when it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): restore the file") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not a JSON object: restore the file")
    return content


def read_config(model_dir: Path) -> dict[str, Any]:
    """config.json. ValueError when there is none."""
    path = model_dir / "config.json"
    if not path.is_file():
        raise ValueError(f"model folder is '{model_dir}': it has no config.json; give a Hugging Face model folder")
    return read_json(path)


def read_generation_config(model_dir: Path) -> dict[str, Any]:
    """generation_config.json, empty when there is none."""
    path = model_dir / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def read_eos_token_ids(model_dir: Path) -> tuple[int, ...]:
    """The ids that end a text: from generation_config.json, else config.json; empty when neither names one."""
    for content in (read_generation_config(model_dir), read_config(model_dir)):
        ids = content.get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (int(ids),)
    return ()


def default_sampling_params(model_dir: Path) -> SamplingParams:
    """The checkpoint's own defaults, from generation_config.json; what it leaves open keeps SamplingParams' default.

    "do_sample": false, written there, means greedy. ValueError for a value that SamplingParams refuses.
    """
    content = read_generation_config(model_dir)
    given: dict[str, Any] = {}
    for name in _FROM_GENERATION_CONFIG:
        value = content.get(name)
        if value is not None:
            given[name] = int(value) if name in _WHOLE_NUMBERS else float(value)
    if content.get("do_sample") is False:
        given["temperature"] = 0.0
    try:
        return SamplingParams(**given)
    except ValueError as error:
        raise ValueError(f"{model_dir / 'generation_config.json'}: {error}") from error


def read_max_model_len(config: dict[str, Any]) -> int:
    """The longest sequence a config allows. ValueError when it does not say."""
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise ValueError("max_model_len is None: config.json names no longest sequence; give max_model_len")
