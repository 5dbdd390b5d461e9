"""Restores a Parquet export: checks it file by file, writes its tables into a store and publishes that under the study's name.

An export may come from anywhere. Names, types, ranges, keys between tables, counts, digests and the SAEs themselves are checked
before anything takes the study's name; what does not agree is refused whole.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seedscope.engine.contract import schema
from seedscope.engine.contract.checksums import SUMS
from seedscope.engine.contract.former_stores import default_of
from seedscope.engine.contract.names import inside
from seedscope.engine.contract.schema import DECODER_RULES, RULE_COLUMN, Column
from seedscope.engine.contract.tables import pools
from seedscope.engine.contract.tables.features import Context, Feature, Match
from seedscope.engine.contract.tables.study import Ensemble, Member, Study
from seedscope.engine.contract.urls import on_this_machine, url_in
from seedscope.engine.export import manifest
from seedscope.engine.export.by_url import fetched_export
from seedscope.engine.export.features import COMPARISON, PARTNERS
from seedscope.engine.export.open_study import sae_file
from seedscope.engine.export.parquet import CONTEXTS, CURVE_TABLES, CURVES, FEATURES, MATCHES, PLAIN, SWEEP
from seedscope.engine.export.parquet_groups import GroupedFile, groups, lacks_columns
from seedscope.engine.matching.match import Matches, rule_cosine
from seedscope.engine.progress import Report
from seedscope.engine.saes import sae
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.importers.saelens import CONFIG, RUNNER, WEIGHTS
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import Writer
from seedscope.engine.store.staged import staged
from seedscope.engine.studies.pools.record import RECORD, SAE_FOLDER, pool_folder
from seedscope.engine.studies.pools.record import read as read_pool
from seedscope.engine.studies.synthetic import plan as synthetic
from seedscope.engine.urls.cache import with_urls

_TABLES = {FEATURES, MATCHES, CONTEXTS, CURVES, *PLAIN.values()}
# Tables that exports of former schemas may not have.
_ADDED = {file for table, file in PLAIN.items() if table not in schema.REQUIRED}
# Columns of features and matches that exports of former schemas do not have; each may be null.
_NEW_COLUMNS = ("cofiring", "substitution", "active_partner", "active_correlation")
_KEYS = ("ensemble", "seed", "feature")
_INT, _FLOAT, _BOOL, _TEXT = (Column(kind, False, True) for kind in (int, float, bool, str))
_OF_MATCHES = {"ensemble": _TEXT, "seed": _INT, "feature": _INT, "other_seed": _INT} | {
    name: _BOOL if name == "mutual" else _INT if name in PARTNERS else _FLOAT for name in COMPARISON
}


def restore(
    folder: Path | str, root: Path, study: str | None = None, *, report: Report = lambda done, total: None
) -> Path:
    """Publish a Parquet export in a folder or at a URL under a root, as `study` or under its own name; returns the store's path.

    Under its own name the store is the one that was exported, digest and all. Memory: one row group, the features of about
    a member. Raises ValueError for a folder that is no such export, a file that is missing or not what was exported, tables
    that contradict each other, the SAEs or the catalogue, and a name that is taken or cannot be one; then nothing is left behind.
    """
    url = url_in(folder)
    folder = fetched_export(url) if url else Path(on_this_machine(folder))
    try:
        return _restored(folder, root, study, report)
    except ValueError as error:
        raise ValueError(with_urls(str(error))) from None


def _restored(folder: Path, root: Path, study: str | None, report: Report) -> Path:
    exported = manifest.read(folder)
    if exported.kind != "parquet":
        raise ValueError(
            f"{folder} is a {exported.kind} export, expected a parquet one, which alone holds everything; make it with: "
            f"seedscope export {exported.study.study} DIR"
        )
    needed = _TABLES if exported.schema_version == schema.SCHEMA_VERSION else _TABLES - _ADDED
    if lacks := sorted(needed - set(exported.files)):
        raise ValueError(f"{folder / manifest.FILE} does not list {', '.join(lacks)}; export the study again")
    name = exported.study.study if study is None else study
    catalogue.require_name("study", name)
    target = root / name
    if target.exists():
        raise ValueError(f"{target} exists already; import the export under another name, or remove that study first")
    manifest.check_files(folder, exported)
    with _whole(folder), staged(target) as unfinished:
        ensembles, members, pooled = (list(_rows(folder, table)) for table in (Ensemble, Member, pools.FeaturePool))
        plan = catalogue.read(folder) if catalogue.FILE in exported.files else None
        with Writer(unfinished) as writer:
            _copy_saes(folder, unfinished, exported, _named_saes(ensembles, members, plan))
            _add_tables(writer, folder, name, exported, report)
            writer.require_consistent()
            _require_forward(unfinished, ensembles, members)
            for pool in pooled:
                _copy_pool(folder, unfinished, exported, pool)
            if plan:
                catalogue.write(replace(plan, name=name), unfinished)
            if synthetic.FILE in exported.files:
                if (made := synthetic.read(folder)) is None:
                    raise ValueError(f"found no {folder / synthetic.FILE}")
                synthetic.write(made, unfinished)
            path = writer.publish(built_from=exported.built_from, compared=any(row.n_comparisons for row in ensembles))
        if name == exported.study.study and path.name != exported.store and not _is_former(folder, exported):
            raise ValueError(
                f"{folder} gives {path.name}, expected {exported.store}: its tables are not those of one study; export it again"
            )
    return target / path.name


def _is_former(folder: Path, exported: manifest.Manifest) -> bool:
    """Whether an export holds other tables than its store did, or than a store of this schema: the digest is another one then."""
    if exported.completed or exported.schema_version < schema.SCHEMA_VERSION:
        return True
    return any(lacks_columns(folder / file, schema.columns(table)) for table, file in PLAIN.items())


def _groups_of(folder: Path, table: type) -> Iterator[pa.Table]:
    """The rows of one table, with what a former schema lacks filled in."""
    path = folder / PLAIN[table]
    if PLAIN[table] in _ADDED and not path.exists():
        return
    columns = schema.columns(table)
    yield from groups(path, columns, {name: default_of(table, name) for name in columns})


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Whatever contradicts itself in an export as a ValueError in one line that names the export."""
    try:
        yield
    except ValueError as error:
        text = " ".join(str(error).split())
        if str(folder) in text:
            raise ValueError(text) from None
        raise ValueError(f"{folder} is no whole export: {text[:400]}; export the study again") from None
    except (
        pa.ArrowException,
        LookupError,
        TypeError,
        OverflowError,
        AttributeError,
        MemoryError,
        RecursionError,
    ) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"{folder} is no whole export ({type(error).__name__}: {text[:200]}); export the study again"
        ) from None


def _rows(folder: Path, table: type) -> Iterator[Any]:
    """Rows of a small table, before the store is there."""
    for group in _groups_of(folder, table):
        for row in group.to_pylist():
            yield table(**row)


def _named_saes(ensembles: list[Ensemble], members: list[Member], plan: catalogue.StudyPlan | None) -> dict[str, str]:
    """{file of an SAE: its digest} of the store and of the catalogue; raises ValueError where they name other SAEs for one file."""
    folders = {row.ensemble: row.folder for row in ensembles}
    if lacks := sorted({row.ensemble for row in members} - folders.keys()):
        raise ValueError(
            f"table Member, column ensemble: found {lacks[0]!r:.80}, expected one of {', '.join(folders)[:200]}"
        )
    named = {sae_file(folders[row.ensemble], row.seed): row.sae_digest for row in members}
    for each in plan.ensembles if plan else ():
        for member in each.members:
            file = sae_file(each.folder, member.seed)
            if named.setdefault(file, member.digest) != member.digest:
                raise ValueError(f"{catalogue.FILE} names the SAE {member.digest} for {file}, the tables {named[file]}")
    return named


def _copy_saes(folder: Path, unfinished: Path, exported: manifest.Manifest, saes: dict[str, str]) -> None:
    """Copy the SAEs that are named, and no other file; raises ValueError for one that is not listed or has another digest."""
    for file, digest in saes.items():
        if file not in exported.files:
            raise ValueError(
                f"{folder / manifest.FILE} does not list {file}, an SAE of the study; export the study again"
            )
        target = unfinished / inside(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file, target)
        member, _ = sae.read(target)
        if member.digest(0) != digest:
            raise ValueError(f"{folder / file} has the digest {member.digest(0)}, the export says {digest:.40}")


def _require_forward(unfinished: Path, ensembles: list[Ensemble], members: list[Member]) -> None:
    """Raise ValueError where what the tables say of a forward pass is not that of the SAEs."""
    of_convention = [field.name for field in fields(Convention)]
    for row in ensembles:
        forward = json.loads(row.convention)
        convention = Convention(**{name: forward[name] for name in of_convention if name in forward})
        seeds = [member.seed for member in members if member.ensemble == row.ensemble]
        first, _ = sae.read(unfinished / sae_file(row.folder, seeds[0]))
        for name, found, expected in (
            ("d_in", row.d_in, first.d_in),
            ("d_sae", row.d_sae, first.d_sae),
            ("d_out", row.d_out, first.d_out),
            ("convention", convention, first.convention),
        ):
            if found != expected:
                raise ValueError(f"table Ensemble, column {name}: {row.ensemble} has {found}, its SAEs have {expected}")


def _copy_pool(folder: Path, unfinished: Path, exported: manifest.Manifest, row: pools.FeaturePool) -> None:
    """Copy the files of a pool, and no others; raises ValueError where its record is not the one that the tables name."""
    source = pool_folder(folder, row.ensemble)
    for path in (source / RECORD, source / SUMS, *(source / SAE_FOLDER / name for name in (CONFIG, WEIGHTS, RUNNER))):
        file = path.relative_to(folder).as_posix()
        if file in exported.files:
            (unfinished / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, unfinished / file)
    record = read_pool(pool_folder(unfinished, row.ensemble))
    if record is None or (record.digest, record.ensemble) != (row.sae_digest, row.ensemble):
        raise ValueError(f"{source} is not the pool that the tables name ({row.sae_digest:.40})")


def _add_tables(writer: Writer, folder: Path, name: str, exported: manifest.Manifest, report: Report) -> None:
    for table in PLAIN:
        for group in _groups_of(folder, table):
            columns = _columns(group, table)
            if table is Study:
                if wrong := set(columns["schema_version"]) - {exported.schema_version}:
                    raise ValueError(
                        f"table Study, column schema_version: found {wrong.pop()!r:.40}, {manifest.FILE} says "
                        f"{exported.schema_version}"
                    )
                columns |= {"study": [name] * len(group), "schema_version": [schema.SCHEMA_VERSION] * len(group)}
            writer.add(table, columns)
    of_curves = {"kind": _TEXT}
    for table in CURVE_TABLES.values():
        of_curves |= {name: column._replace(optional=True) for name, column in schema.columns(table).items()}
    absent: dict[str, Any] = {
        name: [] if column.is_list else None for name, column in of_curves.items() if name != "kind"
    }
    for group in groups(folder / CURVES, of_curves, absent):
        if unknown := sorted(set(group["kind"].to_pylist()) - {*CURVE_TABLES, SWEEP}, key=str):
            raise ValueError(
                f"{folder / CURVES}, column kind: found {unknown[0]!r:.80}, expected one of {', '.join(CURVE_TABLES)}"
            )
        for kind, table in CURVE_TABLES.items():
            if len(rows := group.filter(pc.field("kind") == kind)):
                writer.add(table, _columns(rows, table))
    of_contexts = {name: column for name, column in schema.columns(Context).items() if name != "document"}
    for group in groups(folder / CONTEXTS, of_contexts | {"document_id": _INT}):
        writer.add(Context, _columns(group.rename_columns({"document_id": "document"}), Context))
    others = _other_seeds(folder)
    own = {name: column for name, column in schema.columns(Feature).items() if name not in RULE_COLUMN.values()}
    absent_before: dict[str, Any] = {}
    if exported.schema_version < schema.SCHEMA_VERSION:
        absent_before = dict.fromkeys(_NEW_COLUMNS)
    with (
        GroupedFile(
            folder / FEATURES, own, {name: value for name, value in absent_before.items() if name in own}
        ) as features,
        GroupedFile(
            folder / MATCHES, _OF_MATCHES, {name: value for name, value in absent_before.items() if name in _OF_MATCHES}
        ) as matches,
    ):
        if len(features) != len(matches):
            raise ValueError(
                f"{folder / MATCHES} has {len(matches)} row groups, {FEATURES} has {len(features)}: expected as many, of the same "
                "features"
            )
        for i in range(len(features)):
            of_features, of_matches = features.read(i), matches.read(i)
            if len(of_features):
                _require_same_features(folder / MATCHES, of_features, of_matches, others)
                _add_features(writer, of_features, of_matches)
            report(i + 1, len(features))


def _other_seeds(folder: Path) -> dict[str, dict[int, list[int]]]:
    """{ensemble: {seed: the seeds of its comparisons, in the order of every list}}."""
    seeds: dict[str, list[int]] = {}
    for row in _rows(folder, Member):
        seeds.setdefault(row.ensemble, []).append(row.seed)
    return {
        ensemble: {seed: [other for other in sorted(of) if other != seed] for seed in of}
        for ensemble, of in seeds.items()
    }


def _require_same_features(
    path: Path, features: pa.Table, matches: pa.Table, others: dict[str, dict[int, list[int]]]
) -> None:
    """Raise ValueError where the comparisons of a row group are not those of its features, in their order."""
    of_member = [(name, features[name].unique().to_pylist()) for name in ("ensemble", "seed")]
    if any(len(values) != 1 for _, values in of_member):
        name, values = next((name, values) for name, values in of_member if len(values) != 1)
        raise ValueError(
            f"{path.with_name(FEATURES)}, column {name}: found {values[:3]} in one row group, expected one"
        )
    (ensemble,), (seed,) = (values for _, values in of_member)
    seeds = others.get(ensemble, {}).get(seed)
    if seeds is None:
        raise ValueError(
            f"{path.with_name(FEATURES)}, column seed: found {ensemble!r:.80}, seed {seed}, which is no member"
        )
    n = len(seeds)
    expected = {name: np.repeat(features[name].to_numpy(), n) for name in _KEYS} | {
        "other_seed": np.tile(seeds, len(features))
    }
    for name, values in expected.items():
        found = matches[name].to_numpy()
        if len(found) != len(values) or (found != values).any():
            raise ValueError(
                f"{path}, column {name}: not the {n} comparisons of each feature of {ensemble}, seed {seed}"
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
        if name == "active_partner":
            computed = "active_correlation"
        if matches[computed].null_count:
            compared[name] = np.zeros((n, 0))
        else:
            filled = column.fill_null(-1) if name in PARTNERS else column
            compared[name] = filled.to_numpy().reshape(n, -1)
    none = np.zeros(0)
    renamed = {
        name.replace("runner_up_cosine", "runner_up"): values
        for name, values in compared.items()
        if not name.startswith("active")
    }
    as_matched = Matches(other=none, gap=none, **renamed)
    cosines = {RULE_COLUMN[rule]: rule_cosine(rule, as_matched) for rule in DECODER_RULES}
    cosines[RULE_COLUMN["active"]] = compared["active_correlation"]
    own = {column for column in schema.columns(Feature) if column not in cosines}
    writer.add(Feature, _columns(features, Feature, own) | cosines)
    keys = _columns(features, Match, {"ensemble", "seed", "feature"})
    in_match = {column: compared[name] for name, column in COMPARISON.items() if column in schema.columns(Match)}
    writer.add(Match, keys | in_match)


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
