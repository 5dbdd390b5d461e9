"""Matching: what must not change it, what it must find, and what the two nulls say."""

import numpy as np
import pytest
import torch

from seedscope.engine.matching.match import NULL_KINDS, match_ensemble, null_cosines, random_dictionary
from seedscope.engine.saes.sae import SAE
from support.golden import unit_rows

THETA = 0.7


def from_decoders(decoders: np.ndarray) -> SAE:
    """Members with these decoders (members, d_sae, d_in) and transposed encoders."""
    W_dec = torch.from_numpy(np.asarray(decoders, np.float32))
    members, d_sae, d_in = W_dec.shape
    return SAE(
        W_dec.transpose(1, 2).clone(),
        torch.zeros(members, d_sae),
        W_dec,
        torch.zeros(members, d_in),
        k=1,
        seeds=tuple(range(members)),
    )


def alive(sae: SAE) -> np.ndarray:
    return np.ones((sae.n_members, sae.d_sae), bool)


def random_decoders(members: int, d_sae: int, d_in: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(members, d_sae, d_in))


def test_matches_are_the_largest_signed_cosines_to_every_other_member():
    decoders = random_decoders(4, 30, 6)
    found = match_ensemble(sae := from_decoders(decoders), alive(sae))
    rows = unit_rows(decoders)
    for anchor in range(4):
        others = [m for m in range(4) if m != anchor]
        assert found.other[anchor].tolist() == others
        for slot, other in enumerate(others):
            cosines = rows[anchor] @ rows[other].T
            np.testing.assert_array_equal(found.partner[anchor, :, slot], cosines.argmax(1))
            np.testing.assert_allclose(found.cosine[anchor, :, slot], cosines.max(1), atol=1e-6)
            np.testing.assert_allclose(found.runner_up[anchor, :, slot], np.sort(cosines)[:, -2], atol=1e-6)
            back = cosines.argmax(0)
            np.testing.assert_array_equal(found.mutual[anchor, :, slot], back[cosines.argmax(1)] == np.arange(30))


def test_encoder_cosines_are_taken_at_the_decoders_partner():
    decoders, encoders = random_decoders(2, 12, 5), random_decoders(2, 12, 5, seed=1)
    sae = from_decoders(decoders)
    with torch.no_grad():
        sae.W_enc.copy_(torch.from_numpy(encoders).float().transpose(1, 2))
    found = match_ensemble(sae, alive(sae))
    a, b = unit_rows(encoders)
    np.testing.assert_allclose(found.encoder_cosine[0, :, 0], (a * b[found.partner[0, :, 0]]).sum(1), atol=1e-6)


def test_identical_members_are_fully_stable():
    found = match_ensemble(sae := from_decoders(np.repeat(random_decoders(1, 40, 16), 3, 0)), alive(sae))
    np.testing.assert_allclose(found.cosine, 1, atol=1e-6)
    assert (found.cosine <= 1).all()
    assert (found.partner == np.arange(40)[None, :, None]).all()
    assert found.mutual.all()


def test_mirrored_members_do_not_match():
    """A negative cosine is never a match, however large."""
    rows = np.eye(8)[:6]
    found = match_ensemble(sae := from_decoders(np.stack([rows, -rows])), alive(sae))
    assert (found.cosine <= 0).all()
    assert not (found.cosine >= THETA).any()


def test_permuting_a_comparison_permutes_partners_and_nothing_else():
    decoders = random_decoders(3, 30, 8)
    order = np.random.default_rng(1).permutation(30)
    permuted = decoders.copy()
    permuted[2] = decoders[2][order]
    before, after = (match_ensemble(from_decoders(d), np.ones((3, 30), bool)) for d in (decoders, permuted))
    np.testing.assert_array_equal(order[after.partner[0, :, 1]], before.partner[0, :, 1])
    for name in ("cosine", "runner_up", "mutual", "encoder_cosine"):
        np.testing.assert_allclose(getattr(after, name)[:2], getattr(before, name)[:2], atol=1e-6)


def test_scaling_decoder_rows_changes_nothing():
    decoders = random_decoders(3, 30, 8)
    factors = 2.0 ** np.random.default_rng(1).integers(-6, 7, size=(3, 30, 1))
    before, after = (match_ensemble(from_decoders(d), np.ones((3, 30), bool)) for d in (decoders, factors * decoders))
    for name in ("partner", "cosine", "runner_up", "mutual", "live_partner", "live_cosine"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_being_each_others_partner_is_symmetric():
    found = match_ensemble(sae := from_decoders(random_decoders(3, 25, 6)), alive(sae))
    assert 0 < found.mutual.mean() < 1
    for anchor in range(3):
        for slot, other in enumerate(found.other[anchor]):
            back = found.other[other].tolist().index(anchor)
            for feature in np.flatnonzero(found.mutual[anchor, :, slot]):
                partner = found.partner[anchor, feature, slot]
                assert found.mutual[other, partner, back]
                assert found.partner[other, partner, back] == feature


def test_live_partners_are_the_best_among_the_living():
    rng = np.random.default_rng(0)
    live = rng.random((3, 30)) < 0.6
    decoders = random_decoders(3, 30, 6)
    found = match_ensemble(from_decoders(decoders), live)
    rows = unit_rows(decoders)
    for anchor in range(3):
        for slot, other in enumerate(found.other[anchor]):
            cosines = np.where(live[other], rows[anchor] @ rows[other].T, -np.inf)
            np.testing.assert_array_equal(found.live_partner[anchor, :, slot], cosines.argmax(1))
            np.testing.assert_allclose(found.live_cosine[anchor, :, slot], cosines.max(1), atol=1e-6)


def test_with_everything_alive_live_partners_are_the_partners():
    found = match_ensemble(sae := from_decoders(random_decoders(3, 20, 6)), alive(sae))
    np.testing.assert_array_equal(found.live_partner, found.partner)
    np.testing.assert_array_equal(found.live_cosine, found.cosine)


def test_a_member_without_living_features_offers_no_live_match():
    live = np.ones((3, 20), bool)
    live[1] = False
    found = match_ensemble(from_decoders(random_decoders(3, 20, 6)), live)
    assert (found.live_cosine[0, :, 0] < 0).all()
    np.testing.assert_array_equal(found.live_cosine[0, :, 1], found.cosine[0, :, 1])


def test_a_single_member_has_nothing_to_be_compared_with():
    with pytest.raises(ValueError, match="found 1 member, expected at least 2"):
        match_ensemble(sae := from_decoders(random_decoders(1, 5, 3)), alive(sae))


# -- nulls -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unrelated() -> SAE:
    """The example of METHOD section 2: unrelated dictionaries that share a mean direction of weight 1.5."""
    rng = np.random.default_rng(0)
    mean = unit_rows(rng.normal(size=96))
    return from_decoders(unit_rows(rng.normal(size=(2, 512, 96))) + 1.5 * mean)


@pytest.mark.parametrize(("kind", "expected"), [("haar", 0.0), ("second_moment", 1.0)])
def test_a_shared_mean_direction_matches_by_chance_and_only_the_second_moment_null_knows(unrelated, kind, expected):
    actual = (match_ensemble(unrelated, alive(unrelated)).cosine >= THETA).mean()
    assert actual == pytest.approx(1.0, abs=0.02)
    assert (null_cosines(unrelated, kind).cosine >= THETA).mean() == pytest.approx(expected, abs=0.02)


def test_isotropic_dictionaries_match_as_often_as_both_nulls_say():
    """Rows without any structure: a rotation and a redraw are as good as another member."""
    sae = from_decoders(random_decoders(3, 400, 12))
    actual = match_ensemble(sae, alive(sae)).cosine
    for kind in NULL_KINDS:
        null = null_cosines(sae, kind).cosine
        assert (null >= THETA).mean() == pytest.approx((actual >= THETA).mean(), abs=0.02)
        assert np.quantile(null, 0.5) == pytest.approx(np.quantile(actual, 0.5), abs=0.01)


def test_rotated_copies_match_at_the_haar_rate():
    rng = np.random.default_rng(3)
    rows = unit_rows(rng.normal(size=(300, 10)) * np.linspace(1, 3, 10))
    rotations = [np.linalg.qr(rng.normal(size=(10, 10)))[0] for _ in range(4)]
    sae = from_decoders(np.stack([rows @ q for q in rotations]))
    actual, null = match_ensemble(sae, alive(sae)).cosine, null_cosines(sae, "haar").cosine
    assert (null >= THETA).mean() == pytest.approx((actual >= THETA).mean(), abs=0.05)


def test_the_second_moment_null_keeps_the_second_moment():
    """Seen through its own cosines: with a second moment of rank one every random row lies on that line."""
    line = unit_rows(np.random.default_rng(0).normal(size=7))
    signs = np.where(np.arange(60) % 3, 1.0, -1.0)[:, None]
    sae = from_decoders(np.stack([signs * line] * 2))
    np.testing.assert_allclose(null_cosines(sae, "second_moment").cosine, 1, atol=1e-5)


def test_the_second_moment_null_has_about_the_dictionarys_second_moment():
    """About: dividing the drawn rows by their norms pulls it a little towards the sphere's."""
    rng = np.random.default_rng(0)
    rows = unit_rows(rng.normal(size=(4000, 8)) * np.linspace(0.8, 1.6, 8) + np.linspace(0, 0.5, 8))
    drawn = random_dictionary(torch.from_numpy(rows).float(), "second_moment", torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-5)
    wanted, got = rows.T @ rows / 4000, drawn.T @ drawn / 4000
    assert np.abs(got - wanted).max() < 0.3 * np.abs(wanted - np.eye(8) / 8).max()


def test_nulls_repeat_with_their_seed_and_vary_with_it():
    sae = from_decoders(random_decoders(3, 20, 6))
    for kind in NULL_KINDS:
        np.testing.assert_array_equal(null_cosines(sae, kind, seed=1).cosine, null_cosines(sae, kind, seed=1).cosine)
        assert (null_cosines(sae, kind, seed=1).cosine != null_cosines(sae, kind, seed=2).cosine).any()


def test_an_unknown_null_is_refused_with_the_two_there_are():
    with pytest.raises(ValueError, match="null kind is 'gauss', expected one of haar, second_moment"):
        null_cosines(from_decoders(random_decoders(2, 5, 3)), "gauss")
