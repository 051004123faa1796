"""A tiny network that guesses the class of the next word from the eight before it: numpy, about 20,000 int8 weights.

It knows what a pair or triple of words cannot show: whether a sentence holds together. Text that is right pair by pair
but wrong beyond (a Markov chain's, an undertrained model's) gains nothing from the longer context; human text does.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTEXT = 8
"""Words and marks it looks back on."""
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class ContextModel:
    """embedding (C, E); hidden (CONTEXT * E, H) and its bias (H,); output (H, C) and its bias (C,). C classes."""

    embedding: FloatArray
    hidden: FloatArray
    hidden_bias: FloatArray
    output: FloatArray
    output_bias: FloatArray

    def log_probabilities(self, classes: NDArray[np.intp], at: NDArray[np.intp]) -> FloatArray:
        """log p(classes[i] | the CONTEXT before) for each i of `at`, all >= CONTEXT; nats."""
        # Row i of the view is the embeddings of classes[i : i + CONTEXT] end to end: one gather instead of one a word.
        embedded = self.embedding.take(classes, axis=0)
        width = embedded.shape[1] * CONTEXT
        step, item = embedded.strides
        view = np.ndarray((len(classes) - CONTEXT + 1, width), embedded.dtype, embedded, 0, (step, item))
        x = view.take(at - CONTEXT, axis=0) @ self.hidden
        x += self.hidden_bias
        np.maximum(x, 0.0, out=x)
        logits = x @ self.output
        logits += self.output_bias
        chosen = logits[np.arange(len(at)), classes[at]]
        # Weights are bounded, so these logits are far below float32's 88.
        np.exp(logits, out=logits)
        result: FloatArray = chosen - np.log(logits @ np.ones(logits.shape[1], dtype=np.float32))
        return result

    def arrays(self) -> dict[str, FloatArray]:
        """By field name, in the order of the fields."""
        return {name: getattr(self, name) for name in ContextModel.__dataclass_fields__}


_BACK = np.arange(CONTEXT, 0, -1)


def fit_context_model(classes: NDArray[np.intp], num_classes: int, seed: int, steps: int) -> ContextModel:
    """Train it on the classes of a corpus in order (Adam, cross-entropy); loads torch. Deterministic on one machine."""
    import torch

    embed, hidden, batch, rate = 16, 48, 4096, 3e-3
    draw = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> Any:
        return (torch.randn(shape, generator=draw) / max(1, shape[0]) ** 0.5).requires_grad_()

    e, w1, w2 = weight(num_classes, embed), weight(CONTEXT * embed, hidden), weight(hidden, num_classes)
    with torch.no_grad():
        e *= num_classes**0.5
    b1, b2 = torch.zeros(hidden, requires_grad=True), torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.Adam([e, w1, b1, w2, b2], lr=rate)
    sequence, back = torch.from_numpy(classes.astype(np.int64)), torch.from_numpy(_BACK)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        at = torch.randint(CONTEXT, len(sequence), (batch,), generator=draw)
        x = torch.relu(e[sequence[at[:, None] - back]].flatten(1) @ w1 + b1)
        loss = torch.nn.functional.cross_entropy(x @ w2 + b2, sequence[at])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return ContextModel(*(p.detach().numpy().astype(np.float32) for p in (e, w1, b1, w2, b2)))
