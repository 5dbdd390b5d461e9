"""`import seedscope` in a notebook: the numbers of the pages, no torch, nothing written."""

import subprocess
import sys

import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import seedscope
from support.studies import ENSEMBLE, STUDY


@pytest.fixture
def ensemble(study_root):
    return seedscope.open(study_root)[STUDY][ENSEMBLE]


def loaded_by(code: str) -> set[str]:
    show = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_import_loads_nothing_heavy_and_a_study_no_torch(study_root):
    assert not {"torch", "duckdb", "pyarrow", "numpy", "fastapi"} & loaded_by("import seedscope")
    code = (
        f"import seedscope; ensemble = seedscope.open({str(study_root)!r})[{STUDY!r}][{ENSEMBLE!r}]; ensemble.features()\n"
        "ensemble._repr_html_(); ensemble.feature(0, 1)._repr_html_(); ensemble.table()"
    )
    assert not {"torch", "transformers", "fastapi", "uvicorn"} & loaded_by(code)


def test_studies_ensembles_and_seeds_are_what_the_root_holds(study_root, ensemble):
    studies = seedscope.open(study_root)
    assert list(studies) == [STUDY]
    assert len(studies) == 1
    assert list(studies[STUDY]) == [ENSEMBLE]
    assert ensemble.name == ENSEMBLE
    assert ensemble.seeds == [0, 1, 2, 3]
    assert STUDY in repr(studies)
    assert ENSEMBLE in repr(studies[STUDY])
    assert "96 features" in repr(ensemble)


@pytest.mark.parametrize(
    "asked",
    [{}, {"bucket": "stable", "theta": 0.5}, {"rule": "mutual", "dead": "count", "seed": 1}, {"density_min": 0.01}],
)
def test_the_table_is_the_download_of_the_page(ensemble, client, address, asked):
    downloaded = pq.read_table(pa.BufferReader(client.get(f"{address}/features.parquet", params=asked).content))
    table = ensemble.features(**asked)
    assert table.num_rows > 0
    assert table.equals(downloaded)


def test_the_table_becomes_a_frame_of_either_library_in_one_call(ensemble):
    table = ensemble.features()
    assert table.to_pandas().shape == (table.num_rows, table.num_columns)
    assert polars.from_arrow(table).shape == (table.num_rows, table.num_columns)


@pytest.mark.parametrize(
    "asked", [{}, {"theta": 0.4, "epsilon": 0.2}, {"rule": "hungarian"}, {"rule": "both", "dead": "count"}]
)
@pytest.mark.parametrize("place", [(0, 3), (2, 17), (3, 95)])
def test_a_feature_has_the_numbers_of_its_page(ensemble, client, address, place, asked):
    seed, index = place
    twin = client.get(f"{address}/{seed}/{index}.json", params=asked).json()
    feature = ensemble.feature(seed, index, **asked)
    same = (
        "study", "ensemble", "seed", "stability", "stability_low", "stability_high", "p_stable", "p_unstable", "n_matched",
        "n_comparisons", "bucket", "theta", "epsilon", "rule",
    )  # fmt: skip
    assert {name: getattr(feature, name) for name in same} == {name: twin[name] for name in same}
    stored = ("dead", "density", "n_active", "n_tokens", "mean_activation", "max_activation", "trigger", "decoder_norm")
    assert {name: getattr(feature.row, name) for name in stored} == {name: twin[name] for name in stored}
    assert feature.index == twin["feature"]
    for mine, theirs in zip(feature.matches, twin["matches"], strict=True):
        assert (mine.seed, mine.partner, mine.matched, mine.mutual) == (
            theirs["seed"], theirs["rule_partner"], theirs["matched"], theirs["mutual"],
        )  # fmt: skip
        assert mine.runner_up_cosine == theirs["runner_up_cosine"]
        assert mine.encoder_cosine == theirs["encoder_cosine"]
        assert mine.cosine == (None if theirs["rule_partner"] is None else theirs["rule_cosine"])
    shown = [(c.group, c.tokens, c.activations, c.document, c.position) for c in feature.contexts]
    names = ("group", "tokens", "activations", "document", "position")
    assert shown == [tuple(c[name] for name in names) for c in twin["contexts"]]
    assert client.get(feature.permalink).status_code == 200


def test_decoder_rows_are_those_that_were_trained(ensemble, ensemble_saes):
    for member, seed in enumerate(ensemble.seeds):
        np.testing.assert_array_equal(ensemble.decoder(seed), ensemble_saes.W_dec[member].detach().numpy())


def test_what_is_not_there_is_refused_with_what_there_is(study_root, ensemble, tmp_path):
    with pytest.raises(FileNotFoundError, match="seedscope demo"):
        seedscope.open(tmp_path / "none")
    with pytest.raises(KeyError, match="small"):
        seedscope.open(study_root)["nope"]
    with pytest.raises(KeyError, match=ENSEMBLE):
        seedscope.open(study_root)[STUDY]["nope"]
    with pytest.raises(KeyError, match="seeds 0, 1, 2, 3"):
        ensemble.feature(9, 0)
    with pytest.raises(KeyError, match="0 to 95"):
        ensemble.feature(0, 96)
    with pytest.raises(KeyError, match="seeds 0, 1, 2, 3"):
        ensemble.decoder(9)
    with pytest.raises(ValueError, match="colour"):
        ensemble.features(colour="red")
    for name in ("dead", "bucket", "trigger", "sort"):
        with pytest.raises(ValueError, match=f"{name} is 'stabel', expected one of "):
            ensemble.features(**{name: "stabel"})
    with pytest.raises(ValueError, match="dead is 'counted'"):
        ensemble.feature(0, 0, dead="counted")
    with pytest.raises(ValueError, match="argmax"):
        ensemble.features(rule="nearest")
    with pytest.raises(ValueError, match="theta"):
        ensemble.features(theta=1.5)
    with pytest.raises(ValueError, match="epsilon"):
        ensemble.feature(0, 0, epsilon=0.5)


def test_reading_changes_no_file(own_root):
    def files() -> dict[str, tuple[int, int]]:
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in own_root.rglob("*") if p.is_file()}

    before = files()
    ensemble = seedscope.open(own_root)[STUDY][ENSEMBLE]
    ensemble.features()
    ensemble.feature(0, 0)
    with pytest.raises(FileNotFoundError, match="import it again"):
        ensemble.decoder(0)  # this copy of the study has no SAEs
    assert files() == before


def test_the_default_root_is_that_of_the_commands(study_root, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDSCOPE_ROOT", str(study_root))
    assert list(seedscope.open()) == [STUDY]
