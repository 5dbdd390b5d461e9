"""The features of an ensemble under a query: pages by keyset, facets, counts, downloads, distributions."""

from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from seedscope.app.findings.group_quantiles import RankedColumn, find_levels, group_quantiles, rank
from seedscope.app.store.counting import (
    DENSITY_OFFSET,
    NO_DENSITY,
    SCORE_STEPS,
    byte_counts,
    count_codes,
    density_bins,
    score_steps,
)
from seedscope.app.store.database import Database
from seedscope.app.store.errors import BadValue
from seedscope.app.store.feature_index import FeatureIndex
from seedscope.app.store.feature_query import SORTS, FeatureQuery
from seedscope.app.store.missing import Missing
from seedscope.app.store.predictions import predicted_p
from seedscope.app.store.row_order import ListPlace, read_key
from seedscope.app.store.search import HITS, token_matcher
from seedscope.app.store.selection import BUCKET_NAMES, SORT_COLUMN, Selection, judge
from seedscope.engine.contract.index.layout import DEAD, NO_TRIGGER
from seedscope.engine.contract.schema import NO_MATCH, TRIGGERS
from seedscope.engine.contract.stability import BUCKETS

_SORT_FIELD = {"stability": "n_matched", "feature": "feature", "relevance": "relevance", **SORT_COLUMN}
_WHOLE = ("stability", "density", "feature", "listed")  # sorts whose values are whole numbers
# Which result (a key of `missing`) each value that may be absent comes from.
_RESULT = {"density": "activity", "max": "activity", "entropy": "contexts", "worth": "ablate", "loss": "loss",
           "score": "explanations", "cofiring": "function", "predicted": "predicted"}  # fmt: skip
# Columns that a line of the table takes over as they are.
_NUMBERS = ("decoder_norm", "density", "n_active", "max_activation", "worth_ev", "worth_loss", "trigger_share", "token_entropy",
            "score", "cofiring", "substitution")  # fmt: skip
_TEXTS = ("trigger_what", "explanation", "explainer", "top_token_ids", "top_token_counts")


@dataclass(frozen=True)
class FeatureRow:
    """A line of the feature table."""

    seed: int
    feature: int
    bucket: str | None  # None: one SAE alone, whose stability is undefined
    n_matched: int
    cosines: tuple[float, ...]  # that theta is compared with under the query's rule
    mean_cosine: float | None  # their mean over those that are of a pair
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
    cofiring: float | None  # correlation of activations with the nearest feature of each other seed, mean
    substitution: float | None  # how well that feature takes its place, mean; see engine.contract.tables.function
    predicted: float | None = None  # p of one SAE's feature as a predictor tells it, not measured
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
        self.index: FeatureIndex = store.index(query.ensemble)
        self.selection = Selection(self.index, query, store.tokens, partial(predicted_p, store, query.ensemble))
        self._matches = token_matcher(query.q or "")

    def page(self, *, limit: int, after: str | None = None, before: str | None = None) -> list[FeatureRow]:
        """One page by keyset: the rows behind `after` (or those in front of `before`), in the query's order."""
        order = self.selection.order
        if before is not None:
            return self.lines(order.before(self._place(before, "before"), limit))
        return self.lines(order.after(self._place(after, "after") if after else None, limit))

    def lines(self, rows: np.ndarray) -> list[FeatureRow]:
        """Lines of the table, of rows that are candidates."""
        index, query = self.index, self.query
        rows = np.asarray(rows, np.int64)
        matched, buckets = self.judged(rows)
        numbers = {name: optional(index.column(name)[rows]) for name in _NUMBERS}
        if self._store.is_predicted(query.ensemble):
            numbers["predicted"] = optional(self.selection.column("predicted")[rows])
        texts = index.texts(rows, _TEXTS)
        triggers = self._stored_triggers(rows)
        cosines = index.cosines(query.rule, rows).tolist()
        anchor = self._store.ensembles[query.ensemble].anchor
        hits = self.selection.hits
        at = np.searchsorted(self.selection.candidates, rows) if self.selection.candidates is not None else rows
        lines = []
        for i, row in enumerate(rows):
            seed, feature = index.place(row)
            ways = (False, False)
            relevance: float | None = None
            if hits is not None:
                ways = (bool(hits.by_token[at[i]]), bool(hits.by_explanation[at[i]]))
                ways = (ways[0] and query.hit != "explanation", ways[1] and query.hit != "token")
                relevance = float(hits.relevance[at[i]])
            words, shares, places = self._top_tokens(
                texts["top_token_ids"][i], texts["top_token_counts"][i], numbers["n_active"][i], by_token=ways[0]
            )
            lines.append(
                FeatureRow(
                    seed=seed,
                    feature=feature,
                    bucket=bucket_name(int(buckets[i])),
                    n_matched=int(matched[i]),
                    cosines=tuple(cosines[i]),
                    mean_cosine=_mean_cosine(cosines[i]),
                    trigger=triggers[i],
                    trigger_what=texts["trigger_what"][i],
                    top_tokens=words,
                    top_token_shares=shares,
                    explanation=texts["explanation"][i],
                    explainer=texts["explainer"][i],
                    anchor=seed == anchor,
                    found_by=tuple(hit for hit, is_found in zip(HITS, ways, strict=True) if is_found),
                    hits=places,
                    hit_share=relevance if ways[0] else None,
                    relevance=relevance,
                    **{name: values[i] for name, values in numbers.items()},
                )
            )
        return lines

    def judged(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(X, number of the bucket) of rows."""
        matched = self.index.matched_at(self.query.rule, self.query.theta, rows)
        dead = self.index.column("status")[rows] == DEAD
        return matched, judge(self.query, self.index.n_comparisons, matched, dead)

    def _stored_triggers(self, rows: np.ndarray) -> list[str | None]:
        """The trigger that is stored of each row, of features that never fire too."""
        return [None if code == NO_TRIGGER else TRIGGERS[code] for code in self.index.column("trigger_code")[rows]]

    def buckets_at(self, places: list[tuple[int, int]]) -> dict[tuple[int, int], str | None]:
        """{(seed, feature): bucket, None for one SAE alone} of a few features, read together."""
        rows = {place: row for place in places if (row := self.index.row(*place)) is not None}
        _, buckets = self.judged(np.array(list(rows.values()), np.int64))
        return {place: bucket_name(int(code)) for place, code in zip(rows, buckets, strict=True)}

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
        value = getattr(row, _SORT_FIELD[self.query.sorted_by])
        if value is None:
            value = float("-inf" if self.query.descending else "inf")
        return f"{value!r}_{row.seed}_{row.feature}"

    def _key_at(self, row: int) -> str:
        """The keyset position of a row that is found."""
        seed, feature = self.index.place(row)
        value = float(self.selection.signed(np.array([row]))[0]) * (-1 if self.query.descending else 1) + 0.0
        if value.is_integer() and self.query.sorted_by in _WHOLE:
            value = int(value)
        return f"{value!r}_{seed}_{feature}"

    def _place(self, key: str, name: str) -> ListPlace:
        """A keyset position; raises BadValue for a malformed one, which the parameter `name` holds."""
        if (read := read_key(key)) is None:
            raise BadValue(name, repr(key), "VALUE_SEED_FEATURE, as in the page's own links")
        value, seed, feature = read
        signed = value * (-1 if self.query.descending else 1) + 0.0  # keys print floats exactly
        return ListPlace(signed, self.index.key(seed, feature))

    def list_position(self, seed: int, feature: int) -> int:
        """1-based place of a feature in the query's list, which holds it."""
        listed = self.query.listed or ()
        pair = f"{seed}/{feature}"
        return listed.index(pair if pair in listed else str(feature)) + 1

    def _place_of(self, seed: int, feature: int) -> ListPlace | None:
        """Where a feature stands in the list; None where the filter leaves it out."""
        row, selection = self.index.row(seed, feature), self.selection
        if row is None:
            return None
        if selection.candidates is not None:
            at = int(np.searchsorted(selection.rows, row))
            is_found = at < len(selection.rows) and selection.rows[at] == row
        else:
            is_found = selection.found is None or bool(selection.found[row])
        return ListPlace(float(selection.signed(np.array([row]))[0]), row) if is_found else None

    def place(self, seed: int, feature: int) -> ListPosition | None:
        """Position, previous and next of a feature in the list; None where the filter leaves it out."""
        place, order = self._place_of(seed, feature), self.selection.order
        if place is None:
            return None
        ends = [
            self.index.place(rows[0]) if len(rows) else None for rows in (order.before(place, 1), order.after(place, 1))
        ]
        return ListPosition(order.count_before(place) + 1, self.count(), *ends)

    def page_of(self, seed: int, feature: int, *, limit: int) -> str | None:
        """The keyset position (`after`) of the page, of `limit` rows each, that holds a feature.

        None for the first page, and for a feature that the filter leaves out.
        """
        place, order = self._place_of(seed, feature), self.selection.order
        if place is None:
            return None
        n_before = order.count_before(place)
        on_page = n_before % limit
        if n_before == on_page:
            return None
        return self._key_at(int(order.before(place, on_page + 1)[0]))

    def facets(self) -> dict[str, dict[Any, int]]:
        """Counts per bucket, per seed and, of features that fire, per trigger, each under all other filters of the query."""
        selection = self.selection
        buckets = count_codes(selection.buckets, len(BUCKET_NAMES), selection.mask("bucket"))
        classes = count_codes(selection.of("trigger_class"), len(TRIGGERS), selection.mask("trigger"))
        return {
            "bucket": {name: n for name, n in zip(BUCKET_NAMES, buckets, strict=True) if n},
            "seed": self._seed_counts(selection.mask("seed")),
            "trigger": {name: n for name, n in zip(TRIGGERS, classes, strict=True) if n},
        }

    def _seed_counts(self, mask: np.ndarray | None) -> dict[int, int]:
        index, candidates = self.index, self.selection.candidates
        if candidates is not None:
            rows = candidates if mask is None else candidates[mask]
            counts = np.bincount(rows // index.d_sae, minlength=len(index.seeds)).tolist()
        elif mask is None:
            counts = [index.d_sae] * len(index.seeds)
        else:
            counts = [int(np.count_nonzero(of_seed)) for of_seed in mask.reshape(len(index.seeds), index.d_sae)]
        return {seed: n for seed, n in zip(index.seeds, counts, strict=True) if n}

    def hit_facet(self) -> dict[str, int] | None:
        """{what is searched: features found by it}, under all other filters; None without a search."""
        hits, mask = self.selection.hits, self.selection.mask("hit")
        if hits is None:
            return None
        ways = zip(HITS, (hits.by_token, hits.by_explanation), strict=True)
        return {way: int(np.count_nonzero(found if mask is None else found & mask)) for way, found in ways}

    def score_facet(self) -> dict[str, int]:
        """{score: features that reach it}, under all other filters of the query."""
        selection, mask = self.selection, self.selection.mask("score_min")
        if selection.candidates is None:
            steps = self.index.kept(("score steps",), lambda: score_steps(self.index.column("score")))
        else:
            steps = score_steps(selection.of("score"))
        exactly = count_codes(steps, len(SCORE_STEPS) + 1, mask)
        return {f"{step:.1f}": sum(exactly[len(SCORE_STEPS) - i :]) for i, step in enumerate(SCORE_STEPS)}

    def count(self) -> int:
        """Exact number of features that the query finds."""
        return self.selection.n_found

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """(seeds, features) of all that the query finds, in ascending order."""
        rows = self.selection.rows
        return self.index.seed_of(rows), rows % self.index.d_sae

    def listed_places(self) -> list[tuple[int, int]]:
        """(seed, feature) of all that the query finds, in its order."""
        return [self.index.place(row) for row in self.selection.order.whole()]

    # -- distributions -------------------------------------------------------------------------------------------

    def matched_counts(self) -> list[tuple[int, str, int, int]]:
        """(seed, bucket, n_matched, features)."""
        selection, index = self.selection, self.index
        width = index.n_comparisons + 1
        keys = selection.of_found(selection.buckets.astype(np.uint16) * np.uint16(width) + selection.matched)
        ends = np.searchsorted(selection.rows, np.arange(1, len(index.seeds) + 1) * index.d_sae) if (
            selection.candidates is not None or selection.found is not None
        ) else np.arange(1, len(index.seeds) + 1) * index.d_sae  # fmt: skip
        counted = []
        for seed, of_seed in zip(index.seeds, np.split(keys, ends[:-1]), strict=True):
            counts = np.bincount(of_seed, minlength=0)
            counted += [
                (seed, BUCKET_NAMES[key // width], int(key % width), int(counts[key])) for key in np.flatnonzero(counts)
            ]
        return counted

    def density_histogram(self, *, per_decade: int = 4) -> list[tuple[str, int, int]]:
        """(bucket, bin, living features); bin b holds densities in [10^(b/per_decade), 10^((b+1)/per_decade))."""
        selection = self.selection
        keys = selection.buckets.astype(np.uint16) << 8
        keys |= self._density_bins(per_decade)
        if selection.found is not None:  # a number that no bucket has; leaving rows out would take thrice as long
            np.copyto(keys, np.uint16(0xFFFF), where=~selection.found)
        counts = np.zeros((256, 256), np.int64)
        for begin in range(0, len(keys), 1 << 18):  # what is counted together stays in the processor's cache
            counts += np.bincount(keys[begin : begin + (1 << 18)], minlength=1 << 16).reshape(256, 256)
        return [
            (name, int(b) - DENSITY_OFFSET, int(counts[code, b]))
            for code, name in enumerate(BUCKET_NAMES)
            for b in np.flatnonzero(counts[code, :NO_DENSITY])
        ]

    def density_counts(self, *, per_decade: int) -> dict[int, int]:
        """{bin as in `density_histogram`: features that fire}, under all other filters, of all buckets together."""
        bins, mask = self._density_bins(per_decade), self.selection.mask("density_min", "density_max")
        if mask is not None:
            bins = np.where(mask, bins, np.uint8(NO_DENSITY))
        return {int(b) - DENSITY_OFFSET: int(n) for b, n in enumerate(byte_counts(bins)[:NO_DENSITY]) if n}

    def _density_bins(self, per_decade: int) -> np.ndarray:
        """The bin of each candidate's density."""
        if self.selection.candidates is not None:
            return density_bins(self.selection.of("density"), per_decade)
        key = ("density bins", per_decade)
        return self.index.kept(key, lambda: density_bins(self.index.column("density"), per_decade))

    def bucket_densities(self) -> dict[str, tuple[int, float | None]]:
        """{bucket: (features, median density, None without activity)}."""
        selection = self.selection
        if selection.candidates is None:
            return self._bucket_densities_of_all()
        densities, buckets = selection.of_found(selection.of("density")), selection.of_found(selection.buckets)
        medians: dict[str, tuple[int, float | None]] = {}
        for code, name in enumerate(BUCKET_NAMES):
            values = densities[buckets == code]
            known = values[~np.isnan(values)]
            if len(values):
                medians[name] = (len(values), float(np.median(known)) if len(known) else None)
        return medians

    def _bucket_densities_of_all(self) -> dict[str, tuple[int, float | None]]:
        """The same where no search narrows the query: without a copy and a sort of each bucket's densities."""
        selection, index = self.selection, self.index
        densities = index.column("density")
        levels = index.kept(("density levels",), lambda: find_levels(densities))
        codes = index.kept(("density codes",), lambda: rank(densities, levels))
        buckets = selection.buckets
        if selection.found is not None:
            buckets = np.where(selection.found, buckets, np.uint8(len(BUCKET_NAMES)))
        medians = group_quantiles(RankedColumn(levels, codes, densities), buckets, len(BUCKET_NAMES), (0.5,))
        sizes = [int(np.count_nonzero(buckets == code)) for code in range(len(BUCKET_NAMES))]
        return {
            name: (size, median[0] if median else None)
            for name, size, (_, median) in zip(BUCKET_NAMES, sizes, medians, strict=True)
            if size
        }


def optional(column: np.ndarray) -> list[Any]:
    """Values as Python numbers, None where there is none."""
    if np.issubdtype(column.dtype, np.integer):
        return [None if value < 0 else value for value in column.tolist()]
    return [None if value != value else value for value in column.tolist()]


def bucket_name(code: int) -> str | None:
    """The bucket of a number; None for what is undefined."""
    return BUCKETS[code] if code < len(BUCKETS) else None


def _mean_cosine(cosines: list[float]) -> float | None:
    paired = [cosine for cosine in cosines if cosine > NO_MATCH]
    return fmean(paired) if paired else None


def _check_computed(store: Database, query: FeatureQuery) -> None:
    """Raise BadValue where a query sorts or filters by what an ensemble does not have: an empty page would be a lie."""
    lacking = store.missing(query.ensemble)
    if "activity" in lacking:  # contexts, top tokens and triggers come with it
        lacking.setdefault("contexts", lacking["activity"])

    if not store.is_predicted(query.ensemble):
        lacking.setdefault("predicted", Missing("predicted stability", "p is measured here, not predicted", None))

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
    refuse("cofire_min", query.cofire_min, "function", "no filter by co-firing")
    refuse("predicted_min", query.predicted_min, "predicted", "no filter by predicted p")
    refuse("predicted_max", query.predicted_max, "predicted", "no filter by predicted p")
    refuse("hit", query.hit if query.hit == "token" else None, "activity", "no search in tokens")
    refuse("hit", query.hit if query.hit == "explanation" else None, "explanations", "no search in explanations")
    if "explanations" in lacking:
        refuse("q", query.q, "contexts", "#INDEX of a feature, no word of its top tokens")
