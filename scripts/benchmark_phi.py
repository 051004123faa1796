"""Time and memory of the Phi objective, as training applies it, against a training step of tiny_iit.

Run: python scripts/benchmark_phi.py [--steps 60] [--length 256] [--bf16] [--compile]. A plain step and one with the
objective take turns, so that load hits both. Prints medians, the share in per cent with a bootstrap interval, and the
peak memory it adds.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from transformers import LlamaForCausalLM

from model_store.presets import build_model_config
from training.config import TrainConfig
from training.objective import StepObjective

BATCH, VOCAB = 16, 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    parser.add_argument("--bf16", action="store_true", help="autocast the model to bf16")
    parser.add_argument("--compile", action="store_true", help="torch.compile both models")
    options = parser.parse_args()
    torch._dynamo.config.skip_nnmodule_hook_guards = False  # else the two models share one graph, without hooks
    plain, _ = make_step(options, None)
    model = make_model(options.length)
    with StepObjective(model, TrainConfig()) as objective:
        judged, own_seconds = make_step(options, objective, model)
        for _ in range(3):  # warm up: allocation, and compilation
            plain()
        before = peak_mebibytes()
        for _ in range(3):
            judged()
        memory = peak_mebibytes() - before
        own_seconds.clear()
        pairs = [(timed(plain), timed(judged)) for _ in range(options.steps)]
    step, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
    own = statistics.median(own_seconds)
    gaps = [b - a for a, b in pairs]
    gap = statistics.median(gaps)
    interval = stats.bootstrap((gaps,), np.median, random_state=0).confidence_interval
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.steps} steps of {BATCH} x "
        f"{options.length}, bf16 {options.bf16}, compile {options.compile}"
    )
    print(f"plain step {step * 1e3:.1f} ms; with the objective {whole * 1e3:.1f} ms")
    low, high = (100 * end / step for end in interval)
    print(
        f"share by paired difference {100 * gap / step:.2f} % (95 % interval {low:.2f} to {high:.2f}); "
        f"in the objective's own code {100 * own / step:.2f} %"
    )
    print(f"peak memory beyond a second copy of the model and its optimizer: {memory:.0f} MiB at most")


def make_model(length: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(build_model_config("tiny_iit", vocab_size=VOCAB, max_position_embeddings=length))


def make_step(
    options: argparse.Namespace, objective: StepObjective | None, model: LlamaForCausalLM | None = None
) -> tuple[Callable[[], None], list[float]]:
    """A training step of a model of its own, and the seconds that each call spends in the objective's code."""
    model = model or make_model(options.length)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    seconds: list[float] = []

    def cross_entropy(ids_BT: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss

    forward = torch.compile(cross_entropy) if options.compile else cross_entropy

    def step() -> None:
        ids_BT = torch.randint(0, VOCAB, (BATCH, options.length))
        own = 0.0
        if objective is not None:
            own += timed(lambda: objective.prepare(ids_BT))
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = forward(ids_BT)
        if objective is not None:
            own += timed(lambda: objective.add(len(seconds), 1.0))
        loss.backward()
        if objective is not None:
            own += timed(objective.measure)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(own)

    return step, seconds


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
