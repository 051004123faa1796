"""The process that measures Phi of answers: the checkpoint in torch, one forward pass a question. No HTTP, no engine.

Asked over a socket in the server's private folder: one connection a question, a line of JSON each way. It serves one
question after the other; whoever asks limits how long it waits. torch is imported here only, inside the process.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from serve.processes import watch_parent

SOCKET_NAME = "phi.sock"
NICENESS = 10
NUM_DROPPED = 8
"""First positions of the model's input that are left out: they are unlike all later ones."""
HELD_OUT_PROJECTIONS = 20_161_214
"""Seed of the projections of every reported figure; training never draws it."""


def start_phi_process(folder: Path, model_path: Path) -> BaseProcess:
    """Start it beside the server; it ends with it. Its socket is there when this returns."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / SOCKET_NAME))
    listener.listen(64)
    process = multiprocessing.get_context("spawn").Process(
        target=_main, args=(listener, folder, model_path), name="phiserve-phi", daemon=True
    )
    process.start()
    listener.close()
    return process


def _main(listener: socket.socket, folder: Path, model_path: Path) -> None:
    watch_parent(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the main process decides
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # a clean end frees the libraries' semaphores
    os.nice(NICENESS)
    try:
        meter: PhiMeter | None = PhiMeter(model_path)
        why = ""
    except (ValueError, OSError, KeyError) as error:
        meter, why = None, "the model could not be loaded: " + " ".join(str(error).split())
        print(f"phi      not measured: {why}", flush=True)
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):  # whoever asked may have gone
            answer_one(connection, meter, why)


def answer_one(connection: socket.socket, meter: "PhiMeter | None", why: str) -> None:
    """Read one question and write its answer."""
    with connection.makefile("rwb") as stream:
        line = stream.readline()
        if not line.endswith(b"\n"):
            return
        asked = json.loads(line)
        if meter is None:
            answer = unmeasured(why)
        else:
            try:
                answer = meter.measure(asked["prompt_ids"], asked["answer_ids"])
            except (ValueError, RuntimeError, IndexError) as error:  # this question's, not the process'
                answer = unmeasured("Phi could not be measured: " + " ".join(str(error).split()))
        stream.write(json.dumps(answer).encode() + b"\n")


def unmeasured(reason: str, num_pairs: int | None = None) -> dict[str, Any]:
    """The answer without a Phi, in the shape of one with it."""
    return {"phi": None, "null_mean": None, "num_pairs": num_pairs, "cut": None, "reason": reason}


class PhiMeter:
    """Phi of the last layer's units over an answer, rank 1 and lag 1, with projections that training never draws."""

    def __init__(self, model_path: Path) -> None:
        """Raises ValueError, OSError or KeyError if the checkpoint cannot be loaded or has no units to cut."""
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        from iit import HeadProbe

        disable_progress_bar()  # nobody looks at a server's
        torch.set_num_threads(1)
        whole = AutoModelForCausalLM.from_pretrained(
            model_path, trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        self._model = whole.eval().base_model  # logits are not needed
        num_units = HeadProbe(self._model).num_units
        if num_units < 2:
            raise ValueError(f"its last layer has {num_units} attention head: Phi needs at least 2 to cut between")

    def measure(self, prompt_ids: list[int], answer_ids: list[int]) -> dict[str, Any]:
        """phi and null_mean in nats, num_pairs, cut (two lists of heads); phi None and a reason below MIN_PAIRS."""
        import torch

        from iit import MIN_PAIRS, HeadProbe, PhiObjective

        num_dropped = max(0, NUM_DROPPED - len(prompt_ids))
        num_pairs = max(0, len(answer_ids) - num_dropped - 1)
        if num_pairs < MIN_PAIRS:
            return unmeasured(f"too short for Phi: {num_pairs} pairs of tokens, {MIN_PAIRS} are needed", num_pairs)
        with torch.inference_mode(), HeadProbe(self._model) as probe:
            self._model(input_ids=torch.tensor([prompt_ids + answer_ids]), use_cache=False)
            heads_BTKD = probe.read()[:, len(prompt_ids) :]
            generator = torch.Generator().manual_seed(HELD_OUT_PROJECTIONS)
            term = PhiObjective(rank=1, num_dropped=num_dropped)(heads_BTKD, generator)
        return {
            "phi": max(0.0, float(term.phi)),
            "null_mean": term.null_mean,
            "num_pairs": term.num_pairs,
            "cut": [list(part) for part in term.cut],
        }
