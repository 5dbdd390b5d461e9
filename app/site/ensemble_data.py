"""The data files of one ensemble: what its pages need to know, the lines of its table, and its features."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from fastapi import FastAPI

from seedscope.app.lens import measure_of
from seedscope.app.routes.address import JudgedFeature
from seedscope.app.routes.feature.permalink import FeatureFilter, FeaturePage, feature_page
from seedscope.app.site.asking import ask_json
from seedscope.app.site.packing import data_file, shortened
from seedscope.app.site.parquet_table import parquet_files
from seedscope.app.site.records import RowTable, record, thinned
from seedscope.app.site.texts import Texts
from seedscope.app.store.counting import SCORE_STEPS
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.cores import usable_cores
from seedscope.engine.contract.schema import TRIGGERS
from seedscope.engine.contract.tables.study import Ensemble

PAGE_ROWS = 500  # lines that the dashboard is asked for at once
BLOCK_ROWS = 16_384  # lines in one file, where the table is loaded whole
QUERIED_ROWS = 1_024  # where only the lines of a page are loaded, which may lie anywhere
CHUNK_FEATURES = 64  # in one file: what opening a feature loads
MOST_PER_FEATURE = 4_000  # bytes of a chunk; contexts beyond that are left out, the weakest first
_FEWER_CONTEXTS = (None, 30, 20, 10, 5, 2)
Listed = list[dict[str, Any]]
Count = Callable[[int], None]  # features that were made since


@dataclass(frozen=True)
class SiteEnsemble:
    """An ensemble under the judgement of a site."""

    store: StudyStore
    row: Ensemble
    query: FeatureFilter  # theta, epsilon, rule and dead alone


async def list_features(app: FastAPI, study: str, row: Ensemble, asked: dict[str, str]) -> Listed:
    """Every line of the table that a filter finds, in the order of seeds and features, as the dashboard's JSON has it.

    Raises ValueError with what the dashboard says of a filter that it refuses.
    """
    # Of one SAE alone the whole page says how sure each prediction is; it costs more than its lines.
    page = f"/s/{study}/{row.ensemble}/features" + (".json" if not row.n_comparisons else "/page.json")
    lines: Listed = []
    after: str | None = None
    while True:
        position = {"after": after} if after else {}
        answer = await ask_json(app, page, asked | {"sort": "feature", "limit": str(PAGE_ROWS)} | position)
        intervals = {
            (each["seed"], each["feature"]): [each["p_low"], each["p_high"]] for each in answer.get("predicted") or []
        }
        lines += [
            each | {"predicted_interval": intervals.get((each["seed"], each["feature"]))} for each in answer["rows"]
        ]
        after = answer["after"]
        if after is None:
            return sorted(lines, key=lambda each: (each["seed"], each["feature"]))


class EnsembleData:
    """Makes the data files of one ensemble; `has` says what there is to show, `is_queried` whether DuckDB reads the table."""

    def __init__(self, judged: SiteEnsemble, lines: Listed, spans: list[str], *, is_queried: bool) -> None:
        self._judged, self._lines, self._spans, self._is_queried = judged, lines, spans, is_queried
        self._block_rows = QUERIED_ROWS if is_queried else BLOCK_ROWS
        store, row = judged.store, judged.row
        lacking, computed = store.missing(row.ensemble), set(row.computed)
        self.has = {
            "activity": "activity" in computed, "ablate": "ablate" in computed, "loss": "loss" in computed,
            "function": "function" in computed, "scores": "explanations" not in lacking, "tokens": store.has_tokens(row.ensemble),
            "predicted": not row.n_comparisons and "predicted" not in lacking, "trajectory": "trajectory" not in lacking,
            "subspaces": "subspaces" not in lacking, "spans": "shared_spans" not in lacking,
        }  # fmt: skip
        self.n_thinned = 0  # features whose weakest contexts were left out

    def files(self, count: Count) -> Iterator[tuple[str, bytes]]:
        """(name, content) of each file; features are made on all cores, `count` is told how many."""
        texts = Texts()
        chunks: dict[str, list[int]] = {}
        with ThreadPoolExecutor(usable_cores()) as pool:
            for seed, group in groupby(self._lines, key=lambda line: line["seed"]):
                features = [line["feature"] for line in group]
                starts = chunks.setdefault(str(seed), [])
                for begin in range(0, len(features), CHUNK_FEATURES):
                    part = features[begin : begin + CHUNK_FEATURES]
                    records = [record(page, texts) for page in pool.map(self._pages(seed), part)]
                    name = f"features-{seed}-{len(starts)}"
                    starts.append(part[0])
                    yield f"{name}.js", self._fitting(name, records)
                    count(len(part))
        yield from self._table()
        yield _script("texts", texts.index())
        for i, block in enumerate(texts.blocks()):
            yield _script(f"texts-{i}", block)
        members = self._judged.store.members(self._judged.row.ensemble)
        yield _script("edges", {str(member.seed): shortened(member.histogram_edges) for member in members})
        yield _script("about", self._about(chunks))

    def _pages(self, seed: int) -> Callable[[int], FeaturePage]:
        """A feature's page by its index, as the dashboard makes it."""
        store, row, query = self._judged.store, self._judged.row, self._judged.query
        member = store.member(row.ensemble, str(seed))
        return lambda index: feature_page(
            JudgedFeature(store, row, query, member, store.feature(row.ensemble, seed, index))
        )

    def _fitting(self, name: str, records: list[dict[str, Any]]) -> bytes:
        """A chunk of records within its size; fewer contexts where all would be too much."""
        for n_contexts in _FEWER_CONTEXTS:
            content = data_file(name, [thinned(each, n_contexts) for each in records])
            if len(content) <= MOST_PER_FEATURE * len(records):
                break
        if n_contexts is not None:
            self.n_thinned += sum(len(each.get("contexts", ())) > n_contexts for each in records)
        return content

    def _table(self) -> Iterator[tuple[str, bytes]]:
        table = RowTable(self._judged.query.theta, has_activity=self.has["activity"])
        size = self._block_rows
        blocks = [table.columns(self._lines[begin : begin + size]) for begin in range(0, len(self._lines), size)]
        for i, block in enumerate(blocks):
            yield _script(f"rows-{i}", block)
        yield _script("row-tokens", {"tokens": list(table.tokens)})
        if self._is_queried:
            yield from parquet_files(blocks).items()

    def _about(self, chunks: dict[str, list[int]]) -> dict[str, Any]:
        """What scripts need of the ensemble; seeds are texts, for scripts know no whole numbers beyond 2^53."""
        store, row, query = self._judged.store, self._judged.row, self._judged.query
        own: dict[str, list[int]] = {}
        for line in self._lines:
            own.setdefault(str(line["seed"]), []).append(line["feature"])
        return {
            "study": store.study.study, "ensemble": row.ensemble, "digest": row.digest, "theta": query.theta, "rule": query.rule,
            "measure": measure_of(query.rule), "n_comparisons": row.n_comparisons, "d_sae": row.d_sae, "n_tokens": row.n_tokens,
            "anchor": None if row.anchor is None else str(row.anchor), "shared_start": row.shared_start,
            "data_order": row.data_order,
            "has": self.has, "triggers": list(TRIGGERS), "score_steps": list(SCORE_STEPS), "spans": self._spans,
            "row_blocks": -(-len(self._lines) // self._block_rows), "block_rows": self._block_rows, "duckdb": self._is_queried,
            "chunks": chunks,
            "indices": {seed: True if len(held) == row.d_sae else held for seed, held in own.items()},
            "seeds": [
                {"seed": str(m.seed), "sae_digest": m.sae_digest, "library": m.library, "source": m.source,
                 "trained_on": m.trained_on, "remarks": m.remarks}
                for m in store.members(row.ensemble)
            ],
        }  # fmt: skip


def _script(name: str, value: Any) -> tuple[str, bytes]:
    return f"{name}.js", data_file(name, value)
