"""Exports: whole or not there, described by a manifest, and saying what the store and the pages say."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from seedscope.engine.contract import schema
from seedscope.engine.contract.published import published
from seedscope.engine.export.formats import FORMATS, export
from seedscope.engine.saes import sae

STUDY, ENSEMBLE = "small", "topk-96"
# The scalar fields of a feature's JSON that users are promised.
SCALARS = {
    "study", "ensemble", "seed", "feature", "digest", "sae_digest", "shared_start", "data_order", "stability", "stability_low",
    "stability_high", "p_stable", "p_unstable", "n_matched", "n_comparisons", "bucket", "theta", "epsilon", "dead", "trigger",
    "trigger_share", "trigger_what", "token_entropy", "top_token_share", "top_tokens", "density", "n_active", "n_tokens",
    "mean_activation", "max_activation",
}  # fmt: skip


@pytest.fixture(scope="module")
def exports(study_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small study in every format."""
    folders = {name: tmp_path_factory.mktemp("exports") / name for name in FORMATS}
    for name, folder in folders.items():
        written = export(study_root, STUDY, folder, format=name)
        assert written == sorted(path for path in folder.rglob("*") if path.is_file())
    return folders


def lines(path: Path) -> list[dict]:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in raw.decode().splitlines()]


def told(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def stored(root: Path, sql: str) -> list[tuple]:
    config = {"enable_external_access": "false", "lock_configuration": "true"}
    with duckdb.connect(str(root / STUDY / published(root / STUDY)[0]), read_only=True, config=config) as connection:
        return connection.sql(sql).fetchall()


def feature_json(client: TestClient, seed: int, feature: int) -> dict:
    return client.get(f"/s/{STUDY}/{ENSEMBLE}/{seed}/{feature}.json").json()


def beside(folder: Path) -> set[str]:
    return {path.name for path in folder.parent.iterdir()}


# -- what every format has in common -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_the_manifest_lists_every_file_with_its_size_and_hash(exports, name):
    folder = exports[name]
    listed = told(folder)["files"]
    held = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del held["manifest.json"]
    assert listed == {
        file: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for file, content in held.items()
    }


@pytest.mark.parametrize("name", FORMATS)
def test_the_manifest_says_what_the_study_was_made_from(exports, study_root, ensemble_saes, study_config, name):
    found = told(exports[name])
    assert (found["format"], found["version"], found["kind"]) == ("seedscope.export", 1, name)
    assert found["schema_version"] == schema.SCHEMA_VERSION
    assert (found["store"], found["built_from"]) == published(study_root / STUDY)
    model, digest, tokens = stored(study_root, "SELECT model, model_digest, eval_token_digest FROM Study")[0]
    assert (found["study"]["model"], found["study"]["model_digest"]) == (model, digest)
    assert found["study"]["eval_token_digest"] == tokens
    (ensemble,) = found["ensembles"]
    assert ensemble["hookpoint"] == study_config.hookpoint
    matching = ensemble["matching"]
    assert (matching["rule"], matching["sign"], matching["ties"]) == (
        "argmax", "signed cosine", "ties to the lowest index",
    )  # fmt: skip
    assert (matching["theta"], matching["epsilon"]) == (study_config.theta, study_config.epsilon)
    assert "never active" in matching["dead_policy"]
    assert [one["digest"] for one in ensemble["saes"]] == [ensemble_saes.digest(i) for i in range(4)]
    assert found["times"]["exported"].startswith("20")
    assert found["times"]["published"] is None
    assert "explanations" not in found["left_out"]
    assert found["commit"] is None or len(found["commit"].removesuffix("-dirty")) == 40


def test_a_folder_with_something_in_it_is_refused_and_an_empty_one_is_taken(study_root, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(ValueError, match=r"full has files in it, expected a new or empty folder"):
        export(study_root, STUDY, tmp_path / "full")
    with pytest.raises(ValueError, match=r"mine is a file"):
        export(study_root, STUDY, tmp_path / "full" / "mine")
    (tmp_path / "empty").mkdir()
    assert export(study_root, STUDY, tmp_path / "empty", format="saelens")
    assert beside(tmp_path / "full") == {"full", "empty"}


@pytest.mark.parametrize("study", ["other", "../small", ""])
def test_a_study_that_is_not_there_names_those_that_are(study_root, tmp_path, study):
    with pytest.raises(ValueError, match=r"found no study .* there is small$"):
        export(study_root, study, tmp_path / "out")
    with pytest.raises(ValueError, match=r"there is none; build one with"):
        export(tmp_path / "nothing", study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_study_that_was_imported_and_not_analysed_says_so(tmp_path):
    (tmp_path / "root" / "new").mkdir(parents=True)
    (tmp_path / "root" / "new" / "study.json").touch()
    with pytest.raises(ValueError, match="study new has no results yet; compute them with: seedscope analyze new"):
        export(tmp_path / "root", "new", tmp_path / "out")


def test_a_store_of_another_schema_or_a_damaged_one_is_refused(own_root, tmp_path):
    name, _ = published(own_root / STUDY)
    with duckdb.connect(str(own_root / STUDY / name)) as connection:
        connection.execute("UPDATE Study SET schema_version = 1")
    with pytest.raises(ValueError, match=f"{name} has schema 1, this version reads .*; build the study"):
        export(own_root, STUDY, tmp_path / "out")
    (own_root / STUDY / name).write_bytes(b"no database")
    with pytest.raises(ValueError, match=f"{name} is damaged .*, expected a published store"):
        export(own_root, STUDY, tmp_path / "out")
    assert "out" not in beside(tmp_path / "out")


def test_a_place_that_cannot_be_written_is_named(study_root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write .*file/out .*Choose another place"):
        export(study_root, STUDY, tmp_path / "file" / "out", format="saelens")


def test_a_format_that_is_not_known_names_those_that_are(study_root, tmp_path):
    with pytest.raises(ValueError, match="expected one of parquet, json, neuronpedia, saelens, delphi"):
        export(study_root, STUDY, tmp_path / "out", format="csv")


@pytest.mark.parametrize("name", ["parquet", "saelens"])
def test_an_sae_that_is_gone_or_changed_stops_the_export_and_nothing_is_left(study_root, tmp_path, name):
    root = tmp_path / "root"
    shutil.copytree(study_root, root)
    (file,) = (root / STUDY / "sae").glob("*/*/seed-2.safetensors")
    other = file.with_name("seed-1.safetensors").read_bytes()
    file.write_bytes(other)
    with pytest.raises(ValueError, match=r"seed-2.safetensors has the digest .*, the study was computed on"):
        export(root, STUDY, tmp_path / "out", format=name)
    file.unlink()
    with pytest.raises(ValueError, match=r"found no file .*seed-2.safetensors"):
        export(root, STUDY, tmp_path / "out", format=name)
    assert beside(tmp_path / "out") == {"root"}


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_that_is_stopped_leaves_nothing(study_root, tmp_path, name):
    def stop(done: int, total: int) -> None:
        assert 1 <= done <= total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(study_root, STUDY, tmp_path / "deep" / "out", format=name, report=stop)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_progress_ends_at_its_total(study_root, tmp_path, name):
    seen: list[tuple[int, int]] = []
    export(study_root, STUDY, tmp_path / "out", format=name, report=lambda *at: seen.append(at))
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))


# -- parquet -----------------------------------------------------------------------------------------------------


def test_stability_can_be_computed_again_from_the_matches_alone(exports):
    folder = exports["parquet"]
    features, matches = (pq.read_table(folder / f"{name}.parquet") for name in ("features", "matches"))
    keys = np.stack([matches[name].to_numpy() for name in ("seed", "feature")], 1)
    hits = matches["cosine"].to_numpy() >= np.float32(0.7)
    counted: dict[tuple, list] = {}
    for key, hit in zip(map(tuple, keys.tolist()), hits.tolist(), strict=True):
        counted.setdefault(key, []).append(hit)
    for row in features.to_pylist():
        found = counted[row["seed"], row["feature"]]
        assert row["stability"] == np.mean(found)
        assert (row["n_matched"], row["n_comparisons"]) == (sum(found), len(found))
    assert matches["matched"].to_pylist() == hits.tolist()


def test_features_hold_what_their_pages_say(exports, client):
    rows = pq.read_table(exports["parquet"] / "features.parquet").to_pylist()
    assert [(row["seed"], row["feature"]) for row in rows] == [(s, f) for s in range(4) for f in range(96)]
    for row in rows[::29]:
        page = feature_json(client, row["seed"], row["feature"])
        counts = [
            n for n, token in zip(row.pop("top_token_counts"), row.pop("top_token_ids"), strict=True) if token >= 0
        ]
        row["top_tokens"] = [list(pair) for pair in zip(row["top_tokens"], counts, strict=True)]
        assert row["worth_ev"] == page["ablation"]["marginal_ev"]
        for name in ("null_rate", "null_p999"):
            assert row[name] == pytest.approx(page[name], rel=1e-5)
        assert {name: row[name] for name in SCALARS} == {name: page[name] for name in SCALARS}


def test_matches_hold_what_the_pages_say(exports, client):
    rows = pq.read_table(exports["parquet"] / "matches.parquet").to_pylist()
    for seed, feature in ((0, 0), (3, 95), (2, 17)):
        mine = [row for row in rows if (row["seed"], row["feature"]) == (seed, feature)]
        page = feature_json(client, seed, feature)["matches"]
        assert [row["other_seed"] for row in mine] == [match["seed"] for match in page]
        for row, match in zip(mine, page, strict=True):
            names = set(row) - {"ensemble", "seed", "feature", "other_seed"}
            assert {name: row[name] for name in names} == {name: match[name] for name in names}


def test_contexts_and_curves_hold_what_the_store_holds(exports, study_root):
    contexts = pq.read_table(exports["parquet"] / "contexts.parquet").to_pylist()
    texts = dict(stored(study_root, "SELECT id, text FROM Token"))
    names = dict(stored(study_root, "SELECT id, name FROM Document"))
    rows = stored(
        study_root,
        'SELECT seed, feature, "group", rank, document, position, peak, token_ids, activations FROM Context '
        'ORDER BY seed, feature, "group", rank',
    )
    assert len(contexts) == len(rows) > 500
    for context, row in list(zip(contexts, rows, strict=True))[::41]:
        seed, feature, group, rank, document, position, peak, ids, activations = row
        assert context == {
            "ensemble": ENSEMBLE, "seed": seed, "feature": feature, "group": group, "rank": rank,
            "document": names[document], "document_id": document, "position": position, "peak": peak,
            "token_ids": ids, "tokens": [texts[i] for i in ids], "activations": activations,
        }  # fmt: skip
    curves = pq.read_table(exports["parquet"] / "curves.parquet").to_pylist()
    kinds = {
        "ablation": ("Ablation", "seed, mask, n_masked, n_draws, ev, ev_sd, loss, loss_sd"),
        "subspace": ("SpanCurve", "curve, rank, mean, spread, split_spread, n_pairs, n_fitted"),
        "trajectory": ("AgreementPoint", "population, step, n_features, n_pairs, distance, distance_low, best_cosine"),
    }
    for kind, (table, columns) in kinds.items():
        names = columns.split(", ")
        mine = [tuple(row[name] for name in ("ensemble", *names)) for row in curves if row["kind"] == kind]
        assert mine == [
            (ENSEMBLE, *row)
            for row in stored(study_root, f"SELECT {columns} FROM {table} ORDER BY {', '.join(names[:3])}")
        ]
    assert {row["kind"] for row in curves} == set(kinds)


def test_saes_are_copied_as_they_are(exports, study_root):
    copies = {path.relative_to(exports["parquet"]): path.read_bytes() for path in exports["parquet"].rglob("seed-*")}
    assert len(copies) == 4
    for path, content in copies.items():
        assert content == (study_root / STUDY / path).read_bytes()


# -- json --------------------------------------------------------------------------------------------------------


def test_lines_of_json_say_what_the_pages_say(exports, client):
    head, *rows = lines(exports["json"] / "features" / f"{ENSEMBLE}.jsonl")
    assert (head["format"], head["version"], head["ensemble"]) == ("seedscope.features", 1, ENSEMBLE)
    assert head["missing"] == []
    assert len(rows) == 4 * 96
    for row in rows[::31]:
        page = feature_json(client, row["seed"], row["feature"])
        for name in ("null_rate", "null_p999"):
            assert row[name] == pytest.approx(page[name], rel=1e-5)
        same = SCALARS | {
            "contexts", "histogram", "histogram_edges", "quantiles", "positive_logits", "negative_logits", "ablation",
            "subspace", "trajectory",
        }  # fmt: skip
        assert {name: row[name] for name in same} == {name: page[name] for name in same}
        matches = row["matches"]
        assert matches == [{name: match[name] for name in matches[0]} for match in page["matches"]]


def test_json_holds_the_other_tables_as_well(exports, study_root):
    folder = exports["json"]
    for name, table in (("pairs", "Pair"), ("nulls", "NullMatch")):
        head, *rows = lines(folder / name / f"{ENSEMBLE}.jsonl")
        assert (head["format"], head["version"]) == (f"seedscope.{name}", 1)
        assert len(rows) == stored(study_root, f"SELECT count(*) FROM {table}")[0][0]
    tables = json.loads((folder / "tables.json").read_text())
    assert (tables["format"], tables["version"], tables["study"]["study"]) == ("seedscope.tables", 1, STUDY)
    assert [row["seed"] for row in tables["members"]] == [0, 1, 2, 3]
    both = "SELECT (SELECT count(*) FROM Ablation) + (SELECT count(*) FROM SpanCurve) + (SELECT count(*) FROM AgreementPoint)"
    assert len(tables["curves"]) == stored(study_root, both)[0][0]


# -- neuronpedia -------------------------------------------------------------------------------------------------

# Columns of Neuronpedia's tables, from its prisma schema; its importer takes those that the first line of a file has.
NEURON = {
    "modelId": str, "layer": str, "index": str, "sourceSetName": str, "creatorId": str, "maxActApprox": float,
    "frac_nonzero": float, "freq_hist_data_bar_heights": list, "freq_hist_data_bar_values": list, "hookName": str,
    "hasVector": bool,
}  # fmt: skip
ACTIVATION = {
    "id": str, "modelId": str, "layer": str, "index": str, "creatorId": str, "tokens": list, "values": list,
    "maxValue": float, "maxValueTokenIndex": int, "minValue": float, "qualifyingTokenIndex": int, "dataSource": str,
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(exports) -> list[Path]:
    (model,) = (path for path in exports["neuronpedia"].iterdir() if path.is_dir())
    return sorted(model.iterdir())


def test_a_source_per_member_can_be_imported_by_neuronpedia(sources):
    assert [path.name for path in sources] == [f"2-small-topk-96__seed-{seed}" for seed in range(4)]
    for path in sources:
        about = {name: lines(path / f"{name}.jsonl") for name in ("release", "model", "sourceset", "source")}
        assert all(len(rows) == 1 for rows in about.values())
        model, whole = about["model"][0]["id"], about["sourceset"][0]
        assert model == path.parent.name == whole["modelId"]
        assert about["source"][0]["id"] == path.name
        assert about["source"][0]["setName"] == whole["name"] == path.name.split("-", 1)[1].split("__")[0]
        assert about["release"][0]["name"] == whole["releaseName"]
        features, activations = (lines(path / kind / "batch-0.jsonl.gz") for kind in ("features", "activations"))
        for rows, columns in ((features, NEURON), (activations, ACTIVATION)):
            assert {tuple(row) for row in rows} == {tuple(rows[0])}
            for row in rows:
                assert row["modelId"] == model
                assert row["layer"] == path.name
                assert all(isinstance(row[name], kind) for name, kind in columns.items())
        assert [row["index"] for row in features] == [str(i) for i in range(96)]
        assert {row["index"] for row in activations} <= {row["index"] for row in features}
        assert len({row["id"] for row in activations}) == len(activations)


def test_neuronpedias_features_and_activations_say_what_the_pages_say(sources, client):
    source = sources[1]
    features, activations = (lines(source / kind / "batch-0.jsonl.gz") for kind in ("features", "activations"))
    for row in features[::13]:
        page = feature_json(client, 1, int(row["index"]))
        assert (row["frac_nonzero"], row["maxActApprox"]) == (page["density"], page["max_activation"])
        assert row["freq_hist_data_bar_heights"] == page["histogram"]
        edges = page["histogram_edges"]
        assert len(row["freq_hist_data_bar_values"]) == len(page["histogram"]) == len(edges) - 1
        assert all(
            low < v < high for low, v, high in zip(edges, row["freq_hist_data_bar_values"], edges[1:], strict=False)
        )
        ours = row["seedscope"]
        for name in ("stability", "stability_low", "stability_high", "bucket", "n_matched", "p_stable", "sae_digest"):
            assert ours[name] == page[name]
        for match, there in zip(ours["matches"], page["matches"], strict=True):
            assert (match["seed"], match["cosine"], match["matched"]) == (
                there["seed"],
                there["cosine"],
                there["matched"],
            )
            assert match["index"] == (None if there["partner"] is None else str(there["partner"]))
            assert match["layer"] in {path.name for path in sources} - {source.name}
        mine = [each for each in activations if each["index"] == row["index"]]
        assert [each["tokens"] for each in mine] == [context["tokens"] for context in page["contexts"]]
        for each, context in zip(mine, page["contexts"], strict=True):
            assert each["values"] == context["activations"]
            assert each["maxValue"] == max(each["values"]) == each["values"][each["maxValueTokenIndex"]]
            assert each["binMin"] <= each["values"][each["qualifyingTokenIndex"]] <= each["binMax"] * (1 + 1e-6)
            assert (each["binMin"] == -1) == (context["group"] == 0)


# -- saelens -----------------------------------------------------------------------------------------------------


def test_saelens_folders_hold_every_member_with_its_seed_and_place(exports, ensemble_saes, study_config):
    from seedscope.engine.saes.importers.ensemble import read_many

    members = read_many([exports["saelens"] / ENSEMBLE])
    assert [member.seed for member in members] == [0, 1, 2, 3]
    for index, member in enumerate(members):
        assert member.source["hookpoint"] == study_config.hookpoint
        assert member.convention == ensemble_saes.convention
        whole = sae.SAE(
            **{name: tensor[None] for name, tensor in member.tensors.items()},
            convention=member.convention,
            seeds=(index,),
        )
        assert whole.digest(0) == ensemble_saes.digest(index)
