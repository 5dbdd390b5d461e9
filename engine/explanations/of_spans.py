"""Explain shared spans as wholes by token rules: from the tokens on which they are strong, scored on documents held back.

A span's activation on a token is the root mean square of its strengths (`engine.features.span_tokens`) over the members of the
ensemble in which it ever is active. It counts as active on every token on which that is above 0; where more than MOST_ACTIVE of all
contexts would then be active, on those where it reaches the level that MOST_ACTIVE of the contexts reach. Definition of this
project: spans of many features are seldom silent, and a label should say where they are strong.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.explanations.explanation import FeatureExplanation
from seedscope.engine.explanations.rule_search import explain_member
from seedscope.engine.features.examples import ContextGrid
from seedscope.engine.features.span_tokens import Strengths

MOST_ACTIVE = 0.25  # of all contexts, shown and scored


class SpanExplanation(NamedTuple):
    """A token rule of one span."""

    active_from: float  # activation from which a token counts; 0: wherever it is active at all
    explanation: FeatureExplanation  # its `feature` is the span's place


def explain_spans(
    spans: Sequence[Sequence[Strengths]], tokens: TokenSet, texts: Sequence[str]
) -> list[SpanExplanation]:
    """A token rule of every span that is ever active, with its detection score; `spans` hold one Strengths per member.

    Rules are searched on one half of the documents and scored on the other, as those of features are. `tokens` are those that
    strengths point into, `texts` those of all token ids. Ascending places. Memory: 8 bytes per token of the set.
    """
    if not spans:
        return []
    grid, levels, firings = ContextGrid(tokens, texts), {}, []
    for place, strengths in enumerate(spans):
        activation = whole_activation(strengths, tokens.ids.size)
        levels[place] = active_from(activation, grid)
        at = np.flatnonzero((activation > 0) & (activation >= levels[place]))
        firings.append((np.full(len(at), place), at, activation[at]))
    examples = grid.draw(*map(np.concatenate, zip(*firings, strict=True)))
    explained = explain_member(examples, tokens, texts, len(spans))
    return [SpanExplanation(levels[each.feature], each) for each in explained]


def whole_activation(strengths: Sequence[Strengths], n_tokens: int) -> np.ndarray:
    """(n_tokens,) root mean square over the members with any strength; float64, 0 where all are silent."""
    squares, n_members = np.zeros(n_tokens), 0
    for position, norm in strengths:
        squares[position] += norm.astype(float) ** 2
        n_members += len(position) > 0
    return np.sqrt(squares / max(n_members, 1))


def active_from(activation: np.ndarray, grid: ContextGrid) -> float:
    """The activation that MOST_ACTIVE of all contexts reach somewhere; 0 where fewer are active at all."""
    if not len(grid.start):
        return 0.0
    # Of each pair of borders reduceat gives the largest between them, then of what lies up to the next context.
    borders = np.stack([grid.start, grid.start + grid.length], 1).ravel()
    peaks = np.maximum.reduceat(np.append(activation, 0), borders)[::2]
    if (peaks > 0).mean() <= MOST_ACTIVE:
        return 0.0
    return float(np.quantile(peaks, 1 - MOST_ACTIVE, method="higher"))
