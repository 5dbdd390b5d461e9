"""Recorded activations are read as one array of rows, whatever file holds them, or refused with file and row."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seedscope.engine.activations.recorded import open_recorded, require_width


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)


def write_npy(folder, rows):
    np.save(folder / "acts.npy", rows)
    return folder / "acts.npy", rows


def write_half(folder, rows):
    np.save(folder / "acts.npy", rows.astype(np.float16))
    return folder, rows.astype(np.float16).astype(np.float32)


def write_double(folder, rows):
    np.save(folder / "acts.npy", rows.astype(">f8"))
    return folder, rows


def write_documents(folder, rows):
    np.save(folder / "acts.npy", rows.reshape(6, 10, 8))
    return folder, rows


def write_shards(folder, rows):
    for i, part in enumerate(np.split(rows, [7, 9, 31, 40, 41, 42, 43, 44, 45, 46])):
        np.save(folder / f"shard-{i}.npy", part)  # shard-2 stands before shard-10
    np.save(folder / "tokens.npy", np.zeros(60, np.int64))
    np.save(folder / "shard_attention_mask.npy", np.ones(60, np.int64))
    return folder, rows


def write_bfloat16(folder, rows):
    tensor = torch.from_numpy(rows).bfloat16()
    save_file({"activations": tensor, "other": torch.zeros(3, 3), "tokens": torch.arange(60)}, folder / "a.safetensors")
    return folder, tensor.float().numpy()


def write_two_types(folder, rows):
    save_file({"x": torch.from_numpy(rows[:20]).half()}, folder / "a.safetensors")
    np.save(folder / "b.npy", rows[20:])
    return folder, np.concatenate([rows[:20].astype(np.float16).astype(np.float32), rows[20:]])


KINDS = [write_npy, write_half, write_double, write_documents, write_shards, write_bfloat16, write_two_types]


@pytest.mark.parametrize("write", KINDS)
def test_all_rows_are_read_in_order_by_slices_and_by_index(tmp_path, rows, write):
    source, expected = write(tmp_path, rows)
    recorded = open_recorded(source)
    assert recorded.rows.shape == (60, 8)
    np.testing.assert_array_equal(np.asarray(recorded.rows[:]).astype(np.float32), expected)
    index = np.array([0, 6, 7, 8, 30, 45, 46, 59])
    np.testing.assert_array_equal(recorded.rows[index].astype(np.float32), expected[index])
    assert re.fullmatch("[0-9a-f]{16}", recorded.check())


def test_the_digest_is_of_the_numbers_and_not_of_how_they_are_divided(tmp_path, rows):
    digests = []
    for name, write in (
        ("one", write_npy),
        ("documents", write_documents),
        ("shards", write_shards),
        ("half", write_half),
    ):
        (tmp_path / name).mkdir()
        source, _ = write(tmp_path / name, rows)
        digests.append(open_recorded(source).check())
    assert digests[0] == digests[1] == digests[2] != digests[3]
    before = open_recorded(tmp_path / "one")
    changed = rows.copy()
    changed[59, 7] += 1
    np.save(tmp_path / "one" / "acts.npy", changed)
    after = open_recorded(tmp_path / "one")
    assert after.check() != digests[0]
    assert (
        after.stamp != before.stamp or after.files[0].path.stat().st_mtime_ns == before.files[0].path.stat().st_mtime_ns
    )


def test_large_files_are_mapped_and_not_loaded(tmp_path):
    rows = np.random.default_rng(0).normal(size=(4096, 32)).astype(np.float32)
    np.save(tmp_path / "a.npy", rows)
    save_file({"x": torch.from_numpy(rows)}, tmp_path / "b.safetensors")
    recorded = open_recorded(tmp_path)
    for file in recorded.files:
        base = file._raw
        while not isinstance(base, np.memmap) and base.base is not None:
            base = base.base
        assert isinstance(base, np.memmap)
    np.testing.assert_array_equal(recorded.rows[4090:4100], np.concatenate([rows, rows])[4090:4100])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["npy", "safetensors", "documents"])
def test_a_number_that_is_not_finite_is_refused_with_file_and_row(tmp_path, rows, bad, kind):
    np.save(tmp_path / "a.npy", rows)
    rows[37, 3] = bad
    if kind == "safetensors":
        save_file({"x": torch.from_numpy(rows).bfloat16()}, tmp_path / "b.safetensors")
    else:
        np.save(tmp_path / "b.npy", rows.reshape(6, 10, 8) if kind == "documents" else rows)
    with pytest.raises(ValueError, match=r"b\.(npy|safetensors): row 37 .*NaN or infinite") as refused:
        open_recorded(tmp_path).check()
    assert ("document 3, token 7" in str(refused.value)) == (kind == "documents")


def test_what_is_no_table_of_activations_is_refused_with_what_was_found(tmp_path, rows):
    def refused(name: str, array: np.ndarray) -> str:
        folder = tmp_path / name
        folder.mkdir()
        np.save(folder / "acts.npy", array)
        with pytest.raises(ValueError, match=r"acts\.npy|holds no row") as error:
            open_recorded(folder)
        return str(error.value)

    assert "int64" in refused("ids", np.arange(12).reshape(3, 4))
    assert "floating-point" in refused("text", np.array([["a", "b"]]))
    assert "(60,)" in refused("vector", rows[:, 0])
    assert "(2, 3, 10, 8)" in refused("four", rows.reshape(2, 3, 10, 8))
    assert "no row" in refused("empty", rows[:0])
    assert "Fortran" in refused("fortran", np.asfortranarray(rows.reshape(6, 10, 8)))
    assert "bfloat16?" in refused("void", rows.astype(np.float16).view("V2"))
    assert "object" in refused("pickle", np.array([{}], object)).lower()


def test_folders_and_files_that_hold_none_are_refused(tmp_path, rows):
    with pytest.raises(ValueError, match=r"found no file or folder .*nowhere"):
        open_recorded(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds nothing, expected activations as \.npy or \.safetensors"):
        open_recorded(tmp_path / "empty")
    (tmp_path / "text.txt").write_text("a")
    with pytest.raises(ValueError, match=r"text\.txt is a \.txt file"):
        open_recorded(tmp_path / "text.txt")
    folder = tmp_path / "mixed"
    folder.mkdir()
    np.save(folder / "a.npy", rows)
    np.save(folder / "b.npy", rows[:, :5])
    with pytest.raises(ValueError, match=r"a\.npy has 8 numbers per row, .*b\.npy 5"):
        open_recorded(folder)
    cut = tmp_path / "cut.npy"
    cut.write_bytes((folder / "a.npy").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cut\.npy is no complete \.npy file"):
        open_recorded(cut)
    save_file({"x": torch.zeros(3, 4), "y": torch.zeros(3, 4)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"two\.safetensors holds x F32 \(3, 4\), y F32 \(3, 4\), expected one"):
        open_recorded(tmp_path / "two.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "two.safetensors").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"cut\.safetensors is no complete"):
        open_recorded(tmp_path / "cut.safetensors")


def test_numbers_that_float32_cannot_hold_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1.0, 2.0], [1e300, 0.0]]))
    with pytest.raises(ValueError, match=r"a\.npy: row 1 "):
        open_recorded(tmp_path).check()


def test_another_width_than_the_saes_read_is_refused_with_both(tmp_path, rows):
    np.save(tmp_path / "a.npy", rows)
    require_width(open_recorded(tmp_path), 8, "topk")
    with pytest.raises(ValueError, match=r"a\.npy\) have 8 numbers per row, the SAEs of topk read 16"):
        require_width(open_recorded(tmp_path), 16, "topk")
