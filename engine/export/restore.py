"""Restores a Parquet export: checks it file by file, writes its tables into a store and publishes that under the study's name."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seedscope.engine.contract import schema
from seedscope.engine.contract.schema import RULE_COLUMN
from seedscope.engine.contract.tables.features import Context, Feature, Match
from seedscope.engine.contract.tables.study import Ensemble, Member, Study
from seedscope.engine.export import manifest
from seedscope.engine.export.features import COMPARISON, PARTNERS
from seedscope.engine.export.open_study import sae_file
from seedscope.engine.export.parquet import CONTEXTS, CURVE_TABLES, CURVES, FEATURES, MATCHES, PLAIN
from seedscope.engine.matching.match import Matches, rule_cosine
from seedscope.engine.progress import Report
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import Writer
from seedscope.engine.store.staged import staged
from seedscope.engine.studies.pools.record import FOLDER as POOLS
from seedscope.engine.studies.synthetic import plan as synthetic

_TABLES = {FEATURES, MATCHES, CONTEXTS, CURVES, *PLAIN.values()}


def restore(folder: Path, root: Path, study: str | None = None, *, report: Report = lambda done, total: None) -> Path:
    """Publish a Parquet export under a root, as `study` or under the name it had; returns the store's path.

    Under its own name the store is the one that was exported, digest and all. Memory: one row group, the features of about
    a member. Raises ValueError for a folder that is no such export, a file that is missing or not what was exported, and a
    name that is taken or cannot be one; then nothing is left behind.
    """
    exported = manifest.read(folder)
    if exported.kind != "parquet":
        raise ValueError(
            f"{folder} is a {exported.kind} export, expected a parquet one, which alone holds everything; make it with: "
            f"seedscope export {exported.study.study} DIR"
        )
    if lacks := sorted(_TABLES - set(exported.files)):
        raise ValueError(f"{folder / manifest.FILE} does not list {', '.join(lacks)}; export the study again")
    name = exported.study.study if study is None else study
    catalogue.require_name("study", name)
    target = root / name
    if target.exists():
        raise ValueError(f"{target} exists already; import the export under another name, or remove that study first")
    manifest.check_files(folder, exported)
    with staged(target) as unfinished:
        for file in exported.files:
            if file.endswith(".safetensors") or file.startswith(f"{POOLS}/"):
                (unfinished / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, unfinished / file)
        if plan := catalogue.read(folder) if catalogue.FILE in exported.files else None:
            catalogue.write(replace(plan, name=name), unfinished)
        if synthetic.FILE in exported.files:
            shutil.copyfile(folder / synthetic.FILE, unfinished / synthetic.FILE)
        with Writer(unfinished) as writer:
            _add_tables(writer, folder, name, exported, report)
            path = writer.publish(built_from=exported.built_from)
        if name == exported.study.study and path.name != exported.store:
            raise ValueError(
                f"{folder} gives {path.name}, expected {exported.store}: its tables are not those of one study; export it again"
            )
    return target / path.name


def _add_tables(writer: Writer, folder: Path, name: str, exported: manifest.Manifest, report: Report) -> None:
    folders: dict[str, str] = {}
    for table, file in PLAIN.items():
        for group in _groups(folder / file):
            columns = _columns(group, table)
            if table is Study:
                columns["study"] = [name]
            if table is Ensemble:
                folders |= dict(zip(columns["ensemble"], columns["folder"], strict=True))
            if table is Member:
                wanted = zip(columns["ensemble"], columns["seed"], strict=True)
                _require_saes([sae_file(folders[ensemble], int(seed)) for ensemble, seed in wanted], folder, exported)
            writer.add(table, columns)
    for group in _groups(folder / CURVES):
        for kind, table in CURVE_TABLES.items():
            if len(rows := group.filter(pc.field("kind") == kind)):
                writer.add(table, _columns(rows, table))
    for group in _groups(folder / CONTEXTS):
        contexts = group.drop_columns(["document"]).rename_columns({"document_id": "document"})
        writer.add(Context, _columns(contexts, Context))
    with pq.ParquetFile(folder / FEATURES) as features, pq.ParquetFile(folder / MATCHES) as matches:
        for i in range(features.num_row_groups):
            _add_features(writer, features.read_row_group(i), matches.read_row_group(i))
            report(i + 1, features.num_row_groups)


def _require_saes(files: list[str], folder: Path, exported: manifest.Manifest) -> None:
    if lacks := [file for file in files if file not in exported.files]:
        raise ValueError(
            f"{folder / manifest.FILE} does not list {lacks[0]}, an SAE of the study; export the study again"
        )


def _add_features(writer: Writer, features: pa.Table, matches: pa.Table) -> None:
    """Features and their comparisons, a row each, as the two tables of the contract."""
    n = len(features)
    compared: dict[str, np.ndarray] = {}  # (features, comparisons) by name; no column where it was not computed
    for name in COMPARISON:
        column = matches[name]
        computed = name.removesuffix("partner") + "cosine" if name in PARTNERS else name
        if name == "encoder_partner":
            computed = "hungarian_cosine"  # both come from the one-to-one matching
        if matches[computed].null_count:
            compared[name] = np.zeros((n, 0))
        else:
            filled = column.fill_null(-1) if name in PARTNERS else column
            compared[name] = filled.to_numpy().reshape(n, -1)
    none = np.zeros(0)
    renamed = {name.replace("runner_up_cosine", "runner_up"): values for name, values in compared.items()}
    as_matched = Matches(other=none, gap=none, **renamed)
    cosines = {column: rule_cosine(rule, as_matched) for rule, column in RULE_COLUMN.items()}
    own = {column for column in schema.columns(Feature) if column not in cosines}
    writer.add(Feature, _columns(features, Feature, own) | cosines)
    keys = _columns(features, Match, {"ensemble", "seed", "feature"})
    in_match = {column: compared[name] for name, column in COMPARISON.items() if column in schema.columns(Match)}
    writer.add(Match, keys | in_match)


def _groups(path: Path) -> Iterator[pa.Table]:
    """The row groups of a file that hold rows."""
    with pq.ParquetFile(path) as file:
        for i in range(file.num_row_groups):
            group = file.read_row_group(i)
            if len(group):
                yield group


def _columns(table: pa.Table, contract: type, names: set[str] | None = None) -> dict[str, Any]:
    """The columns of a contract's table as the Writer takes them."""
    columns: dict[str, Any] = {}
    for name, (kind, is_list, _) in schema.columns(contract).items():
        if names is not None and name not in names:
            continue
        column = table[name]
        if is_list and kind is not str:
            columns[name] = _lists(column)
        elif kind is str or column.null_count:
            columns[name] = column.to_pylist()
        else:
            columns[name] = column.to_numpy()
    return columns


def _lists(column: pa.ChunkedArray) -> Any:
    """Lists of numbers as one array where they are equally long, else as one array each."""
    whole = column.combine_chunks()
    values = whole.flatten().to_numpy(zero_copy_only=False)
    ends = np.cumsum(whole.value_lengths().to_numpy(zero_copy_only=False))
    if len(column) and len(values) == len(column) * ends[0] and (np.diff(ends) == ends[0]).all():
        return values.reshape(len(column), ends[0])
    return np.split(values, ends[:-1])
