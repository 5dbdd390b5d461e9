"""SAEs that share planted spans: every seed tiles each span its own way, so that no feature comes back and the span does."""

import numpy as np
import torch

from seedscope.engine.saes import sae

RANKS = (10, 8)
PER_DIRECTION = 2  # features per direction of a span, in every seed


def members_that_share_spans(
    *,
    members: int = 5,
    d_in: int = 128,
    ranks: tuple[int, ...] = RANKS,
    n_noise: int = 40,
    n_shared: int = 20,
    k: int = 24,
    seed: int = 0,
) -> sae.SAE:
    """Untrained SAEs: features 0 .. 2 r - 1 tile the first span, and so on; then noise, then rows that all seeds share."""
    rng = np.random.default_rng(seed)
    spans = [np.linalg.qr(rng.standard_normal((d_in, rank)))[0] for rank in ranks]
    shared = rng.standard_normal((n_shared, d_in))
    rows = np.stack(
        [
            np.concatenate(
                [
                    *(rng.standard_normal((PER_DIRECTION * span.shape[1], span.shape[1])) @ span.T for span in spans),
                    rng.standard_normal((n_noise, d_in)),
                    shared,
                ]
            )
            for _ in range(members)
        ]
    )
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    zeros = np.zeros((members, rows.shape[1])), np.zeros((members, d_in))
    tensors = [rows.transpose(0, 2, 1), zeros[0], rows, zeros[1]]
    return sae.SAE(
        *(torch.from_numpy(np.ascontiguousarray(t, np.float32)) for t in tensors), k=k, seeds=tuple(range(members))
    )


def planted_block(feature: int, ranks: tuple[int, ...] = RANKS) -> int | None:
    """Which span a feature tiles; None for the others."""
    ends = np.cumsum([PER_DIRECTION * rank for rank in ranks])
    at = int(np.searchsorted(ends, feature, side="right"))
    return at if at < len(ends) else None
