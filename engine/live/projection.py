"""Projections of a set of features, or of one feature, onto the spans of other members: queries of the live engine answered."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from seedscope.engine.contract.masks import unpacked
from seedscope.engine.contract.queries import MAX_CONTROLS, LiveAnswer, LiveQuery
from seedscope.engine.geometry.projection import N_FINE, FittedSpans, default_rank, energy_by_rank, fit_spans, project
from seedscope.engine.geometry.subspaces import Curve, log_ranks


def answer(query: LiveQuery, seeds: Sequence[int], rows: Tensor, without: np.ndarray) -> LiveAnswer:
    """A `project` query over an ensemble's unit rows, one member below the other; `without` are rows without a direction."""
    asked, members, directed = _members(query, seeds, rows, without)
    masks = {name: unpacked(getattr(query, name), *directed.shape) for name in ("rows", "living", "stable")}
    chosen = masks["rows"] & directed
    projection = project(
        members, chosen, living=masks["living"] & directed, stable=masks["stable"] & directed, rank=query.rank
    )
    features = [np.flatnonzero(chosen[member]) for member in projection.members]
    compared = np.array(asked)[projection.members]
    arrays = {
        "ranks": projection.ranks,
        "rank": np.array([projection.rank]),
        "n_splits": np.array([projection.n_splits]),
        "asked": np.array(asked),
        "n_rows": projection.n_rows,
        "n_undirected": (masks["rows"] & ~directed).sum(1),
        "compared": compared,
        "n_fitted": projection.transfer.within.n_fitted,
        "effective_rank": projection.effective_rank,
        "overlap": projection.overlap,
        "seed": np.repeat(compared, [len(each) for each in features]).astype(np.int64),
        "feature": np.concatenate(features).astype(np.int32),
        "own": np.concatenate(projection.own).astype(np.float32),
        "others": np.concatenate(projection.others).astype(np.float32),
    }
    for name in ("within", "cross", "random_set", "stable"):
        curve: Curve | None = getattr(projection.transfer, name)
        if curve is not None:
            arrays[name] = np.stack([curve.mean, curve.spread, curve.n_pairs])
    return LiveAnswer(arrays)


def spans_of(query: LiveQuery, seeds: Sequence[int], rows: Tensor, without: np.ndarray) -> FittedSpans:
    """The spans that a `project_feature` query asks about; those of all features of a set are the same."""
    asked, members, directed = _members(query, seeds, rows, without)
    return fit_spans(members, unpacked(query.rows, *directed.shape) & directed, asked)


def answer_feature(
    query: LiveQuery, seeds: Sequence[int], rows: Tensor, without: np.ndarray, spans: FittedSpans
) -> LiveAnswer:
    """A `project_feature` query: the anchor and its controls in the spans of all members but the anchor's."""
    if query.seed not in seeds:
        raise ValueError(f"seed is {query.seed}, expected one of {', '.join(map(str, seeds)):.200}")
    if len(query.controls) > MAX_CONTROLS:
        raise ValueError(f"found {len(query.controls)} controls, expected at most {MAX_CONTROLS}")
    d_sae, d = len(rows) // len(seeds), rows.shape[1]
    first = seeds.index(query.seed) * d_sae
    for feature in (query.feature, *query.controls):
        if not 0 <= feature < d_sae or first + feature in without:
            raise ValueError(f"feature is {feature}, expected one of 0 to {d_sae - 1} that has a direction")
    others = [at for at, seed in enumerate(spans.members) if seed != query.seed]
    if not others:
        raise ValueError(
            "found no other seed with a feature of this set, expected at least one: take another bucket or more seeds"
        )
    ranks = sorted({*log_ranks(d, N_FINE), *log_ranks(d)})
    vectors = rows[torch.tensor([first + feature for feature in (query.feature, *query.controls)], device=rows.device)]
    energy = energy_by_rank(vectors, [spans.bases[at] for at in others], ranks)
    arrays = {
        "ranks": np.array(ranks),
        "rank": np.array([default_rank(d)]),
        "seed": np.array([spans.members[at] for at in others]),
        "n_rank": np.array([spans.bases[at].rank for at in others]),
        "energy": energy[:, 0],
        "control": energy[:, 1:],
    }
    return LiveAnswer(arrays)


def _members(
    query: LiveQuery, seeds: Sequence[int], rows: Tensor, without: np.ndarray
) -> tuple[tuple[int, ...], Tensor, np.ndarray]:
    """The seeds asked for, their rows (members, d_sae, d) without a copy where all are asked for, and which have a direction."""
    asked = query.members or tuple(seeds)
    if unknown := [seed for seed in asked if seed not in seeds]:
        raise ValueError(f"members has {unknown}, expected seeds among {', '.join(map(str, seeds)):.200}")
    if len(set(asked)) < len(asked):
        raise ValueError(f"members is {asked}, expected each seed once")
    is_directed = np.ones(len(rows), bool)
    is_directed[without] = False
    members, directed = rows.unflatten(0, (len(seeds), -1)), is_directed.reshape(len(seeds), -1)
    if asked == tuple(seeds):
        return asked, members, directed
    at = [seeds.index(seed) for seed in asked]
    return asked, members[at], directed[at]
