"""What is measured at every snapshot, against dense definitions; and how it becomes part of a study."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment

from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.progress import Progress
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.publish import publish
from seedscope.engine.studies.run import run_synthetic
from seedscope.engine.studies.synthetic.generator import SyntheticConfig
from seedscope.engine.studies.synthetic.plan import SyntheticPlan
from seedscope.engine.training import trajectory
from support.golden import explained_variance, topk_codes, unit_rows
from support.studies import ask

K, THETA = 3, 0.6


def members(n: int, *, d_in: int = 7, d_sae: int = 15, seed: int = 0, mean: float = 0.0) -> SAE:
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    tensors = {name: rng.normal(size=(n, *shape)).astype(np.float32) for name, shape in shapes.items()}
    tensors["W_dec"] += mean * rng.normal(size=d_in).astype(np.float32)
    return SAE(**{name: torch.from_numpy(t) for name, t in tensors.items()}, k=K, seeds=tuple(range(n)))


def follow(sae: SAE, rows: np.ndarray | None = None, **more) -> trajectory.Followed:
    options = {"units": torch.ones(sae.d_in), "theta": THETA, "assign": True} | more
    return trajectory.follow(sae, rows, **options)


def distances(rows: list[np.ndarray]) -> list[float]:
    """Mean 1 - cosine of every pair under the matching that maximises it."""
    found = []
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            cosines = rows[i] @ rows[j].T
            found.append(1 - cosines[linear_sum_assignment(cosines, maximize=True)].mean())
    return found


def test_agreement_among_all_and_among_living_features_is_that_of_the_dense_definitions():
    sae, rng = members(4, mean=0.7), np.random.default_rng(1)
    with torch.no_grad():
        sae.W_dec[2, 4] = 0  # a row without a direction
        sae.b_enc[1, :5] = -100  # features that never fire
    x = rng.normal(size=(60, 7)).astype(np.float32)
    found = follow(sae, x)
    t = {name: getattr(sae, name).detach().numpy().astype(float) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    codes = [topk_codes(x, t["W_enc"][m], t["b_enc"][m], t["b_dec"][m], K) for m in range(4)]
    active = np.stack([(each > 0).sum(0) for each in codes])
    valid = np.abs(t["W_dec"]).sum(2) > 0
    np.testing.assert_array_equal(found.used.n_active, active)
    assert (found.n_all, found.n_live) == (valid.sum(1).mean(), (valid & (active > 0)).sum(1).mean())
    assert found.n_live < found.n_all
    for got, kept in ((found.all, valid), (found.live, valid & (active > 0))):
        rows = [unit_rows(t["W_dec"][m][kept[m]]) for m in range(4)]
        np.testing.assert_allclose(got.distance, distances(rows), atol=1e-5)
        best = [
            ((a @ b.T).max(1).mean() + (b @ a.T).max(1).mean()) / 2 for i, a in enumerate(rows) for b in rows[i + 1 :]
        ]
        np.testing.assert_allclose(got.best, best, atol=1e-5)
    for m in range(4):
        unit = unit_rows(t["W_dec"][m][valid[m]])
        others = [(unit @ unit_rows(t["W_dec"][o][valid[o]]).T).max(1) for o in range(4) if o != m]
        np.testing.assert_allclose(found.best[m, valid[m]], np.mean(others, 0), atol=1e-5)
        np.testing.assert_array_equal(found.matched[m, valid[m]], sum(each >= THETA for each in others))
    assert found.best[2, 4] == -1


def test_worth_of_a_feature_is_the_ev_that_is_lost_without_it():
    sae, x = members(2), np.random.default_rng(2).normal(size=(40, 7)).astype(np.float32)
    used = trajectory.use(sae, x)
    for m in range(2):
        t = {
            name: getattr(sae, name)[m].detach().numpy().astype(float) for name in ("W_enc", "b_enc", "W_dec", "b_dec")
        }
        codes = topk_codes(x, t["W_enc"], t["b_enc"], t["b_dec"], K)
        whole = explained_variance(x, codes @ t["W_dec"] + t["b_dec"])
        assert used.evs[m] == pytest.approx(whole, abs=1e-4)
        for feature in range(15):
            without = np.where(np.arange(15) == feature, 0, codes)
            lost = whole - explained_variance(x, without @ t["W_dec"] + t["b_dec"])
            assert used.worth[m, feature] == pytest.approx(lost, abs=1e-4)


def test_equal_members_in_another_order_are_at_distance_zero_and_a_shared_mean_inflates_cosines():
    sae = members(2)
    with torch.no_grad():
        sae.W_dec[1] = sae.W_dec[0][torch.randperm(15, generator=torch.Generator().manual_seed(0))]
    same = follow(sae)
    assert same.all.distance == pytest.approx([0], abs=1e-6)
    assert same.live is None
    assert same.used is None
    apart = {mean: follow(members(2, d_in=24, d_sae=40, seed=3, mean=mean)) for mean in (0.0, 3.0)}
    assert apart[3.0].all.distance[0] < 0.3 < apart[0.0].all.distance[0]
    assert apart[3.0].common.mean_share > 0.7 > 0.1 > apart[0.0].common.mean_share
    # Without the common direction both are as far apart as random rows of one dimension less.
    for found in apart.values():
        assert found.common.centred.distance[0] == pytest.approx(apart[0.0].all.distance[0], abs=0.05)
    level = trajectory.random_level(40, 24, assign=True)
    assert level.distance.mean() == pytest.approx(apart[0.0].all.distance[0], abs=0.05)
    rows = unit_rows(members(1, mean=1.0).W_dec[0].detach().numpy().astype(float))
    cosines = (rows @ rows.T)[~np.eye(15, dtype=bool)]
    one = trajectory.common([torch.from_numpy(rows)], [], assign=False)
    assert one.mean_cosine == pytest.approx(cosines.mean())
    assert one.mean_share == pytest.approx(np.sum(rows.mean(0) ** 2))


def test_members_are_compared_in_the_space_that_they_were_trained_in():
    sae, units = members(3), torch.tensor([1.0, 10, 1, 1, 0.1, 1, 1])
    with torch.no_grad():
        scaled = SAE(sae.W_enc, sae.b_enc, sae.W_dec * units, sae.b_dec, k=K, seeds=sae.seeds)
    np.testing.assert_allclose(follow(scaled, units=units).all.distance, follow(sae).all.distance, atol=1e-5)
    assert np.abs(follow(scaled).all.distance - follow(sae).all.distance).max() > 0.01


@pytest.mark.parametrize("n", [2, 3, 8, 9, 10, 25])
def test_few_members_are_all_compared_and_many_each_with_eight(n):
    pairs = trajectory.compared(n)
    counts = np.bincount(np.ravel(pairs), minlength=n)
    assert set(counts) == {trajectory.n_compared(n)} == {min(n - 1, 8)}
    assert len(set(pairs)) == len(pairs)
    assert all(a < b for a, b in pairs)


# -- in a study ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published synthetic study of three members."""
    samples = SyntheticConfig(d_in=16, n_free=12, n_low=16, r=4, rate_free=0.1, rate_low=0.05)
    recipe = TrainConfig(d_sae=24, k=3, seeds=(0, 1, 2), n_tokens=20_000, batch=256, lr=3e-3)
    root = tmp_path_factory.mktemp("root")
    plan = SyntheticPlan(samples, recipe, n_evaluated=6_000)
    run_synthetic(plan, root, "made", with_map=False, progress=Progress(quiet=True))
    return root / "made"


def store(study: Path) -> Path:
    return study / (study / "CURRENT").read_text().split()[0]


def test_the_last_checkpoint_is_what_the_study_says_of_its_members(made):
    path = store(made)
    ((computed,),) = ask(path, "SELECT computed FROM Ensemble")
    assert "trajectory" in computed
    steps = ask(path, "SELECT step, tokens, n_tokens, n_comparisons, len(evs) FROM Checkpoint ORDER BY step")
    assert (steps[0][:2], steps[-1][:2]) == ((0, 0), (78, 78 * 256))
    assert {row[2:] for row in steps} == {(6_000, 2, 3)}  # fewer samples than N_TOKENS: all of them
    # All evaluation samples are measured on: the end is the ensemble itself, feature by feature.
    rows = ask(
        path,
        "SELECT matched[-1], best_cosines[-1], a.worth_ev[-1], a.n_active[-1], len(matched), len(a.worth_ev), f.cosines, "
        "f.worth_ev, f.n_active FROM FeatureAlong a JOIN Feature f USING (ensemble, seed, feature)",
    )
    assert len(rows) == 3 * 24
    for matched, best, worth, n_active, *lengths, cosines, own_worth, own_active in rows:
        assert matched == sum(np.float32(c) >= np.float32(0.7) for c in cosines)
        assert best == pytest.approx(np.mean(cosines), abs=1e-5)
        assert worth == pytest.approx(own_worth, abs=1e-5)
        assert n_active == own_active
        assert lengths == [len(steps)] * 2
    ((distance,),) = ask(path, "SELECT 1 - avg(mean_cosine) FROM Pair WHERE rule = 'hungarian'")
    ends = dict(ask(path, "SELECT population, distance FROM AgreementPoint WHERE step = 78"))
    assert ends["all"] == pytest.approx(distance, abs=1e-5)
    assert len(ends) == 2
    starts = ask(path, "SELECT distance, random_distance FROM AgreementPoint JOIN CosineGeometry USING (ensemble, step) "
                       "WHERE step = 0 AND population = 'all'")  # fmt: skip
    assert starts[0][0] == pytest.approx(starts[0][1], abs=0.06)  # random starts
    traced = ask(
        path, "SELECT seed, min(step), max(step), count(*), count(loss) FROM TracePoint GROUP BY seed ORDER BY seed"
    )
    assert [row[:3] for row in traced] == [(seed, 0, 78) for seed in range(3)]
    assert all(row[3] == row[4] + 1 for row in traced)


def test_what_was_measured_is_not_measured_again_and_snapshots_without_it_are_still_listed(made, tmp_path, monkeypatch):
    study = tmp_path / "made"
    shutil.copytree(made, study)
    (about,) = (study / "parts/topk-24/trajectory").glob("*/about.json")
    before = about.stat().st_mtime_ns
    analyse(study, only=["trajectory"], device="cpu", progress=Progress(quiet=True))
    assert about.stat().st_mtime_ns == before
    catalogue.write(replace(catalogue.read(study), theta=0.5), study)
    again = publish(study)  # another theta counts other matches: they are not those of the part
    assert ask(again, "SELECT count(*) FROM FeatureAlong") == [(0,)]
    assert ask(again, "SELECT count(*) > 2, count(n_tokens) FROM Checkpoint") == [(True, 0)]
    analyse(study, only=["trajectory"], device="cpu", progress=Progress(quiet=True))
    ((matched, best),) = ask(publish(study), "SELECT sum(matched[-1]), avg(best_cosines[-1]) FROM FeatureAlong")
    ((was, same),) = ask(store(made), "SELECT sum(matched[-1]), avg(best_cosines[-1]) FROM FeatureAlong")
    assert matched > was
    assert best == pytest.approx(same)
    shutil.rmtree(study / catalogue.read(study).ensembles[0].folder / "along")
    (study / "parts/topk-24/trajectory").rename(tmp_path / "away")
    heard = []
    progress = Progress(quiet=True)
    monkeypatch.setattr(progress, "say", heard.append)
    analyse(study, only=["trajectory"], device="cpu", progress=progress)
    assert "topk-24: trajectory: left out, no seeds were kept along its training" in heard
    path = publish(study)
    assert ask(path, "SELECT count(*) FROM Checkpoint") == [(0,)]
    assert ask(path, "SELECT count(*) > 0 FROM TracePoint") == [(True,)]


def test_units_of_the_training_space_are_read_from_beside_the_snapshots(made, tmp_path):
    study = tmp_path / "made"
    shutil.copytree(made, study)
    folder = study / catalogue.read(study).ensembles[0].folder
    std = torch.linspace(0.2, 3, 16)
    save_file({"std": std}, folder / "along/space.safetensors")
    shutil.rmtree(study / "parts/topk-24/trajectory")
    analyse(study, only=["trajectory"], device="cpu", progress=Progress(quiet=True))
    ((found,),) = ask(publish(study), "SELECT distance FROM AgreementPoint WHERE step = 78 AND population = 'all'")
    rows = [load_file(folder / f"seed-{seed}.safetensors")["W_dec"] / std.numpy() for seed in range(3)]
    assert found == pytest.approx(np.mean(distances([unit_rows(each) for each in rows])), abs=1e-5)
