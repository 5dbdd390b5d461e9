"""Strengths of spans on tokens against plain arrays, and control sets that are as large and as dense as what they stand for."""

import numpy as np
import pytest
import torch

from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.features.span_tokens import SpanFeatures, SpanPass, Strengths, control_sets, token_shares
from seedscope.engine.saes.sae import unit_rows


def test_strengths_and_energies_are_those_of_dense_codes(make_sae):
    sae = make_sae(members=2, d_in=6, d_sae=20, k=4)
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(size=(60, 6)))
    axes = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    members = [np.array([1, 4, 7, 11]), np.array([0, 2, 19])]
    unit = unit_rows(sae.W_dec.detach()).numpy()
    spans = [[SpanFeatures(of, (unit[m, of] @ axes).astype(np.float32)) for m, of in enumerate(members)]]
    collected, dense = SpanPass(sae, spans), np.zeros((2, 60, 20))
    norms = sae.W_dec.detach().norm(dim=-1).numpy()
    with torch.no_grad():
        for first in (0, 25):
            part = rows[first : first + (25 if not first else 35)]
            codes = sae.encode(part)
            collected.add(codes, np.arange(first, first + len(part)))
            for m in range(2):
                for token in range(len(part)):
                    at = codes.indices[token, m].numpy()
                    np.add.at(dense[m, first + token], at, codes.values[token, m].numpy() * norms[m, at])
    for m, of in enumerate(members):
        expected = np.linalg.norm(dense[m][:, of] @ unit[m, of] @ axes, axis=1)
        found = collected.strengths(0, m)
        np.testing.assert_array_equal(found.position, np.flatnonzero(expected > 1e-6))
        np.testing.assert_allclose(found.norm, expected[found.position], rtol=1e-5)
        np.testing.assert_allclose(collected.energy[m], (dense[m] ** 2).sum(0), rtol=1e-5)


def test_controls_are_as_many_and_about_as_dense():
    rng = np.random.default_rng(0)
    n_active = rng.integers(1, 5000, 300)
    n_active[:5] = 0
    features = rng.choice(np.arange(5, 300), 60, replace=False)
    for chosen in control_sets(features, n_active, 5, rng):
        assert len(set(chosen.tolist())) == 60
        assert not set(chosen) & set(features)
        assert (n_active[chosen] > 0).all()
        assert np.median(n_active[chosen]) == pytest.approx(np.median(n_active[features]), rel=0.3)
    assert control_sets(np.arange(5, 200), n_active, 5, rng) == []  # fewer others live than would be needed


def test_shares_are_of_the_squared_strength():
    tokens = TokenSet(np.array([[3, 1, 1, 2]]), np.zeros(1, int), np.zeros(1, int), ["text"], None)
    strengths = [Strengths(np.array([0, 1]), np.array([1.0, 2.0])), Strengths(np.array([2]), np.array([2.0]))]
    shares = token_shares(strengths, tokens)
    assert [(each.token, each.n_active) for each in shares] == [(1, 2), (3, 1)]
    assert [each.share for each in shares] == pytest.approx([8 / 9, 1 / 9])
