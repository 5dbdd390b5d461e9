"""The features of an ensemble under a query: pages by keyset, facets, counts, downloads, distributions."""

import math
import re
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from seedscope.app.store.database import Database
from seedscope.app.store.errors import BadValue
from seedscope.app.store.feature_query import SORTS, FeatureQuery
from seedscope.app.store.search import HITS, RELEVANCE, found_by, token_matcher
from seedscope.engine.contract.schema import NO_MATCH, RULE_COLUMN, count_column, theta_index
from seedscope.engine.contract.stability import BUCKETS, UNDEFINED, bucket_bounds

_SORT_SQL = {
    "stability": "n_matched",
    "density": "n_active",
    "worth": "worth_ev",
    "loss": "worth_loss",
    "max": "max_activation",
    "entropy": "token_entropy",
    "score": "score",
    "feature": "feature",
    "listed": "listed",  # the place in the query's own list
    "relevance": "relevance",
}
# Which result (a key of `missing`) each value that may be absent comes from.
_RESULT = {"density": "activity", "max": "activity", "entropy": "contexts", "worth": "ablate", "loss": "loss",
           "score": "explanations"}  # fmt: skip
_SINGLE = ("max", "entropy", "score")  # sorts whose column is of single precision
_TOLERANCE = 1e-9
# Named, not `*`: Feature has a column per rule and theta, and binding five hundred columns takes longer than the scan.
_COLUMNS = (
    "ensemble, seed, feature, dead, density, n_active, n_tokens, mean_activation, max_activation, decoder_norm, worth_ev, "
    "worth_loss, trigger, trigger_share, trigger_what, token_entropy, top_token_share, top_token_ids, top_token_counts, "
    "explanation, explainer, score"
)
# Columns that a line of the table takes over as they are.
_AS_STORED = (
    "decoder_norm", "density", "n_active", "max_activation", "worth_ev", "worth_loss", "trigger", "trigger_share",
    "trigger_what", "token_entropy", "explanation", "explainer", "score",
)  # fmt: skip
_NAMES = (*BUCKETS, UNDEFINED)  # by the number that stands for a bucket in statements
SCORE_STEPS = (0.9, 0.8, 0.7, 0.6)  # of the facet: features whose score is at least this


def _bucket(code: int) -> str | None:
    """The bucket of a number in statements; None for what is undefined."""
    return BUCKETS[code] if code < len(BUCKETS) else None


@dataclass(frozen=True)
class FeatureRow:
    """A line of the feature table."""

    seed: int
    feature: int
    bucket: str | None  # None: one SAE alone, whose stability is undefined
    n_matched: int
    cosines: tuple[float, ...]  # that theta is compared with under the query's rule
    mean_cosine: float | None  # of those that are of a pair
    decoder_norm: float
    density: float | None
    n_active: int | None
    max_activation: float | None
    worth_ev: float | None
    worth_loss: float | None
    trigger: str | None
    trigger_share: float | None
    trigger_what: str | None
    token_entropy: float | None
    top_tokens: tuple[str, ...] | None
    top_token_shares: tuple[float, ...] | None  # of its firings on each of them, 0 to 1
    explanation: str | None
    explainer: str | None
    score: float | None  # detection, balanced accuracy
    anchor: bool = False  # of a member whose recipe is not the others'
    found_by: tuple[str, ...] = ()  # of HITS; empty without a search
    hits: tuple[int, ...] = ()  # places in top_tokens of those that the search means
    hit_share: float | None = None  # of its firings on them; None where it was not found by a token
    relevance: float | None = None  # how well it fits the search; see app.store.search


class ListPosition(NamedTuple):
    """Where a feature stands in a filtered list."""

    position: int  # 1-based
    total: int
    previous: tuple[int, int] | None  # (seed, feature)
    next: tuple[int, int] | None


class FeatureTable:
    """What a query finds in one study; raises BadValue where what it asks for was not computed."""

    def __init__(self, store: Database, query: FeatureQuery) -> None:
        store.check_rule(query.ensemble, query.rule)
        _check_computed(store, query)
        self._store, self.query = store, query
        self._matches = token_matcher(query.q or "")
        self._scored, self._filtered, self._parameters = self._statement(query)

    def page(self, *, limit: int, after: str | None = None, before: str | None = None) -> list[FeatureRow]:
        """One page by keyset: the rows behind `after` (or those in front of `before`), in the query's order."""
        backwards, key = before is not None, after or before
        condition, keys = self._beyond(key, backwards) if key else ("", {})
        order = self._order(backwards)
        # Row ids first, then the wide columns of those rows alone: a tenth of the time of sorting whole rows.
        ways = "relevance, by_token, by_explanation" if self.query.q else "NULL, false, false"
        lines = self.select(
            f"SELECT line, {ways} FROM filtered {condition} ORDER BY {order} LIMIT $limit", keys | {"limit": limit}
        )
        stored = self._fetch(
            f"SELECT line, seed, feature, bucket, n_matched, {RULE_COLUMN[self.query.rule]}, top_token_ids, top_token_counts, "
            f"{', '.join(_AS_STORED)} FROM ({self._scored} AND rowid IN (SELECT unnest($lines)))",
            {"lines": [line for line, *_ in lines]},
        )
        values = {line: rest for line, *rest in stored}
        page = [self._row(values[line], relevance, ways) for line, relevance, *ways in lines]
        return page[::-1] if backwards else page

    def _row(self, values: list[Any], relevance: float | None, ways: list[bool]) -> FeatureRow:
        """A line of the table from its stored columns, and whether a search found it by a token and by its explanation."""
        seed, feature, bucket, n_matched, cosines, top_token_ids, top_token_counts, *stored = values
        columns = dict(zip(_AS_STORED, stored, strict=True))
        words, shares, hits = self._top_tokens(top_token_ids, top_token_counts, columns["n_active"], by_token=ways[0])
        return FeatureRow(
            seed=seed,
            feature=feature,
            bucket=_bucket(bucket),
            n_matched=n_matched,
            cosines=tuple(cosines),
            mean_cosine=_mean_cosine(cosines),
            top_tokens=words,
            top_token_shares=shares,
            anchor=seed == self._store.ensembles[self.query.ensemble].anchor,
            found_by=tuple(hit for hit, is_found in zip(HITS, ways, strict=True) if is_found),
            hits=hits,
            hit_share=relevance if ways[0] else None,
            relevance=relevance,
            **columns,
        )

    def buckets_at(self, places: list[tuple[int, int]]) -> dict[tuple[int, int], str | None]:
        """{(seed, feature): bucket, None for one SAE alone} of a few features, read together."""
        rows = self._fetch(
            f"SELECT seed, feature, bucket FROM ({self._scored} AND rowid IN (SELECT t.rowid FROM Feature t JOIN (SELECT "
            "unnest($seeds::BIGINT[]) AS seed, unnest($features::INTEGER[]) AS feature) USING (seed, feature) "
            "WHERE ensemble = $ensemble))",
            {"seeds": [seed for seed, _ in places], "features": [feature for _, feature in places]},
        )
        return {(seed, feature): _bucket(code) for seed, feature, code in rows}

    def _top_tokens(
        self, ids: list[int], counts: list[int], n_active: int | None, *, by_token: bool
    ) -> tuple[tuple[str, ...] | None, tuple[float, ...] | None, tuple[int, ...]]:
        """A feature's top tokens, the share of its firings on each, and the places of those that the search means."""
        if not self._store.has_tokens(self.query.ensemble):
            return None, None, ()
        held = [(self._store.tokens[i], n / (n_active or 1)) for i, n in zip(ids, counts, strict=True) if i >= 0]
        words = tuple(text for text, _ in held)
        hits = tuple(i for i, text in enumerate(words) if by_token and self._matches(text))
        return words, tuple(share for _, share in held), hits

    def key(self, row: FeatureRow) -> str:
        """The keyset position of a row: sort value, seed, feature."""
        if self.query.sorted_by == "listed":
            return f"{self.list_position(row.seed, row.feature)}_{row.seed}_{row.feature}"
        value = getattr(row, _SORT_SQL[self.query.sorted_by])
        value = float(self._last) if value is None else value
        return f"{value!r}_{row.seed}_{row.feature}"

    def list_position(self, seed: int, feature: int) -> int:
        """1-based place of a feature in the query's list, which holds it."""
        listed = self.query.listed or ()
        pair = f"{seed}/{feature}"
        return listed.index(pair if pair in listed else str(feature)) + 1

    def place(self, seed: int, feature: int) -> ListPosition | None:
        """Position, previous and next of a feature in the list; None where the filter leaves it out."""
        here = self.select(
            f"SELECT {self._value} FROM filtered WHERE seed = $at_seed AND feature = $at_feature",
            {"at_seed": seed, "at_feature": feature},
        )
        if not here:
            return None
        key = f"{here[0][0]!r}_{seed}_{feature}"
        ends = []
        for backwards in (True, False):
            condition, keys = self._beyond(key, backwards)
            sql = f"SELECT seed, feature FROM filtered {condition} ORDER BY {self._order(backwards)} LIMIT 1"
            ends.append(next(iter(self.select(sql, keys)), None))
        condition, keys = self._beyond(key, True)
        total, n_before = self.select(f"SELECT count(*), count(*) FILTER ({condition}) FROM filtered", keys)[0]
        return ListPosition(n_before + 1, total, *ends)

    def page_of(self, seed: int, feature: int, *, limit: int) -> str | None:
        """The keyset position (`after`) of the page, of `limit` rows each, that holds a feature.

        None for the first page, and for a feature that the filter leaves out.
        """
        place = self.place(seed, feature)
        skipped = (place.position - 1) // limit * limit if place else 0
        if not skipped:
            return None
        sql = f"SELECT {self._value}, seed, feature FROM filtered ORDER BY {self.order} LIMIT 1 OFFSET $offset"
        value, *last = self.select(sql, {"offset": skipped - 1})[0]
        return f"{value!r}_{last[0]}_{last[1]}"

    def facets(self) -> dict[str, dict[Any, int]]:
        """Counts per bucket, per seed and, of features that fire, per trigger, each under all other filters of the query."""
        counts = {}
        without = {
            "bucket": replace(self.query, bucket=None),
            "seed": replace(self.query, seed=None),
            "trigger": replace(self.query, trigger=None),
        }
        for column, query in without.items():
            wider = FeatureTable(self._store, query)
            where = "WHERE n_active > 0" if column == "trigger" else ""
            counts[column] = dict(wider.select(f"SELECT {column}, count(*) FROM filtered {where} GROUP BY {column}"))
        counts["bucket"] = {_NAMES[code]: n for code, n in counts["bucket"].items()}
        return counts

    def hit_facet(self) -> dict[str, int] | None:
        """{what is searched: features found by it}, under all other filters; None without a search."""
        if not self.query.q:
            return None
        wider = FeatureTable(self._store, replace(self.query, hit=None))
        counts = wider.select("SELECT count(*) FILTER (by_token), count(*) FILTER (by_explanation) FROM filtered")[0]
        return dict(zip(HITS, counts, strict=True))

    def score_facet(self) -> dict[str, int]:
        """{score: features that reach it}, under all other filters of the query."""
        wider = FeatureTable(self._store, replace(self.query, score_min=None))
        counted = ", ".join(f"count(*) FILTER (score >= {step}::FLOAT)" for step in SCORE_STEPS)
        counts = wider.select(f"SELECT {counted} FROM filtered")[0]
        return {f"{step:.1f}": n for step, n in zip(SCORE_STEPS, counts, strict=True)}

    def count(self) -> int:
        """Exact number of features that the query finds."""
        return self.select("SELECT count(*) FROM filtered")[0][0]

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """(seeds, features) of all that the query finds, in no order."""
        rows = self.select_arrow("SELECT seed, feature FROM filtered")
        return rows.column("seed").to_numpy(), rows.column("feature").to_numpy()

    def listed_places(self) -> list[tuple[int, int]]:
        """(seed, feature) of all that the query finds, in its order."""
        return self.select(f"SELECT seed, feature FROM filtered ORDER BY {self._order(False)}")

    # -- distributions -------------------------------------------------------------------------------------------

    def matched_counts(self) -> list[tuple[int, str, int, int]]:
        """(seed, bucket, n_matched, features)."""
        rows = self.select("SELECT seed, bucket, n_matched, count(*) FROM filtered GROUP BY ALL")
        return [(seed, _NAMES[code], x, n) for seed, code, x, n in sorted(rows)]

    def density_histogram(self, *, per_decade: int = 4) -> list[tuple[str, int, int]]:
        """(bucket, bin, living features); bin b holds densities in [10^(b/per_decade), 10^((b+1)/per_decade))."""
        rows = self.select(
            "SELECT bucket, floor(log10(density) * $per_decade)::INTEGER AS bin, count(*) FROM filtered "
            "WHERE density > 0 GROUP BY ALL",
            {"per_decade": per_decade},
        )
        return [(_NAMES[code], bin, n) for code, bin, n in sorted(rows)]

    def bucket_densities(self) -> dict[str, tuple[int, float | None]]:
        """{bucket: (features, median density, None without activity)}."""
        rows = self.select("SELECT bucket, count(*), median(density) FROM filtered GROUP BY bucket")
        return {_NAMES[code]: (n, density) for code, n, density in sorted(rows)}

    # -- SQL -----------------------------------------------------------------------------------------------------

    def select(self, sql: str, more: dict[str, Any] | None = None) -> list[tuple]:
        """Rows of a statement on `filtered`: what the query finds, with `line` (row id), `n_matched` and `bucket` (a number)."""
        return self._fetch(f"{self._filtered} {sql}", more)

    def select_arrow(self, sql: str, more: dict[str, Any] | None = None) -> pa.Table:
        """The same as an Arrow table."""
        sql = f"{self._filtered} {sql}"
        return self._store.arrow(sql, self._named(sql, more))

    def _fetch(self, sql: str, more: dict[str, Any] | None = None) -> list[tuple]:
        return self._store.fetch(sql, self._named(sql, more))

    def _named(self, sql: str, more: dict[str, Any] | None) -> dict[str, Any]:
        """The values that a statement names; DuckDB refuses others."""
        values = self._parameters | (more or {})
        return {name: values[name] for name in set(re.findall(r"\$(\w+)", sql)) if name in values}

    def _statement(self, query: FeatureQuery) -> tuple[str, str, dict[str, Any]]:
        """All features with n_matched and bucket; the CTE `filtered` of those that the query finds; the parameters."""
        n = self._store.ensembles[query.ensemble].n_comparisons
        bounds = bucket_bounds(n, query.epsilon)
        parameters: dict[str, Any] = {"ensemble": query.ensemble, "stable": bounds.stable, "unstable": bounds.unstable}
        index = theta_index(query.theta)
        if index is not None:
            n_matched = count_column(query.rule, index)
        else:
            n_matched = f"len(list_filter({RULE_COLUMN[query.rule]}, lambda c: c >= $theta::FLOAT))"
            parameters["theta"] = query.theta
        where = ["true"]

        def require(sql: str, name: str, value: Any) -> None:
            if value is not None:
                where.append(sql)
                parameters[name] = value

        require("seed = $seed", "seed", query.seed)
        require("bucket = $bucket", "bucket", None if query.bucket is None else BUCKETS.index(query.bucket))
        require("feature = $id", "id", query.id)
        position = ""
        if query.listed is not None:
            where.append("listed IS NOT NULL AND feature IN (SELECT unnest($listed_features::INTEGER[]))")
            parameters["listed"] = list(query.listed)
            parameters["listed_features"] = [int(entry.rpartition("/")[2]) for entry in query.listed]
            positions = [
                f"nullif(list_position($listed::VARCHAR[], {key}), 0)"
                for key in ("seed || '/' || feature", "feature::VARCHAR")
            ]
            position = f"coalesce({', '.join(positions)}) AS listed, "
        require("density >= $density_min", "density_min", query.density_min)
        require("density <= $density_max", "density_max", query.density_max)
        require("trigger = $trigger AND n_active > 0", "trigger", query.trigger)
        if query.stability_min is not None:
            require("n_matched >= $x_min", "x_min", math.ceil(query.stability_min * n - _TOLERANCE))
        if query.stability_max is not None:
            require("n_matched <= $x_max", "x_max", math.floor(query.stability_max * n + _TOLERANCE))
        if query.dead in ("exclude", "only"):
            where.append("dead" if query.dead == "only" else "dead IS NOT TRUE")
        # Scores are single: 0.9 as it stands there is a little less than 0.9.
        require("score >= $score_min::FLOAT", "score_min", query.score_min)
        if query.q:
            found, found_parameters = found_by(query.q, query.hit, self._store.tokens)
            parameters |= found_parameters
        # Buckets as numbers until the end: grouping by text takes three times as long.
        dead, stable, unstable, middle = (BUCKETS.index(b) for b in ("dead", "stable", "unstable", "middle"))
        own_bucket = "" if query.dead == "count" else f"WHEN dead THEN {dead} "
        judged = f"WHEN n_matched >= $stable THEN {stable} WHEN n_matched <= $unstable THEN {unstable} ELSE {middle}"
        if not n:
            judged = (
                f"ELSE {_NAMES.index(UNDEFINED)}" if own_bucket else f"WHEN false THEN 0 ELSE {_NAMES.index(UNDEFINED)}"
            )
            parameters = {name: value for name, value in parameters.items() if name not in ("stable", "unstable")}
        scored = (
            f"SELECT rowid AS line, {_COLUMNS}, {RULE_COLUMN[query.rule]}, {position}{n_matched} AS n_matched, "
            f"(CASE {own_bucket}{judged} END)::UTINYINT AS bucket FROM Feature WHERE ensemble = $ensemble"
        )
        searched = scored
        if query.q:
            searched = f"SELECT *, {RELEVANCE} AS relevance FROM ({scored}) JOIN ({found}) USING (seed, feature)"
        return scored, f"WITH filtered AS (SELECT * FROM ({searched}) WHERE {' AND '.join(where)})", parameters

    @property
    def order(self) -> str:
        """The query's order as SQL, for statements on `filtered`."""
        return self._order(backwards=False)

    def _order(self, backwards: bool) -> str:
        """The query's order with seed and feature as tie-breakers."""
        query = self.query
        value = "DESC" if query.descending != backwards else "ASC"
        ties = "DESC" if backwards else "ASC"
        return f"{self._value} {value}, seed {ties}, feature {ties}"

    @property
    def _last(self) -> str:
        """The value of what has none: behind all others in either direction."""
        return "-inf" if self.query.descending else "inf"

    @property
    def _kind(self) -> str:
        return "FLOAT" if self.query.sorted_by in _SINGLE else "DOUBLE"

    @property
    def _value(self) -> str:
        """What the query sorts by."""
        column = _SORT_SQL[self.query.sorted_by]
        if self.query.sorted_by not in _RESULT:
            return column
        return f"coalesce({column}, '{self._last}'::{self._kind})"

    def _beyond(self, key: str, backwards: bool) -> tuple[str, dict[str, Any]]:
        """WHERE clause for rows behind (or in front of) a key; raises BadValue for a malformed key."""
        query = self.query
        match = re.fullmatch(r"(-?(?:inf|\d{1,18}(?:\.\d{1,20})?(?:e-?\d{1,3})?))_(\d{1,19})_(\d{1,9})", key)
        if not match:
            name = "before" if backwards else "after"
            raise BadValue(name, repr(key), "VALUE_SEED_FEATURE, as in the page's own links")
        value = self._value
        sign = ">" if query.descending == backwards else "<"
        tie = "<" if backwards else ">"
        # Keys print floats exactly, so equality is safe.
        at = f"CAST($key_value AS {self._kind})"
        clause = f"WHERE ({value} {sign} {at} OR ({value} = {at} AND (seed, feature) {tie} ($key_seed, $key_feature)))"
        return clause, {"key_value": float(match[1]), "key_seed": int(match[2]), "key_feature": int(match[3])}


def _mean_cosine(cosines: list[float]) -> float | None:
    paired = [cosine for cosine in cosines if cosine > NO_MATCH]
    return fmean(paired) if paired else None


def _check_computed(store: Database, query: FeatureQuery) -> None:
    """Raise BadValue where a query sorts or filters by what an ensemble does not have: an empty page would be a lie."""
    lacking = store.missing(query.ensemble)
    if "activity" in lacking:  # contexts, top tokens and triggers come with it
        lacking.setdefault("contexts", lacking["activity"])

    def refuse(name: str, value: object, analysis: str, way_out: str) -> None:
        if value is not None and analysis in lacking:
            raise BadValue(name, repr(value), f"{way_out}: {lacking[analysis]}")

    sorts = " or ".join(sort for sort in SORTS if sort != "relevance" and _RESULT.get(sort) not in lacking)
    refuse("sort", query.sort, _RESULT.get(query.sort or "", ""), f"{sorts}, no {query.sort}")
    if query.sort == "listed" and query.listed is None:
        raise BadValue("sort", "'listed'", "an order of its own needs id=SEED/FEATURE,SEED/FEATURE")
    refuse("density_min", query.density_min, "activity", "no filter by density")
    refuse("density_max", query.density_max, "activity", "no filter by density")
    refuse("trigger", query.trigger, "contexts", "no filter by trigger")
    refuse("score_min", query.score_min, "explanations", "no filter by score")
    refuse("hit", query.hit if query.hit == "token" else None, "activity", "no search in tokens")
    refuse("hit", query.hit if query.hit == "explanation" else None, "explanations", "no search in explanations")
    if "explanations" in lacking:
        refuse("q", query.q, "contexts", "#INDEX of a feature, no word of its top tokens")
