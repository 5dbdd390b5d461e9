"""Training that is stopped: killed at any step, by bad rows, by divergence, by memory; and what its trace says."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seedscope.engine.activations.shards import Shards
from seedscope.engine.contract.recipe import VARIANTS
from seedscope.engine.machine import GIB
from seedscope.engine.training import memory, trace
from seedscope.engine.training.checkpoints import Checkpoints, State
from seedscope.engine.training.ensemble import train_ensemble
from seedscope.engine.training.members import DivergedError
from seedscope.engine.training.trace import Trace, agreement
from support.golden import explained_variance
from support.stopped_training import CONFIG, Stop, same, stop_at


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    codes = np.abs(rng.normal(size=(300, 30))) * (rng.random((300, 30)) < 0.1)
    return (codes @ rng.normal(size=(30, 8)) + rng.normal(size=8)).astype(np.float32)


# -- stopped and resumed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("data_order", ["shared", "independent"])
def test_a_stopped_training_resumes_to_the_same_weights(rows, variant, data_order, tmp_path):
    config = replace(CONFIG, variant=variant, data_order=data_order)
    whole = train_ensemble(rows, config)
    for step in (3, 17, 39):  # in the second, third and last of nine epochs, again and again
        with pytest.raises(Stop):
            train_ensemble(rows, config, checkpoints=tmp_path, every_s=0.0, report=stop_at(step))
    reported = []
    again = train_ensemble(
        rows, config, checkpoints=tmp_path, every_s=0.0, report=lambda done, total: reported.append(done)
    )
    assert same(again, whole)
    assert reported[0] >= 38 * config.batch


SCRIPT = """
import sys, numpy as np
from pathlib import Path
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.training.ensemble import train_ensemble
rows = np.load(sys.argv[1])
config = TrainConfig(**{config})
print("ready", flush=True)
made = train_ensemble(rows, config, checkpoints=Path(sys.argv[2]) / "checkpoints", every_s=0.0)
made.save(Path(sys.argv[2]) / "sae")
print("done", flush=True)
"""


DEATHS = 2  # each costs seconds of loading torch again


@pytest.mark.parametrize(
    "variant", ["topk", *(pytest.param(name, marks=pytest.mark.slow) for name in ("matryoshka", "relaxed-archetypal"))]
)
def test_a_training_killed_outright_again_and_again_ends_with_the_same_weights(rows, variant, tmp_path):
    config = replace(CONFIG, variant=variant, n_tokens=64 * 400)
    np.save(tmp_path / "rows.npy", rows)
    script = SCRIPT.replace("{config}", repr({name: getattr(config, name) for name in config.__dataclass_fields__}))
    rng, place = np.random.default_rng(VARIANTS.index(variant)), tmp_path / "checkpoints"
    for life in range(DEATHS + 1):
        with subprocess.Popen(
            [sys.executable, "-c", script, tmp_path / "rows.npy", tmp_path], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "ready\n"
            if life < DEATHS:
                before = {path.name for path in place.rglob("step-*.safetensors")}
                while {path.name for path in place.rglob("step-*.safetensors")} <= before:
                    time.sleep(0.001)  # it has gone on, by at least one step
                time.sleep(rng.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
            assert process.stdout.read() == ("" if life < DEATHS else "done\n")
    made = {seed: load_file(tmp_path / f"sae/seed-{seed}.safetensors") for seed in config.seeds}
    whole = train_ensemble(rows, config)
    for member, seed in enumerate(config.seeds):
        for name, tensor in whole.member_tensors(member).items():
            assert torch.equal(tensor, made[seed][name]), name


def test_a_checkpoint_is_whole_or_not_there_and_one_is_enough(tmp_path):
    kept = Checkpoints(tmp_path, "recipe", every_s=0.0)
    assert kept.newest() is None
    kept.keep(State(3, {"a": torch.arange(4.0)}, [{"step": 0}]))
    (tmp_path / "step-000000009.tmp").write_bytes(b"cut off while it was written")
    (tmp_path / "step-000000007.safetensors").write_bytes(b"damaged by the disk")
    found = kept.newest()
    assert (found.step, found.points) == (3, [{"step": 0}])
    assert torch.equal(found.tensors["a"], torch.arange(4.0))
    assert Checkpoints(tmp_path, "another recipe").newest() is None
    kept.keep(State(11, {"a": torch.zeros(1)}, []))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000011.safetensors"]


def test_checkpoints_wait_for_their_time(tmp_path):
    assert not Checkpoints(tmp_path, "recipe", every_s=1000.0).due()
    assert Checkpoints(tmp_path, "recipe", every_s=0.0).due()


@pytest.mark.parametrize("change", [{"lr": 2e-2}, {"variant": "relu"}, "rows"])
def test_another_recipe_or_other_rows_do_not_go_on_from_a_checkpoint(rows, change, tmp_path):
    with pytest.raises(Stop):
        train_ensemble(rows, CONFIG, checkpoints=tmp_path, every_s=0.0, report=stop_at(20))
    config, other = (CONFIG, rows + 1) if change == "rows" else (replace(CONFIG, **change), rows)
    assert same(train_ensemble(other, config, checkpoints=tmp_path, every_s=0.0), train_ensemble(other, config))


# -- bad input ---------------------------------------------------------------------------------------------------


def mapped(folder: Path, rows: np.ndarray, parts: int) -> Shards:
    """Rows in several files, as a harvest leaves them."""
    found = []
    for number, part in enumerate(np.array_split(rows, parts)):
        path = folder / f"shard-{number:05d}.f4"
        path.write_bytes(np.ascontiguousarray(part).tobytes())
        found.append(np.memmap(path, np.float32, "r", shape=part.shape))
    return Shards(found)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named_with_its_shard_and_position(rows, bad, tmp_path):
    damaged = rows.copy()
    damaged[131, 5] = bad
    with pytest.raises(ValueError, match=rf"row 131 \({tmp_path}/shard-00001.f4, position 31\) holds {bad}"):
        train_ensemble(mapped(tmp_path, damaged, 3), CONFIG)


def test_a_row_that_only_training_meets_is_named_too(rows, tmp_path):
    """The sample at the start does not see all rows; what was trained until then is kept."""
    many = np.tile(rows, (200, 1))
    many[1, 0] = np.nan
    config = replace(CONFIG, n_tokens=64 * 900)
    with pytest.raises(ValueError, match=r"activation row 1 \(position 1 of an array in memory\) holds nan"):
        train_ensemble(many, config, checkpoints=tmp_path, every_s=0.0)
    assert list(tmp_path.rglob("step-*.safetensors"))


def test_a_loss_that_diverges_stops_with_step_seeds_and_cause_and_keeps_the_last_good_checkpoint(rows, tmp_path):
    config = replace(CONFIG, lr=1e18, warmup_frac=1.0)
    with pytest.raises(
        DivergedError, match=r"(?s)diverged at step \d+ of 40 \(seeds .*learning rate.* lower lr"
    ) as info:
        train_ensemble(rows, config, checkpoints=tmp_path, every_s=0.0)
    (kept,) = tmp_path.rglob("step-*.safetensors")
    assert str(kept.parent) in str(info.value)
    assert all(tensor.isfinite().all() for tensor in load_file(kept).values())


def test_a_single_member_that_does_not_fit_is_refused_with_what_it_needs(rows):
    with pytest.raises(MemoryError, match=r"needs .* GiB for one seed of 24 x 8 .*largest group that fits is 0 seeds"):
        train_ensemble(rows, CONFIG, available=2**20)


def test_memory_that_runs_out_against_expectation_says_the_largest_group_that_fits(rows, monkeypatch):
    def exhausted(*_: object, **named: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr("seedscope.engine.training.members.Training.advance", exhausted)
    monkeypatch.setattr("seedscope.engine.training.ensemble.available_memory", lambda: 2**30)
    with pytest.raises(MemoryError, match=r"2 seeds were trained at once.* the largest group that fits is 1 seeds"):
        train_ensemble(rows, CONFIG)


# -- groups and memory -------------------------------------------------------------------------------------------


def test_members_that_do_not_fit_together_are_trained_in_groups_to_the_same_weights(rows, tmp_path):
    config = replace(CONFIG, seeds=(0, 1, 2, 3, 4))
    need = memory.predicted(config, 8, dtype=torch.float64, sample_rows=300, keeps=False)
    groups = memory.in_groups(config, 8, need, int(need.of(2) / memory.SAFETY) + 1)
    assert groups == [(0, 1), (2, 3), (4,)]
    exact = rows.astype(np.float64)
    together = train_ensemble(exact, config, dtype=torch.float64)
    seen, said = [], []
    apart = train_ensemble(
        exact, config, dtype=torch.float64, available=int(need.of(2) / memory.SAFETY) + 1,
        report=lambda done, total: seen.append((done, total)), say=said.append,
    )  # fmt: skip
    assert apart.seeds == together.seeds
    assert said == [
        f"3 groups of at most 2 seeds, one by one, about {need.of(2) / GIB:.2f} of the 0.1 GiB of memory that are free"
    ]
    for name in together.convention.tensors:
        torch.testing.assert_close(getattr(apart, name), getattr(together, name), rtol=0, atol=1e-9)
    assert seen == sorted(seen)
    assert seen[-1] == (config.n_tokens, config.n_tokens)


def test_a_training_in_groups_resumes_in_the_group_it_was_in_with_the_grouping_it_had(rows, tmp_path):
    config = replace(CONFIG, seeds=(0, 1, 2))
    need = memory.predicted(config, 8, dtype=torch.float32, sample_rows=300, keeps=True)
    little = {"available": int(need.of(1) / memory.SAFETY) + 1}
    whole = train_ensemble(rows, config, **little, checkpoints=tmp_path / "a", every_s=0.0)
    with pytest.raises(Stop):
        train_ensemble(
            rows, config, **little, checkpoints=tmp_path / "b", every_s=0.0, report=stop_at(20), trace=Trace(n_points=4)
        )
    reported, kept = [], Trace(n_points=4)
    again = train_ensemble(
        rows,
        config,
        checkpoints=tmp_path / "b",
        every_s=0.0,
        report=lambda done, total: reported.append(done),
        trace=kept,
    )
    assert {(point.step, point.seeds) for point in kept.points} == {
        (step, (seed,)) for step in kept.steps(40) for seed in (0, 1, 2)
    }
    assert same(again, whole)
    assert reported[0] >= 19 * config.batch  # nothing that was trained is trained again


MEASURE = """
import re, sys, numpy as np, torch
from pathlib import Path
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.training.ensemble import train_ensemble, SAMPLE_ROWS
from seedscope.engine.training.memory import predicted
def held(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
variant, members, d_in, d_sae, batch = sys.argv[1], *map(int, sys.argv[2:])
rows = np.random.default_rng(0).normal(size=(4 * max(batch, d_sae), d_in)).astype(np.float32)
config = TrainConfig(variant=variant, d_sae=d_sae, k=8, seeds=tuple(range(members)), n_tokens=4 * batch, batch=batch)
train_ensemble(rows[:64], TrainConfig(variant=variant, d_sae=32, k=8, seeds=(0,), n_tokens=32, batch=16))
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = held("VmRSS")
train_ensemble(rows, config)
need = predicted(config, d_in, dtype=torch.float32, sample_rows=min(len(rows), SAMPLE_ROWS), keeps=False)
print(held("VmHWM") - before, need.of(members))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be read here")
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=[] if name in ("topk", "jumprelu", "matryoshka") else pytest.mark.slow)
        for name in VARIANTS
    ],
)
def test_training_needs_no_more_memory_than_predicted_and_not_far_less(variant):
    d_sae = 4096 if variant == "topk" else 2048  # it takes so little that libraries' own buffers would be most of it
    arguments = [variant, *map(str, (4, 64, 1024, d_sae))]
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
    taken, expected = map(int, done.stdout.split())
    assert taken <= expected
    assert expected <= 2.5 * taken


# -- trace -------------------------------------------------------------------------------------------------------


def test_the_trace_says_what_the_members_are_at_log_spaced_and_even_steps(rows):
    heard = []
    kept = Trace(n_points=6, n_even=5, on_point=heard.append)
    made = train_ensemble(rows, CONFIG, trace=kept)
    assert [point.step for point in kept.points] == sorted(kept.steps(40)) == [0, 1, 3, 6, 8, 16, 24, 32, 40]
    assert heard == kept.points
    first, last = kept.points[0], kept.points[-1]
    assert last.seeds == CONFIG.seeds
    assert last.loss is None
    assert first.loss[0] > kept.points[-2].loss[0] > 0
    assert first.dead_frac == (0, 0)
    assert last.tokens == 40 * 64
    x = torch.from_numpy(rows)
    out, codes = made(x).detach().numpy(), made.encode(x)
    for member in range(2):
        assert last.ev[member] == pytest.approx(explained_variance(rows, out[:, member]), abs=1e-4)
        assert last.l0[member] == pytest.approx(float((codes.values[:, member] > 0).sum(-1).float().mean()))
    unit = made.directions().detach().numpy()
    cosines = unit[0] @ unit[1].T
    assert last.agreement == pytest.approx((cosines.max(0).mean() + cosines.max(1).mean()) / 2, abs=1e-5)
    assert last.agreement > first.agreement


def test_looking_changes_nothing(rows):
    assert same(train_ensemble(rows, CONFIG, trace=Trace(n_points=30)), train_ensemble(rows, CONFIG))


def test_a_trace_survives_a_stop_and_its_file(rows, tmp_path):
    whole, resumed = Trace(n_points=8), Trace(n_points=8)
    train_ensemble(rows, CONFIG, trace=whole)
    with pytest.raises(Stop):
        train_ensemble(rows, CONFIG, trace=Trace(n_points=8), checkpoints=tmp_path, every_s=0.0, report=stop_at(20))
    train_ensemble(rows, CONFIG, trace=resumed, checkpoints=tmp_path, every_s=0.0)
    assert resumed.points == whole.points
    resumed.save(tmp_path)
    assert trace.read(tmp_path) == whole.points
    assert trace.read(tmp_path / "nowhere") == []
    (tmp_path / trace.FILE).write_text('{"format": "another", "version": 1}')
    with pytest.raises(ValueError, match=r"expected seedscope\.trace version 1"):
        trace.read(tmp_path)


def test_agreement_of_many_members_is_that_of_neighbours_and_of_one_there_is_none():
    rng = np.random.default_rng(0)
    unit = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(10, 6, 4)).astype(np.float32)), dim=-1)
    expected = np.mean([(unit[a] @ unit[(a + 1) % 10].T).amax(1).mean() for a in range(10)])
    assert agreement(unit) == pytest.approx(expected, abs=1e-6)
    assert agreement(unit[:1]) is None
