"""What spans of features do on the evaluation tokens: where they are strong, which tokens they fall on, what masking them costs.

A span's strength on a token in one member is the norm of sum_i a_i P d_i over the span's features i of that member: a_i the
activation, d_i the unit decoder row, P the projection on the span. Definition of this project.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seedscope.engine.activations.tokens import PADDING, TokenSet
from seedscope.engine.features.ablation import MATCHED_NEIGHBOURS
from seedscope.engine.saes.sae import SAE, Codes

N_CONTEXTS = 8  # per span and seed
BEFORE, AFTER = 16, 8  # tokens of a context around its peak
N_TOKENS = 30  # per span
STRONG = 1e-6  # strength from which on a token counts
N_CONTROLS = 10  # equally large sets that a span's mask is compared with


class SpanFeatures(NamedTuple):
    """One span's features in one member."""

    features: np.ndarray  # indices
    projected: np.ndarray  # (features, rank) P d_i in the span's own coordinates


class Strengths(NamedTuple):
    """Tokens on which a span is strong in one member: equally long arrays, positions ascending."""

    position: np.ndarray  # flat index into the token set
    norm: np.ndarray


class SpanPass:
    """Collects, batch by batch, the strength of every span in every member, and the members' activation energies.

    Memory: 12 bytes per (span, member, token) on which one of its features fires. Cost: per token, member and active feature one
    look-up, and the span's rank where it is one of its features.
    """

    def __init__(self, sae: SAE, spans: Sequence[Sequence[SpanFeatures]]) -> None:
        """`spans` holds for every span one SpanFeatures per member."""
        self._norms = sae.unit_norms()
        self.energy = np.zeros((sae.n_members, sae.d_sae))  # sum over tokens of squared activations
        self._spans = spans
        self._found: list[list[list[Strengths]]] = [[[] for _ in range(sae.n_members)] for _ in spans]
        # Of every feature the span that it is in and its place there; a feature is in one at most.
        self._span_of = torch.full((sae.n_members, sae.d_sae), -1)
        width = max((len(each[0].projected.T) for each in spans), default=1)
        self._rows = torch.zeros(sae.n_members, sae.d_sae, width)
        for index, of_members in enumerate(spans):
            for member, (features, projected) in enumerate(of_members):
                self._span_of[member, features] = index
                self._rows[member, features, : projected.shape[1]] = torch.from_numpy(projected)

    def add(self, codes: Codes, positions: np.ndarray) -> None:
        """Fold in one batch; `positions` (tokens,) are flat indices into the token set."""
        n_tokens, n_spans = len(positions), len(self._spans)
        for member, norms in enumerate(self._norms):
            indices = codes.indices[:, member]
            values = codes.values[:, member] * norms[indices]
            values = torch.where((values > 0) & values.isfinite(), values, torch.zeros_like(values))
            squares = values.double().pow(2).flatten()
            self.energy[member] += torch.bincount(indices.flatten(), squares, minlength=len(norms)).numpy()
            token, slot = ((self._span_of[member][indices] >= 0) & (values > 0)).nonzero(as_tuple=True)
            if not len(token):
                continue
            feature = indices[token, slot]
            cell = self._span_of[member][feature] * n_tokens + token
            sums = torch.zeros(n_spans * n_tokens, self._rows.shape[2])
            sums.index_add_(0, cell, self._rows[member][feature] * values[token, slot][:, None].float())
            norm = sums.norm(dim=1).view(n_spans, n_tokens)
            span, at = (norm > STRONG).nonzero(as_tuple=True)
            ends = torch.bincount(span, minlength=n_spans).cumsum(0)[:-1].tolist()
            parts = zip(np.split(positions[at.numpy()], ends), np.split(norm[span, at].numpy(), ends), strict=True)
            for index, (place, strength) in enumerate(parts):
                if len(place):
                    self._found[index][member].append(Strengths(place, strength))

    def strengths(self, span: int, member: int) -> Strengths:
        """Where a span is strong in a member."""
        parts = self._found[span][member]
        empty = Strengths(np.zeros(0, np.int64), np.zeros(0, np.float32))
        return Strengths(*map(np.concatenate, zip(*parts, strict=True))) if parts else empty


class StrongContext(NamedTuple):
    """Tokens around one at which a span is strong."""

    document: int
    position: int  # of the peak in its document
    peak: int  # index of the peak in token_ids
    token_ids: list[int]
    norms: list[float]


def strong_contexts(strengths: Strengths, tokens: TokenSet, n: int = N_CONTEXTS) -> list[StrongContext]:
    """The strongest tokens of different windows with those around them, the strongest first."""
    n_ctx = tokens.ids.shape[1]
    has_bos = int(tokens.bos is not None)
    order = np.lexsort((strengths.position, -strengths.norm))
    windows = strengths.position[order] // n_ctx
    first = np.sort(np.unique(windows, return_index=True)[1])[:n]
    contexts = []
    for at in order[first].tolist():
        window, column = divmod(int(strengths.position[at]), n_ctx)
        begin = max(column - BEFORE, min(has_bos, column))
        ids = tokens.ids[window, begin : column + AFTER + 1]
        ids = ids[ids != PADDING]
        norms = np.zeros(len(ids), np.float32)
        low, high = np.searchsorted(strengths.position, window * n_ctx + np.array([begin, begin + len(ids)]))
        norms[strengths.position[low:high] - window * n_ctx - begin] = strengths.norm[low:high]
        position = int(tokens.start[window]) + column - has_bos
        contexts.append(
            StrongContext(int(tokens.document[window]), position, column - begin, ids.tolist(), norms.tolist())
        )
    return contexts


class TokenShare(NamedTuple):
    """A token that a span falls on."""

    token: int
    share: float  # of the squared strength over all tokens and members
    n_active: int  # occurrences


def token_shares(strengths: Sequence[Strengths], tokens: TokenSet, n: int = N_TOKENS) -> list[TokenShare]:
    """The tokens that most of a span's squared strength falls on, all members together."""
    ids = tokens.ids.reshape(-1)
    total, count = np.zeros(int(ids.max()) + 1), np.zeros(int(ids.max()) + 1, int)
    for position, norm in strengths:
        total += np.bincount(ids[position], norm.astype(float) ** 2, minlength=len(total))
        count += np.bincount(ids[position], minlength=len(total))
    order = np.argsort(-total, kind="stable")[:n]
    whole = total.sum()
    return [TokenShare(int(at), float(total[at] / whole), int(count[at])) for at in order if total[at] > 0]


def control_sets(
    features: np.ndarray, n_active: np.ndarray, n_draws: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Sets of as many living features of about the same density, none of `features`; none where there are not as many."""
    others = np.setdiff1d(np.flatnonzero(n_active > 0), features)
    if len(others) < len(features):
        return []
    by_density = others[np.argsort(n_active[others], kind="stable")]
    sets = []
    for _ in range(n_draws):
        free = by_density
        chosen: list[int] = []
        for count in rng.permutation(n_active[features]).tolist():
            place = int(np.searchsorted(n_active[free], count))
            low, high = max(place - MATCHED_NEIGHBOURS, 0), min(place + MATCHED_NEIGHBOURS + 1, len(free))
            at = int(rng.integers(low, high))
            chosen.append(int(free[at]))
            free = np.delete(free, at)
        sets.append(np.sort(np.array(chosen, int)))
    return sets


SpanSets = list[dict[int, list[np.ndarray]]]


def span_sets(spans: Sequence[Sequence[np.ndarray]], n_active: np.ndarray) -> SpanSets:
    """Of every member {span's place: its features, then N_CONTROLS control sets, or none}, spans without features left out.

    `spans` hold every span's features in every member, `n_active` (members, d_sae) on how many tokens each is active. The same
    input gives the same sets.
    """
    rng = np.random.default_rng(0)
    return [
        {
            at: [of_members[member], *control_sets(of_members[member], active, N_CONTROLS, rng)]
            for at, of_members in enumerate(spans)
            if len(of_members[member])
        }
        for member, active in enumerate(n_active)
    ]


def as_tensor(rows: np.ndarray) -> Tensor:
    """Directions as rows for `engine.features.logits`."""
    return torch.from_numpy(np.ascontiguousarray(rows, np.float32))
