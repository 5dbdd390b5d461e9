"""The pool: copies join once, counts and ranks are those of a brute force, weights are their owners'."""

import numpy as np
import pytest
import torch

from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.sae import SAE
from seedscope.engine.saes.saelens import refusal
from seedscope.engine.studies.pools.pool import pool, taken_from, unique_features

THETA = 0.7


def made(rows: np.ndarray, *, convention: Convention | None = None, seed: int = 0, **more: torch.Tensor) -> SAE:
    """Members with these decoder rows (members, d_sae, d_in) and random everything else; seeds 10, 11, .."""
    members, d_sae, d_in = rows.shape
    rng = np.random.default_rng(seed)
    shapes = [(members, d_in, d_sae), (members, d_sae), rows.shape, (members, d_in)]
    tensors = [torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in shapes]
    tensors[2] = torch.from_numpy(rows.astype(np.float32))
    convention = convention or Convention("topk", k=3)
    return SAE(*tensors, seeds=tuple(10 + m for m in range(members)), convention=convention, more=more)


@pytest.fixture
def planted() -> tuple[SAE, np.ndarray]:
    """Five members of 12 features in 40 dimensions; feature i < 8 is held by i % 5 + 1 of them, the others by one each."""
    rng = np.random.default_rng(1)
    true, *_ = np.linalg.qr(rng.normal(size=(40, 40)))
    holders = np.array([i % 5 + 1 for i in range(8)])
    rows, fresh = np.zeros((5, 12, 40)), iter(range(8, 40))
    where = np.full((5, 12), -1)  # the planted feature of every row
    for member in range(5):
        own = [i for i in range(8) if (member + i) % 5 < holders[i]]
        for place, i in enumerate(rng.permutation(own)):
            rows[member, place] = 3 * true[i] + 0.3 * rng.normal(size=40) / 40**0.5
            where[member, place] = i
        for place in range(len(own), 12):
            found = next(fresh, None)
            if found is not None:
                rows[member, place] = true[found]  # else it stays zero: without a direction
                where[member, place] = found
    return made(rows), where


def greedy(rows: np.ndarray, theta: float) -> list[tuple[int, int, int]]:
    """(member, feature, holders) by the definition, one cosine at a time."""
    units = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-30)
    taken: list[tuple[int, int]] = []
    for m, f in np.ndindex(rows.shape[:2]):
        if np.any(rows[m, f]) and all(units[m, f] @ units[a, b] < theta for a, b in taken):
            taken.append((m, f))
    return [(m, f, sum(bool((units[o] @ units[m, f] >= theta).any()) for o in range(len(rows)))) for m, f in taken]


def test_planted_copies_are_pooled_once_with_the_members_that_hold_them(planted):
    sae, where = planted
    found = unique_features(sae, theta=THETA)
    planted_of = where[found.member, found.feature]
    assert sorted(planted_of) == sorted(set(where[where >= 0]))
    for feature, holders in zip(planted_of, found.holders, strict=True):
        assert holders == sum(feature in of_member for of_member in where)


@pytest.mark.parametrize("theta", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("block", [3, 1024])
def test_the_walk_is_that_of_the_definition(monkeypatch, theta, block):
    monkeypatch.setattr("seedscope.engine.studies.pools.pool.ROWS", block)
    rows = np.random.default_rng(2).normal(size=(4, 30, 5))
    rows[1, 4:7] = 0
    found = unique_features(made(rows), theta=theta)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == greedy(rows, theta)
    assert 4 < len(found.member) < 117


def test_the_pool_ranks_by_holders_then_by_density_and_keeps_as_many_as_a_member_has(planted):
    sae, where = planted
    density = np.random.default_rng(3).random(where.shape)
    found = pool(sae, density=density, theta=THETA)
    assert found.sae.d_sae == sae.d_sae == len(found.seed) < len(set(where.flat)) - 1
    keys = list(zip(found.holders.tolist(), found.density.tolist(), strict=True))
    assert keys == sorted(keys, reverse=True)
    every = unique_features(sae, theta=THETA)
    best = sorted(zip(every.holders, density[every.member, every.feature], strict=True), reverse=True)[: sae.d_sae]
    assert keys == best
    assert found.n_unique.tolist() == [int((every.holders == n).sum()) for n in range(1, 6)]


def test_every_pooled_feature_has_the_weights_of_where_it_came_from(planted):
    found = pool(sae := planted[0], theta=THETA)
    for at, (seed, feature) in enumerate(zip(found.seed, found.feature, strict=True)):
        member = sae.seeds.index(seed)
        assert torch.equal(found.sae.W_dec[0, at], sae.W_dec[member, feature])
        assert torch.equal(found.sae.W_enc[0, :, at], sae.W_enc[member, :, feature])
        assert found.sae.b_enc[0, at] == sae.b_enc[member, feature]
    torch.testing.assert_close(found.sae.b_dec[0], sae.b_dec.mean(0))


def test_a_pool_of_copies_of_one_dictionary_is_that_dictionary():
    rows = np.linalg.qr(np.random.default_rng(4).normal(size=(16, 16)))[0]
    one = made(rows[None])
    tensors = [getattr(one, name).expand(6, *getattr(one, name).shape[1:]) for name in one.convention.tensors]
    found = pool(SAE(*tensors, seeds=tuple(range(6)), k=3), theta=THETA)
    for name in one.convention.tensors:
        assert torch.equal(getattr(found.sae, name), getattr(one, name)), name
    assert (found.holders == 6).all()
    assert found.feature.tolist() == list(range(16))


def test_members_alone_make_a_pool_of_their_own(planted):
    sae, _ = planted
    found = pool(sae, members=(1, 3), theta=THETA)
    assert set(found.seed) <= {11, 13}
    assert found.holders.max() == len(found.n_unique) == 2
    torch.testing.assert_close(found.sae.b_dec[0], (sae.b_dec[1] + sae.b_dec[3]) / 2)


@pytest.mark.parametrize(("architecture", "names"), [("jumprelu", ("threshold",)), ("gated", ("r_mag", "b_mag"))])
def test_what_else_a_feature_has_comes_along(architecture, names):
    rows = np.random.default_rng(5).normal(size=(3, 9, 30))
    more = {name: torch.rand(3, 9) for name in names}
    found = pool(made(rows, convention=Convention(architecture), **more))
    for name in names:
        member = found.seed - 10
        assert torch.equal(getattr(found.sae, name)[0], more[name][member, found.feature])
    assert refusal(found.sae.convention) is None


def test_too_few_unique_features_make_a_narrower_pool_or_none():
    rows = np.tile(np.eye(20)[:5], (3, 2, 1))  # every member holds five features twice
    assert pool(made(rows), theta=THETA).sae.d_sae == 5
    with pytest.raises(ValueError, match=r"found 5 unique features at theta 0\.7, expected at least k \(8\)"):
        pool(made(rows, convention=Convention("topk", k=8)), theta=THETA)
    with pytest.raises(ValueError, match="no decoder row has a direction"):
        pool(made(np.zeros((2, 4, 6))))


def test_groups_cannot_be_pooled():
    with pytest.raises(ValueError, match="groupmax takes the largest of every group"):
        pool(made(np.random.default_rng(6).normal(size=(2, 8, 6)), convention=Convention("groupmax", k=4)))


def test_features_taken_out_do_what_they_did():
    sae = made(np.random.default_rng(7).normal(size=(2, 9, 6)))
    with torch.no_grad():
        sae.b_dec.copy_(sae.b_dec[:1].expand(2, 6))
    taken = taken_from(sae, np.array([0, 1, 1]), np.array([4, 0, 8]))
    x = torch.randn(5, 6)
    pre = sae.pre_activations(x)
    torch.testing.assert_close(
        taken.pre_activations(x)[:, 0], torch.stack([pre[:, 0, 4], pre[:, 1, 0], pre[:, 1, 8]], 1)
    )
