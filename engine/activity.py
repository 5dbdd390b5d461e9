"""What every feature does on the held-out tokens: how often, how strongly, on which tokens, in which contexts.

One streaming pass collects the firings; BOS and padding never count. Activations are reported as a_i * ||d_i||, so that
they compare across members whatever their decoder norms are.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from engine.activations import TokenSet
from engine.sae import SAE, Codes

N_TOP = 20  # strongest contexts, one per window
N_INTERVALS = 5  # equal parts of (0, max]
N_PER_INTERVAL = 5
BEFORE, AFTER = 20, 11  # tokens of context on each side of the peak
N_TOP_TOKENS = 5
N_BINS = 24  # log-spaced histogram bins between the member's smallest and largest activation


class Contexts(NamedTuple):
    """Token windows around activation peaks, sorted by (feature, group, rank)."""

    feature: np.ndarray  # (contexts,)
    group: np.ndarray  # 0: the strongest; 1 .. N_INTERVALS: sampled from that interval, the strongest interval first
    rank: np.ndarray
    document: np.ndarray
    position: np.ndarray  # of the peak token in its document
    peak: np.ndarray  # index of the peak token within `token_ids`
    length: np.ndarray  # tokens in the context
    token_ids: np.ndarray  # (contexts, BEFORE + AFTER + 1), the first `length` are real
    activations: np.ndarray  # likewise


class Activity(NamedTuple):
    """One member's activity; arrays over its features unless said otherwise."""

    n_tokens: int
    n_active: np.ndarray
    mean_activation: np.ndarray  # over the tokens where the feature is active; 0 where it is never
    max_activation: np.ndarray
    histogram: np.ndarray  # (d_sae, N_BINS) counts
    histogram_edges: np.ndarray  # (N_BINS + 1,) activation values
    top_token_ids: np.ndarray  # (d_sae, N_TOP_TOKENS), -1 where there are fewer
    top_token_counts: np.ndarray
    contexts: Contexts


class ActivityPass:
    """Collects firings batch by batch; memory is 10 bytes per (token, active feature)."""

    def __init__(self, sae: SAE) -> None:
        self._norms = sae.W_dec.detach().norm(dim=-1)
        self._d_sae = sae.d_sae
        self._chunks: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(sae.n_members)]

    def add(self, codes: Codes, positions: np.ndarray) -> None:
        """Record one batch; `positions` (tokens,) are flat indices into the token set."""
        for member, chunks in enumerate(self._chunks):
            values, indices = codes.values[:, member], codes.indices[:, member]
            token, slot = (values > 0).nonzero(as_tuple=True)
            feature = indices[token, slot]
            value: Tensor = values[token, slot] * self._norms[member][feature]
            kind = np.int16 if self._d_sae < 2**15 else np.int32
            chunks.append((feature.numpy().astype(kind), positions[token.numpy()].astype(np.int32), value.numpy()))

    def finish(self, member: int, tokens: TokenSet, *, seed: int = 0) -> Activity:
        """Summarise one member and forget its firings."""
        feature, position, value = (np.concatenate(parts) for parts in zip(*self._chunks[member], strict=True))
        self._chunks[member] = []
        order = np.argsort(feature, kind="stable")  # by feature, then position
        feature, position, value = feature[order].astype(np.int64), position[order], value[order]
        return _summarise(feature, position, value, tokens, self._d_sae, np.random.default_rng(seed))


def _summarise(
    feature: np.ndarray, position: np.ndarray, value: np.ndarray, tokens: TokenSet, d_sae: int, rng: np.random.Generator
) -> Activity:
    n_active = np.bincount(feature, minlength=d_sae)
    total = np.bincount(feature, weights=value, minlength=d_sae)
    largest = np.zeros(d_sae, np.float32)
    firing = np.flatnonzero(n_active)
    if len(firing):
        largest[firing] = np.maximum.reduceat(value, np.r_[0, np.cumsum(n_active)[:-1]][firing])
    low, high = (value.min(), value.max()) if len(value) else (1.0, 2.0)
    edges = np.geomspace(low, max(high, low * 1.01), N_BINS + 1)
    bins = np.clip(np.searchsorted(edges, value, side="right") - 1, 0, N_BINS - 1)
    histogram = np.bincount(feature * N_BINS + bins, minlength=d_sae * N_BINS).reshape(d_sae, N_BINS)
    ids, counts = _top_tokens(feature, tokens.ids.reshape(-1)[position], d_sae)
    return Activity(
        int(tokens.counted.sum()),
        n_active,
        (total / np.maximum(n_active, 1)).astype(np.float32),
        largest,
        histogram,
        edges.astype(np.float32),
        ids,
        counts,
        _contexts(feature, position, value, largest, tokens, rng),
    )


def _rank_in_group(group: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal values of a sorted array."""
    starts = np.r_[0, np.flatnonzero(np.diff(group)) + 1] if len(group) else np.array([], int)
    return np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))


def _top_tokens(feature: np.ndarray, token: np.ndarray, d_sae: int) -> tuple[np.ndarray, np.ndarray]:
    """The token types each feature fires on most often, with their counts; ties go to the lower id."""
    vocabulary = int(token.max(initial=0)) + 1
    pairs, counts = np.unique(feature * vocabulary + token, return_counts=True)
    owner, token = np.divmod(pairs, vocabulary)
    order = np.lexsort((token, -counts, owner))
    owner, token, counts = owner[order], token[order], counts[order]
    rank = _rank_in_group(owner)
    keep = rank < N_TOP_TOKENS
    ids = np.full((d_sae, N_TOP_TOKENS), -1, np.int32)
    held = np.zeros((d_sae, N_TOP_TOKENS), np.int32)
    ids[owner[keep], rank[keep]] = token[keep]
    held[owner[keep], rank[keep]] = counts[keep]
    return ids, held


def _contexts(
    feature: np.ndarray,
    position: np.ndarray,
    value: np.ndarray,
    largest: np.ndarray,
    tokens: TokenSet,
    rng: np.random.Generator,
) -> Contexts:
    """The N_TOP strongest windows of each feature, then N_PER_INTERVAL drawn from each fifth of (0, max]."""
    n_windows, n_ctx = tokens.ids.shape
    # Firings come by (feature, position), so those of one window stand together: the first of its largest is its peak.
    starts = np.flatnonzero(np.r_[True, np.diff(feature * n_windows + position // n_ctx) != 0]) if len(feature) else []
    if len(starts):
        sizes = np.diff(np.r_[starts, len(feature)])
        is_peak = np.flatnonzero(value == np.repeat(np.maximum.reduceat(value, starts), sizes))
        group = np.repeat(np.arange(len(starts)), sizes)[is_peak]
        peaks = is_peak[np.r_[True, np.diff(group) != 0]]
    else:
        peaks = np.array([], np.int64)
    peaks = peaks[np.lexsort((position[peaks], -value[peaks], feature[peaks]))]
    rank = _rank_in_group(feature[peaks])
    top, rest = peaks[rank < N_TOP], peaks[rank >= N_TOP]
    interval = np.ceil(N_INTERVALS * value[rest] / largest[feature[rest]]).astype(np.int64).clip(1, N_INTERVALS)
    group = N_INTERVALS + 1 - interval
    shuffled = np.lexsort((rng.random(len(rest)), group, feature[rest]))
    rest, group = rest[shuffled], group[shuffled]
    keep = _rank_in_group(feature[rest] * (N_INTERVALS + 1) + group) < N_PER_INTERVAL
    chosen, group = np.r_[top, rest[keep]], np.r_[np.zeros(len(top), np.int64), group[keep]]
    order = np.lexsort((position[chosen], -value[chosen], group, feature[chosen]))
    chosen, group = chosen[order], group[order]
    owner = feature[chosen]
    rank = _rank_in_group(owner * (N_INTERVALS + 1) + group)

    window, offset = np.divmod(position[chosen], n_ctx)
    has_bos = int(tokens.bos is not None)
    begin = np.maximum(offset - BEFORE, has_bos)
    n_real = (tokens.ids != -1).sum(1)[window]
    length = np.minimum(offset + AFTER + 1, n_real) - begin
    columns = begin[:, None] + np.arange(BEFORE + AFTER + 1)
    inside = columns < (begin + length)[:, None]
    ids = np.where(inside, tokens.ids[window[:, None], np.minimum(columns, n_ctx - 1)], -1)
    flat = window[:, None].astype(np.int64) * n_ctx + columns
    key = feature * (n_windows * n_ctx) + position
    wanted = owner[:, None] * (n_windows * n_ctx) + flat
    at = np.minimum(np.searchsorted(key, wanted), max(len(key) - 1, 0))
    activations = np.where(inside & (key[at] == wanted), value[at], 0) if len(key) else np.zeros(ids.shape)
    return Contexts(
        owner.astype(np.int32),
        group.astype(np.int32),
        rank.astype(np.int32),
        tokens.document[window],
        (tokens.start[window] + offset - has_bos).astype(np.int32),
        (offset - begin).astype(np.int32),
        length.astype(np.int32),
        ids.astype(np.int32),
        activations.astype(np.float32),
    )
