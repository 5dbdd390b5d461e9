"""The whole pipeline: the same study twice is the same store, a killed build is no build, and its numbers are true."""

import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from seedscope.engine.contract.index.layout import index_folder
from seedscope.engine.contract.published import published
from seedscope.engine.contract.recipe import StudyConfig
from seedscope.engine.progress import Progress
from seedscope.engine.studies.run import run_study
from support.golden import explained_variance, topk_codes, unit_rows
from support.studies import DiesOncePerStage, Killed, ask

STAGES = 22  # the last one publishes


@pytest.fixture(scope="module")
def tiny(study_config) -> StudyConfig:
    """Built in a second. Its seeds are deliberately not in ascending order."""
    train = replace(study_config.train, d_sae=24, k=2, seeds=(7, 1, 4), n_tokens=4096, batch=256)
    return replace(study_config, name="tiny", ensemble="topk-24", n_ctx=32, train=train)


@pytest.fixture(scope="module")
def few(corpus):
    return corpus._replace(train=corpus.train[:3], held_out=corpus.held_out[:1])


def published_store(root: Path, config: StudyConfig) -> Path:
    folder = root / config.name
    return folder / published(folder)[0]


def build(config: StudyConfig, corpus, root: Path, progress: Progress | None = None) -> Path:
    return run_study(
        config, corpus, root, built_from="tests", loss_tokens=40, progress=progress or Progress(quiet=True)
    )


@pytest.fixture(scope="module")
def built(tiny, few, tmp_path_factory) -> Path:
    return build(tiny, few, tmp_path_factory.mktemp("tiny"))


# -- one build, any build ----------------------------------------------------------------------------------------


def test_the_same_study_built_twice_is_the_same_store(tiny, few, built, tmp_path):
    again = build(tiny, few, tmp_path)
    assert again.name == built.name
    assert published(tmp_path / "tiny") == (again.name, "tests")


def test_a_finished_build_leaves_the_store_the_members_and_no_scratch(built):
    (folder,) = (built.parent / "sae" / "topk-24").iterdir()
    assert {path.name for path in built.parent.iterdir()} == {
        "CURRENT",
        ".lock",
        "parts",
        "sae",
        "study.json",
        built.name,
        index_folder(built).name,
    }
    assert {path.name for path in folder.glob("*.safetensors")} == {f"seed-{s}.safetensors" for s in (1, 4, 7)}


@pytest.mark.slow
def test_a_build_that_dies_in_every_stage_publishes_nothing_until_one_comes_through(tiny, few, built, tmp_path):
    survived = ["publishing"]
    store = None
    while store is None:
        try:
            store = build(tiny, few, tmp_path, DiesOncePerStage(survived))
        except Killed:
            assert published(tmp_path / "tiny") is None
    assert len(survived) == STAGES
    assert store.name == built.name


@pytest.mark.slow
def test_a_build_killed_outright_publishes_nothing_and_the_next_one_finishes_it(tiny, few, built, tmp_path):
    script = (
        "import sys, time\nfrom contextlib import contextmanager\nfrom pathlib import Path\n"
        "from seedscope.engine.contract.recipe import StudyConfig, TrainConfig\nfrom seedscope.engine.demo.stdlib import Corpus\n"
        "from seedscope.engine.progress import Progress\nfrom seedscope.engine.studies.run import run_study\n"
        "class Waits(Progress):\n"
        "    @contextmanager\n"
        "    def stage(self, name, unit):\n"
        "        if name.endswith('matching'):\n"
        "            print('ready', flush=True)\n"
        "            time.sleep(60)\n"
        "        with super().stage(name, unit) as report:\n"
        "            yield report\n"
        f"run_study({tiny!r}, {few!r}, Path(sys.argv[1]), built_from='tests', progress=Waits(quiet=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGKILL)
    assert published(tmp_path / "tiny") is None
    assert build(tiny, few, tmp_path).name == built.name


def test_a_second_builder_is_turned_away_and_disturbs_nothing(tiny, few, built):
    before = sorted(built.parent.rglob("*"))
    with open(built.parent / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(RuntimeError, match=f"another process is building {built.parent}"):
            build(tiny, few, built.parent.parent)
    assert sorted(built.parent.rglob("*")) == before


def test_other_settings_do_not_take_over_trained_members(tiny, few, built, tmp_path):
    build(tiny, few, tmp_path)
    other = build(replace(tiny, train=replace(tiny.train, lr=1e-3)), few, tmp_path)
    assert other.name != built.name
    assert len(list((tmp_path / "tiny/sae/topk-24").iterdir())) == 2


def test_another_theta_keeps_the_members_but_not_the_digest_of_the_ensemble(tiny, few, built, tmp_path):
    build(tiny, few, tmp_path)
    other = build(replace(tiny, theta=0.6), few, tmp_path)
    assert len(list((tmp_path / "tiny/sae/topk-24").iterdir())) == 1
    sql = "SELECT e.digest, list(m.sae_digest ORDER BY seed) FROM Ensemble e, Member m GROUP BY ALL"
    (digest, members), (other_digest, other_members) = (ask(store, sql)[0] for store in (built, other))
    assert members == other_members
    assert digest != other_digest


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("name", "Capital"),
        ("name", "../out"),
        ("name", ""),
        ("ensemble", "a/b"),
        ("name", "x.json"),
        ("ensemble", "members"),
        ("ensemble", "match"),
        ("name", "a.parquet"),
    ],
)
def test_a_name_that_no_address_can_hold_is_refused_before_any_work(tiny, few, tmp_path, field, name):
    with pytest.raises(ValueError, match=f"name is {name!r}"):
        build(replace(tiny, **{field: name}), few, tmp_path / "root")
    assert not (tmp_path / "root").exists()


# -- are its numbers true ----------------------------------------------------------------------------------------


def decoders(folder: Path) -> dict[int, np.ndarray]:
    """{seed: unit decoder rows} straight from the files."""
    paths = folder.glob("sae/*/*/seed-*.safetensors")
    return {int(p.stem.removeprefix("seed-")): unit_rows(load_file(p)["W_dec"].astype(np.float64)) for p in paths}


def check_cosines_and_p_hat(store: Path, theta: float) -> None:
    """Every feature's best cosines, in ascending order of the other seeds, and its p_hat, from the decoders alone."""
    rows = decoders(store.parent)
    for seed, anchor in rows.items():
        stored = ask(
            store,
            f"SELECT f.cosines, m.partners, len(list_filter(f.cosines, lambda c: c >= {theta}::FLOAT)) "
            f"FROM Feature f JOIN Match m USING (ensemble, seed, feature) WHERE seed = {seed} ORDER BY feature",
        )
        matrices = [anchor @ rows[other].T for other in sorted(rows) if other != seed]
        cosines = np.stack([m.max(1) for m in matrices], 1)
        np.testing.assert_allclose(np.array([row[0] for row in stored]), cosines, atol=1e-5)
        clear = (np.abs(cosines - theta) > 1e-5).all(1)
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(np.array([row[2] for row in stored])[clear], (cosines >= theta).sum(1)[clear])
        partners = np.stack([m.argmax(1) for m in matrices], 1)
        assert (np.array([row[1] for row in stored]) == partners).mean() > 0.99


def test_stability_in_the_store_is_what_the_decoder_matrices_say(study_root, study_config):
    check_cosines_and_p_hat(published_store(study_root, study_config), study_config.theta)


def test_comparisons_stand_in_ascending_seed_order_whatever_order_the_seeds_were_given_in(built, tiny):
    check_cosines_and_p_hat(built, tiny.theta)


@torch.no_grad()
def test_explained_variance_and_l0_follow_from_hidden_states_and_tensors_alone(
    study_root, study_config, corpus, language_model
):
    tokenizer, room, rows = language_model.tokenizer, study_config.n_ctx - 1, []
    for _, text in corpus.held_out:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), room):
            window = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + room]]])
            rows.append(language_model.network(window, output_hidden_states=True).hidden_states[3][0, 1:])
    x = torch.cat(rows).double().numpy()
    store = published_store(study_root, study_config)
    stored = {seed: (ev, l0) for seed, ev, l0 in ask(store, "SELECT seed, ev, l0 FROM Member")}
    assert ask(store, "SELECT n_eval_tokens FROM Study") == [(len(x),)]
    assert set(stored) == {0, 1, 2, 3}
    for seed, (ev, l0) in stored.items():
        (path,) = store.parent.glob(f"sae/*/*/seed-{seed}.safetensors")
        t = {name: tensor.astype(np.float64) for name, tensor in load_file(path).items()}
        codes = topk_codes(x, t["W_enc"], t["b_enc"], t["b_dec"], study_config.train.k)
        assert ev == pytest.approx(explained_variance(x, codes @ t["W_dec"] + t["b_dec"]), abs=1e-3)
        assert l0 == pytest.approx((codes > 0).sum(1).mean(), abs=1e-2)


def test_the_fixture_shows_every_bucket(study_root, study_config):
    """So that the page tests say something about each of them."""
    counts = ask(
        published_store(study_root, study_config),
        "SELECT count(*) FILTER (dead), count(*) FILTER (NOT dead AND x = 0), "
        "count(*) FILTER (NOT dead AND x BETWEEN 1 AND 2), count(*) FILTER (NOT dead AND x = 3) "
        "FROM (SELECT dead, len(list_filter(cosines, lambda c: c >= 0.7)) AS x FROM Feature)",
    )
    assert min(counts[0]) > 0


@pytest.mark.slow
def test_a_control_is_trained_on_random_weights_and_stays_when_the_study_is_built_again(tiny, few, tmp_path):
    alone = build(tiny, few, tmp_path)
    (digest,) = ask(alone, "SELECT digest FROM Ensemble")
    store = run_study(
        tiny, few, tmp_path, built_from="tests", loss_tokens=40, control=True, progress=Progress(quiet=True)
    )
    rows = ask(store, "SELECT ensemble, control_of, computed = (SELECT computed FROM Ensemble WHERE control_of IS NULL) "
                      "FROM Ensemble ORDER BY ensemble")  # fmt: skip
    assert rows == [("topk-24", None, True), ("topk-24-random-weights", "topk-24", True)]
    assert ask(store, "SELECT digest FROM Ensemble WHERE control_of IS NULL") == [digest]
    (own,), (controls,) = ask(store, "SELECT avg(loss_own) FROM Member GROUP BY ensemble ORDER BY ensemble")
    assert controls > own + 1  # the model with random weights predicts nothing
    assert build(tiny, few, tmp_path).name == store.name
