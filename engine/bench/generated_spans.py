"""Tables on spans of a generated study: curves by formulas, energies and places of features around them."""

from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from seedscope.engine.bench.generated_features import BLOCK, Behaviour, draw_member, feature_stream
from seedscope.engine.contract.tables.spans import (
    PREDICTION_SETTINGS,
    FeatureSpan,
    SpanCurve,
    SpanMember,
    SpanPair,
    SpanPrediction,
    SpanResidual,
)
from seedscope.engine.geometry.map import MOST
from seedscope.engine.geometry.rows import first_rank
from seedscope.engine.geometry.subspaces import log_ranks
from seedscope.engine.store.database import Writer
from seedscope.engine.store.rows import row_keys

D_IN = 768
RANKS = log_ranks(D_IN)
RANK = first_rank(RANKS, D_IN)  # that pages show first
CLUSTERS = (9_000, 0.04)  # connected components of matches, and the share of the largest
SPAN_REMARKS = [
    "map: features of one seed, drawn at random, and their nearest living ones in every other; coordinates are drawn"
]
_SPANS = 3  # stream of random numbers
# Energy that a span of share s of all directions captures is 1 - (1 - s) ** power.
_POWERS = {"within": 1.75, "cross": 1.6, "random_set": 1.35, "stable": 1.3, "activations": 2.2, "random_subspace": 1.0}
_RESIDUALS = {"stable": 0.35, "unstable": 0.92}  # of a bucket's rows after the first feature
# F1 and AUROC of predicting stability.
_SCORES = dict(
    zip(
        PREDICTION_SETTINGS,
        ((0.82, 0.93), (0.78, 0.9), (0.66, 0.79), (0.6, 0.7), (0.45, 0.55), (0.4, 0.5), (0.52, None)),
        strict=True,
    )
)


class MapSample(NamedTuple):
    """Which features of the first block the map draws: some of one member's, each with its counterpart in all others."""

    concepts: np.ndarray  # indices

    @classmethod
    def draw(cls, n_members: int, n: int) -> Self:
        """As many as make up MOST points, all members together; `n` features are in the block."""
        living = np.flatnonzero(~draw_member(0, 0, n).dead)
        return cls(np.random.default_rng(0).permutation(living)[: max(MOST // n_members, 1)])


def add_feature_spans(writer: Writer, ensemble: str, member: int, block: int, b: Behaviour, sample: MapSample) -> None:
    """A row of FeatureSpan per living feature of a block, with coordinates where the map draws it."""
    n, rng = len(b.dead), feature_stream(_SPANS, member, block)
    drawn = np.zeros(n, bool)
    if block == 0:
        drawn[draw_member(member, 0, n).feature[sample.concepts]] = True
    alive = np.flatnonzero(~b.dead)
    share = np.array(RANKS) / D_IN
    energies = {}
    for name, power in (("own", _POWERS["within"]), ("others", _POWERS["cross"])):
        powers = power * (0.8 + 0.4 * rng.random((len(alive), 1), np.float32))
        energies[name] = (1 - (1 - share.astype(np.float32)) ** powers).astype(np.float32)
    places = {
        name: pa.array(b.place[alive, axis].astype(np.float32), mask=~drawn[alive]) for axis, name in enumerate("xy")
    }
    writer.add(FeatureSpan, row_keys(ensemble, member, block * BLOCK + alive) | energies | places)


def add_span_tables(writer: Writer, ensemble: str, n_members: int, d_sae: int) -> None:
    """Curves, pairs, members, residuals and predictions."""
    share, n, m = np.array(RANKS) / D_IN, len(RANKS), n_members
    curves = {name: 1 - (1 - share) ** power for name, power in _POWERS.items()} | {"overlap": share**0.9}
    for name, mean in sorted(curves.items()):
        exact = name == "random_subspace"
        columns = {
            "curve": [name] * n, "rank": RANKS, "mean": mean, "spread": None if exact else 0.01 * (1 - share),
            "split_spread": 0.004 * (1 - share) if name in ("within", "cross", "random_set") else None,
            "n_pairs": np.full(n, 0 if exact else m * (m - 1)), "n_fitted": np.full(n, 0 if exact else d_sae // 2),
        }  # fmt: skip
        writer.add(SpanCurve, {"ensemble": ensemble} | columns)
    rng = np.random.default_rng(_SPANS)
    seed, other = (index.ravel() for index in np.indices((m, m)))
    same = (seed == other)[:, None]
    noise = 0.01 * rng.standard_normal((m * m, n)) * (1 - share)
    energies = (np.where(same, curves["within"], curves["cross"]) + noise).clip(0, 1)
    overlaps = np.where(same, 1, (curves["overlap"] + noise).clip(0, 1))
    columns = {"seed": seed, "other": other, "energies": energies, "overlaps": overlaps}
    writer.add(SpanPair, {"ensemble": ensemble} | columns | {"angles": np.arccos(np.sqrt(overlaps))})
    _add_members(writer, ensemble, m, d_sae, rng)
    for bucket, first in _RESIDUALS.items():
        k = np.arange(1, 17)
        left = first * k ** (-0.12)
        columns = {
            "bucket": [bucket] * len(k), "k": k, "mean": left, "spread": np.full(len(k), 0.01), "haar": 0.94 * k**-0.1,
            "second_moment": 0.93 * k**-0.11, "n_pairs": np.full(len(k), m * (m - 1)), "n_rows": np.full(len(k), 1000 * m),
        }  # fmt: skip
        writer.add(SpanResidual, {"ensemble": ensemble} | columns)
    chance = PREDICTION_SETTINGS[-1]
    f1, auroc = zip(*_SCORES.values(), strict=True)
    is_chance = [name == chance for name in _SCORES]
    rows = [None if nothing else float(d_sae) for nothing in is_chance]
    spreads = [None if nothing else 0.01 for nothing in is_chance]
    columns = {
        "setting": list(_SCORES), "f1": f1, "f1_spread": spreads, "auroc": list(auroc), "auroc_spread": spreads,
        "n_pairs": [0 if nothing else m * (m - 1) for nothing in is_chance], "n_train": rows, "n_test": rows,
    }  # fmt: skip
    writer.add(SpanPrediction, {"ensemble": ensemble} | columns)


def _add_members(writer: Writer, ensemble: str, m: int, d_sae: int, rng: np.random.Generator) -> None:
    n_stable, n_unstable = d_sae // 3, d_sae // 2
    n_equal = min(n_stable, n_unstable)
    ranks = {"stable": 420.0, "unstable": 610.0, "random": 700.0}
    columns = {"seed": np.arange(m), "n_stable": np.full(m, n_stable), "n_unstable": np.full(m, n_unstable)}
    columns["n_equal"] = np.full(m, n_equal)
    place = np.arange(min(n_equal, D_IN)) / D_IN
    for name, rank in ranks.items():
        columns[f"{name}_equal"] = rank + 3 * rng.standard_normal(m)
        columns[f"{name}_equal_sd"] = np.full(m, 1.5)
        values = np.sqrt(n_equal / D_IN) * np.exp(-place * 900 / rank) * (1 + 0.005 * rng.standard_normal((m, 1)))
        columns[f"{name}_values"] = values
        if name != "random":
            columns[f"{name}_rank"] = rank + 8 + 3 * rng.standard_normal(m)
    writer.add(SpanMember, {"ensemble": ensemble} | columns)
