"""From the messages of a chat to the prompt that the model was trained on: the checkpoint's own Jinja template.

Gives the text of transformers' apply_chat_template without loading transformers, which HTTP processes must not. The
template comes with the checkpoint and is run in Jinja's sandbox: no attribute of Python's is in its reach.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _GenerationBlock(Extension):
    """{% generation %} marks what an assistant wrote, for training; the text is the block's own."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatTemplate:
    """The template of one checkpoint. Raises ValueError if it is no Jinja template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _compiled(source)
        except TemplateError as error:
            raise ValueError(f"the chat template is not one that Jinja reads ({error}): correct it") from error

    @classmethod
    def of(cls, folder: Path) -> "ChatTemplate | None":
        """The template in a checkpoint's folder: chat_template.jinja, else tokenizer_config.json; None without one."""
        path = folder / TOKENIZER_CONFIG
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        own_file = folder / TEMPLATE_FILE
        source = own_file.read_text(encoding="utf-8") if own_file.is_file() else config.get("chat_template")
        if isinstance(source, list):  # several, by name
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        return None if source is None else cls(source, _special_tokens(config))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt, up to where the assistant's answer begins. Raises ValueError with the template's own refusal."""
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
            )
        except (TemplateError, TypeError, KeyError, IndexError) as error:
            raise ValueError(str(error)) from error


class _Namespace(Namespace):
    """Jinja's namespace(), without names that could reach Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        _refuse_private(dict(*args[1:], **kwargs))
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private([name])
        Namespace.__setitem__(self, name, value)


def _refuse_private(names: Iterable[object]) -> None:
    for name in names:
        if str(name).startswith("_"):
            raise SecurityError(f"a chat template may not set {name} on a namespace")


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {name: config[name] for name in SPECIAL_TOKENS if config.get(name) is not None}
    return {name: token["content"] if isinstance(token, dict) else str(token) for name, token in found.items()}


def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    environment.globals["namespace"] = _Namespace
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
