"""What this machine allows at best: output tokens a second of a Llama model if sampling, attention and HTTP were free.

Run: python scripts/roofline.py MODEL_DIR [--prompt-tokens 64] [--new-tokens 128]. Measures, best of several, the rate
of matrix multiplication in torch at 32 and 512 rows (fp32, bf16) and the rate at which as many bytes as the weights
hold are read (from cache where they fit, else from memory). A step takes at least the longer of the two times,
arithmetic at the 32-row rate; prompts are computed at the 512-row rate, without the head. A bound of this machine and
of torch, not a law: kernels better than torch's may pass it, and then the share of it is above 1.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from serve.engine.model_files import read_config

AT_ONCE = (1, 8, 32)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEAST_SECONDS = 0.02


@dataclass(frozen=True)
class Size:
    """Numbers in the matrices that every token passes: of all layers, and of the head."""

    hidden: int
    body: int
    head: int

    @classmethod
    def of(cls, model_dir: Path) -> "Size":
        """From config.json of a Llama-family model. Raises ValueError where it names no such sizes."""
        config = read_config(model_dir)
        try:
            hidden, heads = config["hidden_size"], config["num_attention_heads"]
            keys = config.get("num_key_value_heads") or heads
            width = config.get("head_dim") or hidden // heads
            layer = hidden * width * (2 * heads + 2 * keys) + 3 * hidden * config["intermediate_size"]
            return cls(hidden, config["num_hidden_layers"] * layer, hidden * config["vocab_size"])
        except KeyError as error:
            raise ValueError(f"config.json of {model_dir} has no {error}; give a Llama-family model") from None

    @property
    def whole(self) -> int:
        return self.body + self.head


@dataclass(frozen=True)
class Rates:
    """Floating-point operations a second at 32 rows and at 512, and bytes of weights read a second."""

    decode: float
    prompt: float
    read: float

    @classmethod
    def measure(cls, size: Size, dtype: torch.dtype) -> "Rates":
        num_bytes = dtype.itemsize * size.whole
        return cls(gemm_rate(32, size.hidden, dtype), gemm_rate(512, size.hidden, dtype), read_rate(num_bytes))


def bound(size: Size, rates: Rates, width: int, at_once: int, prompt: int, new: int) -> tuple[float, str]:
    """Output tokens a second at most with `at_once` requests, and what limits a step: "compute" or "reading".

    width: bytes of a weight. prompt, new: tokens of each request.
    """
    compute = 2 * at_once * size.whole / rates.decode
    reading = width * size.whole / rates.read
    prompts = at_once * prompt * 2 * size.body / rates.prompt
    return at_once * new / (new * max(compute, reading) + prompts), "compute" if compute > reading else "reading"


def gemm_rate(rows: int, hidden: int, dtype: torch.dtype) -> float:
    """Floating-point operations a second of (rows, hidden) x (hidden, 4 hidden)."""
    x_RH, weight_OH = torch.randn(rows, hidden, dtype=dtype), torch.randn(4 * hidden, hidden, dtype=dtype)
    return 2 * rows * weight_OH.numel() / best_seconds(lambda: torch.nn.functional.linear(x_RH, weight_OH))


def read_rate(num_bytes: int) -> float:
    """Bytes a second of reading a buffer of that size again and again."""
    buffer = torch.ones(num_bytes // 4)
    return num_bytes / best_seconds(buffer.sum)


def best_seconds(work: Callable[[], object], tries: int = 7) -> float:
    """Least seconds of one call, over several tries that each repeat it long enough to be timed."""
    work()
    started = time.perf_counter()
    work()
    repeats = max(1, round(LEAST_SECONDS / (time.perf_counter() - started)))
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        seconds.append((time.perf_counter() - started) / repeats)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    args = parser.parse_args()
    try:
        size = Size.of(args.model)
    except ValueError as error:
        parser.error(str(error))
    print(
        f"load before: {os.getloadavg()[0]:.2f}; torch {torch.__version__}; threads {torch.get_num_threads()}; "
        f"{size.whole / 1e6:.1f} M in matrices; memory, 512 MB read: {read_rate(512 << 20) / 1e9:.1f} GB/s\n"
    )
    print("| dtype | at once | GFLOP/s at 32 rows | weights read, GB/s | tokens/s at most | limited by |")
    print("|---|---|---|---|---|---|")
    for name, dtype in DTYPES.items():
        rates = Rates.measure(size, dtype)
        for at_once in AT_ONCE:
            most, limit = bound(size, rates, dtype.itemsize, at_once, args.prompt_tokens, args.new_tokens)
            print(f"| {name} | {at_once} | {rates.decode / 1e9:.0f} | {rates.read / 1e9:.1f} | {most:,.0f} | {limit} |")


if __name__ == "__main__":
    main()
