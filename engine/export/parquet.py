"""The lossless export: Parquet tables, the SAEs as they are and the plan; what `engine.export.restore` reads.

`features.parquet` has a row per feature with the names of the pages' JSON, `matches.parquet` one per comparison, both in
row groups of the same features; `curves.parquet` what was measured under masks (kind `ablation`), of spans (kind `subspace`),
of members along their training (kind `trajectory`), of feature pools (kind `pool`) and along what the study varies (kind `sweep`,
which follows from the rest and is not read back), `contexts.parquet` the token windows; `pool/` holds the pools as SAELens loads
them. The other tables are those of the contract. Everything streams.
"""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seedscope.engine.contract import schema
from seedscope.engine.contract.names import inside
from seedscope.engine.contract.tables import pools, training
from seedscope.engine.contract.tables.features import Ablation, Context, Feature, Match, NullMatch, Pair
from seedscope.engine.contract.tables.spans import SpanCurve
from seedscope.engine.contract.tables.study import Document, Ensemble, Member, Study, Token
from seedscope.engine.export.features import by_chance, comparison_columns, comparison_keys, feature_columns
from seedscope.engine.export.open_study import FeatureBlock, Opened
from seedscope.engine.export.sweeps import sweep_rows
from seedscope.engine.progress import Report
from seedscope.engine.store import catalogue
from seedscope.engine.studies.pools.record import pool_folder, read
from seedscope.engine.studies.synthetic import plan as synthetic

FEATURES, MATCHES, CONTEXTS, CURVES = "features.parquet", "matches.parquet", "contexts.parquet", "curves.parquet"
_NAMES = {
    Study: "study", Ensemble: "ensembles", Member: "members", Pair: "pairs",
    NullMatch: "nulls", Token: "tokens", Document: "documents",
}  # fmt: skip
# {kind of a curve: table}; in one file, where what a kind does not have is null.
CURVE_TABLES = {
    "ablation": Ablation,
    "subspace": SpanCurve,
    "trajectory": training.AgreementPoint,
    "pool": pools.PoolPoint,
}
SWEEP = "sweep"  # the kind of curve that is of no table
# Tables that are written as the contract has them.
PLAIN = {
    table: f"{_NAMES.get(table, table.__name__.lower())}.parquet"
    for table in schema.TABLES
    if table not in (Feature, Match, Context, *CURVE_TABLES.values())
}
N_ROWS = 2**18  # comparisons and contexts in memory at a time, and in a row group: up to 150 MB


def write(study: Opened, folder: Path, report: Report) -> dict[str, str]:
    """Write all files but the manifest; returns what is left out, and why."""
    saes = study.all_saes()
    total = len(saes) + study.n_members
    for done, sae_file in enumerate(saes):
        study.read_sae(sae_file)
        target = folder / inside(sae_file.file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(study.folder / sae_file.file, target)
        report(done + 1, total)
    if study.plan:
        shutil.copyfile(study.folder / catalogue.FILE, folder / catalogue.FILE)
        if (study.folder / synthetic.FILE).is_file():
            shutil.copyfile(study.folder / synthetic.FILE, folder / synthetic.FILE)
    for row in study.store.rows(pools.FeaturePool):
        _copy_pool(study, row, folder)
    with _Files(folder) as files:
        by_member = [table for table in PLAIN if {"ensemble", "seed"} <= set(schema.columns(table))]
        for table in PLAIN:
            if table not in by_member:
                files.add(PLAIN[table], study.store.table(table))
        files.add(CURVES, _curves(study))
        members = [(row, member) for row in study.ensembles for member in study.members[row.ensemble]]
        chance = {row.ensemble: by_chance(study, row) for row in study.ensembles}
        for done, (row, member) in enumerate(members):
            where: dict[str, Any] = {"ensemble": row.ensemble, "seed": member.seed}
            for table in by_member:
                files.add(PLAIN[table], study.store.table(table, **where))
            for part in study.parts(row, member, n_rows=N_ROWS):
                files.add(FEATURES, pa.table(feature_columns(study, part, chance[row.ensemble])))
                files.add(MATCHES, pa.table(comparison_keys(part) | comparison_columns(part)))
                files.add(CONTEXTS, _contexts(study, part))
            report(len(saes) + done + 1, total)
    named = {"model and tokens": "they are named, not copied"}
    return named | ({} if study.plan else {catalogue.FILE: "the study has none"})


def _copy_pool(study: Opened, row: pools.FeaturePool, folder: Path) -> None:
    """A pool's folder as it is; raises ValueError where it is not the pool that the store holds."""
    source = pool_folder(study.folder, inside(row.ensemble).name)
    record = read(source)
    if record is None or record.digest != row.sae_digest:
        raise ValueError(
            f"{source} is not the pool that was published ({row.sae_digest}); publish what is there with: seedscope pool "
            f"{study.folder.name} {row.ensemble} --replace"
        )
    shutil.copytree(source, pool_folder(folder, row.ensemble))


def _curves(study: Opened) -> pa.Table:
    """Curves of all kinds, with the columns of all of them."""
    tables = {kind: study.store.table(table) for kind, table in CURVE_TABLES.items()}
    named = [table.add_column(0, "kind", pa.repeat(pa.scalar(kind), len(table))) for kind, table in tables.items()]
    swept = pa.Table.from_pylist([{"kind": SWEEP} | row for row in sweep_rows(study)])
    return pa.concat_tables([*named, *([swept] if len(swept) else [])], promote_options="default")


def _contexts(study: Opened, part: FeatureBlock) -> pa.Table:
    """Contexts with their texts; `document` is its name, as on the pages, `document_id` its id."""
    contexts = study.contexts(part)
    documents = [study.documents[i] for i in contexts["document"].to_pylist()]
    ids = contexts["token_ids"].combine_chunks()
    texts = study.texts.take(ids.flatten())
    lengths = ids.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    columns = {name: contexts[name] for name in contexts.column_names if name != "document"}
    return pa.table(
        columns
        | {
            "tokens": pa.ListArray.from_arrays(pa.array(offsets), texts),
            "document": pa.array(documents, pa.string()),
            "document_id": contexts["document"],
        }
    )


class _Files:
    """Parquet files in a folder that grow table by table; every table is a row group."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, kind: type | None, raised: BaseException | None, trace: TracebackType | None) -> None:
        for writer in self._open.values():
            writer.close()

    def add(self, name: str, table: pa.Table) -> None:
        if name not in self._open:
            self._open[name] = pq.ParquetWriter(self._folder / name, table.schema, compression="zstd")
        self._open[name].write_table(table, row_group_size=max(len(table), 1))
