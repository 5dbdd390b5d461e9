"""Exports as they could come from the network: whatever contradicts itself is refused whole, in one line that names the place."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedscope.engine.export.formats import FORMATS, export
from seedscope.engine.export.manifest import sha256
from seedscope.engine.export.restore import restore

STUDY, ENSEMBLE = "small", "topk-96"


def listed_as_they_are(folder: Path) -> None:
    """Whoever changes files on purpose writes their digests down as well."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        path = folder / name
        if path.is_file():
            manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rewritten(folder: Path, file: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a table of an export, in the row groups that it had."""
    with pq.ParquetFile(folder / file) as before:
        lengths = [before.metadata.row_group(i).num_rows for i in range(before.num_row_groups)]
        table = change(before.read())
    at = 0
    with pq.ParquetWriter(folder / file, table.schema) as writer:
        for length in lengths:
            writer.write_table(table.slice(at, length), row_group_size=max(length, 1))
            at += length
        if at < len(table):
            writer.write_table(table.slice(at))
    listed_as_they_are(folder)


def column(name: str, change: Callable[[list[Any]], list[Any]], kind: pa.DataType | None = None) -> Callable:
    """A table with one column changed."""

    def changed(table: pa.Table) -> pa.Table:
        at = table.column_names.index(name)
        values = pa.array(change(table[name].to_pylist()), kind or table.schema.field(name).type)
        return table.set_column(at, name, values)

    return changed


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


def every(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value] * len(values)


def in_first(at: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    """One entry of the first list that is not empty."""

    def changed(lists: list[Any]) -> list[Any]:
        lists = [list(each) if each is not None else None for each in lists]
        next(each for each in lists if each)[at] = value
        return lists

    return changed


def refused(folder: Path, tmp_path: Path, *words: str) -> None:
    """The import fails in one line, leaves the root as it was, and writes nothing anywhere else."""
    root = tmp_path / "a" / "b" / "root"
    root.mkdir(parents=True, exist_ok=True)
    before = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    with pytest.raises(ValueError, match=r"\S") as told:
        restore(folder, root, "elsewhere")  # under its own name the store's digest would tell most of it
    text = str(told.value)
    assert "\n" not in text
    assert len(text) < 1000
    assert [word for word in words if word not in text] == []
    assert {path for path in tmp_path.rglob("*") if folder not in path.parents} == before


CHANGES: dict[str, tuple[str, Callable[[pa.Table], pa.Table], str]] = {
    "study: another schema": ("study.parquet", column("schema_version", every(6)), "schema_version"),
    "study: two rows": ("study.parquet", lambda t: pa.concat_tables([t, t]), "Study"),
    "study: not causal in text": ("study.parquet", column("causal", every("yes"), pa.string()), "causal"),
    "study: a window of minus one": ("study.parquet", column("n_ctx", every(-1)), "n_ctx"),
    "ensemble: a name that climbs": ("ensembles.parquet", column("ensemble", every("../../../x")), "../../../x"),
    "ensemble: a name that is a page": ("ensembles.parquet", column("ensemble", every("features")), "features"),
    "ensemble: a name that nothing else has": ("ensembles.parquet", column("ensemble", every("other")), "topk-96"),
    "ensemble: none": ("ensembles.parquet", lambda t: t.slice(0, 0), "ensemble"),
    "ensemble: epsilon below zero": ("ensembles.parquet", column("epsilon", every(-5.0)), "epsilon"),
    "ensemble: epsilon of a half": ("ensembles.parquet", column("epsilon", every(0.5)), "epsilon"),
    "ensemble: theta above one": ("ensembles.parquet", column("theta", every(1.5)), "theta"),
    "ensemble: theta is not a number": ("ensembles.parquet", column("theta", every(float("nan"))), "theta"),
    "ensemble: more features than there are": ("ensembles.parquet", column("d_sae", every(97)), "97"),
    "ensemble: fewer features than there are": ("ensembles.parquet", column("d_sae", every(95)), "95"),
    "ensemble: another width than its SAEs": ("ensembles.parquet", column("d_in", every(7)), "d_in"),
    "ensemble: members that are not there": ("ensembles.parquet", column("n_members", every(9)), "n_members"),
    "ensemble: comparisons that are not there": ("ensembles.parquet", column("n_comparisons", every(9)), "n_comparisons"),
    "ensemble: an anchor that is no member": ("ensembles.parquet", column("anchor", every(77)), "anchor"),
    "ensemble: a convention that is a list": ("ensembles.parquet", column("convention", every("[]")), "convention"),
    "ensemble: a convention of nothing": ("ensembles.parquet", column("convention", every("{")), "convention"),
    "ensemble: an unknown architecture": (
        "ensembles.parquet", column("convention", every('{"architecture": "x"}')), "architecture",
    ),
    "ensemble: a recipe that is no object": ("ensembles.parquet", column("recipe", every("3")), "recipe"),
    "ensemble: an unknown analysis": ("ensembles.parquet", column("computed", every(["x"])), "computed"),
    "ensemble: an analysis that has no rows": (
        "ensembles.parquet", column("computed", every(["match"])), "activity",
    ),
    "ensemble: an unknown origin": ("ensembles.parquet", column("origin", every("stolen")), "origin"),
    "ensemble: a folder outside": ("ensembles.parquet", column("folder", every("../../evil")), "../../evil"),
    "ensemble: a control of nothing": ("ensembles.parquet", column("control_of", every("x")), "control_of"),
    "member: one less": ("members.parquet", lambda t: t.slice(1), "seed 0, which is no member"),
    "member: one twice": ("members.parquet", lambda t: pa.concat_tables([t, t.slice(0, 1)]), "4 comparisons"),
    "member: another SAE": ("members.parquet", column("sae_digest", first("0" * 16)), "0000000000000000"),
    "member: a seed below zero": ("members.parquet", column("seed", first(-1)), "seed"),
    "member: more dead than features": ("members.parquet", column("n_dead", first(1000)), "n_dead"),
    "member: edges that descend": (
        "members.parquet", column("histogram_edges", lambda lists: [each[::-1] for each in lists]), "histogram_edges",
    ),
    "features: another seed": ("features.parquet", column("seed", first(9)), "seed"),
    "features: an index beyond": ("features.parquet", column("feature", first(96)), "feature"),
    "features: one twice": ("features.parquet", column("feature", first(1)), "feature"),
    "features: fewer": ("features.parquet", lambda t: t.slice(0, 100), "matches.parquet"),
    "features: a density of two": ("features.parquet", column("density", first(2.0)), "density"),
    "features: an unknown trigger": ("features.parquet", column("trigger", first("x")), "trigger"),
    "features: more firings than tokens": ("features.parquet", column("n_active", first(10**9)), "n_active"),
    "features: a token that is not there": ("features.parquet", column("top_token_ids", in_first(0, 10**6)), "top_token_ids"),
    "features: counts without tokens": (
        "features.parquet", column("top_token_counts", lambda lists: [each[1:] for each in lists]), "top_token_counts",
    ),
    "features: a column less": ("features.parquet", lambda t: t.drop_columns(["decoder_norm"]), "decoder_norm"),
    "features: a column of another type": (
        "features.parquet", column("density", lambda v: ["x"] * len(v), pa.string()), "density",
    ),
    "features: an infinite norm": ("features.parquet", column("decoder_norm", first(float("inf"))), "decoder_norm"),
    "matches: a cosine of two": ("matches.parquet", column("cosine", first(2.0)), "cosine"),
    "matches: a partner beyond": ("matches.parquet", column("partner", first(96)), "partner"),
    "matches: a column less": ("matches.parquet", lambda t: t.drop_columns(["cosine"]), "cosine"),
    "matches: one row less": ("matches.parquet", lambda t: t.slice(1), "matches.parquet"),
    "matches: of other seeds": ("matches.parquet", column("other_seed", first(9)), "other_seed"),
    "nulls: a kind that climbs": ("nulls.parquet", column("kind", every("../../../x")), "kind"),
    "nulls: cosines of fewer comparisons": (
        "nulls.parquet", column("cosines", lambda lists: [each[1:] for each in lists]), "cosines",
    ),
    "pairs: an unknown rule": ("pairs.parquet", column("rule", first("x")), "rule"),
    "pairs: with itself": ("pairs.parquet", column("other", lambda v: [0] * len(v)), "other"),
    "pairs: another grid of theta": (
        "pairs.parquet", column("matched", lambda lists: [each[:-1] for each in lists]), "matched",
    ),
    "contexts: a document that is not there": ("contexts.parquet", column("document_id", first(99)), "document"),
    "contexts: a token that is not there": ("contexts.parquet", column("token_ids", in_first(0, 10**6)), "token_ids"),
    "contexts: a peak beyond": ("contexts.parquet", column("peak", first(1000)), "peak"),
    "contexts: activations of fewer tokens": (
        "contexts.parquet", column("activations", lambda lists: [each[1:] for each in lists]), "activations",
    ),
    "tokens: a gap": ("tokens.parquet", column("id", lambda v: [i + (i > 4) for i in v]), "Token"),
    "windows: a document that is not there": ("tokenwindow.parquet", column("document", first(99)), "document"),
    "scored: a window that is not there": ("scored.parquet", column("windows", in_first(0, 10**6)), "windows"),
    "scores: answers of other contexts": ("score.parquet", column("said", in_first(0, 7)), "said"),
    "curves: an unknown kind": ("curves.parquet", column("kind", first("x")), "kind"),
    "curves: explained variance above one": (
        "curves.parquet", column("ev", lambda v: [2.0 if x is not None else None for x in v]), "ev",
    ),
    "words: of a feature that is not there": ("word.parquet", column("feature", first(10**6)), "feature"),
    "logits: of a token that is not there": ("logit.parquet", column("token", first(10**6)), "token"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_an_export_that_contradicts_itself_is_refused_whole(own, tmp_path, what):
    file, change, word = CHANGES[what]
    rewritten(own, file, change)
    refused(own, tmp_path, word)


# -- the files themselves ------------------------------------------------------------------------------------------


def outside(folder: Path, tmp_path: Path) -> None:
    """A file of the export becomes a link to another one of the same content, out of the folder."""
    path = folder / "features.parquet"
    path.rename(tmp_path / "features.parquet")
    path.symlink_to(tmp_path / "features.parquet")


def folder_outside(folder: Path, tmp_path: Path) -> None:
    (folder / "sae").rename(tmp_path / "sae")
    (folder / "sae").symlink_to(tmp_path / "sae", target_is_directory=True)


def pipe(folder: Path, tmp_path: Path) -> None:
    (folder / "features.parquet").unlink()
    os.mkfifo(folder / "features.parquet")


@pytest.mark.parametrize(
    ("change", "word"), [(outside, "leads out of"), (folder_outside, "leads out of"), (pipe, "found no")]
)
def test_links_out_of_an_export_and_pipes_are_not_read(own, tmp_path, change, word):
    change(own, tmp_path)
    refused(own, tmp_path, word)


@pytest.mark.parametrize("built_from", ["two\nlines", "a" * 10_000, "\x00"])
def test_what_a_study_says_that_it_was_built_from_is_one_short_line(own, tmp_path, built_from):
    path = own / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"built_from": built_from}))
    refused(own, tmp_path, "built_from")


def test_a_manifest_of_deep_json_is_named(own, tmp_path):
    (own / "manifest.json").write_text("[" * 200_000)
    refused(own, tmp_path, "manifest.json is damaged")


@pytest.mark.parametrize("file", ["features.parquet", "tokens.parquet", "curves.parquet"])
def test_bytes_that_are_no_parquet_are_named(own, tmp_path, file):
    (own / file).write_bytes(b"PAR1" + os.urandom(2_000) + b"PAR1")
    listed_as_they_are(own)
    refused(own, tmp_path, file)


def test_a_small_file_that_stands_for_a_huge_table_is_not_unfolded(own, tmp_path):
    """Two gigabytes of one text in every row, in a few kilobytes."""
    huge = pa.DictionaryArray.from_arrays(pa.array([0] * 4_096, pa.int32()), pa.array(["x" * 2**20]))
    pq.write_table(pa.table({"id": range(4_096), "text": huge}), own / "tokens.parquet")
    assert (own / "tokens.parquet").stat().st_size < 2**20
    listed_as_they_are(own)
    refused(own, tmp_path, "tokens.parquet", "bytes of texts")


def test_files_that_nothing_names_are_not_copied(own, tmp_path):
    manifest = json.loads((own / "manifest.json").read_text())
    for name in ("evil.safetensors", "pool/evil.sh", "CURRENT"):
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_text("evil")
        manifest["files"][name] = {"bytes": 4, "sha256": sha256(own / name)}
    (own / "manifest.json").write_text(json.dumps(manifest))
    restore(own, tmp_path / "root")
    assert [path for path in (tmp_path / "root").rglob("*") if "evil" in path.name] == []


# -- what is published already -------------------------------------------------------------------------------------


def test_a_store_with_a_name_that_climbs_is_exported_nowhere(study_root, tmp_path):
    """A store may have come from an import by an earlier version, or by hand."""
    root = Path(shutil.copytree(study_root, tmp_path / "a" / "b" / "root"))
    (path,) = (root / STUDY).glob("study-*.duckdb")
    renamed(path, "../../../x")
    (root / STUDY / "study.json").unlink()
    before = set(tmp_path.rglob("*"))
    for format in FORMATS:
        with pytest.raises(ValueError, match=r"ensemble name is '../../../x'"):
            export(root, STUDY, tmp_path / "a" / "out" / format, format=format)
        shutil.rmtree(tmp_path / "a" / "out", ignore_errors=True)
        assert set(tmp_path.rglob("*")) == before


def renamed(store: Path, name: str) -> None:
    with duckdb.connect(str(store)) as connection:
        tables = connection.sql(
            "SELECT DISTINCT table_name FROM information_schema.columns WHERE column_name = 'ensemble'"
        ).fetchall()
        for (table,) in tables:
            connection.execute(f"UPDATE {table} SET ensemble = ?", [name])
