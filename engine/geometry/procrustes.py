"""The rotation that lays one model's activations over another's: orthogonal Procrustes with one scale, judged on rows left out."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seedscope.engine.activations.shards import Shards

Rows = np.ndarray | Shards  # read by the batch: those of several models do not fit into memory together

BLOCK = 1024  # consecutive rows that are left out together: neighbours stand in one text and are alike
EVERY = 5  # one block of so many is left out of the fit
AT_ONCE = 65_536  # rows that are read at once


@dataclass(frozen=True)
class Alignment:
    """Rows x of one space go to (x - mean_from) @ rotation * scale + mean_to in the other."""

    rotation: Float[Tensor, "d d"]  # orthogonal
    scale: float
    mean_from: Float[Tensor, " d"]
    mean_to: Float[Tensor, " d"]
    r2: float  # share of the other space's variance that aligned rows explain, on the rows left out; at most 1
    r2_shuffled: float  # the same of a fit to rows of other tokens: what chance explains

    def apply(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """These rows in the other space."""
        return (rows - self.mean_from) @ self.rotation * self.scale + self.mean_to


def align(rows: Rows, onto: Rows, *, seed: int = 0) -> Alignment:
    """Fit rows (n, d) onto the rows (n, d) of the same tokens in another space.

    The orthogonal R and the scale s that minimise ||s (A - mean) R - (B - mean)||, from the singular vectors of the cross
    covariance (Schönemann 1966). Fitted without every fifth block of 1,024 rows, judged on those. Raises ValueError for arrays of
    different shapes or without rows for both.
    """
    if rows.shape != onto.shape:
        raise ValueError(
            f"found activations of {rows.shape} and {onto.shape}, expected the same tokens and the same width"
        )
    held_out = np.arange(len(rows)) // BLOCK % EVERY == EVERY - 1
    fitted, judged = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    if not len(judged):
        raise ValueError(
            f"found {len(rows):,} rows, expected at least {BLOCK * (EVERY - 1) + 1:,} to align models; add tokens"
        )
    shuffled = np.random.default_rng(seed).permutation(fitted)
    mean_from, mean_to = _mean(rows, fitted), _mean(onto, fitted)
    truth = _fit(rows, fitted, onto, fitted, mean_from, mean_to)
    chance = _fit(rows, fitted, onto, shuffled, mean_from, mean_to)
    r2 = [_explained(rows, onto, judged, rotation * scale, mean_from, mean_to) for rotation, scale in (truth, chance)]
    return Alignment(truth[0].float(), truth[1], mean_from.float(), mean_to.float(), *r2)


def _batch(rows: Rows, index: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(rows[index])).double()


def _mean(rows: Rows, index: np.ndarray) -> Tensor:
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for begin in range(0, len(index), AT_ONCE):
        total += _batch(rows, index[begin : begin + AT_ONCE]).sum(0)
    return total / len(index)


def _fit(
    rows: Rows, at: np.ndarray, onto: Rows, onto_at: np.ndarray, mean_from: Tensor, mean_to: Tensor
) -> tuple[Tensor, float]:
    """(rotation, scale) from the pairs of rows at two lists of places."""
    cross, size = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64), 0.0
    for begin in range(0, len(at), AT_ONCE):
        a = _batch(rows, at[begin : begin + AT_ONCE]) - mean_from
        b = _batch(onto, onto_at[begin : begin + AT_ONCE]) - mean_to
        cross += a.T @ b
        size += float(a.square().sum())
    left, values, right = torch.linalg.svd(cross)
    return left @ right, float(values.sum()) / size if size else 0.0


def _explained(rows: Rows, onto: Rows, index: np.ndarray, turn: Tensor, mean_from: Tensor, mean_to: Tensor) -> float:
    missed = total = 0.0
    for begin in range(0, len(index), AT_ONCE):
        some = index[begin : begin + AT_ONCE]
        b = _batch(onto, some) - mean_to
        missed += float((b - (_batch(rows, some) - mean_from) @ turn).square().sum())
        total += float(b.square().sum())
    return 1 - missed / total if total else 0.0
