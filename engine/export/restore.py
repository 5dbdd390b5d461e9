"""An exported study back under a root: checked file by file, written by the Writer, published under the name it had."""

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
    told = manifest.read(folder)
    if told.kind != "parquet":
        raise ValueError(
            f"{folder} is a {told.kind} export, expected a parquet one, which alone holds everything; make it with: "
            f"seedscope export {told.study.study} DIR"
        )
    if lacks := sorted(_TABLES - set(told.files)):
        raise ValueError(f"{folder / manifest.FILE} does not list {', '.join(lacks)}; export the study again")
    name = told.study.study if study is None else study
    catalogue.require_name("study", name)
    target = root / name
    if target.exists():
        raise ValueError(f"{target} exists already; import the export under another name, or remove that study first")
    manifest.check_files(folder, told)
    with staged(target) as unfinished:
        for file in told.files:
            if file.endswith(".safetensors") or file.startswith(f"{POOLS}/"):
                (unfinished / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, unfinished / file)
        if plan := catalogue.read(folder) if catalogue.FILE in told.files else None:
            catalogue.write(replace(plan, name=name), unfinished)
        if synthetic.FILE in told.files:
            shutil.copyfile(folder / synthetic.FILE, unfinished / synthetic.FILE)
        with Writer(unfinished) as writer:
            _add_tables(writer, folder, name, told, report)
            path = writer.publish(built_from=told.built_from)
        if name == told.study.study and path.name != told.store:
            raise ValueError(
                f"{folder} gives {path.name}, expected {told.store}: its tables are not those of one study; export it again"
            )
    return target / path.name


def _add_tables(writer: Writer, folder: Path, name: str, told: manifest.Manifest, report: Report) -> None:
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
                _require_saes([sae_file(folders[ensemble], int(seed)) for ensemble, seed in wanted], folder, told)
            writer.add(table, columns)
    for group in _groups(folder / CURVES):
        for kind, table in CURVE_TABLES.items():
            if len(rows := group.filter(pc.equal(group["kind"], kind))):
                writer.add(table, _columns(rows, table))
    for group in _groups(folder / CONTEXTS):
        held = group.drop_columns(["document"]).rename_columns({"document_id": "document"})
        writer.add(Context, _columns(held, Context))
    with pq.ParquetFile(folder / FEATURES) as features, pq.ParquetFile(folder / MATCHES) as matches:
        for i in range(features.num_row_groups):
            _add_features(writer, features.read_row_group(i), matches.read_row_group(i))
            report(i + 1, features.num_row_groups)


def _require_saes(files: list[str], folder: Path, told: manifest.Manifest) -> None:
    if lacks := [file for file in files if file not in told.files]:
        raise ValueError(
            f"{folder / manifest.FILE} does not list {lacks[0]}, an SAE of the study; export the study again"
        )


def _add_features(writer: Writer, features: pa.Table, matches: pa.Table) -> None:
    """Features and their comparisons, a row each, as the two tables of the contract."""
    n = len(features)
    held: dict[str, np.ndarray] = {}
    for name in COMPARISON:
        column = matches[name]
        computed = name.removesuffix("partner") + "cosine" if name in PARTNERS else name
        if name == "encoder_partner":
            computed = "hungarian_cosine"  # both come from the one-to-one matching
        if matches[computed].null_count:
            held[name] = np.zeros((n, 0))
        else:
            filled = column.fill_null(-1) if name in PARTNERS else column
            held[name] = filled.to_numpy().reshape(n, -1)
    none = np.zeros(0)
    renamed = {name.replace("runner_up_cosine", "runner_up"): values for name, values in held.items()}
    found = Matches(other=none, gap=none, **renamed)
    cosines = {column: rule_cosine(rule, found) for rule, column in RULE_COLUMN.items()}
    own = {column for column in schema.columns(Feature) if column not in cosines}
    writer.add(Feature, _columns(features, Feature, own) | cosines)
    keys = _columns(features, Match, {"ensemble", "seed", "feature"})
    in_match = {column: held[name] for name, column in COMPARISON.items() if column in schema.columns(Match)}
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
    found: dict[str, Any] = {}
    for name, (kind, is_list, _) in schema.columns(contract).items():
        if names is not None and name not in names:
            continue
        column = table[name]
        if is_list and kind is not str:
            found[name] = _lists(column)
        elif kind is str or column.null_count:
            found[name] = column.to_pylist()
        else:
            found[name] = column.to_numpy()
    return found


def _lists(column: pa.ChunkedArray) -> Any:
    """Lists of numbers as one array where they are equally long, else as one array each."""
    whole = column.combine_chunks()
    values = whole.flatten().to_numpy(zero_copy_only=False)
    ends = np.cumsum(whole.value_lengths().to_numpy(zero_copy_only=False))
    if len(column) and len(values) == len(column) * ends[0] and (np.diff(ends) == ends[0]).all():
        return values.reshape(len(column), ends[0])
    return np.split(values, ends[:-1])
