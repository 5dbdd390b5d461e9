"""`export --format hf-dataset`: read back by the datasets library itself, with the rows of the Parquet export."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from seedscope.engine.export.formats import export
from seedscope.engine.export.hf_dataset import _code

STUDY, ENSEMBLE = "small", "topk-96"


@pytest.fixture(scope="module")
def folder(study_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "dataset"
    export(study_root, STUDY, folder, format="hf-dataset")
    return folder


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The library, which asks no hub and keeps nothing outside the test's folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    import datasets

    datasets.disable_progress_bars()
    return datasets


def test_the_datasets_library_loads_every_configuration(folder, exported, datasets, tmp_path):
    assert datasets.get_dataset_config_names(str(folder)) == [ENSEMBLE, f"{ENSEMBLE}.matches"]
    for config, file in ((ENSEMBLE, "features"), (f"{ENSEMBLE}.matches", "matches")):
        loaded = datasets.load_dataset(str(folder), config, cache_dir=str(tmp_path / "cache"))
        assert list(loaded) == [f"seed_{seed}" for seed in range(4)]
        rows = pq.read_table(exported / f"{file}.parquet").to_pylist()
        for seed, split in enumerate(loaded.values()):
            assert split.to_list() == [row for row in rows if row["seed"] == seed]


def test_features_are_what_is_loaded_without_a_name(folder, datasets, tmp_path):
    loaded = datasets.load_dataset(str(folder), split="seed_2", cache_dir=str(tmp_path / "cache"))
    assert loaded["feature"][:] == list(range(96))
    assert set(loaded["seed"]) == {2}
    assert {"stability", "stability_low", "stability_high", "n_comparisons", "null_rate", "bucket"} <= set(
        loaded.features
    )


def test_the_card_names_files_that_are_there_and_says_how_it_was_measured(folder):
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    files = [folder / split["path"] for config in card["configs"] for split in config["data_files"]]
    assert all(path.is_file() for path in files)
    assert len(files) == 8
    assert sum(bool(config.get("default")) for config in card["configs"]) == 1
    assert card["size_categories"] == ["n<1K"]
    told = json.loads((folder / "manifest.json").read_text())
    (ensemble,) = told["ensembles"]
    for text in (
        f"`{told['store']}`",
        f"`{ensemble['digest']}`",
        f"`{ensemble['hookpoint']}`",
        "| argmax | 0.7 | 0.05 |",
    ):
        assert text in body
    assert "license" not in card  # nobody said which
    assert "contexts" in told["left_out"]


def test_a_name_of_a_file_cannot_end_its_code_or_its_cell():
    assert _code("a`b|c\nd\u202e") == "`a'b/c d`"
    assert _code(None) == "not known"
