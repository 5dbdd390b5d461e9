"""One published study as pages ask for it: features, contexts, chance matches; and the readers of each subject."""

import re
from dataclasses import fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from seedscope.app.store.compare import Comparisons
from seedscope.app.store.database import Database
from seedscope.app.store.errors import NotFound
from seedscope.app.store.explanations import Explanations
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.function import count_substituting, sample_pairs
from seedscope.app.store.map import Maps
from seedscope.app.store.pairs import Pairs
from seedscope.app.store.pools import Pools
from seedscope.app.store.selection import judge
from seedscope.app.store.sources import Sources
from seedscope.app.store.starts import Starts
from seedscope.app.store.suggestions import Suggestions
from seedscope.app.store.table import FeatureRow, FeatureTable, bucket_name, optional
from seedscope.app.store.trajectory import Trajectories
from seedscope.app.store.truth import KnownTruth
from seedscope.app.store.vocabulary import Vocabulary
from seedscope.engine.contract import schema
from seedscope.engine.contract.index.layout import DEAD, UNKNOWN
from seedscope.engine.contract.schema import DECODER_RULES, RULE_COLUMN
from seedscope.engine.contract.stability import count_on_grid
from seedscope.engine.contract.tables.features import Ablation, Context, Feature, Logit, Match
from seedscope.engine.contract.tables.study import Ensemble, Member

SAMPLE_ROWS = 10_000  # features that the band and the sweep are drawn from: their shares are then good to a point


class Sample(NamedTuple):
    """Features drawn from an ensemble: living ones, or all; all of them where there are few, else a fixed random choice."""

    cosines: np.ndarray  # (features, comparisons) under a rule
    anchor: np.ndarray  # (features,) index of the member
    counts: np.ndarray  # (features, thetas) matches at every theta of the grid


class Brief(NamedTuple):
    """What lists of counterparts show of a feature."""

    dead: bool | None
    bucket: str | None  # None for one SAE alone
    explanation: str | None
    explainer: str | None
    score: float | None


class StudyStore(Database):
    """One published study, read-only; methods are safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.sample = lru_cache(4)(self._sample)  # 12 MB each with 95 comparisons
        self.own_counts = lru_cache(64)(self._own_counts)
        self.first_row = lru_cache(64)(self._first_row)
        self.most_similar = lru_cache(16)(partial(count_substituting, self))
        self.function_sample = lru_cache(16)(partial(sample_pairs, self))
        self.comparisons = Comparisons(self)
        self.maps = Maps(self)
        self.pools = Pools(self)
        self.explanations = Explanations(self)
        self.vocabulary = Vocabulary(self)
        self.suggestions = Suggestions(self)
        self.trajectories = Trajectories(self)
        self.truth = KnownTruth(self) if self.study.synthetic else None
        self.is_start_grid = Starts(self).is_grid
        self.compares_sources = bool(Sources(self).causes)

    def holders(self, sae_digest: str) -> list[tuple[Ensemble, Member]]:
        """Every member with these weights."""
        return [
            (self.ensembles[name], member)
            for name, members in self._members.items()
            for member in members
            if member.sae_digest == sae_digest
        ]

    def features(self, query: FeatureQuery) -> FeatureTable:
        """What a query finds."""
        return FeatureTable(self, query)

    def _own_counts(self, ensemble: str) -> list[tuple[int, str, int, int]]:
        """(seed, bucket, n_matched, features) at the ensemble's own theta and epsilon; home asks for it at every visit."""
        row = self.ensembles[ensemble]
        return self.features(FeatureQuery(ensemble, row.theta, row.epsilon)).matched_counts()

    def _first_row(self, query: FeatureQuery) -> FeatureRow | None:
        """The first line of a query's table, None where it finds nothing; home asks for it at every visit."""
        return next(iter(self.features(query).page(limit=1)), None)

    def pairs(self, ensemble: str, rule: str) -> Pairs:
        """The pairs of an ensemble's members under one rule."""
        self.check_rule(ensemble, rule)
        return Pairs(self, ensemble, rule)

    # -- one feature ---------------------------------------------------------------------------------------------

    def feature(self, ensemble: str, seed: int, feature: str | int) -> Feature:
        """One feature; raises NotFound with the range of indices."""
        d_sae = self.ensembles[ensemble].d_sae
        if not re.fullmatch("0|[1-9][0-9]{0,8}", str(feature)) or int(feature) >= d_sae:
            raise NotFound("feature", feature, f"0 to {d_sae - 1}")
        # Its cosines come from the index: DuckDB unpacks those of 2,047 other features for one, which takes most of the time.
        names = [f.name for f in fields(Feature) if f.name not in RULE_COLUMN.values()]
        sql = f"SELECT {', '.join(names)} FROM Feature WHERE ensemble = ? AND seed = ? AND feature = ?"
        stored = dict(zip(names, self.fetch(sql, [ensemble, seed, int(feature)])[0], strict=True))
        index = self.index(ensemble)
        at = np.array([index.key(seed, int(feature))], np.int64)
        cosines: dict[str, Any] = {
            column: index.cosines(rule, at)[0].tolist() if rule in index.rules else []
            for rule, column in RULE_COLUMN.items()
        }
        return Feature(**stored, **cosines)

    def features_at(self, ensemble: str, places: list[tuple[int, int]]) -> dict[tuple[int, int], Feature]:
        """Features by (seed, feature), read together: a page with 95 counterparts asks once."""
        rows = self.rows_at(Feature, ensemble, places)
        return {(row.seed, row.feature): row for row in rows}

    def contexts_at(
        self, ensemble: str, places: list[tuple[int, int]], *, n: int
    ) -> dict[tuple[int, int], list[Context]]:
        """The n strongest contexts of several features, read together."""
        by_place: dict[tuple[int, int], list[Context]] = {}
        for row in self._strongest(ensemble, places, n):
            by_place.setdefault((row.seed, row.feature), []).append(row)
        return by_place

    def _strongest(self, ensemble: str, places: list[tuple[int, int]], n: int) -> list[Context]:
        strongest = f'"group" = 0 AND rank < {n:d}'
        index = self.index(ensemble)
        if not index.has("context-first.npy"):
            return self.rows_at(Context, ensemble, places, f"AND {strongest}")
        rows = np.array([row for place in places if (row := index.row(*place)) is not None], np.int64)
        first, counts = index.column("context-first")[rows], index.column("context-counts")[rows]
        ids = [at + i for at, held in zip(first.tolist(), counts.tolist(), strict=True) for i in range(min(n, held))]
        return self.rows(Context, f"rowid IN (SELECT unnest(?::BIGINT[])) AND {strongest}", [ids]) if ids else []

    def briefs_at(self, query: FeatureQuery, places: list[tuple[int, int]]) -> dict[tuple[int, int], Brief]:
        """What lists of counterparts show of features, judged as a query judges, whatever else it asks."""
        index = self.index(query.ensemble)
        rows = np.array([row for place in places if (row := index.row(*place)) is not None], np.int64)
        status = index.column("status")[rows]
        matched = index.matched_at(query.rule, query.theta, rows)
        buckets = judge(query, index.n_comparisons, matched, status == DEAD)
        texts = index.texts(rows, ("explanation", "explainer"))
        scores = optional(index.column("score")[rows])
        return {
            index.place(row): Brief(
                None if code == UNKNOWN else code == DEAD, bucket_name(bucket), text, explainer, score
            )
            for row, code, bucket, text, explainer, score in zip(
                rows, status.tolist(), buckets.tolist(), texts["explanation"], texts["explainer"], scores, strict=True
            )
        }

    def matches(self, ensemble: str, seed: int, feature: int) -> Match:
        """One feature's partners."""
        return self.rows(Match, "ensemble = ? AND seed = ? AND feature = ?", [ensemble, seed, feature])[0]

    def contexts(self, ensemble: str, seed: int, feature: int) -> list[Context]:
        """A feature's contexts, strongest group first."""
        index = self.index(ensemble)
        row = index.row(seed, feature)
        if row is None or not index.has("context-first.npy"):
            return self.rows(Context, "ensemble = ? AND seed = ? AND feature = ?", [ensemble, seed, feature])
        first, n = int(index.column("context-first")[row]), int(index.column("context-counts")[row])
        return self.rows(Context, "rowid >= ? AND rowid < ?", [first, first + n]) if n else []

    def random_feature(self, ensemble: str) -> tuple[int, int]:
        """(seed, index) of any feature that is not known to be dead; raises NotFound where all are."""
        index = self.index(ensemble)
        rows = np.flatnonzero(index.column("status") != DEAD)
        if not len(rows):
            raise NotFound("living feature", ensemble, "only features that never fire or have no direction")
        return index.place(np.random.default_rng().choice(rows))

    def logits(self, ensemble: str, seed: int, feature: int) -> list[Logit]:
        """The next tokens that a feature lowers, then those that it raises, the strongest first; empty without logits."""
        return self.rows(Logit, "ensemble = ? AND seed = ? AND feature = ?", [ensemble, seed, feature])

    def worth_rank(self, feature: Feature, column: str = "worth_ev") -> int:
        """1-based rank of a feature's marginal worth within its member, largest first."""
        index = self.index(feature.ensemble)
        first = index.row(feature.seed, 0) or 0
        values = index.column(column)[first : first + index.d_sae]
        return int(np.count_nonzero(values > getattr(feature, column))) + 1

    # -- an ensemble as a whole ----------------------------------------------------------------------------------

    def _sample(self, ensemble: str, rule: str, count_dead: bool) -> Sample:
        index = self.index(ensemble)
        rows = index.sample(SAMPLE_ROWS, None if count_dead else index.column("status") != DEAD)
        cosines = index.cosines(rule, rows)
        return Sample(cosines, rows // index.d_sae, count_on_grid(cosines))

    def null_counts(self, ensemble: str, theta: float, rule: str = "argmax") -> dict[str, list[int]]:
        """{null kind: features by number of chance matches 0..N}; none where theta cuts correlations, whose chance is unknown."""
        return self.index(ensemble).null_counts(theta) if rule in DECODER_RULES else {}

    def ablations(self, ensemble: str) -> list[Ablation]:
        """Explained variance under every mask, all members."""
        return self.rows(Ablation, "ensemble = ?", [ensemble])

    def null_rates(self, ensemble: str, theta: float, rule: str = "argmax") -> dict[str, float]:
        """{null kind: share of chance comparisons that reach theta}; none where theta cuts correlations."""
        n = self.ensembles[ensemble].n_comparisons
        counts = self.null_counts(ensemble, theta, rule)  # none for one SAE alone
        return {kind: sum(x * c for x, c in enumerate(row)) / (sum(row) * n) for kind, row in counts.items()}

    def null_p999(self, ensemble: str, rule: str = "argmax") -> dict[str, float]:
        """{null kind: 99.9th percentile of the best cosine by chance}; none where theta cuts correlations."""
        return dict(self.index(ensemble).null_p999) if rule in DECODER_RULES else {}

    def ablation_table(self, ensemble: str) -> pa.Table:
        """The same with every column, for downloads."""
        names = ", ".join(f.name for f in fields(Ablation))
        order = ", ".join(schema.SORT_KEYS[Ablation])
        sql = f"SELECT {names} FROM Ablation WHERE ensemble = $ensemble ORDER BY {order}"
        return self.arrow(sql, {"ensemble": ensemble})
