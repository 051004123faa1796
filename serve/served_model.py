"""The model as an HTTP process knows it: its name, its tokenizer, its sampling defaults. No weights, no torch."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from serve.engine.request import SamplingParams
from serve.errors import StartupError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from model_store.catalog import Resolved
    from model_store.store import ModelStore
    from serve.chat_template import ChatTemplate


@dataclass(frozen=True)
class ServedModel:
    """One checkpoint folder. defaults: what its generation_config.json says.

    created: seconds since 1970; when it was published, or when the config of a folder outside the store was written.
    """

    name: str
    version: str
    path: Path
    created: int
    tokenizer: "Tokenizer"
    defaults: SamplingParams
    chat_template: "ChatTemplate | None" = None

    @property
    def full_name(self) -> str:
        return f"{self.name}@{self.version}"


def load_served_model(reference: str) -> ServedModel:
    """Find a checkpoint and read what an HTTP process needs of it. Raises StartupError, one line."""
    from model_store.store import ModelStore, default_root

    try:
        store = ModelStore(default_root())
        resolved = store.resolve(reference)
        created = _created(store, resolved)
    except (ValueError, LookupError, OSError) as error:
        raise StartupError(_one_line(error)) from error
    path = Path(resolved.path)
    from serve.chat_template import ChatTemplate
    from serve.engine.loader import load_tokenizer
    from serve.engine.model_files import default_sampling_params, read_config
    from serve.token_bounds import longest_token

    try:
        read_config(path)
        tokenizer = load_tokenizer(path)
        defaults = default_sampling_params(path)
        chat_template = ChatTemplate.of(path)
        longest_token(tokenizer)  # looks at the whole vocabulary; known here, it is known in each process forked later
    except ValueError as error:
        raise StartupError(_one_line(error)) from error
    return ServedModel(resolved.name, str(resolved.version), path, created, tokenizer, defaults, chat_template)


def _created(store: "ModelStore", resolved: "Resolved") -> int:
    from model_store.names import LOCAL_VERSION

    if resolved.version == LOCAL_VERSION:
        return int((resolved.path / "config.json").stat().st_mtime)
    manifest = store.show(f"{resolved.name}@{resolved.version}").manifest
    assert manifest is not None
    return int(datetime.fromisoformat(manifest.created_at).timestamp())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
