"""Build a lexicon from a corpus. Needs torch and scikit-learn (the `train` extra); never imported while serving."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.quality.context_model import fit_context_model
from serve.quality.lexicon import LETTERS, SHAPES, FloatArray, Lexicon, letter_codes, shape_of
from serve.quality.words import split_pieces

NUM_WORDS = 6000
NUM_SINGLE = 80
"""The commonest words and marks, classes of their own."""
NUM_CLUSTERS = 70
NUM_GROUPS = 36
_CONTEXTS = 300
_LETTER_CHARACTERS = 4_000_000


def fit_lexicon(texts: Sequence[str], seed: int = 0, context_steps: int = 700) -> Lexicon:
    """texts: documents or large parts of documents, some 100,000 words at least; deterministic in (texts, seed)."""
    pieces = [piece for text in texts for piece in split_pieces(text)]
    lowered = [piece.lower() for piece in pieces]
    counts = Counter(lowered)
    words = tuple(word for word, count in counts.most_common(NUM_WORDS) if count >= 3 and " " not in word)
    if len(words) <= NUM_SINGLE:
        raise ValueError(f"the corpus has {len(words)} words seen 3 times: give at least 100,000 words of text")
    index = {word: i for i, word in enumerate(words)}
    shapes = {name: len(words) + i for i, name in enumerate(SHAPES)}
    ids = np.array(
        [index[low] if low in index else shapes[shape_of(piece)] for piece, low in zip(pieces, lowered, strict=True)],
        dtype=np.intp,
    )
    classes = _word_classes(ids, len(words), seed)
    num_classes = int(classes.max()) + 1
    class_ids = classes[ids]
    pair_counts = _count((class_ids[:-1], class_ids[1:]), num_classes)
    group = _groups(pair_counts, seed)
    frequency = np.array([counts[word] for word in words]) / len(lowered)
    return Lexicon(
        words=words,
        word_class=classes[: len(words)],
        word_log_frequency=np.maximum(np.log(frequency), -25.0),
        shape_class={name: int(classes[shapes[name]]) for name in SHAPES},
        group=group,
        pair_C_C=_pair_table(pair_counts),
        triple_G_G_G=_triple_table(group[class_ids]),
        letter_L_L_L=_letter_table("\n".join(texts)[:_LETTER_CHARACTERS]),
        log_share_C=np.log((pair_counts.sum(0) + 0.5) / (pair_counts.sum() + 0.5 * num_classes)),
        context=fit_context_model(class_ids, num_classes, seed, context_steps),
    )


def _count(columns: tuple[NDArray[np.intp], ...], size: int) -> FloatArray:
    flat = columns[0]
    for column in columns[1:]:
        flat = flat * size + column
    return np.bincount(flat, minlength=size ** len(columns)).reshape((size,) * len(columns)).astype(np.float64)


def _word_classes(ids: NDArray[np.intp], num_words: int, seed: int) -> NDArray[np.intp]:
    """Class of every word and shape. Words beyond the singles: by neighbours (PPMI, SVD, k-means)."""
    from sklearn.cluster import KMeans

    total = num_words + len(SHAPES)
    context = np.where(ids < _CONTEXTS, ids, np.where(ids >= num_words, ids - num_words + _CONTEXTS, -1))
    width = _CONTEXTS + len(SHAPES)
    sides = []
    for centre, neighbour in ((ids[1:], context[:-1]), (ids[:-1], context[1:])):
        kept = neighbour >= 0
        flat = np.bincount(centre[kept] * width + neighbour[kept], minlength=total * width)
        sides.append(flat.reshape(total, width).astype(np.float64))
    seen = np.concatenate(sides, axis=1) + 0.1
    ppmi = np.maximum(0.0, np.log(seen * seen.sum() / seen.sum(1, keepdims=True) / seen.sum(0, keepdims=True)))
    clustered = ppmi[NUM_SINGLE:num_words]
    left, values, _ = np.linalg.svd(clustered - clustered.mean(0), full_matrices=False)
    vectors = left[:, :50] * np.sqrt(values[:50])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
    clusters = min(NUM_CLUSTERS, len(vectors) // 2)
    labels = KMeans(clusters, n_init=2, random_state=seed).fit_predict(vectors)
    shapes = NUM_SINGLE + clusters + np.arange(len(SHAPES))
    return np.concatenate([np.arange(NUM_SINGLE), NUM_SINGLE + labels, shapes]).astype(np.intp)


def _groups(pair_counts: FloatArray, seed: int) -> NDArray[np.intp]:
    """Coarse groups of classes that stand in like places, for the triples. The commonest classes stay alone."""
    from sklearn.cluster import KMeans

    both = np.concatenate([pair_counts, pair_counts.T], axis=1) + 0.5
    profile = np.log(both / both.sum(1, keepdims=True))
    common = np.argsort(-pair_counts.sum(1), kind="stable")[: NUM_GROUPS // 3]
    rest = np.setdiff1d(np.arange(len(profile)), common)
    labels = KMeans(NUM_GROUPS - len(common), n_init=4, random_state=seed).fit_predict(profile[rest])
    group = np.empty(len(profile), dtype=np.intp)
    group[common] = np.arange(len(common))
    group[rest] = len(common) + labels
    return group


def _pair_table(counts: FloatArray, prior: float = 20.0) -> FloatArray:
    """log p(c2|c1)/p(c2), shrunk towards 0 as if c1 had been seen `prior` times more before anything."""
    base = (counts.sum(0) + 0.5) / (counts.sum() + 0.5 * len(counts))
    conditional = (counts + prior * base) / (counts.sum(1, keepdims=True) + prior)
    table: FloatArray = np.log(conditional / base)
    return table


def _triple_table(groups: NDArray[np.intp], prior: float = 20.0) -> FloatArray:
    """log p(g3|g1 g2)/p(g3|g2), shrunk likewise."""
    counts = _count((groups[:-2], groups[1:-1], groups[2:]), int(groups.max()) + 1)
    pairs = counts.sum(0)
    base = (pairs + 0.5) / (pairs + 0.5).sum(1, keepdims=True)
    conditional = (counts + prior * base[None]) / (counts.sum(2, keepdims=True) + prior)
    table: FloatArray = np.log(conditional / base[None])
    return table


def _letter_table(text: str) -> FloatArray:
    """log p(letter | two before), clipped at -6.3 nats by the int8 tables."""
    codes = letter_codes(text)
    counts = _count((codes[:-2], codes[1:-1], codes[2:]), LETTERS)
    pairs = counts.sum(0) + 0.05
    base = pairs / pairs.sum(1, keepdims=True)
    conditional = (counts + 2.0 * base[None]) / (counts.sum(2, keepdims=True) + 2.0)
    table: FloatArray = np.maximum(np.log(conditional), -6.3)
    return table
