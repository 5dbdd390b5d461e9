"""What the small study's store says of spans, against decoders, buckets and plain NumPy; and what a part gives back."""

from pathlib import Path

import numpy as np
import pytest
import torch

from seedscope.engine.contract import schema
from seedscope.engine.geometry.rows import first_rank
from seedscope.engine.store.parts import Parts

ENSEMBLE = "topk-96"


@pytest.fixture(scope="module")
def buckets(stored) -> dict[tuple[int, str], list[int]]:
    """{(seed, bucket): features}, judged here from the stored cosines."""
    (settings,) = stored("SELECT theta, epsilon, n_comparisons FROM Ensemble")
    found: dict[tuple[int, str], list[int]] = {}
    for row in stored("SELECT seed, feature, dead, cosines FROM Feature ORDER BY seed, feature"):
        p = np.mean(np.asarray(row["cosines"], np.float32) >= np.float32(settings["theta"]))
        name = "stable" if p >= 1 - settings["epsilon"] else "unstable" if p <= settings["epsilon"] else "middle"
        found.setdefault((row["seed"], "dead" if row["dead"] else name), []).append(row["feature"])
    return found


@pytest.fixture(scope="module")
def units(ensemble_saes) -> np.ndarray:
    return torch.nn.functional.normalize(ensemble_saes.W_dec, dim=-1).detach().double().numpy()


def effective_rank(rows: np.ndarray) -> float:
    share = (values := np.linalg.svd(rows, compute_uv=False)) / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def test_effective_ranks_are_those_of_the_buckets_rows(stored, buckets, units):
    rows = stored("SELECT * FROM SpanMember ORDER BY seed")
    assert [row["seed"] for row in rows] == [0, 1, 2, 3]
    for index, row in enumerate(rows):
        for name in ("stable", "unstable"):
            mine = buckets.get((row["seed"], name), [])
            assert row[f"n_{name}"] == len(mine)
            if mine:
                assert row[f"{name}_rank"] == pytest.approx(effective_rank(units[index, mine]), rel=1e-4)
            else:
                assert row[f"{name}_rank"] is None
        assert row["n_equal"] == min(row["n_stable"], row["n_unstable"])
        assert len(row["random_values"]) == min(row["n_equal"], units.shape[-1])


def test_curves_and_pairs_say_the_same(stored):
    ranks = [row["rank"] for row in stored("SELECT DISTINCT rank FROM SpanCurve ORDER BY rank")]
    pairs = stored("SELECT * FROM SpanPair ORDER BY seed, other")
    curves = stored("SELECT * FROM SpanCurve")
    assert {curve["curve"] for curve in curves} >= {
        "within",
        "cross",
        "random_set",
        "activations",
        "random_subspace",
        "overlap",
    }
    for curve in curves:
        at = ranks.index(curve["rank"])
        if curve["curve"] == "random_subspace":
            assert curve["mean"] == pytest.approx(curve["rank"] / 128)
            continue
        column = {"within": "energies", "cross": "energies", "overlap": "overlaps"}.get(curve["curve"])
        if column is None:
            continue
        own = curve["curve"] == "within"
        rows = [row for row in pairs if (row["seed"] == row["other"]) == own and len(row[column]) > at]
        n = len(rows) // 2 if curve["curve"] == "overlap" else len(rows)
        assert curve["n_pairs"] == n
        if n:
            assert curve["mean"] == pytest.approx(np.mean([row[column][at] for row in rows]), abs=1e-5)
        else:
            assert curve["mean"] is None


def test_a_feature_keeps_its_energies_where_it_lives(stored, buckets, units):
    (row,) = stored("SELECT span_rank, span_remarks FROM Ensemble")
    ranks = [each["rank"] for each in stored("SELECT DISTINCT rank FROM SpanCurve ORDER BY rank")]
    assert row["span_rank"] == first_rank(ranks, units.shape[-1])
    assert any(remark.startswith("map: ") for remark in row["span_remarks"])
    spans = {(each["seed"], each["feature"]): each for each in stored("SELECT * FROM FeatureSpan")}
    dead = {(seed, feature) for (seed, name), features in buckets.items() if name == "dead" for feature in features}
    assert set(spans) == {(seed, feature) for seed in range(4) for feature in range(96)} - dead
    for each in spans.values():
        assert 0 <= min(each["others"]) <= max(each["others"]) <= 1
        assert (np.diff(each["own"]) >= -1e-5).all()  # a span grows with the rank
    # A member's whole unstable span holds at least as much as that of one half of its rows.
    seed, feature = 0, buckets[0, "unstable"][0]
    whole = []
    for other in (1, 2, 3):
        basis = np.linalg.svd(units[other, buckets[other, "unstable"]], full_matrices=False)[2]
        whole.append(((basis @ units[0, feature]) ** 2).sum())
    assert spans[seed, feature]["others"][-1] <= np.max(whole) + 1e-5


def test_what_was_found_belongs_to_the_judgement(study_root: Path):
    part = Parts(study_root / "small", ENSEMBLE).find("subspaces")
    assert (part.about["theta"], part.about["epsilon"], part.about["covariance"]) == (0.7, 0.05, True)
    assert part.seeds == {0, 1, 2, 3}


def test_the_activations_own_directions_are_a_covariance(study_root: Path):
    held = Parts(study_root / "small", ENSEMBLE).find("activations").read(0)["covariance"]
    np.testing.assert_allclose(held, held.T, rtol=1e-9)
    assert np.linalg.eigvalsh(held).min() > -1e-6 * np.trace(held)


@pytest.mark.parametrize(
    ("ranks", "d", "expected"), [([1, 2, 4, 8, 16, 32, 64, 128], 128, 16), ([1], 768, 1), ([80, 120], 768, 80)]
)
def test_the_first_rank_is_near_an_eighth_of_the_width(ranks, d, expected):
    assert first_rank(ranks, d) == expected


def test_results_that_are_not_there_are_none(stored):
    for table in (schema.SpanPrediction, schema.SpanResidual):
        rows = stored(f"SELECT * FROM {table.__name__}")
        required = [name for name, column in schema.columns(table).items() if not column.optional]
        assert all(row[name] is not None for row in rows for name in required)
