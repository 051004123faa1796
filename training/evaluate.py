"""`python -m training.evaluate MODEL`: the complete evaluation of one checkpoint, as evaluation.json and a page.

Bits per byte and perplexity of held-out text, Phi by layer, and the quality of what it writes under each decoding
preset. Generation runs on serve.engine, so what is evaluated is what is served. Finished sections are kept.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from model_store.catalog import Resolved
from model_store.names import validate_name
from model_store.staging import hash_file, replace_file
from model_store.store import ModelStore, default_root
from serve.engine.loader import load_tokenizer
from serve.engine.model_files import default_sampling_params, read_config, read_eos_token_ids, read_max_model_len
from serve.engine.request import SamplingParams
from serve.quality.score import SHORTEST, QualityScorer
from training.continuations import PRESETS, Continuer, Prompt, prompts_from
from training.corpora import SPLITS, Corpus, load_corpus
from training.evaluation_page import page, summary
from training.evaluation_sections import (
    OWN,
    describe_split,
    load_model,
    measure_decoding,
    measure_human,
    measure_phi,
)
from training.passages import split_nats

FILE_NAME = "evaluation.json"
FORMAT = 2
_LONGEST_CONTEXT = 512
_LEAST_PROMPTS = 20  # MAUVE's


@dataclass(frozen=True)
class EvaluateConfig:
    """What decides a result, besides model, text and quality reference. context, stride: tokens; None: see fitted()."""

    splits: tuple[str, ...] = ("valid", "test")
    context: int | None = None
    stride: int | None = None
    num_prompts: int = 256
    prompt_tokens: int = 32
    new_tokens: int = 128
    num_samples: int = 3
    num_bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for split in self.splits:
            if split not in SPLITS:
                raise ValueError(f"splits has '{split}': choose from {', '.join(SPLITS)}")
        if len(set(self.splits)) != len(self.splits):
            raise ValueError(f"splits is '{' '.join(self.splits)}': name each one once")
        least = {"num_prompts": _LEAST_PROMPTS, "new_tokens": SHORTEST, "num_samples": 0, "num_bootstrap": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least {low}")

    def fitted(self, max_model_len: int) -> "EvaluateConfig":
        """With context and stride filled in: at most 512 tokens of context, no overlap. ValueError if they misfit."""
        context = min(_LONGEST_CONTEXT, max_model_len) if self.context is None else self.context
        if not 2 <= context <= max_model_len:
            raise ValueError(f"context is {context}: give 2 to {max_model_len}, the longest sequence of this model")
        stride = context if self.stride is None else self.stride
        if not 1 <= stride <= context:
            raise ValueError(f"stride is {stride}: give 1 to {context}, the context; {context} means no overlap")
        if self.prompt_tokens + self.new_tokens > max_model_len:
            raise ValueError(
                f"prompt_tokens + new_tokens is {self.prompt_tokens + self.new_tokens}: this model takes "
                f"{max_model_len} tokens; ask for fewer"
            )
        return replace(self, context=context, stride=stride)


class Sections:
    """Finished parts of an evaluation, one JSON file each; a part of other weights or another protocol is not read."""

    def __init__(self, folder: Path, identity: object) -> None:
        self._folder, self._identity = folder, identity
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, settings: object, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The section's result, from its file if that has the same identity and settings, else made and kept."""
        key = _sha256([self._identity, name, settings])
        path = self._folder / f"{name.replace(' ', '-')}.json"
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["key"] == key:
                return dict(content["result"])
        result = make()
        replace_file(path, (json.dumps({"key": key, "result": result}) + "\n").encode())
        return dict(json.loads(json.dumps(result)))


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """Of the prompts' texts, in order."""
    return _sha256([prompt.text for prompt in prompts])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description="Evaluate a checkpoint: held-out text, Phi by layer, quality of what it writes.",
        allow_abbrev=False,
    )
    add, default = parser.add_argument, EvaluateConfig()
    add("model", help="model folder, or a name in the model store")
    add(
        "--dataset", default="pydoc", help="held-out text as for training.train: pydoc, a folder, files (default pydoc)"
    )
    add("--splits", nargs="+", default=default.splits, help="prompts are of the last one (default valid test)")
    add("--context", type=int, help=f"tokens a pass reads (default {_LONGEST_CONTEXT}, or the model's length)")
    add("--stride", type=int, help="tokens a pass predicts; less than the context: a sliding window (default: context)")
    for name in ("num_prompts", "prompt_tokens", "new_tokens", "num_samples", "num_bootstrap", "seed"):
        value = getattr(default, name)
        add(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    add("--quality-reference", type=Path, help="compare two models under one of them (default: the model's own)")
    add("--output", type=Path, help="folder for the result and finished sections (default runs/evaluation-NAME)")
    add("--name", help="name in the store that `model_store publish` takes where it is given none")
    add("--save", action="store_true", help=f"write {FILE_NAME} into the checkpoint's folder, too")
    add("--runner", default="auto", help="auto, native or torch")
    add("--num-threads", type=int, help="threads of the runner (default: its own choice)")
    return parser


def _scorer(reference: Path | None, model_dir: Path) -> QualityScorer:
    try:
        return QualityScorer.load(reference or model_dir)
    except ValueError as error:
        raise ValueError(f"{error}; --quality-reference FILE takes one from elsewhere") from error


def _weights(model_dir: Path) -> Path:
    path = model_dir / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{model_dir} has no model.safetensors: save the weights in one file of that name")
    return path


def _lead_id(model_dir: Path) -> int:
    """The token that a document stands behind."""
    bos = read_config(model_dir).get("bos_token_id")
    ends = read_eos_token_ids(model_dir)
    if bos is None and not ends:
        raise ValueError(f"{model_dir}: config.json names no bos_token_id or eos_token_id; add what begins a text")
    return int(ends[0] if bos is None else bos)


def _refuse_published(resolved: Resolved, save: bool) -> None:
    if save and (resolved.path / "manifest.json").exists():
        raise ValueError(
            f"--save: {resolved.path} is published and never changes; evaluate the folder that is to be published, "
            "or leave --save out"
        )


class Evaluation:
    """One run: what it is of, and its sections."""

    def __init__(self, resolved: Resolved, corpus: Corpus, scorer: QualityScorer, config: EvaluateConfig) -> None:
        self.model_dir, self.corpus, self.scorer, self.config = resolved.path, corpus, scorer, config
        self.tokenizer = load_tokenizer(self.model_dir)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.weights_sha256 = hash_file(_weights(self.model_dir)).sha256
        self.prompts = prompts_from(
            corpus.documents[config.splits[-1]],
            self.tokenizer,
            config.num_prompts,
            config.prompt_tokens,
            config.new_tokens,
            config.seed,
        )
        splits: Any = corpus.fingerprint()["splits"]
        self.protocol: dict[str, Any] = {
            "splits": [
                {"name": name, "sha256": splits[name]["sha256"], "num_bytes": splits[name]["bytes"]}
                for name in config.splits
            ],
            "context": config.context,
            "stride": config.stride,
            "prompts_sha256": prompts_sha256(self.prompts),
            "num_prompts": config.num_prompts,
            "prompt_tokens": config.prompt_tokens,
            "new_tokens": config.new_tokens,
            "seed": config.seed,
            "quality_reference_sha256": _sha256(scorer.reference.to_json()),
        }

    def identity(self, runner: Sequence[str]) -> list[object]:
        """Of everything that decides a section, besides its own settings."""
        files = {name: hash_file(self.model_dir / name).sha256 for name in ("config.json", "tokenizer.json")}
        ends = list(read_eos_token_ids(self.model_dir))
        return [FORMAT, self.weights_sha256, files, ends, self.protocol, self.config.num_bootstrap, *runner]

    def run(self, sections: Sections, continuer: Continuer) -> dict[str, Any]:
        """The content of evaluation.json."""
        splits = {name: sections.get(f"text {name}", None, partial(self._split, name)) for name in self.config.splits}
        phi = sections.get("phi", None, lambda: {"layers": self._phi()})
        prompts, bootstrap = self.prompts, (self.config.num_bootstrap, self.config.seed)
        human = sections.get("human", None, lambda: measure_human(self.scorer, prompts, *bootstrap))
        decodings = {}
        for name, setting in self._settings().items():
            # By setting, not by name: own defaults that equal a preset are generated once.
            decodings[name] = sections.get(
                f"decoding {_shown(setting)}", setting, partial(self._decoding, setting, continuer)
            )
        decoding = self.model_dir / "generation_config.json"
        passages = [p for name in self.config.splits for p in splits[name].pop("passages")]
        scores = {name: found.pop("scores") for name, found in decodings.items()}
        texts = {name: found.pop("texts") for name, found in decodings.items()}
        return {
            "format": FORMAT,
            "weights_sha256": self.weights_sha256,
            "generation_config_sha256": hash_file(decoding).sha256 if decoding.is_file() else None,
            "protocol": self.protocol,
            "passages": passages,
            "prompt_scores": scores[OWN],
            "report": {
                "dataset": self.corpus.fingerprint()["name"],
                "prompts_of": self.config.splits[-1],
                "num_bootstrap": self.config.num_bootstrap,
                "runner": {
                    "name": continuer.runner_name,
                    "dtype": continuer.runner_dtype,
                    "reason": continuer.runner_reason,
                },
                "splits": splits,
                "phi": phi["layers"],
                "human": human,
                "decodings": decodings,
                "scores": scores,
                "samples": self._samples(texts),
            },
        }

    @cached_property
    def _model(self) -> nn.Module:
        return load_model(self.model_dir)

    def _split(self, name: str) -> dict[str, Any]:
        config, documents = self.config, self.corpus.documents[name]
        assert config.context is not None
        assert config.stride is not None
        total = sum(len(document.encode()) for document in documents)
        with _bar(f"text {name}", total, "B") as bar:
            found = split_nats(
                self._model,
                self.tokenizer,
                documents,
                _lead_id(self.model_dir),
                context=config.context,
                stride=config.stride,
                progress=bar.update,
            )
        return describe_split(found, config.num_bootstrap, config.seed)

    def _phi(self) -> list[dict[str, Any]]:
        assert self.config.context is not None
        return measure_phi(
            self._model,
            self.tokenizer,
            self.corpus.documents[self.config.splits[-1]],
            context=self.config.context,
            seed=self.config.seed,
        )

    def _settings(self) -> dict[str, dict[str, Any]]:
        """Decoding settings by name: temperature, top_p, and what differs from SamplingParams' defaults."""
        named = {OWN: default_sampling_params(self.model_dir)}
        presets: dict[str, dict[str, Any]] = {name: dict(preset) for name, preset in PRESETS.items()}
        named |= {name: SamplingParams(**preset) for name, preset in presets.items()}
        return {name: _stated(params) for name, params in named.items()}

    def _decoding(self, setting: dict[str, Any], continuer: Continuer) -> dict[str, Any]:
        config = self.config
        seeds = range(config.seed, config.seed + len(self.prompts))
        with _bar(f"write {_shown(setting)}", config.num_prompts * config.new_tokens, "tok") as bar:
            written = continuer(self.prompts, setting, seeds=seeds, progress=bar.update)
        judged = measure_decoding(self.model_dir, self.scorer, self.prompts, written, config.num_bootstrap, config.seed)
        return {"setting": setting, **judged}

    def _samples(self, texts: dict[str, list[str]]) -> list[dict[str, Any]]:
        """The first prompts of the random order they were drawn in: not chosen, not edited."""
        return [
            {
                "prompt": prompt.text,
                "human": prompt.human,
                "continuations": {name: found[index] for name, found in texts.items()},
            }
            for index, prompt in enumerate(self.prompts[: self.config.num_samples])
        ]


def _stated(params: SamplingParams) -> dict[str, Any]:
    plain = SamplingParams()
    of_the_run = ("max_new_tokens", "seed")
    values = {f.name: getattr(params, f.name) for f in fields(params) if f.name not in of_the_run}
    always = ("temperature", "top_p")
    return {name: value for name, value in values.items() if name in always or value != getattr(plain, name)}


def _shown(setting: dict[str, Any]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in setting.items())


def _bar(what: str, total: int, unit: str) -> Any:
    return tqdm(total=total, desc=what, unit=unit, unit_scale=True, dynamic_ncols=True)


def _run(arguments: argparse.Namespace) -> int:
    values = {name: getattr(arguments, name) for name in EvaluateConfig.__dataclass_fields__}
    config = EvaluateConfig(**{**values, "splits": tuple(arguments.splits)})
    resolved = ModelStore(default_root()).resolve(arguments.model)
    _refuse_published(resolved, arguments.save)
    named = {} if arguments.name is None else {"name": validate_name(arguments.name)}
    model_dir = resolved.path
    _lead_id(model_dir)
    config = config.fitted(read_max_model_len(read_config(model_dir)))
    scorer = _scorer(arguments.quality_reference, model_dir)
    evaluation = Evaluation(resolved, load_corpus(arguments.dataset), scorer, config)
    output = arguments.output or Path("runs") / f"evaluation-{resolved.name}-{resolved.version}"
    continuer = Continuer(model_dir, arguments.runner, arguments.num_threads)
    sections = Sections(output / "sections", evaluation.identity((continuer.runner_name, continuer.runner_dtype)))
    content = evaluation.run(sections, continuer)
    content["report"] |= {"model": arguments.name or f"{resolved.name}@{resolved.version}", **named}
    data = (json.dumps(content, allow_nan=False) + "\n").encode()
    replace_file(output / "evaluation.html", page(content).encode())
    replace_file(output / FILE_NAME, data)
    for line in summary(content):
        print(line)
    print(f"wrote {output / FILE_NAME} and {output / 'evaluation.html'}")
    if arguments.save:
        replace_file(model_dir / FILE_NAME, data)
        print(f"wrote {model_dir / FILE_NAME}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 2 after one line for input that cannot be used, 130 after Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    try:
        return _run(parsed)
    except (ValueError, LookupError, OSError) as error:
        print(f"training.evaluate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the section where this one was", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
