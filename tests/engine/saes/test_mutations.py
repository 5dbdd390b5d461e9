"""Damaged checkpoints of every format are refused in words, or read as the files now say; a study is never half changed."""

import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seedscope.engine.saes.importers.ensemble import read
from seedscope.engine.saes.sae import load
from seedscope.engine.store.catalogue import EnsemblePlan
from seedscope.engine.studies.import_ensemble import as_sae, enrol
from support.importer_checks import CHECKPOINTS
from support.mutations import mutate, snapshot
from support.own_forward import FORWARD, Forward
from support.specimens import D_IN, SPECIMENS

AGREES = 2e-5  # of the largest value
LONGEST = 10.0  # seconds that one file may take
MANY, FEW = 300, 12  # damaged copies per format


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(4).normal(size=(24, D_IN)).astype(np.float32) * 2 + 0.3


def computed(folder: Path, entry_folder: str, seed: int, x: np.ndarray) -> Forward:
    """Activations and reconstructions of the member that a study now holds."""
    member = load(folder / entry_folder, (seed,))
    with torch.no_grad():
        codes = member.encode(torch.from_numpy(x))
        dense = torch.zeros(len(x), member.d_sae).scatter_add_(1, codes.indices[:, 0], codes.values[:, 0])
        return dense.numpy(), member.decode(codes)[:, 0].numpy()


def expected(format: str, path: Path, whole: Path, x: np.ndarray) -> Forward:
    """What the library computes with the damaged files; with the whole ones where it cannot read them at all.

    That is so where the damage is to what an archive of PyTorch holds beside its tensors.
    """
    for of in (path, whole):
        try:
            return FORWARD[format](of, x.astype(np.float64))
        except (ValueError, RuntimeError, KeyError, OSError, EOFError):
            continue
        except Exception as error:
            if "Unpickl" not in type(error).__name__:
                raise
    member = as_sae(replace(read(whole), seed=0))
    with torch.no_grad():
        codes = member.encode(torch.from_numpy(x))
        dense = torch.zeros(len(x), member.d_sae).scatter_add_(1, codes.indices[:, 0], codes.values[:, 0])
        return dense.numpy(), member.decode(codes)[:, 0].numpy()


def compare(format: str, entry: EnsemblePlan, paths: tuple[Path, Path], study: Path, x: np.ndarray, what: str) -> None:
    """What the study holds computes what the files say."""
    d_in = load(study / entry.folder, (1,)).d_in
    if d_in != D_IN:  # its biases were swapped, which nothing contradicts
        assert any("is transposed" in remark for remark in entry.members[0].remarks), what
        x = np.random.default_rng(5).normal(size=(24, d_in)).astype(np.float32)
    for ours, theirs in zip(computed(study, entry.folder, 1, x), expected(format, *paths, x), strict=True):
        assert ours.shape == theirs.shape, what
        difference = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-6)
        assert difference <= AGREES, f"{what}: {difference:.1e}: {entry.members[0].remarks}"


def check(format: str, number: int, x: np.ndarray, tmp_path: Path) -> Counter[str]:
    root, kept = tmp_path / "root", tmp_path / "kept"
    enrol(root, "study", "first", [CHECKPOINTS / "saelens" / "topk"], seeds=[0])
    shutil.copytree(root, kept)
    before, outcomes = snapshot(root), Counter[str]()
    for index in range(number):
        rng = np.random.default_rng([index, *format.encode()])
        write = SPECIMENS[format][index % len(SPECIMENS[format])]
        damaged, whole = tmp_path / f"damaged-{index}", tmp_path / f"whole-{index}"
        damaged.mkdir(), whole.mkdir()
        path, intact = write(damaged), write(whole)
        what = f"{format} {index}, {path.name}: {mutate(damaged, rng)}"
        began = time.monotonic()
        refusal, entry = "", None
        try:
            entry = enrol(root, "study", "second", [path], seeds=[1])
        except ValueError as error:
            refusal = str(error)
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        if entry is None:
            assert snapshot(root) == before, what
            assert str(tmp_path) in refusal, f"{what}: {refusal}"  # it names the file
            outcomes["refused"] += 1
        else:
            compare(format, entry, (path, intact), root / "study", x, what)
            outcomes["read"] += 1
            shutil.rmtree(root)
            shutil.copytree(kept, root)
        assert time.monotonic() - began < LONGEST, what
        shutil.rmtree(damaged)
        shutil.rmtree(whole)
    return outcomes


@pytest.mark.parametrize("format", SPECIMENS)
def test_a_few_damaged_checkpoints(format, x, tmp_path):
    check(format, FEW, x, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("format", SPECIMENS)
def test_many_damaged_checkpoints(format, x, tmp_path):
    outcomes = check(format, MANY, x, tmp_path)
    assert outcomes.total() == MANY
    assert outcomes["refused"] > MANY / 4
    assert outcomes["read"] > MANY / 20
