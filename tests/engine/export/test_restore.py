"""A Parquet export imported again: the same store, the same pages, the same SAEs; anything else is refused whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.engine.contract.published import published
from seedscope.engine.export.formats import export
from seedscope.engine.export.restore import restore
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.import_ensemble import enrol
from seedscope.engine.studies.publish import publish

STUDY, ENSEMBLE = "small", "topk-96"
PAGES = (
    "/s/small", "/s/small/topk-96", "/s/small/topk-96?rule=both&theta=0.61&dead=count", "/s/small/topk-96/features?limit=500",
    "/s/small/topk-96/features?rule=live&sort=worth", "/s/small/topk-96/members?a=0&b=3&rule=hungarian",
    "/s/small/topk-96/members?rule=mutual", *(f"/s/small/topk-96/{seed}/{n}?rule=both" for seed in range(4) for n in (0, 41, 95)),
)  # fmt: skip


@pytest.fixture(scope="module")
def decoder_root(make_sae: Callable[..., sae.SAE], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three SAEs without a model: one row has no direction, and nobody knows what fires."""
    root = tmp_path_factory.mktemp("decoders")
    made = make_sae(members=3, d_sae=20, dtype="float32")
    made.W_dec.data[1, 7] = 0
    made.save(root / "files")
    enrol(root, "bare", "relus", sorted((root / "files").glob("*.safetensors")), shared_start="no")
    analyse(root / "bare")
    publish(root / "bare")
    return root


def twin(path: str) -> str:
    path, _, query = path.partition("?")
    return f"{path}.json?{query}"


def contents(root: Path, pages: tuple[str, ...]) -> dict[str, bytes]:
    with TestClient(create_app(Settings(root)), base_url="http://127.0.0.1") as client:
        answers = {page: client.get(twin(page)) for page in pages}
    assert {page: answer.status_code for page, answer in answers.items()} == dict.fromkeys(pages, 200)
    return {page: answer.content for page, answer in answers.items()}


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, root: Path, match: str, study: str | None = None) -> None:
    """The import fails with this message and leaves the root as it was."""
    before = set(root.rglob("*"))
    with pytest.raises(ValueError, match=match) as told:
        restore(folder, root, study)
    assert "\n" not in str(told.value)
    assert set(root.rglob("*")) == before


# -- what comes back ---------------------------------------------------------------------------------------------


def test_a_restored_study_is_the_same_store_with_the_same_pages(study_root, exported, tmp_path):
    path = restore(exported, tmp_path)
    assert published(tmp_path / STUDY) == published(study_root / STUDY)
    assert path == tmp_path / STUDY / published(study_root / STUDY)[0]
    assert contents(tmp_path, PAGES) == contents(study_root, PAGES)
    assert catalogue.read(tmp_path / STUDY) == catalogue.read(study_root / STUDY)
    assert {each.name for each in tmp_path.iterdir()} == {STUDY}


def test_its_saes_are_those_that_were_exported(ensemble_saes, exported, tmp_path):
    restore(exported, tmp_path)
    (folder,) = (tmp_path / STUDY / "sae" / ENSEMBLE).iterdir()
    held = sae.load(folder, ensemble_saes.seeds)
    assert [held.digest(i) for i in range(4)] == [ensemble_saes.digest(i) for i in range(4)]


def test_an_export_of_a_restored_study_is_the_same_export(exported, tmp_path):
    restore(exported, tmp_path / "root")
    export(tmp_path / "root", STUDY, tmp_path / "again")
    one, other = (json.loads((folder / "manifest.json").read_text()) for folder in (exported, tmp_path / "again"))
    assert one.pop("times")["exported"] <= other.pop("times")["exported"]
    assert other == one


def test_a_study_restored_under_another_name_has_that_name_everywhere(study_root, exported, tmp_path):
    path = restore(exported, tmp_path, "elsewhere")
    assert path.parent == tmp_path / "elsewhere"
    assert path.name != published(study_root / STUDY)[0]
    pages = ("/s/{}/topk-96/features", "/s/{}/topk-96/1/3")
    own, copied = (
        contents(root, tuple(page.format(name) for page in pages)).values()
        for root, name in ((study_root, STUDY), (tmp_path, "elsewhere"))
    )
    assert [each.replace(b"elsewhere", b"small") for each in copied] == list(own)
    plan = catalogue.read(tmp_path / "elsewhere")
    assert plan is None or plan.name == "elsewhere"


def test_two_copies_live_side_by_side(exported, tmp_path):
    restore(exported, tmp_path)
    restore(exported, tmp_path, "elsewhere")
    assert {each.name for each in tmp_path.iterdir()} == {"elsewhere", STUDY}


def test_a_study_without_activity_comes_back_whole(decoder_root, tmp_path):
    folder = tmp_path / "out"
    export(decoder_root, "bare", folder)
    features = pq.read_table(folder / "features.parquet")
    for name in ("density", "n_active", "n_tokens", "mean_activation", "max_activation", "worth_ev"):
        assert features[name].null_count == len(features) == 60
    assert [row["feature"] for row in features.to_pylist() if row["dead"]] == [7]
    assert features["dead"].null_count == 59
    matches = pq.read_table(folder / "matches.parquet")
    assert matches["live_partner"].null_count == matches["live_cosine"].null_count == len(matches) == 120
    assert matches["partner"].null_count == 2  # of the row without a direction
    assert pq.read_metadata(folder / "contexts.parquet").num_rows == 0
    restore(folder, tmp_path / "root")
    assert published(tmp_path / "root" / "bare") == published(decoder_root / "bare")


def test_without_activity_json_says_null_and_what_computes_it(decoder_root, tmp_path):
    export(decoder_root, "bare", tmp_path / "out", format="json")
    head, *rows = map(json.loads, (tmp_path / "out" / "features" / "relus.jsonl").read_text().splitlines())
    null = {
        "density",
        "contexts",
        "ablation",
        "top_tokens",
        "histogram",
        "histogram_edges",
        "max_activation",
        "trigger",
    }
    assert all(row[name] is None for row in rows for name in null)
    needs = {lack["field"]: lack["needs"] for lack in head["missing"]}
    assert needs["density"] == "seedscope analyze bare --only activity"
    assert needs["ablation"] == "seedscope analyze bare --only ablate"
    with pytest.raises(ValueError, match="no activity was computed for study bare"):
        export(decoder_root, "bare", tmp_path / "np", format="neuronpedia")
    assert not (tmp_path / "np").exists()


def test_a_study_without_a_plan_is_exported_as_its_store_says(study_root, tmp_path):
    root = Path(shutil.copytree(study_root, tmp_path / "old"))
    (root / STUDY / "study.json").unlink(missing_ok=True)
    export(root, STUDY, tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "manifest.json").read_text())["left_out"]["study.json"] == "the study has none"
    )
    restore(tmp_path / "out", tmp_path / "root")
    assert published(tmp_path / "root" / STUDY) == published(study_root / STUDY)
    assert catalogue.read(tmp_path / "root" / STUDY) is None


def test_a_plan_that_the_manifest_does_not_list_is_not_taken(study_root, tmp_path):
    root = Path(shutil.copytree(study_root, tmp_path / "old"))
    (root / STUDY / "study.json").unlink()
    export(root, STUDY, tmp_path / "out")
    (tmp_path / "out" / "study.json").write_text("{}")
    restore(tmp_path / "out", tmp_path / "root")
    assert catalogue.read(tmp_path / "root" / STUDY) is None


def test_ensembles_that_are_planned_and_not_yet_analysed_go_along(decoder_root, make_sae, tmp_path):
    root = Path(shutil.copytree(decoder_root, tmp_path / "planned"))
    make_sae(members=2, seed=5, dtype="float32").save(tmp_path / "more")
    enrol(root, "bare", "later", sorted((tmp_path / "more").glob("*.safetensors")), shared_start="no")
    export(root, "bare", tmp_path / "out")
    waiting = json.loads((tmp_path / "out" / "manifest.json").read_text())["not_analysed"]
    assert [(one["ensemble"], one["seed"]) for one in waiting] == [("later", 0), ("later", 1)]
    restore(tmp_path / "out", tmp_path / "root")
    assert published(tmp_path / "root" / "bare") == published(root / "bare")
    later = catalogue.read(tmp_path / "root" / "bare").ensemble("later")
    held = sae.load(tmp_path / "root" / "bare" / later.folder, later.seeds)
    assert [held.digest(i) for i in range(2)] == [member.digest for member in later.members]
    analyse(tmp_path / "root" / "bare")
    publish(tmp_path / "root" / "bare")


# -- what is refused ---------------------------------------------------------------------------------------------


def test_a_name_that_is_taken_or_cannot_be_one_is_refused(exported, tmp_path):
    restore(exported, tmp_path)
    refused(exported, tmp_path, "small exists already; import the export under another name")
    (tmp_path / "taken").mkdir()
    refused(exported, tmp_path, "taken exists already", "taken")
    refused(exported, tmp_path, "study name is 'jobs', expected another name", "jobs")
    refused(exported, tmp_path, "study name is '../evil'", "../evil")


@pytest.mark.parametrize("name", ["features.parquet", "matches.parquet", "nulls.parquet", "seed-2.safetensors"])
def test_a_file_that_is_changed_truncated_or_gone_is_named(own, tmp_path, name):
    (path,) = own.rglob(name)
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    path.write_bytes(changed)
    refused(own, tmp_path / "root", rf"{name} does not hold what was exported")
    path.write_bytes(content[: len(content) // 2])
    refused(own, tmp_path / "root", rf"{name} has [\d,]+ bytes, expected {len(content):,}: it is truncated")
    path.unlink()
    refused(own, tmp_path / "root", rf"found no .*{name}, which manifest.json lists")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": 2, "seedscope": "9.1"}, r"has version 2, this version reads 1; it was written by seedscope 9.1"),
        ({"schema_version": 99}, "has schema_version 99, this version reads"),
        ({"format": "seedscope.match"}, "has format 'seedscope.match', this version reads 'seedscope.export'"),
        ({"files": 3}, "manifest.json is damaged"),
        ({"files": {"../../evil": {"bytes": 0, "sha256": ""}}}, "leads out of its folder"),
        ({"files": {"/etc/passwd": {"bytes": 0, "sha256": ""}}}, "leads out of its folder"),
        ({"files": {}}, "does not list .*contexts.parquet, .*curves.parquet"),
        ({"study": {}}, "manifest.json is damaged"),
        ({"store": "study-0000000000000000.duckdb"}, "expected study-0000000000000000.duckdb: its tables are not"),
    ],
)
def test_a_manifest_that_is_of_something_else_is_refused(own, tmp_path, changes, match):
    edit_manifest(own, **changes)
    refused(own, tmp_path / "root", match)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "seedscope.export"}', "\x00"])
def test_a_manifest_that_is_damaged_is_named(own, tmp_path, content):
    (own / "manifest.json").write_text(content)
    refused(own, tmp_path / "root", "manifest.json is damaged")


def test_a_folder_that_is_no_export_and_exports_of_other_formats_are_refused(study_root, tmp_path):
    refused(tmp_path / "nothing", tmp_path / "root", r"found no manifest.json in .*nothing, expected an export")
    export(study_root, STUDY, tmp_path / "lens", format="saelens")
    refused(tmp_path / "lens", tmp_path / "root", "is a saelens export, expected a parquet one")


def test_an_sae_that_no_file_of_the_export_holds_is_refused(own, tmp_path):
    files = json.loads((own / "manifest.json").read_text())["files"]
    name = next(name for name in files if name.endswith("seed-3.safetensors"))
    edit_manifest(own, files={key: value for key, value in files.items() if key != name})
    refused(own, tmp_path / "root", "does not list .*seed-3.safetensors, an SAE of the study")


def test_a_folder_of_saes_that_leads_out_of_the_study_is_refused(own, tmp_path):
    from seedscope.engine.export.manifest import sha256

    path = own / "ensembles.parquet"
    held = pq.read_table(path)
    column = held.column_names.index("folder")
    pq.write_table(held.set_column(column, "folder", pa.array(["../../evil"])), path)
    files = json.loads((own / "manifest.json").read_text())["files"]
    files["ensembles.parquet"] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    edit_manifest(own, files=files)
    refused(own, tmp_path / "root", "does not list ../../evil/seed-0.safetensors")


def test_an_import_that_is_stopped_leaves_nothing(exported, tmp_path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(exported, tmp_path / "root", report=stop)
    assert list((tmp_path / "root").iterdir()) == []
