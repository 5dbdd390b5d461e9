"""Geometry of a small ensemble from its decoders and matches: the parts where they belong, and what is said to be missing."""

import numpy as np
import pytest
import torch

from seedscope.engine.geometry.measure import measure
from seedscope.engine.geometry.subspaces import effective_rank, transfer
from seedscope.engine.matching.match import Matches, match_ensemble
from seedscope.engine.saes.sae import SAE

N_STABLE, N_UNSTABLE, D = 12, 40, 32


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def decoders(members: int = 3) -> np.ndarray:
    """Stable rows are shared, unstable ones each member's own inside one 24-dimensional span; the last two rows are dead."""
    rng = np.random.default_rng(0)
    shared, span = rng.normal(size=(N_STABLE, D)), np.linalg.qr(rng.normal(size=(D, 24)))[0].T
    return unit(np.stack([
        np.concatenate([shared, rng.normal(size=(N_UNSTABLE, 24)) @ span, rng.normal(size=(2, D))]) for _ in range(members)
    ]))  # fmt: skip


def matched(rows: np.ndarray) -> Matches:
    W_dec = torch.from_numpy(rows)
    members, d_sae, d_in = rows.shape
    flat = torch.zeros(members, d_sae), W_dec, torch.zeros(members, d_in)
    return match_ensemble(
        SAE(W_dec.transpose(1, 2).clone(), *flat, k=1, seeds=tuple(range(members))), None, assign=False
    )


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return decoders()


@pytest.fixture(scope="module")
def dead(rows) -> np.ndarray:
    return np.arange(rows.shape[1])[None].repeat(3, 0) >= N_STABLE + N_UNSTABLE


@pytest.fixture(scope="module")
def found(rows, dead):
    return measure(list(rows), matched(rows), dead, theta=0.9, ranks=[4, 16, 24], covariance=np.eye(D))


def test_buckets_are_measured_apart(found, rows):
    unstable = rows[:, N_STABLE:-2]
    assert [(row.n_stable, row.n_unstable, row.n) for row in found.ranks] == [(N_STABLE, N_UNSTABLE, N_STABLE)] * 3
    assert found.ranks[1].unstable == pytest.approx(effective_rank(unstable[1]).rank)
    assert found.ranks[1].stable == pytest.approx(found.ranks[1].stable_matched.mean)
    assert found.ranks[1].random_matched.n == N_STABLE
    expected = transfer(list(unstable), [4, 16, 24], living=list(rows[:, :-2]), stable=list(rows[:, :N_STABLE]))
    np.testing.assert_allclose(found.transfer.cross.mean, expected.cross.mean, atol=1e-6)
    np.testing.assert_allclose(found.transfer.stable.mean, expected.stable.mean, atol=1e-6)
    np.testing.assert_allclose(found.transfer.activations.mean[2], 24 / D, atol=0.15)


def test_the_planted_span_is_that_of_all_members_unstable_rows(found):
    assert found.members.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.spans.overlap[..., 2], 1, atol=1e-5)
    np.testing.assert_allclose(found.spans.angles[2], 0, atol=2e-3)
    np.testing.assert_allclose(found.spans.angle[..., 2], 0, atol=2e-3)
    assert found.spans.pairs.shape == (3, 3)
    assert (found.spans.pairs[:, 0] < 0.9).all()
    assert (found.spans.angle[0, 1:, 0] > 0.3).all()


def test_spectra_compare_as_many_rows_of_each_kind(found, rows):
    spectra = found.ranks[0].spectra
    np.testing.assert_allclose(spectra.stable, np.linalg.svd(rows[0, :N_STABLE].astype(float))[1], atol=1e-6)
    for values in spectra:
        assert values.shape == (N_STABLE,)
        np.testing.assert_allclose((values**2).sum(), N_STABLE, rtol=1e-6)  # unit rows
        assert (np.diff(values) <= 0).all()


def test_unstable_rows_lie_in_the_other_members_spans(found):
    assert [member.own.shape for member in found.energy] == [(N_STABLE + N_UNSTABLE, 3)] * 3
    unstable, stable = (
        np.nanmean([e.others[part, 1] for e in found.energy]) for part in (slice(N_STABLE, None), slice(N_STABLE))
    )
    assert unstable > stable + 0.1


def test_stable_rows_are_written_with_one_feature_and_unstable_ones_are_not(found):
    np.testing.assert_allclose(found.residuals["stable"].mean, 0, atol=1e-3)
    assert found.residuals["unstable"].mean[0] > 0.4
    assert found.predictability.n_clusters == N_STABLE + 3 * N_UNSTABLE


def test_of_very_many_rows_whole_clusters_are_predicted_and_a_remark_says_so(found, rows, dead, monkeypatch):
    monkeypatch.setattr("seedscope.engine.geometry.measure.MOST_NUMBERS", 100 * D)
    some = measure(list(rows), matched(rows), dead, theta=0.9, ranks=[4])
    n_rows = 3 * (N_STABLE + N_UNSTABLE)
    assert some.predictability.n_clusters == found.predictability.n_clusters
    assert some.predictability.largest_cluster == pytest.approx(3 / n_rows)
    said = [remark for remark in some.remarks if remark.startswith("predictability: ")]
    assert len(said) == 1
    assert int(said[0].split()[1]) <= 100
    assert f"of {n_rows} rows" in said[0]


def test_curves_that_stop_are_said(found):
    assert found.transfer.cross.n_pairs.tolist() == [6, 6, 0]
    assert found.remarks == ("curves are fitted on 20 unstable rows or more: from that rank on some members stop",)


def test_members_without_unstable_rows_are_left_out_and_named(rows, dead):
    some = dead.copy()
    some[2, N_STABLE:] = True
    found = measure(list(rows), matched(rows), some, theta=0.9, ranks=[4])
    assert found.members.tolist() == [0, 1]
    assert found.transfer.cross.energy.shape == (2, 2, 1)
    assert found.remarks == ("seed 2 has 0 unstable rows and is left out of what compares spans",)
    assert np.isnan(found.ranks[2].unstable)
    assert found.ranks[2].random_matched is None


def test_without_unstable_rows_nothing_compares_spans(rows, dead):
    found = measure(list(rows), matched(rows), dead | (np.arange(rows.shape[1]) >= N_STABLE), theta=0.9, ranks=[4])
    assert found.transfer is found.spans is found.energy is found.predictability is None
    assert set(found.residuals) == {"stable"}
    assert found.remarks[-1] == "fewer than two members have 2 stable and 2 unstable rows: nothing is predicted"


def test_one_member_is_refused(rows, dead):
    with pytest.raises(ValueError, match="found 1 member, expected at least 2"):
        measure(list(rows[:1]), matched(rows), dead[:1])
