"""Nearest features of any feature in any member: one product with resident directions, the k largest of each row."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seedscope.engine.contract.queries import LiveAnswer, LiveQuery

BLOCK = 2048  # rows multiplied at once on a CPU; 32 queries with a whole member of 16,384 take MKL 40 % longer
GROUP = 32  # features that share one maximum in the search for the k largest
SCORES = {"cpu": 2**19, "cuda": 2**28}  # that exist at once: what stays in a CPU's cache, what a GPU can spare


class Resident(NamedTuple):
    """Unit rows of all members of an ensemble, one member below the other; rows without a direction are zero."""

    seeds: tuple[int, ...]
    rows: Float[Tensor, "features d_in"]
    without: Int[np.ndarray, " some"]  # rows that have no direction, ascending

    @property
    def d_sae(self) -> int:
        return len(self.rows) // len(self.seeds)


def neighbours(resident: Resident, queries: list[LiveQuery]) -> list[LiveAnswer]:
    """The k nearest features of every query's feature, in each of its members, from one read of the members asked for.

    Cost: the bytes of those members' rows at memory bandwidth while few queries share the read, 2 d_in FLOPs per row and
    query where many do. The queries must be valid.
    """
    rows, d_sae = resident.rows, resident.d_sae
    place = {seed: member for member, seed in enumerate(resident.seeds)}
    anchors = np.array([place[query.seed] * d_sae + query.feature for query in queries])
    columns = rows[torch.from_numpy(anchors).to(rows.device)]
    if len(queries) == 1 and not rows.is_cuda:
        columns = columns.repeat(2, 1)  # MKL multiplies with two columns at memory bandwidth, with one on one core
    absolute = torch.tensor([query.absolute for query in queries], device=rows.device).expand(len(columns))
    depth = min(max(query.k for query in queries), d_sae)
    wanted = sorted({place[seed] for query in queries for seed in query.members or resident.seeds})
    at_once = max(SCORES[rows.device.type] // (d_sae * len(columns)), 1)
    scores = rows.new_empty(min(at_once, len(wanted)) * d_sae, len(columns))
    parts = []
    for run in _runs(wanted, at_once):
        first, last = run[0] * d_sae, (run[-1] + 1) * d_sae
        _multiply(rows[first:last], columns, scores[: last - first])
        hidden = resident.without[slice(*np.searchsorted(resident.without, (first, last)))] - first
        parts.append(_nearest(scores[: last - first], absolute, hidden, anchors - first, d_sae, depth))
    feature, cosine, key = (np.concatenate(part)[:, :, : len(queries)] for part in zip(*parts, strict=True))
    order = np.lexsort((feature, -key), axis=1)
    feature, cosine, key = (np.take_along_axis(part, order, 1) for part in (feature, cosine, key))
    answers = []
    for i, query in enumerate(queries):
        seeds = query.members or resident.seeds
        at = np.searchsorted(wanted, [place[seed] for seed in seeds])
        exists = np.isfinite(key[at, : query.k, i])
        arrays = {
            "seed": np.broadcast_to(np.array(seeds, np.int64)[:, None], exists.shape)[exists],
            "feature": feature[at, : query.k, i][exists].astype(np.int32),
            "cosine": cosine[at, : query.k, i][exists].clip(-1, 1),
        }
        answers.append(LiveAnswer(arrays))
    return answers


def _multiply(rows: Tensor, columns: Tensor, out: Tensor) -> None:
    """rows @ columns.T into `out`; on a CPU block by block."""
    block = len(rows) if rows.is_cuda else BLOCK
    for first in range(0, len(rows), block):
        torch.mm(rows[first : first + block], columns.T, out=out[first : first + block])


def _nearest(
    scores: Tensor, absolute: Tensor, hidden: np.ndarray, anchors: np.ndarray, d_sae: int, depth: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(feature, cosine, key) of the `depth` largest keys of every member and query, each (members, depth, queries).

    `scores` (members * d_sae, queries) may be overwritten. Hidden rows and every query's own anchor have the key -inf.
    """
    keys = torch.where(absolute, scores.abs(), scores) if absolute.any() else scores
    if len(hidden):
        keys[torch.from_numpy(hidden)] = -torch.inf
    own = np.flatnonzero((anchors >= 0) & (anchors < len(keys)))
    if len(own):
        keys[torch.from_numpy(anchors[own]), torch.from_numpy(own)] = -torch.inf
    keys, scores = (tensor.unflatten(0, (-1, d_sae)) for tensor in (keys, scores))
    if d_sae % GROUP or d_sae < 4 * depth * GROUP:
        largest, at = keys.topk(depth, dim=1)
    else:
        groups = keys.unflatten(1, (-1, GROUP)).amax(2).topk(depth, dim=1, sorted=False).indices
        inside = groups[:, :, None] * GROUP + torch.arange(GROUP, device=keys.device)[:, None]
        inside = inside.flatten(1, 2)
        largest, at = keys.gather(1, inside).topk(depth, dim=1)
        at = inside.gather(1, at)
    feature, cosine, key = (tensor.cpu().numpy() for tensor in (at, scores.gather(1, at), largest))
    return feature, cosine, key


def _runs(members: list[int], longest: int) -> Iterator[list[int]]:
    """Ascending members cut into runs of neighbours."""
    run: list[int] = []
    for member in members:
        if run and (member != run[-1] + 1 or len(run) == longest):
            yield run
            run = []
        run.append(member)
    yield run
