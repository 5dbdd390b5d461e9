"""Draw contexts in which a feature is active and contexts in which it is silent, while activity is summarised.

Contexts lie on a fixed grid: every window, behind its BOS, is cut into runs of LENGTH tokens. A context is active where the
feature fires on any of its tokens that count. Documents are divided into two halves, so that an explanation is never scored
on documents that it was made from; a single document is cut in two by position.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from seedscope.engine.activations.tokens import PADDING, TokenSet
from seedscope.engine.features.triggers import family

LENGTH = 16  # tokens of a context
N_CONTEXTS = 50  # active and as many silent ones per feature and half, at most
HALVES = ("shown", "scored")
KINDS = (
    "active",
    "near miss",
    "silent",
)  # near miss: silent, though it holds tokens that set the feature off elsewhere
N_NEAR = N_CONTEXTS // 2  # silent contexts that are near misses, at most
BEGINNING = 3  # characters that words alike begin with
ACTIVE, NEAR_MISS, SILENT = range(len(KINDS))


class Examples(NamedTuple):
    """Contexts of one member's features: equally long columns, sorted by (feature, half, kind), drawn at random within."""

    feature: np.ndarray  # int32
    half: np.ndarray  # uint8, index into HALVES
    kind: np.ndarray  # uint8, index into KINDS
    start: np.ndarray  # int64, flat index of the first token into TokenSet.ids
    length: np.ndarray  # uint8, tokens, 1 .. LENGTH
    mask: np.ndarray  # uint16: bit i is set where the feature is active on token i; 0 where silent
    peak: np.ndarray  # float32, the largest activation (a_i ||d_i||); 0 where silent
    peak_at: np.ndarray  # uint8, the token it stands on


EMPTY = Examples(
    *(np.zeros(0, kind) for kind in (np.int32, np.uint8, np.uint8, np.int64, np.uint8, np.uint16, np.float32, np.uint8))
)


class ContextGrid:
    """All contexts of a token set, the half each is in, and which token types they hold.

    Memory: 4 bytes per token of the set and 8 per token that counts, whatever the number of members. Building it takes
    about 0.1 s per 100,000 tokens and as many token types.
    """

    def __init__(self, tokens: TokenSet, texts: Sequence[str], *, seed: int = 0) -> None:
        """`texts` are those of all token ids; `seed` decides what is drawn, not what is in which half."""
        self._seed = seed
        n_windows, n_ctx = tokens.ids.shape
        has_bos = int(tokens.bos is not None)
        counted = tokens.counted
        per_window = -(-(n_ctx - has_bos) // LENGTH)
        begin = has_bos + LENGTH * np.arange(per_window)
        length = np.clip((tokens.ids != PADDING).sum(1)[:, None] - begin, 0, LENGTH)
        n_counted = np.stack([counted[:, first : first + LENGTH].sum(1) for first in begin], 1)
        used = np.flatnonzero(n_counted.ravel())  # where nothing counts nothing can fire
        self.start = (np.arange(n_windows)[:, None] * n_ctx + begin).ravel()[used].astype(np.int64)
        self.length = length.ravel()[used].astype(np.uint8)
        document = np.repeat(tokens.document, per_window)[used]
        self.half = _halves(document, n_counted.ravel()[used])
        self._of_half = [np.flatnonzero(self.half == half) for half in (0, 1)]
        self._of_position = np.full(tokens.ids.size, -1, np.int32)
        row, column = np.nonzero(np.arange(LENGTH) < self.length[:, None])
        self._of_position[self.start[row] + column] = row
        self._of_position[~counted.ravel()] = -1
        self._ids, inside = tokens.ids.ravel(), self._of_position >= 0
        pairs = np.unique(self._ids[inside].astype(np.int64) * len(self.start) + self._of_position[inside])
        self._holding = _Index(*np.divmod(pairs, max(len(self.start), 1)), len(texts))
        beginnings = [text.strip().lower()[:BEGINNING] for text in texts]
        self._alike = (_group_by_name([family(text) for text in texts]), _group_by_name(beginnings))

    def draw(self, feature: np.ndarray, position: np.ndarray, value: np.ndarray) -> Examples:
        """Examples of the features that fire, from all their firings, sorted by (feature, position).

        What is drawn for a feature depends on its own firings alone. Up to N_CONTEXTS active contexts per half; as many
        silent ones, N_NEAR of them near misses where there are so many: contexts that hold a token type that sets the
        feature off, its most frequent types first, then types of their families, then types that begin alike. Takes about
        0.6 ms per feature and 0.1 microseconds per firing on 200,000 tokens.
        """
        context = self._of_position[position]
        inside = context >= 0  # BOS can count, yet it is in no context
        feature, context, position, value = feature[inside], context[inside], position[inside], value[inside]
        if not len(feature):
            return EMPTY
        # Firings of one context stand together: a pair of feature and context is a run of them.
        first = np.flatnonzero(np.r_[True, (np.diff(context) != 0) | (np.diff(feature) != 0)])
        run = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(context)]))
        at = (position - self.start[context]).astype(np.uint16)
        mask = np.bitwise_or.reduceat(np.left_shift(np.uint16(1), at), first)
        peak = np.maximum.reduceat(value, first)
        is_peak = np.flatnonzero(value == peak[run])
        peak_at = at[is_peak[np.r_[True, np.diff(run[is_peak]) != 0]]]
        context, types = context[first], self._ids[position]
        borders = np.r_[0, np.flatnonzero(np.diff(feature[first])) + 1, len(first)]
        firing = np.r_[first, len(types)][borders]
        parts = []
        for i, low in enumerate(borders[:-1]):
            owner = int(feature[first[low]])
            half, kind, drawn, which = self._draw_one(
                owner, context[low : borders[i + 1]], types[firing[i] : firing[i + 1]]
            )
            about = [np.where(kind == ACTIVE, column[low + which], 0) for column in (mask, peak, peak_at)]
            parts.append((np.full(len(drawn), owner), half, kind, self.start[drawn], self.length[drawn], *about))
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Examples(*(each.astype(like.dtype) for each, like in zip(columns, EMPTY, strict=True)))

    def _draw_one(self, feature: int, context: np.ndarray, types: np.ndarray) -> tuple[np.ndarray, ...]:
        """(half, kind, context, which of its active contexts, 0 for silent ones) of one feature's examples."""
        rng = np.random.default_rng((self._seed, feature))
        counts = np.bincount(types)
        types = np.flatnonzero(counts)
        types = types[np.argsort(-counts[types], kind="stable")]
        silent = np.ones(len(self.start), bool)
        silent[context] = False
        draws: list[tuple[int, int, np.ndarray, np.ndarray]] = []
        for half in range(len(HALVES)):
            which = np.flatnonzero(self.half[context] == half)
            which = rng.choice(which, min(N_CONTEXTS, len(which)), replace=False)
            near = self._near_misses(types, silent, half, rng)
            silent[near] = False
            rest = self._of_half[half]
            rest = rest[silent[rest]]
            rest = rng.choice(rest, min(N_CONTEXTS - len(near), len(rest)), replace=False)
            draws += [
                (half, ACTIVE, context[which], which),
                (half, NEAR_MISS, near, 0 * near),
                (half, SILENT, rest, 0 * rest),
            ]
        halves, kinds, contexts, indices = zip(*draws, strict=True)
        size = [len(drawn) for drawn in contexts]
        return np.repeat(halves, size), np.repeat(kinds, size), np.concatenate(contexts), np.concatenate(indices)

    def _near_misses(self, types: np.ndarray, silent: np.ndarray, half: int, rng: np.random.Generator) -> np.ndarray:
        """Up to N_NEAR silent contexts of one half that hold some of these types, or types like them; earlier ones first."""
        chosen = np.zeros(0, np.int64)
        for some in self._batches(types):
            rank, context = self._holding.expand(some)
            usable = silent[context] & (self.half[context] == half)
            rank, context = rank[usable], context[usable]
            size = np.bincount(rank)
            enough = int(np.argmax(size >= N_NEAR)) if (size >= N_NEAR).any() else len(size)
            fewer = np.flatnonzero(rank < enough)  # the types before the first that suffices alone
            fewer = fewer[np.argsort(rank[fewer] + rng.random(len(fewer)))]
            alone = np.flatnonzero(rank == enough)
            alone = rng.choice(alone, min(2 * N_NEAR, len(alone)), replace=False)  # half of them may be chosen before
            context = _distinct(context[np.r_[fewer, alone]])
            context = context[~np.isin(context, chosen)]
            chosen = np.r_[chosen, context[: N_NEAR - len(chosen)]]
            if len(chosen) == N_NEAR:
                break
        return chosen

    def _batches(self, types: np.ndarray) -> Iterator[np.ndarray]:
        """These types, then those of their families, then those that begin like them; the order of `types` is kept."""
        yield from _doubling_batches(types)
        seen = types
        for group_of, groups in self._alike:
            _, alike = groups.expand(_distinct(group_of[types]))
            alike = alike[~np.isin(alike, seen)]
            seen = np.r_[seen, alike]
            yield from _doubling_batches(alike)


class _Index:
    """The members of each key, ascending."""

    def __init__(self, key: np.ndarray, member: np.ndarray, n_keys: int) -> None:
        """Equally long arrays of distinct (key, member)."""
        order = np.lexsort((member, key))
        self._member = member[order].astype(np.int32)
        self._starts = np.searchsorted(key[order], np.arange(n_keys + 1))

    def expand(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place of its key in `keys`, member) of all members, key by key."""
        sizes = self._starts[keys + 1] - self._starts[keys]
        place = np.repeat(np.arange(len(keys)), sizes)
        within = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return place, self._member[self._starts[keys][place] + within]


def _group_by_name(names: list[str]) -> tuple[np.ndarray, _Index]:
    """The group of each type, by name, and the types of each group."""
    groups, group_of = np.unique(np.array(names, dtype=object), return_inverse=True)
    return group_of, _Index(group_of, np.arange(len(names)), len(groups))


def _doubling_batches(types: np.ndarray) -> Iterator[np.ndarray]:
    """Batches of 1, 2, 4, ... types: most features find their near misses among the first."""
    start, size = 0, 1
    while start < len(types):
        yield types[start : start + size]
        start, size = start + size, 2 * size


def _distinct(values: np.ndarray) -> np.ndarray:
    """Each value once, in the order of its first appearance."""
    return values[np.sort(np.unique(values, return_index=True)[1])]


def _halves(document: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The half of each context: documents are dealt, largest first, to the half that holds fewer tokens so far.

    `weight` counts a context's tokens. With two documents or more neither half is empty; one document is cut where half of
    its tokens lie behind, and of a single context nothing is left for the second half.
    """
    documents, index = np.unique(document, return_inverse=True)
    if len(documents) < 2:
        before = np.cumsum(weight) - weight
        return (2 * before >= max(weight.sum(), 1)).astype(np.uint8)
    sizes = np.bincount(index, weights=weight).astype(np.int64)
    half_of, n_tokens = np.zeros(len(documents), np.uint8), [0, 0]
    for number in np.argsort(-sizes, kind="stable"):
        half_of[number] = n_tokens[1] < n_tokens[0]
        n_tokens[half_of[number]] += int(sizes[number])
    return half_of[index]
