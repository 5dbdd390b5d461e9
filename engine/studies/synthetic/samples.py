"""Synthetic samples as analyses read them: rows, and for each a token named after its strongest true feature."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import sparse

from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.studies.synthetic.generator import EVALUATION, SyntheticConfig, draw_samples, draw_truth

BLOCK = 128  # samples of a document, which is one window
NOTHING = " nothing"  # the token of a sample in which no true feature is active


class Labelled(NamedTuple):
    """Evaluation samples under the names of their strongest true features."""

    rows: Float[np.ndarray, "samples d"]
    tokens: TokenSet
    texts: list[str]  # of every id: true features in their order, then NOTHING


def draw_rows(samples: SyntheticConfig, n: int, *, stream: int) -> Float[np.ndarray, "n d"]:
    """The first n samples of a stream as one array, float32; 4 n d_in bytes."""
    rows, done = np.empty((n, samples.d_in), np.float32), 0
    for some in draw_samples(samples, n, stream=stream):
        rows[done : done + len(some.rows)] = some.rows
        done += len(some.rows)
    return rows


def label(samples: SyntheticConfig, n: int) -> Labelled:
    """The first n evaluation samples, cut into documents of BLOCK samples, the last one shorter."""
    drawn = list(draw_samples(samples, n, stream=EVALUATION))
    strongest = np.concatenate([_strongest(each.codes) for each in drawn])
    n_blocks = -(-n // BLOCK)
    ids = np.full(n_blocks * BLOCK, -1, np.int32)
    ids[:n] = strongest
    tokens = TokenSet(
        ids.reshape(n_blocks, BLOCK),
        document=np.arange(n_blocks, dtype=np.int32),
        start=np.zeros(n_blocks, np.int32),
        names=[f"block {i}" for i in range(n_blocks)],
        bos=None,
    )
    texts = [f" {name}" for name in draw_truth(samples).names] + [NOTHING]
    return Labelled(np.concatenate([each.rows for each in drawn]), tokens, texts)


def _strongest(codes: sparse.csr_matrix) -> np.ndarray:
    """Each row's largest column; the number of columns where it has none."""
    largest = np.asarray(codes.argmax(1)).ravel()
    return np.where(np.diff(codes.indptr) > 0, largest, codes.shape[1]).astype(np.int32)
