"""Words of explanations: which are over-represented in those of unstable features, and the kinds of conditions they name."""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.special import stdtr

from seedscope.app.store.compare import _draw_members, _interval
from seedscope.app.store.database import Database
from seedscope.app.store.sampling import fixed_sample
from seedscope.app.store.table import FeatureQuery, FeatureTable
from seedscope.engine.contract.names import words
from seedscope.engine.contract.stability import BUCKETS, clopper_pearson

WORD_ROWS = 50_000  # explained features whose words are compared: all where they are few, else a fixed random choice
FEWEST_FEATURES = 5  # stable and unstable together, that a word is compared from
TOKEN_RULE = "token rule"  # the explainer whose sentences have one grammar
_CONTRASTED = ("stable", "unstable")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
# What a token rule's sentence says without what it quotes; a sentence may be of several kinds, and of none of them alone.
_RULE_KINDS = {
    "one token or several": r"^the tokens? ",
    "a word in any form": r"\bin any form\b|\bwith or without a space\b",
    "beginning": r"\bbegins? with\b",
    "end": r"\bends? in\b",
    "substring": r"\bcontains?\b",
    "token in front": r"\bafter\b",
    "place": r"\binside\b|\bat the start\b|\bthat goes on a word\b",
}
ANOTHER_KIND = "class of tokens alone"  # a number, an identifier, ..


@dataclass(frozen=True)
class WordLine:
    """A word, or a kind of rule: features whose explanation has it, and their share of all explained ones of the bucket.

    Intervals are of 95 %: of a share over features (Clopper-Pearson), of the difference over seeds (bootstrap).
    """

    word: str
    n_stable: int
    n_unstable: int
    stable: float
    stable_low: float
    stable_high: float
    unstable: float
    unstable_low: float
    unstable_high: float
    difference: float  # share among unstable less share among stable ones
    low: float | None  # None with fewer than three members
    high: float | None
    survives: bool | None  # differs from 0 also after Bonferroni's correction for the words compared


@dataclass(frozen=True)
class Contrast:
    """Vocabulary of unstable against stable explanations, the largest difference first."""

    explainer: str
    n_stable: int  # explained features that are compared
    n_unstable: int
    n_explained: int  # of any bucket, in the whole ensemble
    n_compared: int  # of them, those that are looked at
    words: list[WordLine]
    rule_kinds: list[WordLine] | None  # of token rules; None for other explainers


class _Terms(NamedTuple):
    """What explained features' texts hold, whatever their bucket."""

    lines: list[int]  # row ids in Feature, ascending
    holds: csr_array  # (features, terms)
    terms: list[str]


class Vocabulary:
    """The words of one study's explanations; what was computed last is kept."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self.contrast = lru_cache(32)(self._contrast)
        self._terms = lru_cache(8)(self._read)

    def _read(self, ensemble: str, explainer: str) -> tuple[_Terms, _Terms | None, int]:
        """Words and, of token rules, kinds of every explained feature that is looked at; and how many are explained."""
        where = "WHERE e.ensemble = $ensemble AND e.explainer = $by AND e.text IS NOT NULL"
        given = {"ensemble": ensemble, "by": explainer}
        rows = self._store.fetch(
            f"SELECT f.rowid, text FROM (SELECT seed, feature, text FROM Explanation e {where} "
            f"{fixed_sample('n_rows')}) JOIN Feature f USING (seed, feature) "
            "WHERE f.ensemble = $ensemble ORDER BY f.rowid",
            given | {"n_rows": WORD_ROWS},
        )
        lines = [line for line, _ in rows]
        n_explained = self._store.fetch(f"SELECT count(*) FROM Explanation e {where}", given)[0][0]
        told = _terms(lines, [words(text) for _, text in rows])
        kinds = _terms(lines, [rule_kinds(text) for _, text in rows]) if explainer == TOKEN_RULE else None
        return told, kinds, n_explained

    def _contrast(self, query: FeatureQuery, explainer: str) -> Contrast:
        """Words of one explainer's texts of unstable against stable features, as `query` judges them."""
        told, kinds, n_explained = self._terms(query.ensemble, explainer)
        table = FeatureTable(self._store, query)
        rows = table.select_arrow(
            "SELECT line, seed, bucket FROM filtered WHERE line IN (SELECT unnest($lines::BIGINT[])) ORDER BY line",
            {"lines": told.lines},
        )
        seeds = [member.seed for member in self._store.members(query.ensemble)]
        at = np.searchsorted(told.lines, rows["line"].to_numpy())
        bucket, member = rows["bucket"].to_numpy(), np.searchsorted(seeds, rows["seed"].to_numpy())
        group = np.full(len(bucket), -1)
        for i, name in enumerate(_CONTRASTED):
            held = bucket == BUCKETS.index(name)
            group[held] = i * len(seeds) + member[held]
        kept = group >= 0
        shape = (len(_CONTRASTED) * len(seeds), len(told.lines))
        groups = csr_array((np.ones(kept.sum()), (group[kept], at[kept])), shape=shape)
        sizes = np.bincount(group[kept], minlength=shape[0]).reshape(len(_CONTRASTED), len(seeds))
        return Contrast(
            explainer,
            *(int(n) for n in sizes.sum(1)),
            n_explained,
            len(told.lines),
            _contrasted(groups, sizes, told),
            None if kinds is None else _contrasted(groups, sizes, kinds),
        )


def rule_kinds(sentence: str) -> set[str]:
    """The kinds of conditions that a token rule's sentence names, as far as the sentence tells."""
    plain = _QUOTED.sub("", sentence)
    return {kind for kind, pattern in _RULE_KINDS.items() if re.search(pattern, plain)} or {ANOTHER_KIND}


def _terms(lines: list[int], held: list[set[str]]) -> _Terms:
    terms = sorted(set(chain.from_iterable(held)))
    number = {term: i for i, term in enumerate(terms)}
    columns = [number[term] for each in held for term in sorted(each)]
    starts = np.r_[0, np.cumsum([len(each) for each in held], dtype=np.int64)]
    return _Terms(lines, csr_array((np.ones(len(columns)), columns, starts), shape=(len(held), len(terms))), terms)


def _contrasted(groups: csr_array, sizes: np.ndarray, told: _Terms) -> list[WordLine]:
    """Lines of the terms in enough of the features; `groups` are (buckets x members, features), `sizes` (buckets, members)."""
    total = sizes.sum(1)
    if not total.all() or not told.terms:
        return []
    n_members = sizes.shape[1]
    in_groups = groups @ told.holds
    by_term = np.asarray(in_groups.sum(0)).ravel()
    chosen = np.flatnonzero(by_term >= FEWEST_FEATURES)
    counts = in_groups[:, chosen].toarray().reshape(len(_CONTRASTED), n_members, len(chosen))
    stable, unstable = counts.sum(1).astype(np.int64)
    shares = [stable / total[0], unstable / total[1]]
    bounds = [clopper_pearson(n, size) for n, size in zip((stable, unstable), total.tolist(), strict=True)]
    difference = shares[1] - shares[0]
    drawn = _draw_members(n_members)
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw may hold members without a stable feature
        of_stable, of_unstable = ((drawn @ counts[i]) / (drawn @ sizes[i])[:, None] for i in (0, 1))
        draws = of_unstable - of_stable
    draws = draws[np.isfinite(draws).all(1)]
    lines = []
    for i in np.lexsort((np.array(told.terms)[chosen], -np.abs(difference))):
        low, high = _interval(draws[:, i], n_members)
        survives = None if low is None else _survives(difference[i], draws[:, i], n_members, len(chosen))
        (s_low, s_high), (u_low, u_high) = ((ends[0][i], ends[1][i]) for ends in bounds)
        lines.append(
            WordLine(
                told.terms[chosen[i]], int(stable[i]), int(unstable[i]), float(shares[0][i]), float(s_low), float(s_high),
                float(shares[1][i]), float(u_low), float(u_high), float(difference[i]), low, high, survives,
            )
        )  # fmt: skip
    return lines


def _survives(difference: float, draws: np.ndarray, n_members: int, n_terms: int) -> bool:
    """Student's t of the difference over its bootstrap error, members less one degrees of freedom, Bonferroni."""
    error = float(draws.std(ddof=1)) if len(draws) > 1 else 0.0
    return error > 0 and bool(2 * stdtr(n_members - 1, -abs(difference) / error) < 0.05 / n_terms)
