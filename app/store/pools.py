"""Feature pools: where pooled features came from, and what training on does."""

from statistics import fmean, stdev

import pyarrow as pa

from seedscope.app.findings.pool_verdict import PairSpread
from seedscope.app.findings.span_claim import FEWEST_PAIRS
from seedscope.app.store.database import Database
from seedscope.app.store.pairs import Pairs
from seedscope.engine.contract.tables.pools import FeaturePool, PooledFeature, PoolPoint


class Pools:
    """The pools of one study's ensembles."""

    def __init__(self, store: Database) -> None:
        self._store = store
        self.rows: dict[str, FeaturePool] = {row.ensemble: row for row in store.rows(FeaturePool)}

    def points(self, ensemble: str) -> list[PoolPoint]:
        """Every curve at every length."""
        return self._store.rows(PoolPoint, "ensemble = ?", [ensemble])

    def given(self, ensemble: str) -> list[tuple[int, int, int]]:
        """(seed, holders, pooled features that came from that member and are held by so many)."""
        sql = "SELECT seed, holders, count(*) FROM PooledFeature WHERE ensemble = ? GROUP BY ALL ORDER BY ALL"
        return self._store.fetch(sql, [ensemble])

    def features(
        self, ensemble: str, *, holders: int | None, seed: int | None, first: int, n: int
    ) -> tuple[list[PooledFeature], int]:
        """Some of the pooled features that so many hold and that came from this member, in the pool's order; and how many
        there are."""
        where = "ensemble = $ensemble AND holders = coalesce($holders, holders) AND seed = coalesce($seed, seed)"
        parameters = {"ensemble": ensemble, "holders": holders, "seed": seed}
        total = self._store.fetch(f"SELECT count(*) FROM PooledFeature WHERE {where}", parameters)[0][0]
        page = f"id IN (SELECT id FROM PooledFeature WHERE {where} ORDER BY id LIMIT $n OFFSET $first)"
        return self._store.rows(
            PooledFeature, f"ensemble = $ensemble AND {page}", parameters | {"first": first, "n": n}
        ), total

    def feature_table(self, ensemble: str) -> pa.Table:
        """Every pooled feature with what is known of the original, for downloads."""
        row = self._store.ensemble(ensemble)
        sql = (
            "SELECT p.ensemble, p.id, p.seed, p.feature, p.holders, p.density, "
            "len(list_filter(f.cosines, lambda c: c >= $theta::FLOAT)) AS n_matched, $n_comparisons AS n_comparisons, f.dead, "
            "f.worth_ev, f.trigger, f.explanation, f.explainer, f.score FROM PooledFeature p "
            "JOIN Feature f USING (ensemble, seed, feature) WHERE p.ensemble = $ensemble ORDER BY p.id"
        )
        return self._store.arrow(sql, {"ensemble": ensemble, "theta": row.theta, "n_comparisons": row.n_comparisons})

    def curve_table(self, ensemble: str) -> pa.Table:
        """Every curve, a row for each SAE, for downloads."""
        sql = (
            "SELECT ensemble, curve, tokens, generate_subscripts(evs, 1) - 1 AS sae, unnest(evs) AS ev, unnest(l0s) AS l0, "
            "unnest(deads) AS dead, unnest(n_living) AS n_living, unnest(losses) AS loss, unnest(shares) AS share, shared, "
            "best_cosine FROM PoolPoint WHERE ensemble = $ensemble ORDER BY curve, tokens, sae"
        )
        return self._store.arrow(sql, {"ensemble": ensemble})

    def pairs(self, ensemble: str) -> PairSpread | None:
        """How much members agree as they are, at the ensemble's own theta; None for one member."""
        theta = self._store.ensemble(ensemble).theta
        sums: dict[tuple[int, ...], list[int]] = {}
        for pair in Pairs(self._store, ensemble, "argmax").summaries(theta):
            sum_of_pair = sums.setdefault(tuple(sorted((pair.seed, pair.other))), [0, 0])
            sum_of_pair[0], sum_of_pair[1] = sum_of_pair[0] + pair.n_matched_living, sum_of_pair[1] + pair.n_living
        shares = [matched / n for matched, n in sums.values() if n]
        if not shares:
            return None
        spread = stdev(shares) if len(shares) >= FEWEST_PAIRS else None
        return PairSpread(len(shares), fmean(shares), min(shares), max(shares), spread)
