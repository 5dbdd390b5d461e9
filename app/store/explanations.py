"""Explanations as stored: texts and scores of one feature, the contexts scored on, and scores of a whole ensemble."""

from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import fmean
from typing import Literal, NamedTuple, get_args

import numpy as np

from seedscope.app.store.database import Database
from seedscope.app.store.errors import BadValue
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.scores import tally_scores
from seedscope.app.store.table import FeatureTable
from seedscope.engine.contract.names import words
from seedscope.engine.contract.stability import BUCKETS
from seedscope.engine.contract.tables.explanations import Explanation, Score, Scored
from seedscope.engine.contract.tables.features import Feature
from seedscope.engine.contract.tables.study import TokenWindow

ScoreKind = Literal["detection", "fuzzing"]
SCORE_KINDS: tuple[str, ...] = get_args(ScoreKind)
CHANCE_LABELS = 200  # labels of other features that a label's agreement is compared with


@dataclass(frozen=True)
class ToldScore:
    """How well an explanation tells contexts apart; value is None where scoring failed, and `failure` says why."""

    kind: str  # of SCORE_KINDS
    value: float | None  # balanced accuracy
    shuffled: float | None  # the same with shuffled labels, mean
    shuffled_p95: float | None  # what 95 % of the shuffled ones stay below, or reach
    n_active: int
    n_silent: int
    failure: str | None


@dataclass(frozen=True)
class StoredExplanation:
    """What one explainer says of a feature; text is None where explaining failed, and `failure` says why."""

    explainer: str
    text: str | None
    failure: str | None
    scores: list[ToldScore]


@dataclass(frozen=True)
class LabelAgreement:
    """How alike a feature's label and those of its counterparts are: words shared over words used (Jaccard), mean.

    `chance` is the same with up to CHANCE_LABELS features of other seeds and of the feature's own bucket, drawn at random.
    """

    explainer: str | None  # None for a feature without a label
    n: int  # matched counterparts that the same explainer has a label for
    n_matched: int
    mean: float | None
    n_chance: int
    chance: float | None


class ScoredContext(NamedTuple):
    """A context that a feature's explanations are scored on."""

    kind: int  # 0: active, 1: near miss, 2: silent
    token_ids: list[int]
    active: list[bool]  # per token
    document: int


class Explanations:
    """The explanations of one study; what was computed last is kept."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self.explainers = lru_cache(64)(self._explainers)
        self.scores = lru_cache(16)(partial(tally_scores, store))
        self._chance_labels = lru_cache(128)(self._draw_labels)

    def _explainers(self, ensemble: str) -> dict[str, int]:
        """{explainer: features that it has a text for}, most first."""
        sql = "SELECT explainer, count(text) FROM Explanation WHERE ensemble = ? GROUP BY explainer ORDER BY 2 DESC, 1"
        return dict(self._store.fetch(sql, [ensemble]))

    def check(self, ensemble: str, explainer: str | None) -> str | None:
        """The explainer asked for, or the one with most texts; None where there is none, BadValue for an unknown one."""
        known = self.explainers(ensemble)
        if explainer is None:
            return next(iter(known), None)
        if explainer not in known:
            there_is = ", ".join(known) or str(self._store.missing(ensemble).get("explanations", "no explanations"))
            raise BadValue("explainer", repr(explainer), there_is)
        return explainer

    def kinds(self, ensemble: str, explainer: str) -> list[str]:
        """The kinds of scores that an explainer has."""
        sql = "SELECT DISTINCT kind FROM Score WHERE ensemble = ? AND explainer = ?"
        scored_kinds = {kind for (kind,) in self._store.fetch(sql, [ensemble, explainer])}
        return [kind for kind in SCORE_KINDS if kind in scored_kinds] + sorted(scored_kinds - set(SCORE_KINDS))

    def of(self, feature: Feature) -> list[StoredExplanation]:
        """Every explanation of a feature, the one that lists show first, each with its scores."""
        at, where = [feature.ensemble, feature.seed, feature.feature], "ensemble = ? AND seed = ? AND feature = ?"
        texts = self._store.rows(Explanation, where, at)
        scores: dict[str, list[ToldScore]] = {}
        names = list(ToldScore.__dataclass_fields__)
        for row in self._store.rows(Score, where, at):
            scores.setdefault(row.explainer, []).append(ToldScore(*(getattr(row, name) for name in names)))
        texts.sort(key=lambda row: (row.explainer != feature.explainer, row.text is None, row.explainer))
        return [StoredExplanation(row.explainer, row.text, row.failure, scores.get(row.explainer, [])) for row in texts]

    def contexts(self, feature: Feature) -> list[ScoredContext]:
        """The contexts that a feature's explanations are scored on, in the order of Score.said; empty without any."""
        where = "ensemble = ? AND seed = ? AND feature = ?"
        rows = self._store.rows(Scored, where, [feature.ensemble, feature.seed, feature.feature])
        if not rows:
            return []
        (row,) = rows
        chosen = sorted(set(row.windows))
        windows = {w.id: w for w in self._store.rows(TokenWindow, "id IN (SELECT unnest(?::INTEGER[]))", [chosen])}
        contexts = []
        for kind, window, offset, length, mask in zip(
            row.kinds, row.windows, row.offsets, row.lengths, row.masks, strict=True
        ):
            ids = windows[window].token_ids[offset : offset + length]
            active = [bool(mask >> i & 1) for i in range(len(ids))]
            contexts.append(ScoredContext(kind, ids, active, windows[window].document))
        return contexts

    def said(self, found: Feature, explainer: str, kind: str) -> list[int]:
        """What an explainer said of every one of `contexts`: 1 active, 0 silent, -1 no answer; empty where it is not known."""
        where = "ensemble = ? AND seed = ? AND feature = ? AND explainer = ? AND kind = ?"
        at = [found.ensemble, found.seed, found.feature, explainer, kind]
        return next((row.said for row in self._store.rows(Score, where, at)), [])

    # -- labels beside each other ----------------------------------------------------------------------------------

    def agreement(
        self, feature: Feature, bucket: str, query: FeatureQuery, matched: list[tuple[int, int]]
    ) -> LabelAgreement:
        """How alike the label that lists show of a feature and those of its matched counterparts are."""
        if feature.explanation is None or feature.explainer is None:
            return LabelAgreement(None, 0, len(matched), None, 0, None)
        own = words(feature.explanation)
        theirs = [words(text) for text in self._texts_by(feature.explainer, feature.ensemble, matched)]
        drawn = [
            text_words
            for seed, text_words in self._chance_labels(query, bucket, feature.explainer)
            if seed != feature.seed
        ][:CHANCE_LABELS]  # fmt: skip
        return LabelAgreement(
            feature.explainer, len(theirs), len(matched), _likeness(own, theirs), len(drawn), _likeness(own, drawn)
        )

    def _texts_by(self, explainer: str, ensemble: str, places: list[tuple[int, int]]) -> list[str]:
        """What one explainer says of features, of those that it has a text for: mostly what lists show of them."""
        index = self._store.index(ensemble)
        rows = np.array([row for place in places if (row := index.row(*place)) is not None], np.int64)
        shown = index.texts(rows, ("explanation", "explainer"))
        texts, others = [], []
        for row, text, by in zip(rows, shown["explanation"], shown["explainer"], strict=True):
            if by == explainer and text is not None:
                texts.append(text)
            else:
                others.append(index.place(row))
        if others and len(self.explainers(ensemble)) > 1:
            more = self._store.rows_at(Explanation, ensemble, others)
            texts += [row.text for row in more if row.explainer == explainer and row.text is not None]
        return texts

    def _draw_labels(self, query: FeatureQuery, bucket: str, explainer: str) -> list[tuple[int, set[str]]]:
        """(seed, words) of labels of a bucket's features: enough that CHANCE_LABELS remain without any one seed."""
        selection = FeatureTable(self._store, query).selection
        index, n = selection.index, self._store.ensembles[query.ensemble].n_members
        passes = selection.buckets == BUCKETS.index(bucket)
        if selection.found is not None:
            passes &= selection.found
        wanted = 2 * CHANCE_LABELS * n // max(n - 1, 1)
        labels: list[tuple[int, set[str]]] = []
        for rows in index.in_random_order(passes, wanted):
            texts = index.texts(rows, ("explanation", "explainer"))
            named = zip(index.seed_of(rows).tolist(), texts["explanation"], texts["explainer"], strict=True)
            labels += [(seed, words(text)) for seed, text, by in named if by == explainer and text is not None]
            if len(labels) >= wanted:
                break
        return labels[:wanted]


def _likeness(own: set[str], others: list[set[str]]) -> float | None:
    """Mean over the others of words in both labels over words in either."""
    return fmean(len(own & other) / len(own | other) if own | other else 1.0 for other in others) if others else None
