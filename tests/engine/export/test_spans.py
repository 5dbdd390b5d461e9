"""Exports of shared spans: bases, members and pairs against the store and plain NumPy, the manual's loader, and the way back."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from seedscope.app.store.studies import Studies
from seedscope.engine.contract.published import published
from seedscope.engine.contract.tables.shared_spans import SORT_KEYS, SharedSpan, SharedSpanDirection
from seedscope.engine.export.formats import export
from seedscope.engine.export.restore import restore
from support.paths import ROOT
from support.span_study import HOOKPOINT, RANKS, SPAN_ENSEMBLE, SPAN_STUDY
from support.studies import members_that_agree, publish_study


@pytest.fixture(scope="module")
def written(span_root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "spans"
    export(span_root[0], SPAN_STUDY, folder, format="spans")
    return folder


@pytest.fixture(scope="module")
def store(span_root):
    return Studies(span_root[0]).get(SPAN_STUDY)


@pytest.fixture(scope="module")
def bases(written) -> dict[str, np.ndarray]:
    with safe_open(written / f"{SPAN_ENSEMBLE}.safetensors", "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def unit_members(saes, rows: list[dict], span: str) -> dict[tuple[int, int], np.ndarray]:
    """{(seed, feature): unit decoder row} of a span's members, in float64."""
    decoder = saes.W_dec.detach().double().numpy()
    found = {(row["seed"], row["feature"]): decoder[row["seed"], row["feature"]] for row in rows if row["span"] == span}
    return {place: row / np.linalg.norm(row) for place, row in found.items()}


def test_every_kept_span_has_an_orthonormal_basis_which_is_the_stored_one(bases, store):
    kept = store.rows(SharedSpan, "kept")
    assert sorted(row.rank for row in kept) == sorted(RANKS)
    assert set(bases) == {row.span for row in kept}
    for row in kept:
        basis = bases[row.span]
        assert (basis.shape, basis.dtype) == ((row.rank, 128), np.float32)
        np.testing.assert_allclose(basis.astype(float) @ basis.T.astype(float), np.eye(row.rank), atol=1e-5)
        axes = store.rows(SharedSpanDirection, "span = ? AND basis = -1", [row.span])
        assert [axis.axis for axis in sorted(axes, key=lambda axis: axis.axis)] == list(range(row.rank))
        for axis in axes:
            np.testing.assert_array_equal(basis[axis.axis], np.array(axis.vector, np.float32))


def test_a_basis_spans_the_first_singular_vectors_of_its_members(bases, written, span_root):
    rows = pq.read_table(written / "members.parquet").to_pylist()
    for span, basis in bases.items():
        members = unit_members(span_root[1], rows, span)
        _, _, vectors = np.linalg.svd(np.stack(list(members.values())), full_matrices=False)
        cosines = np.linalg.svd(vectors[: len(basis)] @ basis.T, compute_uv=False)
        np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_members_lie_where_their_rows_say_and_their_energy_is_of_the_other_seeds_span(bases, written, span_root):
    rows = pq.read_table(written / "members.parquet").to_pylist()
    assert {row["span"] for row in rows} == set(bases)
    for span, basis in bases.items():
        members = unit_members(span_root[1], rows, span)
        for row in (row for row in rows if row["span"] == span):
            own = members[row["seed"], row["feature"]]
            np.testing.assert_allclose(basis[:2] @ own, [row["x"], row["y"]], atol=1e-5)
            others = np.stack([vector for (seed, _), vector in members.items() if seed != row["seed"]])
            _, _, vectors = np.linalg.svd(others, full_matrices=False)
            assert row["energy"] == pytest.approx(((vectors[: len(basis)] @ own) ** 2).sum(), abs=1e-4)


def test_the_tables_are_those_of_the_store(written, store):
    for file in ("spans", "members", "pairs", "seeds", "summary", "explanations"):
        table = pq.read_table(written / f"{file}.parquet")
        of_contract = next(each for each in SORT_KEYS if each.__name__ == {
            "spans": "SharedSpan", "members": "SharedSpanFeature", "pairs": "SharedSpanPair", "seeds": "SharedSpanSeed",
            "summary": "SharedSpanSummary", "explanations": "SharedSpanExplanation",
        }[file])  # fmt: skip
        assert sorted(map(str, (of_contract(**row) for row in table.to_pylist()))) == sorted(
            map(str, store.rows(of_contract))
        )


def test_the_metadata_say_what_the_numbers_are_of(written, bases, span_root):
    root, saes = span_root
    with safe_open(written / f"{SPAN_ENSEMBLE}.safetensors", "numpy") as file:
        told = file.metadata()
    assert (told["study"], told["ensemble"], told["hookpoint"]) == (SPAN_STUDY, SPAN_ENSEMBLE, HOOKPOINT)
    assert told["store"] == published(root / SPAN_STUDY)[0]
    assert json.loads(told["sae_digests"]) == {str(seed): saes.digest(seed) for seed in saes.seeds}
    assert "orthonormal" in told["definition"]
    assert "as the model computes them" in told["scale"]
    assert {span: each["rank"] for span, each in json.loads(told["spans"]).items()} == {
        span: len(basis) for span, basis in bases.items()
    }


@pytest.mark.parametrize("framework", ["numpy", "pt"])
def test_the_loader_of_the_manual_projects_and_steers(written, bases, framework):
    text = (ROOT / "templates/manual/exports.md").read_text()
    (code,) = [each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "load_span" in each]
    assert "seedscope" not in code
    names: dict = {}
    exec(compile(code, "exports.md", "exec"), names)
    span = next(iter(bases))
    basis, told = names["load_span"](written / f"{SPAN_ENSEMBLE}.safetensors", span, framework)
    assert told["ensemble"] == SPAN_ENSEMBLE
    x = np.random.default_rng(0).standard_normal((3, 5, 128)).astype(np.float32)
    given = torch.from_numpy(x) if framework == "pt" else x
    axes = bases[span].astype(float)
    inside = np.einsum("ijd,rd,re->ije", x.astype(float), axes, axes)
    np.testing.assert_allclose(names["project"](given, basis), np.einsum("ijd,rd->ijr", x, axes), atol=1e-5)
    np.testing.assert_allclose(names["steer"](given, basis, 0), x - inside, atol=1e-5)
    np.testing.assert_allclose(names["steer"](given, basis, 3), x + 2 * inside, atol=1e-5)
    coordinates = given[0, 0, : len(axes)]
    pushed = x + np.asarray(coordinates).astype(float) @ axes
    np.testing.assert_allclose(names["push"](given, basis, coordinates), pushed, atol=1e-5)


def test_an_ensemble_without_kept_spans_has_no_basis_and_the_manifest_says_why(tmp_path):
    members = members_that_agree(members=2)
    publish_study(tmp_path / "root", "pair", {"two": (members, {})}, only=("match", "shared_spans"))
    files = export(tmp_path / "root", "pair", tmp_path / "out", format="spans")
    assert not [file for file in files if file.suffix == ".safetensors"]
    left_out = json.loads((tmp_path / "out" / "manifest.json").read_text())["left_out"]
    assert "expected at least 3" in left_out["two.safetensors"]


def test_a_study_that_was_not_searched_is_refused_with_the_command(tmp_path):
    publish_study(tmp_path / "root", "mine", {"some": (members_that_agree(members=2), {})})
    with pytest.raises(ValueError, match="seedscope analyze mine --only shared_spans"):
        export(tmp_path / "root", "mine", tmp_path / "out", format="spans")
    assert not (tmp_path / "out").exists()


def test_a_whole_export_brings_every_table_of_spans_back(span_root, store, tmp_path):
    export(span_root[0], SPAN_STUDY, tmp_path / "out")
    restore(tmp_path / "out", tmp_path / "root")
    assert published(tmp_path / "root" / SPAN_STUDY) == published(span_root[0] / SPAN_STUDY)
    restored = Studies(tmp_path / "root").get(SPAN_STUDY)
    for table in SORT_KEYS:
        assert restored.rows(table)
        assert restored.rows(table) == store.rows(table)
