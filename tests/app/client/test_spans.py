"""Shared spans in a notebook: the store's rows and bases, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open

import seedscope
from seedscope.app.store.studies import Studies
from seedscope.engine.contract.tables.shared_spans import SharedSpan, SharedSpanExplanation
from seedscope.engine.export.formats import export
from support.span_study import RANKS, SPAN_ENSEMBLE, SPAN_STUDY
from support.studies import ENSEMBLE, STUDY, members_that_agree, publish_study


@pytest.fixture(scope="module")
def ensemble(span_root):
    return seedscope.open(span_root[0])[SPAN_STUDY][SPAN_ENSEMBLE]


def test_the_table_holds_the_stores_candidates_kept_ones_first(ensemble, span_root):
    rows = [SharedSpan(**row) for row in ensemble.spans().to_pylist()]
    stored = Studies(span_root[0]).get(SPAN_STUDY).rows(SharedSpan)
    assert rows == sorted(stored, key=lambda row: row.number)
    assert [row.kept for row in rows] == sorted((row.kept for row in rows), reverse=True)


def test_explanations_are_those_of_the_store(ensemble, span_root):
    rows = ensemble.span_explanations()
    assert rows == Studies(span_root[0]).get(SPAN_STUDY).rows(SharedSpanExplanation)
    assert {row.span for row in rows} == {row["span"] for row in ensemble.spans().to_pylist() if row["kept"]}
    assert all(row.text and 0 <= row.value <= 1 for row in rows)


def test_a_basis_is_orthonormal_and_the_one_that_is_exported(ensemble, span_root, tmp_path):
    export(span_root[0], SPAN_STUDY, tmp_path / "out", format="spans")
    kept = [row for row in ensemble.spans().to_pylist() if row["kept"]]
    assert sorted(row["rank"] for row in kept) == sorted(RANKS)
    with safe_open(tmp_path / "out" / f"{SPAN_ENSEMBLE}.safetensors", "numpy") as file:
        for row in kept:
            basis = ensemble.span_basis(row["span"])
            assert (basis.dtype, basis.shape) == (np.float32, (row["rank"], ensemble.row.d_in))
            np.testing.assert_allclose(basis @ basis.T, np.eye(row["rank"]), atol=1e-5)
            np.testing.assert_array_equal(basis, file.get_tensor(row["span"]))


def test_what_is_not_there_is_refused_with_what_there_is(ensemble, study_root, tmp_path):
    kept = [row["span"] for row in ensemble.spans().to_pylist() if row["kept"]]
    with pytest.raises(KeyError, match=kept[0]):
        ensemble.span_basis("0" * 12)
    small = seedscope.open(study_root)[STUDY][ENSEMBLE]
    assert not any(small.spans()["kept"].to_pylist())
    with pytest.raises(KeyError, match="none was kept"):
        small.span_basis("0" * 12)
    publish_study(tmp_path, "mine", {"some": (members_that_agree(members=2), {})})
    bare = seedscope.open(tmp_path)["mine"]["some"]
    with pytest.raises(ValueError, match="seedscope analyze mine --only shared_spans"):
        bare.spans()
    with pytest.raises(ValueError, match="seedscope analyze mine --only shared_spans"):
        bare.span_explanations()
    with pytest.raises(KeyError, match="no kept span"):
        bare.span_basis("0" * 12)


def test_a_basis_needs_no_torch(span_root, ensemble):
    span = ensemble.spans()["span"][0].as_py()
    code = (
        f"import seedscope; seedscope.open({str(span_root[0])!r})[{SPAN_STUDY!r}][{SPAN_ENSEMBLE!r}].span_basis({span!r})\n"
        "import sys; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
