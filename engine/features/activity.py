"""Activity of every feature on the held-out tokens: how often, how strongly, on which tokens, in which contexts.

One streaming pass collects the firings; BOS and padding never count. Activations are reported as a_i * ||d_i||, so that
they compare across members whatever their decoder norms are (as a_i where decoding divides by the norm); what a normalising
SAE multiplies into its reconstruction per token is left out.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from seedscope.engine.activations.harvest import TokenSet
from seedscope.engine.features.examples import ContextGrid, Examples
from seedscope.engine.features.firings import HELD_FIRINGS, Firings, FiringSpool, feature_ranges
from seedscope.engine.features.triggers import FIRST_TOKENS, TokenClasses, Triggers, count_pairs
from seedscope.engine.saes.sae import SAE, Codes

N_TOP = 20  # strongest contexts, one per window
N_INTERVALS = 5  # equal parts of (0, max]
N_PER_INTERVAL = 5
N_SILENT = 5  # contexts in which the feature is not active at all
SILENT_DRAWS = 4  # windows looked at for each of them; features that fire in most windows get fewer
QUANTILES = (0.5, 0.9, 0.99)  # of a feature's activations where it is active
BEFORE, AFTER = 20, 11  # tokens of context on each side of the peak
N_TOP_TOKENS = 5
N_BINS = 24  # log-spaced histogram bins between the member's smallest and largest activation
AT_ONCE = min(os.cpu_count() or 1, 4)  # members that are summarised side by side
FINISHED_FIRINGS = 2**20  # of one member, summarised at once: about 100 MiB


class Contexts(NamedTuple):
    """Token windows around activation peaks, sorted by (feature, group, rank)."""

    feature: np.ndarray  # (contexts,)
    group: np.ndarray  # 0: strongest; 1 .. N_INTERVALS: drawn from that interval, strongest first; then: not active
    rank: np.ndarray
    document: np.ndarray
    position: np.ndarray  # of the peak token in its document
    peak: np.ndarray  # index of the peak token within `token_ids`
    length: np.ndarray  # tokens in the context
    token_ids: np.ndarray  # (contexts, BEFORE + AFTER + 1), the first `length` are real
    activations: np.ndarray  # likewise


_NO_NUMBERS, _NO_WINDOWS = np.zeros(0, np.int32), np.zeros((0, BEFORE + AFTER + 1), np.int32)
NO_CONTEXTS = Contexts(
    feature=_NO_NUMBERS, group=_NO_NUMBERS, rank=_NO_NUMBERS, document=_NO_NUMBERS, position=_NO_NUMBERS, peak=_NO_NUMBERS,
    length=_NO_NUMBERS, token_ids=_NO_WINDOWS, activations=_NO_WINDOWS.astype(np.float32),
)  # fmt: skip


class Activity(NamedTuple):
    """One member's activity; arrays over its features unless said otherwise."""

    n_tokens: int
    n_active: np.ndarray
    mean_activation: np.ndarray  # over the tokens where the feature is active; 0 where it is never
    max_activation: np.ndarray
    quantiles: np.ndarray  # (d_sae, QUANTILES) of its activations where it is active; 0 where it is never
    histogram: np.ndarray  # (d_sae, N_BINS) counts
    histogram_edges: np.ndarray  # (N_BINS + 1,) activation values
    top_token_ids: np.ndarray  # (d_sae, N_TOP_TOKENS), -1 where there are fewer; (d_sae, 0) for rows without tokens
    top_token_counts: np.ndarray
    contexts: Contexts
    triggers: Triggers | None  # None without a vocabulary
    examples: Examples | None  # None without a grid


class ActivityPass:
    """Collects firings batch by batch, positions ascending, and summarises them member by member.

    Memory: that of a FiringSpool, FINISHED_FIRINGS (or the firings of one feature, if more), and the Activity itself; with
    `summaries` the last two AT_ONCE times. Nothing is approximated. The `firings` of a member are given up when it is
    summarised, unless they are to be kept (`keep`).
    """

    def __init__(
        self,
        sae: SAE,
        *,
        folder: Path | None = None,
        held_firings: int = HELD_FIRINGS,
        finished_firings: int = FINISHED_FIRINGS,
        keep: bool = False,
    ) -> None:
        self.firings = FiringSpool(sae, folder=folder, held_firings=held_firings)
        self._at_once, self._keep = finished_firings, keep

    def add(self, codes: Codes, positions: np.ndarray) -> None:
        """Record one batch; `positions` (tokens,) are flat indices into the token set."""
        self.firings.add(codes, positions)

    def finish(
        self,
        member: int,
        tokens: TokenSet | int,
        *,
        vocabulary: TokenClasses | None = None,
        grid: ContextGrid | None = None,
        seed: int = 0,
    ) -> Activity:
        """Summarise one member.

        `tokens` may be the number of rows, where these came without tokens: then there are no contexts and no top tokens. What
        sets features off is told by a vocabulary; a grid draws examples, which cost no further pass over the tokens.
        """
        n_active = self.firings.n_active[member]
        # One stream for each kind of draw, used feature by feature: the ranges below do not change what is drawn.
        rng = (np.random.default_rng(seed), np.random.default_rng((seed, 1)))
        runs = self.firings.runs(member)
        lowest = min((run.value.min() for run in runs if len(run.value)), default=1.0)
        highest = max((run.value.max() for run in runs if len(run.value)), default=2.0)
        edges = np.geomspace(lowest, max(highest, lowest * 1.01), N_BINS + 1)
        parts = []
        for features in feature_ranges(n_active, self._at_once):
            # Whole features, ascending: contexts are drawn in the same order however many ranges there are.
            firings = self.firings.of_features(runs, features)
            parts.append(_summarise(firings, n_active[features], features.start, edges, tokens, vocabulary, grid, rng))
        if not self._keep:
            self.firings.forget(member)
        columns = [np.concatenate(column) for column in zip(*(part[:-3] for part in parts), strict=True)]
        contexts = Contexts(*map(np.concatenate, zip(*(part.contexts for part in parts), strict=True)))
        triggers = [part.triggers for part in parts if part.triggers is not None]
        examples = [part.examples for part in parts if part.examples is not None]
        mean, largest, quantiles, histogram, ids, counts = columns
        n_tokens = tokens if isinstance(tokens, int) else int(tokens.counted.sum())
        return Activity(
            n_tokens, n_active, mean, largest, quantiles, histogram, edges.astype(np.float32), ids, counts,
            contexts,
            Triggers(*map(np.concatenate, zip(*triggers, strict=True))) if triggers else None,
            Examples(*map(np.concatenate, zip(*examples, strict=True))) if examples else None,
        )  # fmt: skip

    def summaries(
        self,
        tokens: TokenSet | int,
        *,
        vocabulary: TokenClasses | None = None,
        grid: ContextGrid | None = None,
        at_once: int = AT_ONCE,
    ) -> Iterator[Activity]:
        """Every member's activity in turn, as `finish`; `at_once` of them are made side by side and held."""
        with ThreadPoolExecutor(at_once) as threads:  # NumPy sorts and counts without Python's lock
            for first in range(0, self.firings.n_members, at_once):
                group = range(first, min(first + at_once, self.firings.n_members))
                yield from threads.map(lambda m: self.finish(m, tokens, vocabulary=vocabulary, grid=grid), group)


class _Part(NamedTuple):
    """What Activity says of a range of features."""

    mean_activation: np.ndarray
    max_activation: np.ndarray
    quantiles: np.ndarray
    histogram: np.ndarray
    top_token_ids: np.ndarray
    top_token_counts: np.ndarray
    contexts: Contexts
    triggers: Triggers | None
    examples: Examples | None


def _summarise(
    firings: Firings,
    n_active: np.ndarray,
    first: int,
    edges: np.ndarray,
    tokens: TokenSet | int,
    vocabulary: TokenClasses | None,
    grid: ContextGrid | None,
    rng: tuple[np.random.Generator, np.random.Generator],
) -> _Part:
    """All firings of the features `first` .. first + len(n_active), sorted by feature, then position."""
    feature, (_, position, value), d_sae = firings.feature.astype(np.int64) - first, firings, len(n_active)
    total = np.bincount(feature, weights=value, minlength=d_sae)
    largest = np.zeros(d_sae, np.float32)
    firing = np.flatnonzero(n_active)
    if len(firing):
        largest[firing] = np.maximum.reduceat(value, np.r_[0, np.cumsum(n_active)[:-1]][firing])
    bins = np.clip(np.searchsorted(edges, value, side="right") - 1, 0, N_BINS - 1)
    histogram = np.bincount(feature * N_BINS + bins, minlength=d_sae * N_BINS).reshape(d_sae, N_BINS)
    mean, quantiles = (total / np.maximum(n_active, 1)).astype(np.float32), _quantiles(feature, value, n_active)
    if isinstance(tokens, int):
        none = np.zeros((d_sae, 0), np.int64)
        return _Part(mean, largest, quantiles, histogram, none, none, NO_CONTEXTS, None, None)
    types = count_pairs(feature, tokens.ids.reshape(-1)[position], (d_sae, int(tokens.ids.max(initial=0)) + 1))
    ids, counts = _top_tokens(types)
    contexts = _contexts(feature, position, value, largest, tokens, rng)
    triggers = None if vocabulary is None else _triggers(feature, types, position, d_sae, tokens, vocabulary)
    examples = None if grid is None else grid.draw(feature + first, position, value)
    contexts = contexts._replace(feature=contexts.feature + np.int32(first))
    return _Part(mean, largest, quantiles, histogram, ids, counts, contexts, triggers, examples)


def _quantiles(feature: np.ndarray, value: np.ndarray, n_active: np.ndarray) -> np.ndarray:
    """The value below which that share of a feature's activations lies: the nearest one from below."""
    # Positive floats order as their bits do; torch sorts whole numbers by radix on all cores, ten times faster than lexsort.
    keys = torch.from_numpy((feature << 32) | value.view(np.int32))
    ordered = keys.sort().values.int().numpy().view(np.float32)
    starts = np.cumsum(n_active) - n_active
    quantiles = np.zeros((len(n_active), len(QUANTILES)), np.float32)
    living = np.flatnonzero(n_active)
    for column, q in enumerate(QUANTILES):
        quantiles[living, column] = ordered[starts[living] + ((n_active[living] - 1) * q).astype(np.int64)]
    return quantiles


def _triggers(
    feature: np.ndarray,
    types: sparse.csr_matrix,
    position: np.ndarray,
    d_sae: int,
    tokens: TokenSet,
    vocabulary: TokenClasses,
) -> Triggers:
    n_ctx = tokens.ids.shape[1]
    has_bos = int(tokens.bos is not None)
    place = position % n_ctx - has_bos
    in_front = np.where(place > 0, tokens.ids.reshape(-1)[np.maximum(position - 1, 0)], -1)
    first = tokens.counted[:, has_bos : has_bos + FIRST_TOKENS].sum() / max(tokens.counted.sum(), 1)
    return vocabulary.classify(feature, types, in_front, place, d_sae, float(first))


def _rank_in_group(group: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal values of a sorted array."""
    starts = np.r_[0, np.flatnonzero(np.diff(group)) + 1] if len(group) else np.array([], int)
    return np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))


def _top_tokens(types: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """The token types each feature fires on most often, with their counts; ties go to the lower id."""
    d_sae, token, counts = types.shape[0], types.indices, types.data
    owner = np.repeat(np.arange(d_sae), np.diff(types.indptr))
    order = np.lexsort((token, -counts, owner))
    owner, token, counts = owner[order], token[order], counts[order]
    rank = _rank_in_group(owner)
    keep = rank < N_TOP_TOKENS
    ids = np.full((d_sae, N_TOP_TOKENS), -1, np.int32)
    top_counts = np.zeros((d_sae, N_TOP_TOKENS), np.int32)
    ids[owner[keep], rank[keep]] = token[keep]
    top_counts[owner[keep], rank[keep]] = counts[keep]
    return ids, top_counts


def _contexts(
    feature: np.ndarray,
    position: np.ndarray,
    value: np.ndarray,
    largest: np.ndarray,
    tokens: TokenSet,
    rng: tuple[np.random.Generator, np.random.Generator],
) -> Contexts:
    """The N_TOP strongest windows of each feature, N_PER_INTERVAL from each fifth of (0, max], N_SILENT without it."""
    n_windows, n_ctx = tokens.ids.shape
    # Firings come by (feature, position), so those of one window stand together: the first of its largest is its peak.
    if len(feature):
        starts = np.flatnonzero(np.r_[True, np.diff(feature * n_windows + position // n_ctx) != 0])
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
    shuffled = np.lexsort((rng[0].random(len(rest)), group, feature[rest]))
    rest, group = rest[shuffled], group[shuffled]
    keep = _rank_in_group(feature[rest] * (N_INTERVALS + 1) + group) < N_PER_INTERVAL
    chosen = np.r_[top, rest[keep]]
    group = np.r_[np.zeros(len(top), np.int64), group[keep]]
    owner, place, strength = feature[chosen], position[chosen].astype(np.int64), value[chosen]
    silent, where = _silent_contexts(feature, position, largest, tokens, rng[1])
    owner, place = np.r_[owner, silent], np.r_[place, where]
    group = np.r_[group, np.full(len(silent), N_INTERVALS + 1)]
    order = np.lexsort((place, -np.r_[strength, np.zeros(len(silent))], group, owner))
    owner, place, group = owner[order], place[order], group[order]
    rank = _rank_in_group(owner * (N_INTERVALS + 2) + group)

    window, offset = np.divmod(place, n_ctx)
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


def _silent_contexts(
    feature: np.ndarray, position: np.ndarray, largest: np.ndarray, tokens: TokenSet, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(feature, position) of tokens drawn from windows in which a living feature is never active."""
    n_windows, n_ctx = tokens.ids.shape
    living = np.flatnonzero(largest > 0)
    random = rng.random((len(living), N_SILENT * SILENT_DRAWS, 2))
    drawn = (random[..., 0] * n_windows).astype(np.int64)
    has_bos = int(tokens.bos is not None)
    n_real = (tokens.ids != -1).sum(1)
    offset = has_bos + (random[..., 1] * (n_real[drawn] - has_bos)).astype(np.int64)
    key = (living[:, None] * n_windows + drawn).ravel()
    usable = (n_real[drawn] > has_bos).ravel() & ~np.isin(key, feature * n_windows + position // n_ctx)
    once = np.zeros(len(key), bool)
    once[np.unique(key, return_index=True)[1]] = True
    usable = (usable & once).reshape(drawn.shape)
    usable &= np.cumsum(usable, 1) <= N_SILENT
    row, column = np.nonzero(usable)
    return living[row], (drawn * n_ctx + offset)[row, column].astype(np.int64)
