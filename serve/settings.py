"""What an operator can set: environment PHISERVE_* and flags; unknown keys are errors.

The only module that reads the environment.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from serve.errors import StartupError, problems_of

PREFIX = "PHISERVE_"
# A secret on the command line would be read by everyone who can list processes.
WITHOUT_FLAG = ("api_keys",)
ALWAYS_SHOWN = ("model", "host", "port", "workers", "api_servers", "runner", "device", "dtype")


class ServeSettings(BaseSettings):
    """Every knob of the server, with its default written once, here."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    model: str = Field("tiny_iit", description="a name, name@version or name@alias of the model store, or a folder")
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = Field("127.0.0.1", description="address to listen on")  # noqa: S104
    port: int = Field(8000, ge=1024, le=65535, description="port to listen on")
    workers: int = Field(1, ge=1, le=64, description="engine processes, each with its own copy of the model")
    api_servers: int = Field(1, ge=1, le=64, description="HTTP processes")

    runner: Literal["auto", "torch", "native"] = Field("auto", description="what computes the forward pass")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the model is computed")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto", description="number format of the model; int8 on the native runner only"
    )
    threads: int = Field(0, ge=0, description="threads of each worker's computation; 0 lets the runner choose")
    cache_tokens: int = Field(0, ge=0, description="tokens in each worker's key-value cache; 0 lets the runner choose")
    max_model_len: int = Field(0, ge=0, description="longest prompt plus answer; 0 is what the model's config says")
    max_batch_size: int = Field(32, ge=1, le=1024, description="choices that one worker computes at once")

    max_queue: int = Field(256, ge=0, description="choices waiting beyond those that run; more are answered 429")
    max_prompt_tokens: int = Field(0, ge=0, description="longest prompt in tokens; 0 is what the model can take")
    max_new_tokens: int = Field(4096, ge=1, description="largest max_new_tokens that a request may ask for")
    max_body_bytes: int = Field(1 << 20, ge=1024, description="largest request body")
    max_prompts: int = Field(64, ge=1, description="most prompts in one request")
    max_n: int = Field(16, ge=1, description="most choices for one prompt")
    max_stop: int = Field(8, ge=1, description="most stop strings in one request")
    max_stop_characters: int = Field(128, ge=1, description="longest stop string")
    max_logprobs: int = Field(20, ge=0, description="most alternatives for each token")
    max_score_texts: int = Field(64, ge=1, description="most texts in one request to /quality/score")
    quality_sample: float = Field(1.0, ge=0, le=1, description="share of the generations scored for /metrics")
    quality_budget: float = Field(
        0.01, ge=0, le=1, description="share of a core that scoring for /metrics may take in each HTTP process"
    )
    quality_window: int = Field(1000, ge=100, description="scores in each HTTP process' drift figure")
    phi_diagnostic: bool = Field(False, description='answer "phi": true; a process with its own copy of the model')
    stream_window: int = Field(
        512, ge=8, description="tokens that a stream may be ahead of its reader before it is paused"
    )
    stream_interval_ms: float = Field(
        20, ge=0, le=1000, description="longest wait of a token for the next ones when many streams run; 0 writes each"
    )
    request_deadline_seconds: float = Field(600, gt=0, description="a request that takes longer is ended")
    stall_seconds: float = Field(60, gt=0, description="a stream whose reader takes nothing for so long is ended")
    drain_seconds: float = Field(30, ge=0, description="time that running requests get after SIGTERM")

    api_keys: Annotated[list[SecretStr], NoDecode] = Field(
        default_factory=list, description="keys that clients must send, comma between"
    )
    api_keys_file: Path | None = Field(None, description="file with one key a line")
    metrics_need_key: bool = Field(False, description="ask for the API key on /metrics too")
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field("warning", description="log level")
    step_timing: bool = Field(False, description="count the seconds of each phase of a step in /metrics")

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, keys: object) -> object:
        return [key.strip() for key in keys.split(",") if key.strip()] if isinstance(keys, str) else keys

    @field_validator("api_keys_file")
    @classmethod
    def _is_a_file(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError("name a file that exists")
        return path

    @property
    def max_in_flight(self) -> int:
        """Choices that may be running or waiting at once, over all processes."""
        return self.workers * self.max_batch_size + self.max_queue

    def secret_keys(self) -> tuple[str, ...]:
        """The API keys of the environment and the file. Empty: no key is asked for."""
        keys = [key.get_secret_value() for key in self.api_keys]
        if self.api_keys_file is not None:
            keys += self.api_keys_file.read_text().split()
        return tuple(key for key in keys if key)

    def described(self) -> str:
        """The settings in the words of the flags: the main ones and all that differ from their default. No secret."""
        fields = type(self).model_fields
        shown = [
            f"{name}={getattr(self, name)}"
            for name, field in fields.items()
            if name not in WITHOUT_FLAG and (name in ALWAYS_SHOWN or getattr(self, name) != field.default)
        ]
        return " ".join([*shown, f"api_keys={len(self.secret_keys()) or 'none'}"])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StartupError(f"{message} (python -m serve --help lists the flags)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m serve",
        description="Serve a causal language model over HTTP.",
        epilog=f"Each flag can also be given as {PREFIX}NAME in the environment; a flag wins. Keys: {PREFIX}API_KEYS.",
        allow_abbrev=False,
    )
    for name, field in ServeSettings.model_fields.items():
        if name in WITHOUT_FLAG:
            continue
        flag = "--" + name.replace("_", "-")
        text = f"{field.description} (default: {field.default})".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(flag, default=argparse.SUPPRESS, metavar="VALUE", help=text)
    return parser


def load_settings(arguments: Sequence[str]) -> ServeSettings:
    """Settings from flags, then the environment, then the defaults.

    Raises StartupError, one line that names the setting, its value and the remedy.
    """
    flags = vars(_parser().parse_args(arguments))
    known = {PREFIX + name.upper() for name in ServeSettings.model_fields}
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name not in known:
            raise StartupError(f"{name} in the environment is not a setting: remove it; see python -m serve --help")
    try:
        return ServeSettings(**flags)
    except ValidationError as error:
        problem = problems_of(error.errors(include_url=False), ServeSettings.model_fields)[0]
        raise StartupError(f"{problem['message']}: {problem['remedy']}") from None


def make_private_folder() -> Path:
    """A new folder that only this user can enter, for sockets and metric files."""
    return Path(tempfile.mkdtemp(prefix="phiserve-"))
