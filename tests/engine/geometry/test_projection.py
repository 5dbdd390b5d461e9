"""Projection on demand: against plain NumPy SVDs, over the wire's masks, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seedscope.engine.contract.masks import packed, unpacked
from seedscope.engine.contract.queries import LiveQuery, live_query
from seedscope.engine.geometry.projection import default_rank, energy_by_rank, fit_spans, project
from seedscope.engine.geometry.subspaces import log_ranks
from seedscope.engine.live.residents import Residents
from seedscope.engine.saes.sae import SAE
from support.golden import unit_rows

SEEDS = (3, 5, 8)
D = 24


def spread_rows(seed: int = 0, *, members: int = 3, d_sae: int = 120) -> np.ndarray:
    """Unit rows (members, d_sae, D) with more energy in some directions than in others, the same ones in every member."""
    rng = np.random.default_rng(seed)
    return unit_rows(rng.normal(size=(members, d_sae, D)) * np.geomspace(1, 0.1, D)).astype(np.float32)


def some_of(rows: np.ndarray, n: int) -> np.ndarray:
    """Masks of the first n features of every member."""
    return np.broadcast_to(np.arange(rows.shape[1]) < n, rows.shape[:2]).copy()


def every(rows: np.ndarray) -> np.ndarray:
    return some_of(rows, rows.shape[1])


def top(rows: np.ndarray, rank: int) -> np.ndarray:
    return np.linalg.svd(rows.astype(np.float64), full_matrices=False)[2][:rank]


def energy(rows: np.ndarray, directions: np.ndarray) -> np.ndarray:
    return ((rows.astype(np.float64) @ directions.T) ** 2).sum(1)


# -- what is computed ------------------------------------------------------------------------------------------------


def test_energies_by_rank_are_those_of_an_svd():
    rows = spread_rows()
    chosen = some_of(rows, 40)
    chosen[2] = some_of(rows, 10)[2]
    spans = fit_spans(torch.from_numpy(rows), chosen, SEEDS)
    found = energy_by_rank(torch.from_numpy(rows[0, 50:54]), spans.bases, [1, 5, 10, 11, 24])
    assert spans.members == SEEDS
    for member in range(3):
        for at, rank in enumerate([1, 5, 10, 11, 24]):
            if rank > chosen[member].sum():
                assert np.isnan(found[member, :, at]).all()
            else:
                directions = top(rows[member, chosen[member]], rank)
                np.testing.assert_allclose(found[member, :, at], energy(rows[0, 50:54], directions), atol=1e-5)


def test_a_projection_is_that_of_svds_of_random_halves():
    rows = spread_rows()
    chosen, rank = some_of(rows, 60), 5
    found = project(torch.from_numpy(rows), chosen, living=every(rows), stable=~chosen, rank=rank)
    at = found.ranks.tolist().index(rank)
    rng = np.random.default_rng(1)
    cross, own, others = [], np.zeros(60), np.zeros(60)
    for _ in range(200):
        halves = [np.array_split(rng.permutation(60), 2) for _ in rows]
        spans = [[top(each[half], rank) for half in pair] for each, pair in zip(rows, halves, strict=True)]
        cross += [energy(rows[t, :60], spans[s][0]).mean() for s in range(3) for t in range(3) if s != t]
        for half, other in ((0, 1), (1, 0)):
            own[halves[0][half]] += energy(rows[0, halves[0][half]], spans[0][other]) / 200
        others += np.mean([energy(rows[0, :60], span) for pair in spans[1:] for span in pair], 0) / 200
    assert found.transfer.cross.mean[at] == pytest.approx(np.mean(cross), abs=0.01)
    assert found.transfer.cross.n_pairs[at] == 6
    # Four splits against two hundred: single features differ by what splits do, their order and mean do not.
    assert np.corrcoef(found.own[0], own)[0, 1] > 0.75
    assert np.corrcoef(found.others[0], others)[0, 1] > 0.75
    assert found.own[0].mean() == pytest.approx(own.mean(), abs=0.03)
    assert found.others[0].mean() == pytest.approx(others.mean(), abs=0.03)


def test_overlap_and_effective_rank_are_those_of_an_svd():
    rows = spread_rows()
    found = project(torch.from_numpy(rows), some_of(rows, 30), living=every(rows), stable=every(rows), rank=4)
    at = found.ranks.tolist().index(4)
    spans = [top(each[:30], 4) for each in rows]
    pairs = [np.sum((spans[i] @ spans[j].T) ** 2) / 4 for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.overlap[:, at] == pytest.approx([np.mean(pairs), np.std(pairs), 3], abs=1e-5)
    for member in range(3):
        values = np.linalg.svd(rows[member, :30].astype(np.float64), compute_uv=False)
        share = values / values.sum()
        assert found.effective_rank[member] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_rows_of_one_span_are_captured_whole_and_random_ones_are_not():
    rng = np.random.default_rng(2)
    frame = np.linalg.qr(rng.normal(size=(D, D)))[0]
    inside = unit_rows(rng.normal(size=(3, 40, 4)) @ frame[:4])
    rows = np.concatenate([inside, unit_rows(rng.normal(size=(3, 200, D)))], 1).astype(np.float32)
    found = project(torch.from_numpy(rows), some_of(rows, 40), living=every(rows), stable=~some_of(rows, 40), rank=4)
    at = found.ranks.tolist().index(4)
    assert found.transfer.cross.mean[at] == pytest.approx(1, abs=1e-5)
    assert found.overlap[0, at] == pytest.approx(1, abs=1e-5)
    assert all(each.min() > 0.999 for each in found.own + found.others)
    assert found.transfer.stable.mean[at] == pytest.approx(4 / D, abs=0.05)
    assert found.transfer.random_set.mean[at] < 0.9


def test_without_a_rank_an_eighth_of_the_width_is_taken():
    rows = torch.from_numpy(spread_rows())
    found = project(rows, every(rows), living=every(rows), stable=every(rows))
    assert found.rank == default_rank(D) == 3 or found.rank in log_ranks(D)
    assert abs(found.rank - D / 8) == min(abs(rank - D / 8) for rank in log_ranks(D))


def test_a_set_smaller_than_the_rank_stops_its_curve_and_its_energies():
    rows = spread_rows()
    found = project(torch.from_numpy(rows), some_of(rows, 20), living=every(rows), stable=every(rows), rank=16)
    reached = found.ranks <= 10
    assert np.isfinite(found.transfer.cross.mean[reached]).all()
    assert np.isnan(found.transfer.cross.mean[~reached]).all()
    assert (found.transfer.cross.n_pairs[~reached] == 0).all()
    assert all(np.isnan(each).all() for each in found.own + found.others)


def test_a_member_without_enough_rows_is_left_out_and_the_others_are_compared():
    rows = spread_rows()
    chosen = some_of(rows, 20)
    chosen[1, 1:] = False
    found = project(torch.from_numpy(rows), chosen, living=every(rows), stable=every(rows), rank=2)
    assert found.members.tolist() == [0, 2]
    assert found.n_rows.tolist() == [20, 1, 20]
    assert found.transfer.cross.n_pairs[0] == 2


@pytest.mark.parametrize(
    ("n", "members", "rank", "says"),
    [(0, 3, 4, "found 0, 0, 0 features"), (1, 3, 4, "at least 2"), (20, 1, 4, "at least 2"), (20, 3, D + 1, f"1 to {D}"),
     (20, 3, -1, f"1 to {D}")],
)  # fmt: skip
def test_what_cannot_be_projected_is_refused_in_words(n, members, rank, says):
    rows = spread_rows(members=members)
    with pytest.raises(ValueError, match=says):
        project(torch.from_numpy(rows), some_of(rows, n), living=every(rows), stable=every(rows), rank=rank)


def test_masks_survive_the_wire():
    masks = np.random.default_rng(0).random((3, 61)) < 0.3
    assert np.array_equal(unpacked(packed(masks), 3, 61), masks)
    with pytest.raises(ValueError, match="4 members"):
        unpacked(packed(masks), 4, 61)
    with pytest.raises(ValueError, match="found masks of 0 bytes"):
        unpacked("no base64!", 3, 61)


# -- queries ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ensemble(make_sae: Callable[..., SAE]) -> SAE:
    """Feature 10 of the second member has no direction."""
    sae = make_sae(members=3, d_in=D, d_sae=96, dtype=np.float32)
    sae.seeds = SEEDS
    with torch.no_grad():
        sae.W_dec[1, 10] = 0
    return sae


@pytest.fixture
def residents(tmp_path: Path, ensemble: SAE) -> Residents:
    study = tmp_path / "study"
    ensemble.save(study / "sae")
    (study / "study-1.duckdb").touch()
    (study / "CURRENT").write_text("study-1.duckdb\ntests\n")
    return Residents(tmp_path, "cpu")


ALL = np.ones((3, 96), bool)
HALF = np.arange(96) < np.full((3, 1), 40)
PROJECT = LiveQuery("project", "study", "ensemble", "sae", SEEDS, rank=4, rows=packed(HALF), living=packed(ALL),
                    stable=packed(~HALF))  # fmt: skip
FEATURE = LiveQuery(
    "project_feature", "study", "ensemble", "sae", SEEDS, seed=5, feature=7, rows=packed(HALF), controls=(50, 51)
)


def test_a_query_is_answered_as_the_rows_are_projected(residents: Residents, ensemble: SAE):
    (answer,) = residents.answer([PROJECT])
    rows = unit_rows(ensemble.W_dec.detach().double().numpy() + (ensemble.W_dec == 0).all(2, keepdim=True).numpy())
    directed = ALL.copy()
    directed[1, 10] = False
    expected = project(
        torch.from_numpy(rows.astype(np.float32)), HALF & directed, living=directed, stable=~HALF, rank=4
    )
    assert answer.error is None
    assert answer.arrays["n_rows"].tolist() == [40, 39, 40]
    assert answer.arrays["n_undirected"].tolist() == [0, 1, 0]
    assert answer.arrays["compared"].tolist() == list(SEEDS)
    places = list(zip(answer.arrays["seed"].tolist(), answer.arrays["feature"].tolist(), strict=True))
    assert places == [(seed, f) for seed in SEEDS for f in range(40) if (seed, f) != (5, 10)]
    np.testing.assert_allclose(answer.arrays["own"], np.concatenate(expected.own), atol=1e-5)
    np.testing.assert_allclose(answer.arrays["others"], np.concatenate(expected.others), atol=1e-5)
    np.testing.assert_allclose(answer.arrays["cross"][0], expected.transfer.cross.mean, atol=1e-5)
    np.testing.assert_allclose(answer.arrays["random_set"][0], expected.transfer.random_set.mean, atol=1e-5)


def test_members_are_projected_as_if_there_were_no_others(residents: Residents):
    few = replace(PROJECT, members=(8, 3), rows=packed(HALF[:2]), living=packed(ALL[:2]), stable=packed(~HALF[:2]))
    (answer,) = residents.answer([few])
    assert answer.arrays["compared"].tolist() == [8, 3]
    assert answer.arrays["cross"][2].max() == 2
    assert set(answer.arrays["seed"].tolist()) == {3, 8}


def test_a_feature_is_projected_on_the_other_members_beside_its_controls(residents: Residents, ensemble: SAE):
    (answer,) = residents.answer([FEATURE])
    rows = unit_rows(ensemble.W_dec.detach().double().numpy()[[0, 1, 2]] + 1e-30)
    at = answer.arrays["ranks"].tolist().index(3)
    assert answer.arrays["seed"].tolist() == [3, 8]
    assert answer.arrays["ranks"].tolist()[-1] == D
    assert set(log_ranks(D)) <= set(answer.arrays["ranks"].tolist())
    for place, member in enumerate((0, 2)):
        directions = top(rows[member, :40], 3)
        assert answer.arrays["energy"][place, at] == pytest.approx(energy(rows[1, 7:8], directions)[0], abs=1e-5)
        np.testing.assert_allclose(
            answer.arrays["control"][place, :, at], energy(rows[1, 50:52], directions), atol=1e-5
        )


def test_the_spans_of_a_set_are_fitted_once(residents: Residents):
    residents.answer([FEATURE])
    held = dict(residents._held)
    (answer,) = residents.answer([replace(FEATURE, feature=9, controls=())])
    assert answer.arrays["control"].shape[1] == 0
    assert {key: id(value) for key, value in residents._held.items()} == {key: id(value) for key, value in held.items()}
    assert residents.status()["resident"]["study/sae spans"] == 4 * 3 * D * D


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (replace(PROJECT, members=(3, 4)), "members has"),
        (replace(PROJECT, members=(3, 3)), "each seed once"),
        (
            replace(PROJECT, members=(3,), rows=packed(HALF[:1]), living=packed(ALL[:1]), stable=packed(ALL[:1])),
            "at least 2",
        ),
        (replace(PROJECT, rows=packed(HALF[:2])), "found masks of"),
        (replace(PROJECT, rows=packed(~ALL)), "found 0, 0, 0 features"),
        (replace(PROJECT, rank=D + 1), f"1 to {D}"),
        (replace(FEATURE, seed=4), "seed is 4"),
        (replace(FEATURE, feature=10), "has a direction"),
        (replace(FEATURE, controls=(96,)), "has a direction"),
        (replace(FEATURE, rows=packed(~ALL)), "take another bucket"),
    ],
)
def test_a_query_that_cannot_be_answered_is_told_why(residents: Residents, query: LiveQuery, says: str):
    (answer,) = residents.answer([query])
    assert answer.cause == "query"
    assert says in answer.error


def test_a_query_with_masks_survives_the_wire():
    assert live_query({"kind": "project", "rows": packed(ALL), "rank": 3}) == LiveQuery(
        "project", rows=packed(ALL), rank=3
    )
