"""Time and memory of the Phi objective against a training step of tiny_iit's shape, interleaved so that load hits both.

Run: python scripts/benchmark_phi.py [--steps 10] [--bf16]. Prints medians and the share in per cent.
"""

import argparse
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from iit import HeadProbe, PhiObjective

BATCH, LENGTH, VOCAB = 16, 256, 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--bf16", action="store_true", help="autocast the model to bf16")
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 768}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, tie_word_embeddings=True, **shape))
    optimizer = torch.optim.AdamW(model.parameters())
    generator, objective = torch.Generator().manual_seed(0), PhiObjective()
    steps, terms = [], []
    with HeadProbe(model) as probe:
        for _ in range(options.steps + 2):
            token_ids = torch.randint(0, VOCAB, (BATCH, LENGTH))
            begin = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                model(input_ids=token_ids, labels=token_ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps.append(time.perf_counter() - begin)
            heads = probe.read().detach().requires_grad_()
            begin = time.perf_counter()
            (-objective(heads, generator).phi01).backward()
            terms.append(time.perf_counter() - begin)
    step, term = statistics.median(steps[2:]), statistics.median(terms[2:])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.steps} steps, bf16 {options.bf16}")
    print(f"step {step * 1e3:.1f} ms, objective {term * 1e3:.2f} ms, share {100 * term / step:.2f} %")


if __name__ == "__main__":
    main()
