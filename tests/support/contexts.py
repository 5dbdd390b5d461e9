"""A small token set and contexts of features that are made for it, found by hand."""

import numpy as np

from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.features.examples import HALVES, KINDS, LENGTH, Examples

TEXTS = [" cat", " dog", " the", " a", " sat", " ran", " on", " mat", "\n", " <<", ">>", " é"]
ID = {text.strip() or text: i for i, text in enumerate(TEXTS)}
CAT, DOG, BLIND, SECOND, DEAD = range(5)
N_FEATURES = 5


def make_tokens(*, windows: int = 120, n_ctx: int = 32, seed: int = 0) -> TokenSet:
    """Random words; a cat and a dog stand in about a third of all contexts. One document per four windows."""
    rng = np.random.default_rng(seed)
    p = np.array([0.025, 0.025, *[0.95 / 10] * 10])
    ids = rng.choice(len(TEXTS), (windows, n_ctx), p=p).astype(np.int32)
    document = np.arange(windows, dtype=np.int32) // 4
    start = (np.arange(windows, dtype=np.int32) % 4) * n_ctx
    return TokenSet(ids, document, start, [f"d{i}" for i in range(windows // 4)], None)


def fires(tokens: TokenSet, feature: int) -> np.ndarray:
    """Where a feature is active: on cats, on dogs, anywhere at random, on dogs behind `the` or `a`, never."""
    ids = tokens.ids.reshape(-1)
    before = np.r_[-1, ids[:-1]]
    at_random = np.random.default_rng(1).random(len(ids)) < 0.03
    article = (before == ID["the"]) | (before == ID["a"])
    none = np.zeros(len(ids), bool)
    return (ids == ID["cat"], ids == ID["dog"], at_random, (ids == ID["dog"]) & article, none)[feature]


def make_examples(tokens: TokenSet, *, most: int = 20) -> Examples:
    """Contexts of all features: even documents are shown, odd ones scored."""
    ids, n_ctx = tokens.ids.reshape(-1), tokens.ids.shape[1]
    starts = np.arange(0, len(ids), LENGTH)
    half_of = (tokens.document[starts // n_ctx] % 2).astype(np.uint8)
    rows = []
    for feature in range(N_FEATURES):
        active = fires(tokens, feature)
        alike = np.isin(ids, np.unique(ids[active])) if feature == SECOND else np.zeros(len(ids), bool)
        value = active * (1 + (np.arange(len(ids)) * 37 % 11))
        for half in range(len(HALVES)):
            for kind in range(len(KINDS)):
                kept = 0
                for start in starts[half_of == half]:
                    part = slice(start, start + LENGTH)
                    here = 0 if active[part].any() else 1 if alike[part].any() else 2
                    if here == kind and kept < (most // 2 if feature == SECOND and kind else most):
                        kept += 1
                        mask = int((active[part] << np.arange(LENGTH)).sum())
                        peak_at = int(value[part].argmax()) * (kind == 0)
                        rows.append((feature, half, kind, start, LENGTH, mask, value[part].max(), peak_at))
    kinds = (np.int32, np.uint8, np.uint8, np.int64, np.uint8, np.uint16, np.float32, np.uint8)
    return Examples(*(np.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)))
