"""What reduced precision costs in bits per byte, by the native runner's own logits on held-out text.

Run: python scripts/measure_precision.py MODEL_DIR TEXT [--context 512] [--windows N]. Each window of the text is fed
token by token, as a decode does, and every next token's log-probability is read from the logits the engine would sample
from. Prints each dtype's bits per byte and the paired difference to float32, with its 95 % interval over windows.
Not a timing: it may run beside other work.
"""

import argparse
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from serve.engine.loader import load_tokenizer
from serve.engine.native_runner import NativeRunner, load_native_runner
from serve.engine.request import SamplingParams
from serve.engine.runner import BLOCK_SIZE, RunnerOptions, StepBatch

SLOTS = 32


def nats_of_windows(runner: NativeRunner, windows_WT: NDArray[np.int32]) -> NDArray[np.float64]:
    """Cross-entropy of each window of T tokens, its first token given: nats, (W,)."""
    num_blocks = -(-(windows_WT.shape[1] - 1) // BLOCK_SIZE)
    tables = np.arange(SLOTS * num_blocks, dtype=np.int32).reshape(SLOTS, num_blocks)
    groups = [windows_WT[start : start + SLOTS] for start in range(0, len(windows_WT), SLOTS)]
    return np.concatenate([_nats_of_group(runner, group, tables) for group in track(groups, f"{runner.dtype:17}")])


def _nats_of_group(runner: NativeRunner, ids_BT: NDArray[np.int32], tables: NDArray[np.int32]) -> NDArray[np.float64]:
    slots = np.arange(len(ids_BT), dtype=np.int32)
    for slot in slots.tolist():
        runner.add_request(slot, ids_BT[slot, :1].tolist(), SamplingParams(max_new_tokens=1, temperature=0.0), 0)
    ones, sample = np.ones(len(slots), np.int32), np.ones(len(slots), np.uint8)
    nats = np.zeros(len(slots))
    for t in range(ids_BT.shape[1] - 1):
        column = np.ascontiguousarray(ids_BT[:, t])
        batch = StepBatch(slots, ones, np.full(len(slots), t, np.int32), column, sample, tables, len(slots))
        _, logits_BV = runner.logits(batch)
        largest = logits_BV.max(axis=1, keepdims=True)
        totals = np.log(np.exp(logits_BV - largest).sum(axis=1, dtype=np.float64)) + largest[:, 0]
        nats += totals - logits_BV[slots, ids_BT[:, t + 1]]
    for slot in slots.tolist():
        runner.remove_request(slot)
    return nats


def windows_of(ids: list[int], context: int) -> NDArray[np.int32]:
    """Whole windows that overlap by one token, so that each token is predicted once: (W, context + 1)."""
    count = (len(ids) - 1) // context
    return np.array([ids[w * context : (w + 1) * context + 1] for w in range(count)], np.int32)


def report(nats: dict[str, NDArray[np.float64]], bytes_W: NDArray[np.int64], num_tokens: int) -> Iterator[str]:
    """A line a dtype: bits per byte, the difference to float32 and its 95 % interval over windows."""
    scale = len(bytes_W) / math.log(2) / bytes_W.sum()
    for dtype, nats_W in nats.items():
        difference_W = (nats_W - nats["float32"]) * scale
        error = 1.96 * difference_W.std(ddof=1) / math.sqrt(len(difference_W))
        yield (
            f"{dtype:9} {nats_W.mean() * scale:.5f} bits per byte; less float32 {difference_W.mean():+.6f} "
            f"+- {error:.6f} (n = {len(bytes_W)} windows, {num_tokens} tokens, {bytes_W.sum()} bytes)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, help="only the first so many")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if "float32" not in args.dtypes:
        parser.error("dtypes: float32 is what the others are compared with; name it too")
    data = args.text.read_bytes()
    tokenizer = load_tokenizer(args.model)
    windows_WT = windows_of(tokenizer.encode(data.decode()).ids, args.context)[: args.windows]
    # The bytes a window predicts are those of all its tokens but the first.
    bytes_W = np.array([len(tokenizer.decode(w[1:], skip_special_tokens=True).encode()) for w in windows_WT.tolist()])
    print(f"{args.model} on {args.text.name}, SHA-256 {hashlib.sha256(data).hexdigest()[:12]}, context {args.context}")
    nats = {}
    for dtype in args.dtypes:
        options = RunnerOptions(max_slots=SLOTS, max_model_len=args.context, dtype=dtype, num_threads=args.threads)
        nats[dtype] = nats_of_windows(load_native_runner(args.model, options), windows_WT)
    for line in report(nats, bytes_W, windows_WT.shape[0] * args.context):
        print(line)


if __name__ == "__main__":
    main()
