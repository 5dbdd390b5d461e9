"""Words of explanations: which are over-represented in those of unstable features, and the kinds of conditions they name."""

import re
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.special import stdtr

from seedscope.app.findings.member_bootstrap import draw_members, intervals
from seedscope.engine.contract.stability import BUCKETS, clopper_pearson

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


class Terms(NamedTuple):
    """What explained features' texts hold, whatever their bucket."""

    lines: list[int]  # one number per feature, ascending
    holds: csr_array  # (features, terms)
    terms: list[str]


def rule_kinds(sentence: str) -> set[str]:
    """The kinds of conditions that a token rule's sentence names, as far as the sentence tells."""
    plain = _QUOTED.sub("", sentence)
    return {kind for kind, pattern in _RULE_KINDS.items() if re.search(pattern, plain)} or {ANOTHER_KIND}


def index_terms(lines: list[int], terms_by_feature: list[set[str]]) -> Terms:
    """The terms of some features as a sparse matrix; `lines` number the features."""
    terms = sorted(set(chain.from_iterable(terms_by_feature)))
    number = {term: i for i, term in enumerate(terms)}
    columns = [number[term] for each in terms_by_feature for term in sorted(each)]
    starts = np.r_[0, np.cumsum([len(each) for each in terms_by_feature], dtype=np.int64)]
    shape = (len(terms_by_feature), len(terms))
    return Terms(lines, csr_array((np.ones(len(columns)), columns, starts), shape=shape), terms)


def contrast(
    explainer: str, n_explained: int, terms: Terms, kinds: Terms | None, at: np.ndarray, bucket: np.ndarray,
    member: np.ndarray, n_members: int,
) -> Contrast:  # fmt: skip
    """Terms and kinds of rules in texts of unstable against those of stable features.

    `at`, `bucket` (index into BUCKETS) and `member` hold an entry per judged feature; `at` is its place in `terms.lines`.
    """
    group = np.full(len(bucket), -1)
    for i, name in enumerate(_CONTRASTED):
        in_bucket = bucket == BUCKETS.index(name)
        group[in_bucket] = i * n_members + member[in_bucket]
    kept = group >= 0
    shape = (len(_CONTRASTED) * n_members, len(terms.lines))
    groups = csr_array((np.ones(kept.sum()), (group[kept], at[kept])), shape=shape)
    sizes = np.bincount(group[kept], minlength=shape[0]).reshape(len(_CONTRASTED), n_members)
    n_stable, n_unstable = (int(n) for n in sizes.sum(1))
    return Contrast(
        explainer=explainer,
        n_stable=n_stable,
        n_unstable=n_unstable,
        n_explained=n_explained,
        n_compared=len(terms.lines),
        words=_contrasted(groups, sizes, terms),
        rule_kinds=None if kinds is None else _contrasted(groups, sizes, kinds),
    )


def _contrasted(groups: csr_array, sizes: np.ndarray, terms: Terms) -> list[WordLine]:
    """Lines of the terms in enough of the features; `groups` are (buckets x members, features), `sizes` (buckets, members)."""
    total = sizes.sum(1)
    if not total.all() or not terms.terms:
        return []
    n_members = sizes.shape[1]
    in_groups = groups @ terms.holds
    by_term = np.asarray(in_groups.sum(0)).ravel()
    chosen = np.flatnonzero(by_term >= FEWEST_FEATURES)
    counts = in_groups[:, chosen].toarray().reshape(len(_CONTRASTED), n_members, len(chosen))
    stable, unstable = counts.sum(1).astype(np.int64)
    shares = [stable / total[0], unstable / total[1]]
    bounds = [clopper_pearson(n, size) for n, size in zip((stable, unstable), total.tolist(), strict=True)]
    difference = shares[1] - shares[0]
    drawn = draw_members(n_members)
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw may hold members without a stable feature
        of_stable, of_unstable = ((drawn @ counts[i]) / (drawn @ sizes[i])[:, None] for i in (0, 1))
        draws = of_unstable - of_stable
    draws = draws[np.isfinite(draws).all(1)]
    ends, errors = intervals(draws, n_members), draws.std(0, ddof=1) if len(draws) > 1 else np.zeros(len(chosen))
    with np.errstate(divide="ignore", invalid="ignore"):
        chances = 2 * stdtr(
            n_members - 1, -np.abs(difference) / errors
        )  # Student's t of the difference over its bootstrap error
    survive = (errors > 0) & (chances < 0.05 / max(len(chosen), 1))  # Bonferroni
    lines = []
    for i in np.lexsort((np.array(terms.terms)[chosen], -np.abs(difference))):
        low, high = ends[i]
        survives = None if low is None else bool(survive[i])
        (s_low, s_high), (u_low, u_high) = ((ends[0][i], ends[1][i]) for ends in bounds)
        lines.append(
            WordLine(
                terms.terms[chosen[i]], int(stable[i]), int(unstable[i]), float(shares[0][i]), float(s_low), float(s_high),
                float(shares[1][i]), float(u_low), float(u_high), float(difference[i]), low, high, survives,
            )
        )  # fmt: skip
    return lines
