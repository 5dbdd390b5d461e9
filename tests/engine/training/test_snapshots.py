"""Members kept whole along their training: what they are, that looking changes nothing, and what a stop does to them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from seedscope.engine.contract.recipe import VARIANTS
from seedscope.engine.saes import sae
from seedscope.engine.saes.importers.recognise import recognise
from seedscope.engine.saes.sae import SAE
from seedscope.engine.training import memory
from seedscope.engine.training.ensemble import train_ensemble
from seedscope.engine.training.snapshots import Snapshots, kept, units
from seedscope.engine.training.trace import Trace
from support.golden import explained_variance
from support.stopped_training import CONFIG, Stop, same, stop_at


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    codes = np.abs(rng.normal(size=(300, 30))) * (rng.random((300, 30)) < 0.1)
    return (codes @ rng.normal(size=(30, 8)) + rng.normal(size=8)).astype(np.float32)


N_STEPS = CONFIG.n_tokens // CONFIG.batch


def files(folder: Path) -> dict[str, tuple]:
    """What every file holds: tensors and metadata, whose order in the file is any."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
            found[str(path.relative_to(folder))] = (tensors, file.metadata())
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_snapshots_are_the_saes_that_the_trace_measured_and_training_is_the_same_without_them(rows, variant, tmp_path):
    config, trace = replace(CONFIG, variant=variant), Trace(n_points=400)
    plain = train_ensemble(rows, config)
    made = train_ensemble(rows, config, trace=trace, snapshots=Snapshots(tmp_path, most=6))
    assert same(made, plain)
    found = kept(tmp_path, config.seeds)
    assert [each.step for each in found] == [0, 1, 3, 6, 16, N_STEPS]
    assert [each.tokens for each in found] == [each.step * config.batch for each in found]
    points = {point.step: point for point in trace.points}
    for each in found:
        members = sae.load(each.folder, config.seeds)
        assert members.convention == made.convention
        out = members(torch.from_numpy(rows)).detach().numpy()
        for member, expected in enumerate(points[each.step].ev):
            assert explained_variance(rows, out[:, member]) == pytest.approx(expected, abs=2e-4)
    assert same(sae.load(found[-1].folder, config.seeds), made)
    made.save(tmp_path)
    members = [tmp_path / f"seed-{seed}.safetensors" for seed in config.seeds]
    assert [each.path for each in recognise(tmp_path)] == members  # who imports the folder gets these alone
    assert not same(sae.load(found[0].folder, config.seeds), made)


def test_a_training_that_dies_between_two_files_ends_with_the_snapshots_of_one_that_did_not(
    rows, tmp_path, monkeypatch
):
    train_ensemble(rows, CONFIG, snapshots=Snapshots(tmp_path / "whole", most=6))
    again = {"checkpoints": tmp_path / "state", "every_s": 0.0}
    save = SAE.save

    class Killed(BaseException):
        pass

    def dying(self: SAE, folder: Path, **told) -> None:
        if folder.name.endswith("16"):
            save(self.only(0), folder, **told)
            (folder / "seed-2.tmp").write_bytes(b"half")
            raise Killed
        save(self, folder, **told)

    monkeypatch.setattr(SAE, "save", dying)
    with pytest.raises(Killed):
        train_ensemble(rows, CONFIG, snapshots=Snapshots(tmp_path / "stopped", most=6), **again)
    monkeypatch.setattr(SAE, "save", save)
    assert [each.step for each in kept(tmp_path / "stopped", CONFIG.seeds)] == [0, 1, 3, 6]
    train_ensemble(rows, CONFIG, snapshots=Snapshots(tmp_path / "stopped", most=6), **again)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert not list(tmp_path.rglob("along/**/*.tmp"))
    train_ensemble(rows, CONFIG, snapshots=Snapshots(tmp_path / "stopped", most=3))
    assert [each.step for each in kept(tmp_path / "stopped", CONFIG.seeds)] == [
        0,
        1,
        N_STEPS,
    ]  # another plan's are gone


def test_a_killed_training_ends_with_the_snapshots_of_one_that_was_not(rows, tmp_path):
    train_ensemble(rows, CONFIG, snapshots=Snapshots(tmp_path / "whole"))
    again = {"checkpoints": tmp_path / "state", "every_s": 0.0}
    for step in (1, 9, 30, N_STEPS):
        with pytest.raises(Stop):
            train_ensemble(rows, CONFIG, snapshots=Snapshots(tmp_path / "stopped"), report=stop_at(step), **again)
    train_ensemble(rows, CONFIG, snapshots=Snapshots(tmp_path / "stopped"), **again)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_groups_of_members_write_their_own_seeds(rows, tmp_path):
    config, exact = replace(CONFIG, seeds=(0, 1, 2)), rows.astype(np.float64)
    need = memory.predicted(config, 8, dtype=torch.float64, sample_rows=300, keeps=True)
    little = {"available": int(need.of(1) / memory.SAFETY) + 1, "checkpoints": tmp_path / "state", "every_s": 0.0}
    apart, together = Snapshots(tmp_path / "apart"), Snapshots(tmp_path / "together")
    with pytest.raises(Stop):
        train_ensemble(exact, config, dtype=torch.float64, snapshots=apart, report=stop_at(20), **little)
    assert kept(tmp_path / "apart", config.seeds) == []  # no step holds all members yet
    train_ensemble(exact, config, dtype=torch.float64, snapshots=apart, **little)
    train_ensemble(exact, config, dtype=torch.float64, snapshots=together)
    first, second = (kept(folder, config.seeds) for folder in (tmp_path / "apart", tmp_path / "together"))
    assert [each.step for each in first] == [each.step for each in second]
    assert len(first) > 6
    for a, b in zip(first, second, strict=True):
        mine, theirs = sae.load(a.folder, config.seeds), sae.load(b.folder, config.seeds)
        for name in mine.convention.tensors:
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), rtol=0, atol=1e-9)


def test_start_and_end_are_kept_however_little_room_there_is_and_it_is_said(rows, tmp_path):
    n_bytes = len(CONFIG.seeds) * memory.n_weights(CONFIG, 8) * 4
    for room, n in ((1, 2), (4 * n_bytes, 4)):
        said = []
        train_ensemble(rows, CONFIG, snapshots=Snapshots(tmp_path, most_bytes=room), say=said.append)
        found = kept(tmp_path, CONFIG.seeds)
        assert len(found) == n
        assert (found[0].step, found[-1].step) == (0, N_STEPS)
        assert any(f"at {n} steps along training" in line for line in said)
        assert sum(len(t) for tensors, _ in files(tmp_path).values() for t in tensors.values()) == n * n_bytes


def test_units_are_those_of_x_unless_training_had_others(tmp_path):
    assert torch.equal(units(tmp_path, 3), torch.ones(3))
    (tmp_path / "along").mkdir()
    save_file({"std": torch.tensor([1.0, 2.0, 4.0])}, tmp_path / "along/space.safetensors")
    assert units(tmp_path, 3).tolist() == [1, 2, 4]
