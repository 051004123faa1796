"""From a model folder to a runner and a tokenizer. Imports torch only when the torch runner is chosen."""

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from serve.engine.model_files import read_config
from serve.engine.runner import Runner, RunnerOptions

_LOG = logging.getLogger(__name__)

RUNNERS = ("auto", "native", "torch")

# Imported by name when it is needed: an installation may come without it.
_NATIVE = "serve.engine.native_runner"


@dataclass(frozen=True, slots=True)
class LoadedRunner:
    """A runner, its name ("native" or "torch") and, in a sentence, why it was this one."""

    runner: Runner
    name: str
    reason: str


def why_native_cannot(model_dir: Path, options: RunnerOptions) -> str | None:
    """Why the native runner cannot serve this folder with these options, or None when it can."""
    if options.device != "cpu":
        return f"device is '{options.device}', the native runner computes on the CPU"
    if options.dtype in ("float16", "float64"):
        return f"dtype is '{options.dtype}', which only the torch runner computes in"
    try:
        native = importlib.import_module(_NATIVE)
    except ModuleNotFoundError as error:
        if error.name != _NATIVE:
            raise
        return "this installation has no native runner"
    reason: str | None = native.why_unsupported(model_dir)
    return reason


def load_runner(model_dir: Path | str, runner: str = "auto", options: RunnerOptions | None = None) -> LoadedRunner:
    """Load a Hugging Face folder. runner: "native", "torch", or "auto": native where it can serve the model.

    The choice and its reason are returned and logged. ValueError when the runner asked for cannot serve the model.
    """
    model_dir, options = Path(model_dir), options or RunnerOptions()
    if runner not in RUNNERS:
        raise ValueError(f"runner is '{runner}': give one of {', '.join(RUNNERS)}")
    read_config(model_dir)
    obstacle = "it was not asked for" if runner == "torch" else why_native_cannot(model_dir, options)
    if obstacle is None:
        reason = "the native runner supports this model" if runner == "auto" else "it was asked for"
        native = importlib.import_module(_NATIVE)
        loaded = LoadedRunner(native.load_native_runner(model_dir, options), "native", reason)
    elif runner == "native":
        raise ValueError(f"runner is 'native': {obstacle}; or choose runner 'torch'")
    elif options.dtype == "int8":
        raise ValueError(
            f"dtype is 'int8', which only the native runner computes in: {obstacle}; or choose dtype 'auto'"
        )
    else:
        from serve.engine.torch_runner import TorchRunner

        reason = "it was asked for" if runner == "torch" else f"the native runner cannot serve this model: {obstacle}"
        loaded = LoadedRunner(TorchRunner.load(model_dir, options), "torch", reason)
    _LOG.info("runner %s (%s) for %s: %s", loaded.name, loaded.runner.dtype, model_dir, loaded.reason)
    return loaded


def load_tokenizer(model_dir: Path | str) -> Tokenizer:
    """tokenizer.json of a model folder. ValueError when it has none or it cannot be read."""
    path = Path(model_dir) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"model folder is '{model_dir}': it has no tokenizer.json; save a fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer that `tokenizers` reads ({error}): save it again") from error
