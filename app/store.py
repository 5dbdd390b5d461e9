"""Published studies -> frozen rows. DuckDB is opened read-only, without external access, its configuration locked."""

import math
import re
import threading
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np

from engine import schema
from engine.stability import EPSILON, THETA, bucket_bounds

SORTS = ("stability", "density", "worth", "max", "feature")
_SORT_SQL = {
    "stability": "n_matched",
    "density": "n_active",
    "worth": "worth_ev",
    "max": "max_activation",
    "feature": "feature",
}
_TOLERANCE = 1e-9
MATRIX_ROWS = (
    20_000  # features that curves over all comparisons are drawn from: their shares are then good to 0.7 points
)


class NotFound(LookupError):
    """Something named in a URL does not exist; says what was found and what there is."""

    def __init__(self, what: str, found: object, expected: str) -> None:
        super().__init__(f"no {what} {found!r}; there is {expected}")
        self.what, self.found, self.expected = what, str(found), expected


@dataclass
class BadValue(Exception):
    """A value in a URL that cannot be used, found only after parsing."""

    name: str
    found: str
    expected: str


@dataclass(frozen=True)
class FeatureQuery:
    """Which features of an ensemble, judged by which theta and epsilon, in which order."""

    ensemble: str
    theta: float = THETA
    epsilon: float = EPSILON
    seed: int | None = None
    bucket: str | None = None
    dead: str | None = None  # exclude, only
    stability_min: float | None = None
    stability_max: float | None = None
    density_min: float | None = None
    density_max: float | None = None
    id: int | None = None
    q: str | None = None  # text that one of the feature's top tokens contains
    sort: str = "stability"
    descending: bool = True


@dataclass(frozen=True)
class FeatureRow:
    """A line of the feature table."""

    seed: int
    feature: int
    bucket: str
    n_matched: int
    cosines: tuple[float, ...]
    density: float
    n_active: int
    max_activation: float
    worth_ev: float
    top_tokens: tuple[str, ...]


class Place(NamedTuple):
    """Where a feature stands in a filtered list."""

    position: int  # 1-based
    total: int
    previous: tuple[int, int] | None  # (seed, feature)
    next: tuple[int, int] | None


class Studies:
    """The studies under a root; a newly published store is seen at the next request."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, StudyStore] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Names of all published studies, sorted."""
        pattern = f"*/{schema.CURRENT}"
        return sorted(
            p.parent.name for p in self._root.glob(pattern) if re.fullmatch(schema.NAME_PATTERN, p.parent.name)
        )

    def get(self, study: str) -> "StudyStore":
        """The published store of a study; raises NotFound naming the studies there are."""
        path = self._published(study)
        if path is None:
            raise NotFound("study", study, ", ".join(self.names()) or "none yet: run `seedscope demo`")
        with self._lock:
            held = self._open.get(study)
            if held is None or held.path != path:
                try:
                    held = self._open[study] = StudyStore(path)
                except (duckdb.Error, IndexError):
                    raise NotFound(
                        "readable study", study, f"{path.name}, which is damaged; build the study again"
                    ) from None
            return held

    def all(self) -> list["StudyStore"]:
        """Every study that can be read; one that cannot says why on its own page."""
        stores = []
        for name in self.names():
            try:
                stores.append(self.get(name))
            except NotFound:
                continue
        return stores

    def _published(self, study: str) -> Path | None:
        if not re.fullmatch(schema.NAME_PATTERN, study):
            return None
        try:
            name = (self._root / study / schema.CURRENT).read_text().splitlines()[0]
        except (OSError, IndexError, UnicodeDecodeError):
            return None
        path = self._root / study / name
        return path if name and path.is_file() else None


class StudyStore:
    """One published study, read-only; methods are safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = duckdb.connect(
            str(path), read_only=True, config={"enable_external_access": "false", "lock_configuration": "true"}
        )
        name, found = self._fetch("SELECT study, schema_version FROM Study")[0]
        if found != schema.SCHEMA_VERSION:
            expected = f"schema {found} in the file, {schema.SCHEMA_VERSION} is read; build the study again"
            raise NotFound("study of this version", name, expected)
        self.study: schema.Study = self._rows(schema.Study)[0]
        self.ensembles: dict[str, schema.Ensemble] = {e.ensemble: e for e in self._rows(schema.Ensemble)}
        self._members = {name: self._rows(schema.Member, "ensemble = ?", [name]) for name in self.ensembles}
        self.tokens = [row.text for row in self._rows(schema.Token)]
        self.documents = {row.id: row.name for row in self._rows(schema.Document)}
        self.null_rates = lru_cache(512)(self._null_rates)
        self.null_p999 = lru_cache(64)(self._null_p999)
        self.cosine_matrix = lru_cache(4)(self._cosine_matrix)

    # -- what there is -------------------------------------------------------------------------------------------

    def ensemble(self, name: str) -> schema.Ensemble:
        """An ensemble's row; raises NotFound naming the ensembles there are."""
        if name not in self.ensembles:
            raise NotFound("ensemble", name, ", ".join(self.ensembles))
        return self.ensembles[name]

    def members(self, ensemble: str) -> list[schema.Member]:
        """All members in seed order."""
        return self._members[ensemble]

    def member(self, ensemble: str, seed: str | int) -> schema.Member:
        """The member with a seed; raises NotFound naming the seeds there are."""
        by_seed = {str(m.seed): m for m in self._members[ensemble]}
        if str(seed) not in by_seed:
            raise NotFound("seed", seed, "seeds " + ", ".join(by_seed))
        return by_seed[str(seed)]

    def other_seeds(self, ensemble: str, seed: int) -> list[int]:
        """The seeds of an anchor's comparisons, in the order of every list column."""
        return [m.seed for m in self._members[ensemble] if m.seed != seed]

    # -- one feature ---------------------------------------------------------------------------------------------

    def feature(self, ensemble: str, seed: int, feature: str | int) -> schema.Feature:
        """One feature; raises NotFound with the range of indices."""
        d_sae = self.ensembles[ensemble].d_sae
        if not re.fullmatch(r"0|[1-9]\d{0,8}", str(feature)) or int(feature) >= d_sae:
            raise NotFound("feature", feature, f"0 to {d_sae - 1}")
        return self._rows(schema.Feature, "ensemble = ? AND seed = ? AND feature = ?", [ensemble, seed, int(feature)])[
            0
        ]

    def matches(self, ensemble: str, seed: int, feature: int) -> schema.Match:
        """One feature's partners."""
        return self._rows(schema.Match, "ensemble = ? AND seed = ? AND feature = ?", [ensemble, seed, feature])[0]

    def contexts(self, ensemble: str, seed: int, feature: int, *, limit: int = 1000) -> list[schema.Context]:
        """A feature's contexts, strongest group first."""
        where = "ensemble = ? AND seed = ? AND feature = ?"
        return self._rows(schema.Context, where, [ensemble, seed, feature], limit=limit)

    def random_feature(self, ensemble: str) -> tuple[int, int]:
        """(seed, index) of any living feature; raises NotFound where none lives."""
        sql = "SELECT seed, feature FROM Feature WHERE ensemble = ? AND NOT dead ORDER BY random() LIMIT 1"
        found = self._fetch(sql, [ensemble])
        if not found:
            raise NotFound("living feature", ensemble, "only features that never fired on the held-out tokens")
        return found[0]

    def worth_rank(self, ensemble: str, seed: int, worth_ev: float) -> int:
        """1-based rank of a marginal worth within its member, largest first."""
        sql = "SELECT count(*) + 1 FROM Feature WHERE ensemble = ? AND seed = ? AND worth_ev > ?"
        return self._fetch(sql, [ensemble, seed, worth_ev])[0][0]

    # -- lists ---------------------------------------------------------------------------------------------------

    def list_features(
        self, query: FeatureQuery, *, limit: int, after: str | None = None, before: str | None = None
    ) -> list[FeatureRow]:
        """One page by keyset: the rows behind `after` (or those in front of `before`), in the query's order."""
        cte, parameters = self._scored(query)
        backwards = before is not None
        condition = ""
        if after or before:
            condition, keys = self._beyond(query, after or before, backwards)
            parameters |= keys
        order = self._order(query, backwards)
        rows = self._fetch(
            f"{cte}, page AS (SELECT seed, feature FROM filtered {condition} ORDER BY {order} LIMIT $limit) "
            "SELECT f.seed, f.feature, f.bucket, f.n_matched, f.cosines, f.density, f.n_active, f.max_activation, "
            f"f.worth_ev, f.top_token_ids FROM filtered f JOIN page USING (seed, feature) ORDER BY {order}",
            parameters | {"limit": limit},
        )
        found = [
            FeatureRow(*row[:4], tuple(row[4]), *row[5:9], tuple(self.tokens[i] for i in row[9] if i >= 0))
            for row in rows
        ]
        return found[::-1] if backwards else found

    def key(self, query: FeatureQuery, row: FeatureRow) -> str:
        """The keyset position of a row: sort value, seed, feature."""
        value = {"stability": row.n_matched, "density": row.n_active, "worth": row.worth_ev,
                 "max": row.max_activation, "feature": row.feature}[query.sort]  # fmt: skip
        return f"{value!r}_{row.seed}_{row.feature}"

    def place(self, query: FeatureQuery, seed: int, feature: int) -> Place | None:
        """Position, previous and next of a feature in a filtered list; None where the filter leaves it out."""
        cte, parameters = self._scored(query)
        here = self._fetch(
            f"{cte} SELECT {_SORT_SQL[query.sort]} FROM filtered WHERE seed = $at_seed AND feature = $at_feature",
            parameters | {"at_seed": seed, "at_feature": feature},
        )
        if not here:
            return None
        key = f"{here[0][0]!r}_{seed}_{feature}"
        sides = {}
        for backwards in (True, False):
            condition, keys = self._beyond(query, key, backwards)
            rows = self._fetch(
                f"{cte} SELECT seed, feature, count(*) OVER () FROM filtered {condition} "
                f"ORDER BY {self._order(query, backwards)} LIMIT 1",
                parameters | keys,
            )
            sides[backwards] = rows[0] if rows else None
        n_before = sides[True][2] if sides[True] else 0
        n_after = sides[False][2] if sides[False] else 0
        ends = [row[:2] if row else None for row in (sides[True], sides[False])]
        return Place(n_before + 1, n_before + 1 + n_after, *ends)

    def facets(self, query: FeatureQuery) -> dict[str, dict[Any, int]]:
        """Counts per bucket and per seed, each under all other filters of the query."""
        counts = {}
        for column, without in (("bucket", {"bucket": None}), ("seed", {"seed": None})):
            cte, parameters = self._scored(replace(query, **without))
            counts[column] = dict(
                self._fetch(f"{cte} SELECT {column}, count(*) FROM filtered GROUP BY {column}", parameters)
            )
        return counts

    def count(self, query: FeatureQuery) -> int:
        """Exact number of features that a query finds."""
        cte, parameters = self._scored(query)
        return self._fetch(f"{cte} SELECT count(*) FROM filtered", parameters)[0][0]

    def table(self, query: FeatureQuery) -> "duckdb.DuckDBPyRelation":
        """All features that a query finds, as an Arrow table, for downloads."""
        cte, parameters = self._scored(query)
        return (
            self._connection.cursor()
            .sql(
                f"{cte} SELECT ensemble, seed, feature, n_matched / len(cosines) AS stability, n_matched, "
                "len(cosines) AS n_comparisons, bucket, dead, density, n_active, n_tokens, mean_activation, max_activation, "
                f"decoder_norm, worth_ev FROM filtered ORDER BY {self._order(query, False)}",
                params=parameters,
            )
            .to_arrow_table()
        )

    # -- an ensemble as a whole ----------------------------------------------------------------------------------

    def matched_counts(self, query: FeatureQuery) -> list[tuple[int, str, int, int]]:
        """(seed, bucket, n_matched, features) under a query's theta and epsilon."""
        cte, parameters = self._scored(query)
        return self._fetch(
            f"{cte} SELECT seed, bucket, n_matched, count(*) FROM filtered GROUP BY ALL ORDER BY ALL", parameters
        )

    def density_histogram(self, query: FeatureQuery, *, per_decade: int = 4) -> list[tuple[str, int, int]]:
        """(bucket, bin, living features); bin b holds densities in [10^(b/per_decade), 10^((b+1)/per_decade))."""
        cte, parameters = self._scored(query)
        return self._fetch(
            f"{cte} SELECT bucket, floor(log10(density) * $per_decade)::INTEGER AS bin, count(*) FROM filtered "
            "WHERE NOT dead GROUP BY ALL ORDER BY ALL",
            parameters | {"per_decade": per_decade},
        )

    def bucket_medians(self, query: FeatureQuery) -> dict[str, tuple[int, float, float]]:
        """{bucket: (features, median density, median marginal worth)}."""
        cte, parameters = self._scored(query)
        rows = self._fetch(
            f"{cte} SELECT bucket, count(*), median(density), median(worth_ev) FROM filtered GROUP BY bucket",
            parameters,
        )
        return {bucket: (n, density, worth) for bucket, n, density, worth in rows}

    def _cosine_matrix(self, ensemble: str) -> np.ndarray:
        """(features, comparisons) best cosines of living features; of a fixed random choice where there are very many."""
        rows = self._fetch(
            "SELECT cosines FROM Feature WHERE ensemble = ? AND NOT dead ORDER BY hash(seed * 1000003 + feature) LIMIT ?",
            [ensemble, MATRIX_ROWS],
        )
        return np.array([row[0] for row in rows], np.float32).reshape(len(rows), self.ensembles[ensemble].n_comparisons)

    def null_counts(self, ensemble: str, theta: float) -> dict[str, list[int]]:
        """{null kind: features by number of chance matches 0..N}."""
        n = self.ensembles[ensemble].n_comparisons
        rows = self._fetch(
            "SELECT kind, len(list_filter(cosines, lambda c: c >= $theta::FLOAT)) AS x, count(*) FROM NullMatch "
            "WHERE ensemble = $ensemble GROUP BY ALL",
            {"theta": theta, "ensemble": ensemble},
        )
        counts: dict[str, list[int]] = {}
        for kind, x, features in rows:
            counts.setdefault(kind, [0] * (n + 1))[x] = features
        return counts

    def ablations(self, ensemble: str) -> list[schema.Ablation]:
        """Explained variance under every mask, all members."""
        return self._rows(schema.Ablation, "ensemble = ?", [ensemble])

    def _null_rates(self, ensemble: str, theta: float) -> dict[str, float]:
        """{null kind: share of chance comparisons that reach theta}."""
        n = self.ensembles[ensemble].n_comparisons
        counts = self.null_counts(ensemble, theta)
        return {kind: sum(x * c for x, c in enumerate(row)) / (sum(row) * n) for kind, row in counts.items()}

    def _null_p999(self, ensemble: str) -> dict[str, float]:
        """{null kind: 99.9th percentile of the best cosine by chance}."""
        return dict(
            self._fetch(
                "SELECT kind, quantile_cont(c, 0.999) FROM (SELECT kind, unnest(cosines) AS c FROM NullMatch "
                "WHERE ensemble = ?) GROUP BY kind",
                [ensemble],
            )
        )

    # -- SQL -----------------------------------------------------------------------------------------------------

    def _scored(self, query: FeatureQuery) -> tuple[str, dict[str, Any]]:
        """CTE `filtered`: the query's features with n_matched and bucket, and its parameters."""
        n = self.ensembles[query.ensemble].n_comparisons
        bounds = bucket_bounds(n, query.epsilon)
        parameters: dict[str, Any] = {
            "ensemble": query.ensemble, "theta": query.theta, "stable": bounds.stable, "unstable": bounds.unstable,
        }  # fmt: skip
        where = ["true"]

        def require(sql: str, name: str, value: Any) -> None:
            if value is not None:
                where.append(sql)
                parameters[name] = value

        require("seed = $seed", "seed", query.seed)
        require("bucket = $bucket", "bucket", query.bucket)
        require("feature = $id", "id", query.id)
        require("density >= $density_min", "density_min", query.density_min)
        require("density <= $density_max", "density_max", query.density_max)
        if query.stability_min is not None:
            require("n_matched >= $x_min", "x_min", math.ceil(query.stability_min * n - _TOLERANCE))
        if query.stability_max is not None:
            require("n_matched <= $x_max", "x_max", math.floor(query.stability_max * n + _TOLERANCE))
        if query.dead is not None:
            where.append("dead" if query.dead == "only" else "NOT dead")
        if query.q:
            ids = [i for i, text in enumerate(self.tokens) if query.q.lower() in text.lower()]
            require("list_has_any(top_token_ids, $token_ids::INTEGER[])", "token_ids", ids)
        cte = (
            "WITH scored AS (SELECT *, len(list_filter(cosines, lambda c: c >= $theta::FLOAT)) AS n_matched, "
            "CASE WHEN dead THEN 'dead' WHEN n_matched >= $stable THEN 'stable' WHEN n_matched <= $unstable THEN 'unstable' "
            "ELSE 'middle' END AS bucket FROM Feature WHERE ensemble = $ensemble), "
            f"filtered AS (SELECT * FROM scored WHERE {' AND '.join(where)})"
        )
        return cte, parameters

    def _order(self, query: FeatureQuery, backwards: bool) -> str:
        """The query's order with seed and feature as tie-breakers."""
        value = "DESC" if query.descending != backwards else "ASC"
        ties = "DESC" if backwards else "ASC"
        return f"{_SORT_SQL[query.sort]} {value}, seed {ties}, feature {ties}"

    def _beyond(self, query: FeatureQuery, key: str, backwards: bool) -> tuple[str, dict[str, Any]]:
        """WHERE clause for rows behind (or in front of) a key; raises BadValue for a malformed key."""
        match = re.fullmatch(r"(-?\d{1,18}(?:\.\d{1,20})?(?:e-?\d{1,3})?)_(\d{1,9})_(\d{1,9})", key)
        if not match:
            name = "before" if backwards else "after"
            raise BadValue(name, repr(key), "VALUE_SEED_FEATURE, as in the page's own links")
        value = _SORT_SQL[query.sort]
        sign = ">" if query.descending == backwards else "<"
        tie = "<" if backwards else ">"
        # worth_ev is a DOUBLE and keys print floats exactly, so equality is safe.
        cast = "FLOAT" if query.sort == "max" else "DOUBLE"
        at = f"CAST($key_value AS {cast})"
        clause = f"WHERE ({value} {sign} {at} OR ({value} = {at} AND (seed, feature) {tie} ($key_seed, $key_feature)))"
        return clause, {"key_value": float(match[1]), "key_seed": int(match[2]), "key_feature": int(match[3])}

    def _rows(
        self, table: type, where: str = "true", parameters: list[Any] | None = None, *, limit: int | None = None
    ) -> list[Any]:
        """Rows of one table in the order of its keys."""
        names = ", ".join(f'"{f.name}"' for f in fields(table))
        order = ", ".join(f'"{key}"' for key in schema.SORT_KEYS[table])
        sql = f"SELECT {names} FROM {table.__name__} WHERE {where} ORDER BY {order}"
        return [table(*row) for row in self._fetch(sql + (f" LIMIT {limit:d}" if limit else ""), parameters)]

    def _fetch(self, sql: str, parameters: Any = None) -> list[tuple]:
        return self._connection.cursor().execute(sql, parameters or []).fetchall()
