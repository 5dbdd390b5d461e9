"""Classify what triggers a feature by the tokens it fires on: one of a few classes that can be checked at a glance.

The definition is this project's own. A class holds for a feature when it covers at least COVERS of its firings and at
least LIFT times as many as of all tokens; the first that holds is taken, in this order:

- single token: one token type.
- family: token types that are alike but for case, surrounding space and a plural s: `Def`, ` def`, `defs`.
- number, punctuation (which includes whitespace): tokens without a letter, with or without a digit.
- substring: three characters in a row that the tokens' texts share.
- position: the first tokens of a window.
- previous token: the token type in front of the one it fires on.
- other: none of these.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from seedscope.engine.contract.schema import TRIGGERS

CLASSES = TRIGGERS
COVERS = 0.5
LIFT = 2.0
FIRST_TOKENS = 2  # of a window that count as its beginning
LENGTH = 3  # of a substring
SPARSE = 16  # pairs are sorted where more than this many could be for each that is, and counted in place where fewer


class Triggers(NamedTuple):
    """One entry per feature; a feature that never fires is of the class `other`, with nothing covered."""

    trigger: np.ndarray  # index into CLASSES
    covered: np.ndarray  # share of its firings that the class covers; for `other`, its top token's
    what: np.ndarray  # str: the token, family or substring; empty where the class says it all
    entropy: np.ndarray  # bits, of the token types it fires on
    top_share: np.ndarray  # of the most frequent type


class TokenClasses:
    """Token texts as the classes see them, and how common each class is among all tokens."""

    def __init__(self, texts: Sequence[str], tokens: np.ndarray) -> None:
        """`tokens` are the ids of all tokens that count, or a sample of them."""
        self.texts = np.array(texts, dtype=object)
        n = len(texts)
        base = np.bincount(tokens, minlength=n)[:n] / max(len(tokens), 1)
        families, self._family_of = np.unique([family(text) for text in texts], return_inverse=True)
        self.families = families
        grams: dict[str, int] = {}
        rows, columns = [], []
        for token, text in enumerate(texts):
            for gram in {text[i : i + LENGTH] for i in range(len(text) - LENGTH + 1)}:
                rows.append(token)
                columns.append(grams.setdefault(gram, len(grams)))
        self.grams = np.array(list(grams), dtype=object)
        ones = np.ones(len(rows), np.float32)
        self._has_gram = sparse.csr_matrix((ones, (rows, columns)), (n, max(len(grams), 1)))
        one_each = (np.ones(n, np.float32), (np.arange(n), self._family_of))
        self._in_family = sparse.csr_matrix(one_each, (n, len(families)))
        letters = np.array([any(c.isalpha() for c in text) for text in texts])
        digits = np.array([any(c.isdigit() for c in text) for text in texts])
        self._kinds = sparse.csr_matrix(np.stack([~letters & digits, ~letters & ~digits], 1).astype(np.float32))
        self._base = {
            "token": base, "family": base @ self._in_family, "kind": base @ self._kinds, "gram": base @ self._has_gram,
        }  # fmt: skip

    def classify(
        self,
        feature: np.ndarray,
        types: sparse.csr_matrix,
        previous: np.ndarray,
        place: np.ndarray,
        n_features: int,
        base_first: float,
    ) -> Triggers:
        """Classify features 0 .. n_features - 1 by their firings.

        `types` says how often each fires on each token id (count_pairs). Equally long arrays over firings: `feature`, the
        `previous` token's id (-1 where nothing is in front), `place` in the window after BOS. `base_first` is the share of
        all tokens that stand among the first of their window.
        """
        n_tokens = len(self.texts)
        n = np.bincount(feature, minlength=n_features)
        share = 1 / np.maximum(n, 1)
        types = sparse.csr_matrix(
            (types.data, types.indices, types.indptr), (n_features, n_tokens)
        )  # ids up to the last
        by_token = _largest(types)
        has_previous = previous >= 0
        pairs = count_pairs(feature[has_previous], previous[has_previous], (n_features, n_tokens))
        by_previous = _largest(pairs)
        first = np.bincount(feature, weights=place < FIRST_TOKENS, minlength=n_features)
        kinds = np.asarray((types @ self._kinds).todense())
        by_family, by_gram = _largest(types @ self._in_family), _largest(types @ self._has_gram)
        candidates = [  # in the order of CLASSES: (covered, how common among all tokens, what)
            (by_token.value * share, self._base["token"][by_token.column], self.texts[by_token.column]),
            (by_family.value * share, self._base["family"][by_family.column], self.families[by_family.column]),
            (kinds[:, 0] * share, self._base["kind"][0], ""),
            (kinds[:, 1] * share, self._base["kind"][1], ""),
            (by_gram.value * share, self._base["gram"][by_gram.column], self._gram_texts(by_gram.column)),
            (first * share, base_first, ""),
            (by_previous.value * share, self._base["token"][by_previous.column], self.texts[by_previous.column]),
        ]
        trigger = np.full(n_features, len(CLASSES) - 1, np.int32)
        covered, what = (by_token.value * share).astype(np.float32), np.full(n_features, "", object)
        for index in reversed(range(len(candidates))):
            covers, common, name = candidates[index]
            holds = (covers >= COVERS) & (covers >= LIFT * common) & (n > 0)
            trigger[holds], covered[holds] = index, covers[holds]
            what[holds] = name[holds] if isinstance(name, np.ndarray) else name
        return Triggers(trigger, covered, what, _entropy(types), (by_token.value * share).astype(np.float32))

    def _gram_texts(self, column: np.ndarray) -> np.ndarray:
        return self.grams[column] if len(self.grams) else np.full(len(column), "", object)


def family(text: str) -> str:
    """What token types of one family have in common."""
    word = text.strip().lower()
    plural = len(word) > LENGTH and word.isalpha() and word.endswith("s") and not word.endswith("ss")
    return word[:-1] if plural else word


class _Largest(NamedTuple):
    """The largest entry of every row."""

    value: np.ndarray
    column: np.ndarray


def count_pairs(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """How often each pair occurs, columns ascending in every row."""
    # Counting in place or one sort of keys: scipy's own way sorts row by row, several times slower for many small rows.
    pairs = row.astype(np.int64) * shape[1] + column
    if shape[0] * shape[1] <= SPARSE * len(pairs):
        counts = np.bincount(pairs, minlength=shape[0] * shape[1])
        pairs = np.flatnonzero(counts)
        counts = counts[pairs]
    else:
        ordered, counts = torch.unique_consecutive(torch.from_numpy(pairs).sort().values, return_counts=True)
        pairs, counts = ordered.numpy(), counts.numpy()
    row, column = np.divmod(pairs, shape[1])
    ends = np.r_[0, np.cumsum(np.bincount(row, minlength=shape[0]))]
    return sparse.csr_matrix((counts.astype(np.float32), column.astype(np.int32), ends.astype(np.int32)), shape)


def _largest(counts: sparse.csr_matrix) -> _Largest:
    """Each row's largest entry and its lowest column; 0 and column 0 for an empty row."""
    largest, column = np.zeros(counts.shape[0]), np.zeros(counts.shape[0], np.int64)
    starts, filled = counts.indptr[:-1], np.flatnonzero(np.diff(counts.indptr))
    if len(filled):
        largest[filled] = np.maximum.reduceat(counts.data, starts[filled])
        is_top = counts.data == np.repeat(largest, np.diff(counts.indptr))
        candidates = np.where(is_top, counts.indices, counts.shape[1])
        column[filled] = np.minimum.reduceat(candidates, starts[filled])
    return _Largest(largest, column)


def _entropy(counts: sparse.csr_matrix) -> np.ndarray:
    """Entropy of each row in bits; 0 for an empty row."""
    total = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    p = counts.data / np.repeat(total, np.diff(counts.indptr))
    owner = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    return np.bincount(owner, weights=-p * np.log2(p), minlength=counts.shape[0]).astype(np.float32)
