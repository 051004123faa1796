"""`python -m training.tune_decoding MODEL --dataset TEXT`: find the decoding defaults that come closest to human text.

Settings race on one half of the prompts (successive halving by gap, training.decoding_trials); the winner is held
against the present defaults and the presets on the other half. generation_config.json is written unless that shows it
worse.
"""

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model_store.staging import hash_file, replace_file
from model_store.store import ModelStore, default_root
from serve.engine.loader import load_tokenizer
from serve.engine.model_files import default_sampling_params, read_generation_config
from serve.quality.score import QualityScorer
from training.continuations import PRESETS, Continuer, Prompt, prompts_from
from training.corpora import SPLITS, load_corpus
from training.decoding_report import write_report
from training.decoding_trials import TUNED, Outcome, Setting, Trial, Trials, as_setting, difference

_OFF = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
_SPACE = {
    "temperature": (0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1),
    "top_p": (0.8, 0.9, 0.95, 0.98, 1.0, 1.0),
    "min_p": (0.0, 0.0, 0.0, 0.01, 0.02, 0.05),
    "repetition_penalty": (1.0, 1.0, 1.0, 1.05, 1.1, 1.2),
}
_STAGES = ((1, 4), (3, 2), (6, 1))
"""(settings are divided by, prompts of the selection half are divided by) of each stage of the race."""


@dataclass(frozen=True)
class TuneConfig:
    """What decides a result, besides model and text."""

    split: str = "valid"
    num_prompts: int = 1536
    prompt_tokens: int = 32
    continuation_tokens: int = 128
    num_settings: int = 24
    num_bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split is '{self.split}': choose from {', '.join(SPLITS)}")
        least = 2 * 20 * _STAGES[0][1]
        for name, low in (("num_prompts", least), ("continuation_tokens", 32), ("num_settings", len(PRESETS) + 2)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least {low}")

    @property
    def num_selection(self) -> int:
        """Prompts of the half that settings are chosen on; the others are held out."""
        return self.num_prompts // 2

    def stages(self) -> Iterator[tuple[int, int]]:
        """(settings, prompts) of each stage of the race."""
        for fewer, prompts in _STAGES:
            yield max(1, self.num_settings // fewer), self.num_selection // prompts

    def num_tokens(self, num_rivals: int) -> int:
        """Tokens to generate, if the winner is none of the rivals of the held-out check."""
        race = sum(settings * prompts for settings, prompts in self.stages())
        return (race + (num_rivals + 1) * (self.num_prompts - self.num_selection)) * self.continuation_tokens


def rivals(present: Setting) -> dict[str, Setting]:
    """What the winner is compared with: present defaults, presets, and "plain", the model's own distribution."""
    return {
        "present": dict(present),
        **{name: {**_OFF, **preset} for name, preset in PRESETS.items()},
        "plain": dict(_OFF),
    }


def settings_to_try(present: Setting, count: int, seed: int) -> dict[str, Setting]:
    """The rivals, and drawn settings up to count of them, none twice."""
    rng = random.Random(seed)
    found: dict[str, Setting] = {}
    for name, setting in rivals(present).items():
        if setting not in found.values():
            found[name] = setting
    while len(found) < count:
        setting = {name: rng.choice(values) for name, values in _SPACE.items()}
        if setting not in found.values():
            found[f"drawn {len(found)}"] = setting
    return found


def tune(trials: Trials, prompts: Sequence[Prompt], present: Setting, config: TuneConfig) -> Outcome:
    """Race on the first half of the prompts, then check on the second."""
    selection, held_out = prompts[: config.num_selection], prompts[config.num_selection :]
    racing = settings_to_try(present, config.num_settings, config.seed)
    stages: list[list[Trial]] = []
    for num_settings, num_prompts in config.stages():
        if stages:
            racing = {trial.name: trial.setting for trial in stages[-1][:num_settings]}
        some = selection[:num_prompts]
        done = [trials.run(name, setting, "selection", some) for name, setting in racing.items()]
        stages.append(sorted(done, key=lambda trial: trial.gap.value))
    best = stages[-1][0]
    winner = trials.run(best.name, best.setting, "held_out", held_out)
    others = [trials.run(name, s, "held_out", held_out) for name, s in rivals(present).items() if s != best.setting]
    adopted, verdict = judge(winner, next((t for t in others if t.name == "present"), None))
    return Outcome(stages, [winner, *others], adopted, verdict, trials.people(selection, held_out))


def judge(winner: Trial, present: Trial | None) -> tuple[bool, str]:
    """Whether to write the winner, and why in a sentence. present None: the winner is the present setting."""
    if present is None:
        return False, "The present defaults won the race: nothing is written."
    found = difference(winner, present)
    shown = f"gap {found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f}) against the present defaults, held out"
    if found.low > 0:
        return False, f"Worse: {shown}. The present defaults are kept."
    if found.high < 0:
        return True, f"Better: {shown}."
    return True, f"Not shown worse, nor better: {shown}."


def new_generation_config(old: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """generation_config.json with the tuned settings replaced, all stated, and everything else kept."""
    kept = {name: value for name, value in old.items() if name not in TUNED and name != "do_sample"}
    if setting["temperature"] == 0:
        return {**kept, "do_sample": False}
    return {**kept, "do_sample": True, **setting}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.tune_decoding",
        description="Find the decoding defaults that come closest to human text, and write generation_config.json.",
        allow_abbrev=False,
    )
    add, default = parser.add_argument, TuneConfig()
    add("model", help="model folder, or a name in the model store")
    add("--dataset", required=True, help="human text as for training.train: pydoc, a folder, files")
    add("--split", default=default.split, help=f"one of {', '.join(SPLITS)} (default {default.split})")
    for name in ("num_prompts", "prompt_tokens", "continuation_tokens", "num_settings", "num_bootstrap", "seed"):
        value = getattr(default, name)
        add(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    add("--quality-reference", type=Path, help="default: the model's own")
    add("--output", type=Path, help="folder for results and what is found (default runs/decoding-NAME)")
    add("--runner", default="auto", help="auto, native or torch")
    add("--num-threads", type=int, help="threads of the runner (default: its own choice)")
    add("--dry-run", action="store_true", help="print the plan and its cost only")
    return parser


def _protocol(
    model_dir: Path, dataset: dict[str, object], reference_sha256: str, config: TuneConfig, runner: str
) -> str:
    """Identity of everything that decides a trial, besides its setting and prompts' number."""
    weights = {path.name: hash_file(path).sha256 for path in sorted(model_dir.glob("*.safetensors"))}
    shared = {name: value for name, value in asdict(config).items() if name != "num_settings"}
    content = json.dumps([weights, dataset, reference_sha256, shared, runner], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _print_plan(config: TuneConfig, present: Setting) -> None:
    for stage, (settings, prompts) in enumerate(config.stages(), 1):
        print(f"stage {stage}: {settings} settings on {prompts} prompts of the selection half")
    against = rivals(present)
    print(f"held out: the winner against {', '.join(against)} on {config.num_prompts - config.num_selection} prompts")
    print(f"tokens to generate: at most {config.num_tokens(len(against)):,}")
    for name, setting in settings_to_try(present, config.num_settings, config.seed).items():
        print(f"  {name:14} " + "  ".join(f"{key} {value:g}" for key, value in setting.items()))


def _run(arguments: argparse.Namespace) -> int:
    config = TuneConfig(**{name: getattr(arguments, name) for name in TuneConfig.__dataclass_fields__})
    resolved = ModelStore(default_root()).resolve(arguments.model)
    model_dir = Path(resolved.path)
    defaults = default_sampling_params(model_dir)
    present = as_setting(defaults)
    corpus = load_corpus(arguments.dataset)
    prompts = prompts_from(
        corpus.documents[config.split],
        load_tokenizer(model_dir),
        config.num_prompts,
        config.prompt_tokens,
        config.continuation_tokens,
        config.seed,
    )
    scorer = QualityScorer.load(arguments.quality_reference or model_dir)
    if arguments.dry_run:
        _print_plan(config, present)
        return 0
    output = arguments.output or Path("runs") / f"decoding-{resolved.name}-{resolved.version}"
    output.mkdir(parents=True, exist_ok=True)
    continuer = Continuer(model_dir, arguments.runner, arguments.num_threads)
    reference_sha256 = hashlib.sha256(json.dumps(scorer.reference.to_json(), sort_keys=True).encode()).hexdigest()
    kept = {name: getattr(defaults, name) for name in ("top_k", "typical_p", "no_repeat_ngram_size")}
    with tqdm(total=config.num_tokens(len(rivals(present))), unit="tok", unit_scale=True, dynamic_ncols=True) as bar:
        trials = Trials(
            model_dir,
            scorer,
            continuer,
            kept=kept,
            protocol=_protocol(model_dir, corpus.fingerprint(), reference_sha256, config, continuer.runner_name),
            results=output / "results.jsonl",
            seed=config.seed,
            num_bootstrap=config.num_bootstrap,
            progress=bar.update,
        )
        outcome = tune(trials, prompts, present, config)
    facts = {
        **asdict(config),
        "dataset": corpus.fingerprint(),
        "runner": continuer.runner_name,
        "model": arguments.model,
    }
    write_report(outcome, facts, output)
    print((output / "report.md").read_text())
    if outcome.adopted:
        _write_config(model_dir, output, outcome.held_out[0].setting)
    return 0


def _write_config(model_dir: Path, output: Path, setting: Setting) -> None:
    """Into the output folder, and into the model's unless it is published: published folders never change."""
    content = new_generation_config(read_generation_config(model_dir), setting)
    data = (json.dumps(content, indent=2) + "\n").encode()
    replace_file(output / "generation_config.json", data)
    print(f"wrote {output / 'generation_config.json'}")
    if (model_dir / "manifest.json").exists():
        print(f"{model_dir} is published and stays as it is: publish a copy with this file as a new version")
    else:
        replace_file(model_dir / "generation_config.json", data)
        print(f"wrote {model_dir / 'generation_config.json'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 2 after one line for input that cannot be used, 130 after Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    try:
        return _run(parsed)
    except (ValueError, LookupError, OSError) as error:
        print(f"training.tune_decoding: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
