"""Stores and exports of every schema that is read: written by the code of their time, shown, exported and restored by this one."""

import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
from starlette.testclient import TestClient

from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.engine.contract import schema
from seedscope.engine.contract.former_stores import UnknownSchemaError, complete
from seedscope.engine.contract.published import published
from seedscope.engine.contract.tables.pools import FeaturePool
from seedscope.engine.contract.tables.study import Ensemble, Study
from seedscope.engine.contract.tables.training import Checkpoint
from seedscope.engine.export.formats import export
from seedscope.engine.export.restore import restore
from seedscope.engine.store.database import OtherSchemaError, StoreReader

SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.tar.xz"))
NEWEST = f"schema-{schema.SCHEMA_VERSION}"
ADDRESS = "/s/sample/topk-24"
PAGES = (
    "/", "/s/sample", "/s/sample/variants", "/s/sample/starts", "/s/sample/synthetic", "/s/sample/pool", ADDRESS,
    *(f"{ADDRESS}/{page}" for page in (
        "features", "features/rows.json", "features.csv", "members", "buckets", "ablation", "subspaces", "subspaces/map",
        "spans", "explanations", "trajectory", "trajectory.csv", "list?id=0/5,1/2", "0/5", "2/23", "0/5/preview.png",
    )),
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A study and its export as one version wrote them."""

    root: Path
    export: Path

    @property
    def store(self) -> Path:
        found = published(self.root / "sample")
        assert found
        return self.root / "sample" / found.name


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[str], Sample]:
    def unpack(name: str) -> Sample:
        with tarfile.open(Path(__file__).parent / "samples" / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path / name, filter="data")
        return Sample(tmp_path / name / "root", tmp_path / name / "export")

    return unpack


@pytest.fixture(params=[path.name.removesuffix(".tar.xz") for path in SAMPLES])
def sample(request: pytest.FixtureRequest, unpacked: Callable[[str], Sample]) -> Sample:
    return unpacked(request.param)


@contextmanager
def browsing(root: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(root)), base_url="http://127.0.0.1") as client:
        yield client


def test_every_schema_that_is_read_has_a_sample():
    assert {int(path.name.split("-")[1].partition(".")[0]) for path in SAMPLES} == set(schema.READABLE)


def test_the_newest_sample_has_the_columns_of_this_schema(unpacked):
    """A table or a column more takes another SCHEMA_VERSION, and a sample of it: stores in the world have none of them."""
    with duckdb.connect(str(unpacked(NEWEST).store), read_only=True) as connection:
        found = connection.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal").fetchall()
    assert set(found) == {(table.__name__, name) for table in schema.TABLES for name in schema.columns(table)}


def test_every_page_of_a_former_store_opens_and_nothing_of_it_is_changed(sample):
    before = sample.store.read_bytes()
    with browsing(sample.root) as client:
        assert {page: client.get(page).status_code for page in PAGES} == dict.fromkeys(PAGES, 200)
    assert sample.store.read_bytes() == before


def test_a_study_has_the_same_numbers_in_every_schema(sample, unpacked):
    """The same SAEs on the same text, measured by the code of each time."""

    def numbers(root: Path) -> list[tuple]:
        with browsing(root) as client:
            rows = client.get(f"{ADDRESS}/features/rows.json?sort=feature").json()["rows"]
        names = ("seed", "feature", "stability", "n_matched", "bucket")
        return [tuple(row[name] for name in names) for row in rows]

    assert numbers(sample.root) == numbers(unpacked(NEWEST).root)


def test_an_export_of_a_former_schema_is_restored_under_its_own_name(sample, tmp_path):
    path = restore(sample.export, tmp_path / "restored")
    with StoreReader(path) as restored, StoreReader(sample.store) as original:
        assert not restored.is_former
        assert restored.rows(Study)[0].schema_version == schema.SCHEMA_VERSION
        assert restored.rows(Ensemble) == original.rows(Ensemble)


def test_a_former_store_is_exported_as_one_of_this_schema(sample, tmp_path):
    study = sample.root / "sample"
    (study / "sae").mkdir()
    (sample.export / "sae" / "topk-24").rename(study / "sae" / "topk-24")
    export(sample.root, "sample", tmp_path / "out")
    path = restore(tmp_path / "out", tmp_path / "restored")
    with StoreReader(path) as restored:
        assert not restored.is_former
        assert restored.rows(Study)[0].schema_version == schema.SCHEMA_VERSION


def test_what_a_schema_had_no_column_for_was_not_computed(unpacked):
    with StoreReader(unpacked("schema-6").store) as store:
        assert store.is_former
        (ensemble,) = store.rows(Ensemble)
        assert (ensemble.recipe, ensemble.anchor) == (None, None)
        assert store.rows(Checkpoint) == store.rows(FeaturePool) == []


def test_rows_that_lack_what_cannot_be_filled_in_are_refused_with_its_name(unpacked):
    """Schema 7 gave checkpoints their number of comparisons later, and it is no guess."""
    store = unpacked("schema-7-first").store
    with duckdb.connect(str(store)) as connection:
        columns = connection.execute(
            "SELECT data_type FROM duckdb_columns() WHERE table_name = 'Checkpoint' ORDER BY column_index"
        ).fetchall()
        values = {"VARCHAR": "'topk-24'", "INTEGER": "0", "BIGINT": "0"}
        row = ", ".join("[]" if kind.endswith("[]") else values.get(kind, "0.5") for (kind,) in columns)
        connection.execute(f"INSERT INTO Checkpoint VALUES ({row})")
    with pytest.raises(UnknownSchemaError, match=r"has schema 7 without Checkpoint\.n_comparisons"):
        complete(duckdb.connect(str(store), read_only=True), store)
    with pytest.raises(
        OtherSchemaError, match=r"without Checkpoint\.n_comparisons.*; publish it again .* analyze sample"
    ):
        StoreReader(store)


@pytest.mark.parametrize("version", [schema.READABLE[0] - 1, schema.SCHEMA_VERSION + 1])
def test_a_schema_beyond_those_that_are_read_is_named_on_the_page(unpacked, version):
    sample = unpacked("schema-6")
    with duckdb.connect(str(sample.store)) as connection:
        connection.execute("UPDATE Study SET schema_version = ?", [version])
    with browsing(sample.root) as client:
        answer = client.get("/s/sample")
        assert answer.status_code == 404
        assert f"schema {version} in the file, 6 to {schema.SCHEMA_VERSION} is read" in answer.text
