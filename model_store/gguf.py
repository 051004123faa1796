"""From a GGUF file to a plain Hugging Face folder, once; everything after knows only the folder. transformers reads it.

Quantised weights are expanded to float32, so the folder is larger than the file and computes exactly what it says.
"""

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".gguf"
_MAGIC = b"GGUF"


def find_gguf(source: Path) -> Path | None:
    """The GGUF file that `source` is, or the only one in the folder that it is; None where it is neither.

    Raises ValueError for a folder with several and no safetensors: which one is meant is not guessed.
    """
    if source.suffix.lower() == SUFFIX and source.is_file():
        return source
    if not source.is_dir() or any(source.glob("*.safetensors")):
        return None
    files = sorted(path for path in source.iterdir() if path.suffix.lower() == SUFFIX)
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ValueError(f"source {str(source)!r} holds several GGUF files ({names}); give the one that you mean")
    return files[0] if files else None


@contextmanager
def converted(file: Path) -> Iterator[Path]:
    """A folder with the model of a GGUF file, gone at the end. Raises ValueError as convert_gguf does."""
    with tempfile.TemporaryDirectory(prefix="gguf-") as name:
        folder = Path(name) / file.stem
        convert_gguf(file, folder)
        yield folder


def convert_gguf(file: Path, folder: Path) -> None:
    """Write config, tokenizer and float32 safetensors of a GGUF file to a new folder.

    Raises ValueError if it is no GGUF file, if transformers cannot read its architecture or its tokenizer, or if the
    package that reads the format is not installed.
    """
    with file.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"source {str(file)!r} is no GGUF file: it does not begin with GGUF; download it again")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"source {str(file)!r} is a GGUF file and the package gguf is absent; pip install gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **where)
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **where)
    except Exception as error:  # the readers raise whatever a broken or unknown file makes of them
        raise ValueError(
            f"source {str(file)!r}: transformers cannot read this GGUF file ({type(error).__name__}: {error}); "
            "give a whole file of an architecture that it supports, or the model's safetensors folder"
        ) from error
    # The weights are plain by now, but the model still calls itself quantised, and such a one is not saved.
    config = model.config
    del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
