"""Token rules of whole spans: what counts as active, against plain arrays, and rules that name the tokens a span falls on."""

import numpy as np
import pytest

from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.explanations.of_spans import MOST_ACTIVE, active_from, explain_spans, whole_activation
from seedscope.engine.features.examples import LENGTH, ContextGrid
from seedscope.engine.features.span_tokens import Strengths

TEXTS = ["<s>", *(f" w{i}" for i in range(1, 30)), " needle"]
NEEDLE = len(TEXTS) - 1
N_WINDOWS, N_CTX = 60, 33


@pytest.fixture(scope="module")
def tokens() -> TokenSet:
    """Eight documents of random words; a needle stands in every tenth context."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, NEEDLE, (N_WINDOWS, N_CTX))
    ids[:, 0] = 0
    for context in range(0, 2 * N_WINDOWS, 10):
        window, half = divmod(context, 2)
        ids[window, 1 + half * LENGTH + int(rng.integers(LENGTH))] = NEEDLE
        ids[(window + 3) % N_WINDOWS, 1 + int(rng.integers(LENGTH))] = NEEDLE
    document = np.arange(N_WINDOWS) % 8
    return TokenSet(ids, document, np.zeros(N_WINDOWS, int), [f"text {i}" for i in range(8)], 0)


def on(tokens: TokenSet, token: int, norm: float) -> Strengths:
    at = np.flatnonzero(tokens.ids.ravel() == token)
    return Strengths(at, np.full(len(at), norm, np.float32))


def test_the_activation_of_the_whole_is_the_root_mean_square_over_members_that_are_active(tokens):
    empty = Strengths(np.zeros(0, int), np.zeros(0, np.float32))
    found = whole_activation(
        [on(tokens, NEEDLE, 3.0), on(tokens, NEEDLE, 4.0), on(tokens, 5, 2.0), empty], tokens.ids.size
    )
    dense = np.zeros((3, tokens.ids.size))
    dense[0, tokens.ids.ravel() == NEEDLE], dense[1, tokens.ids.ravel() == NEEDLE] = 3, 4
    dense[2, tokens.ids.ravel() == 5] = 2
    np.testing.assert_allclose(found, np.sqrt((dense**2).mean(0)))


def test_a_span_that_is_everywhere_counts_where_a_quarter_of_contexts_reach(tokens):
    grid, rng = ContextGrid(tokens, TEXTS), np.random.default_rng(1)
    activation = rng.random(tokens.ids.size) * (tokens.ids.ravel() != 0)
    peaks = activation.reshape(N_WINDOWS, N_CTX)[:, 1:].reshape(-1, LENGTH).max(1)
    level = active_from(activation, grid)
    assert (peaks >= level).sum() == round(MOST_ACTIVE * len(peaks))
    assert level in peaks
    assert active_from(activation * (tokens.ids.ravel() == NEEDLE), grid) == 0


def test_a_rule_names_the_token_that_a_span_falls_on_or_is_strong_on(tokens):
    rng = np.random.default_rng(2)
    everywhere = np.flatnonzero(tokens.ids.ravel() != 0)
    weak = Strengths(
        everywhere, (0.2 * rng.random(len(everywhere)) + 2 * (tokens.ids.ravel()[everywhere] == 7)).astype(np.float32)
    )
    silent = Strengths(np.zeros(0, int), np.zeros(0, np.float32))
    found = explain_spans(
        [[on(tokens, NEEDLE, 1.0), on(tokens, NEEDLE, 2.0)], [silent, silent], [weak, weak]], tokens, TEXTS
    )
    assert [each.explanation.feature for each in found] == [0, 2]  # what is never active has none
    sparse, dense = found
    assert sparse.active_from == 0 < dense.active_from
    assert "needle" in sparse.explanation.text
    assert sparse.explanation.scores[0].value == 1
    assert "w7" in dense.explanation.text
    assert dense.explanation.scores[0].value > 0.7
    assert explain_spans([], tokens, TEXTS) == []
