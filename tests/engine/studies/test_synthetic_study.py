"""A whole study of known true features, small and real: what stands in its store, what is kept, what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from seedscope.engine.contract.published import published
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.contract.tables import synthetic
from seedscope.engine.contract.tables.features import Feature, Logit
from seedscope.engine.contract.tables.study import Ensemble, Study, Token
from seedscope.engine.explanations.chat import Server
from seedscope.engine.explanations.of_study import Interpretation
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import StoreReader
from seedscope.engine.store.evaluation import read_evaluation
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.publish import publish
from seedscope.engine.studies.run import run_synthetic
from seedscope.engine.studies.synthetic.generator import EVALUATION, SyntheticConfig, draw_samples, draw_truth
from seedscope.engine.studies.synthetic.plan import SyntheticPlan
from support.golden import unit_rows

QUIET = Progress(quiet=True)
SAMPLES = SyntheticConfig(d_in=24, n_free=10, n_low=60, r=5, rate_free=0.1, rate_low=0.02)
RECIPE = TrainConfig(d_sae=20, k=3, seeds=(0, 1, 2), n_tokens=12_288, batch=256)
PLAN = SyntheticPlan(SAMPLES, RECIPE, replace(RECIPE, n_tokens=1_024), n_evaluated=3_000)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    run_synthetic(PLAN, root, "made", with_map=False, progress=QUIET)
    return root


@pytest.fixture(scope="module")
def reader(root):
    name = published(root / "made").name
    with StoreReader(root / "made" / name) as reader:
        yield reader


@pytest.fixture(scope="module")
def members(root):
    (entry,) = catalogue.read(root / "made").ensembles
    return sae.load(root / "made" / entry.folder, entry.seeds)


def test_every_true_feature_stands_with_its_nearest_latent_of_every_member(reader, members):
    rows = reader.rows(synthetic.TrueFeature)
    known = draw_truth(SAMPLES)
    cosines = np.einsum("nd,msd->nms", known.features, unit_rows(members.W_dec.detach().numpy()))
    np.testing.assert_allclose([row.cosines for row in rows], cosines.max(-1), atol=1e-5)
    chosen = np.take_along_axis(cosines, np.array([row.latents for row in rows])[..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen, cosines.max(-1), atol=1e-5)
    assert [row.group for row in rows] == ["free"] * 10 + ["low"] * 60
    codes = np.concatenate([part.codes.toarray() for part in draw_samples(SAMPLES, 3_000, stream=EVALUATION)])
    assert [row.n_active for row in rows] == (codes > 0).sum(0).tolist()


def test_activity_is_that_of_the_evaluation_samples(reader, members):
    rows = np.concatenate([part.rows for part in draw_samples(SAMPLES, 3_000, stream=EVALUATION)])
    import torch

    with torch.no_grad():
        codes = members.encode(torch.from_numpy(rows))
    for index, seed in enumerate(members.seeds):
        fired = codes.indices[:, index][codes.values[:, index] > 0].numpy()
        wanted = np.bincount(fired, minlength=20)
        found = reader.rows(Feature, seed=seed)
        assert [row.n_active for row in found] == wanted.tolist()
        assert [row.dead for row in found] == (wanted == 0).tolist()
        assert {row.n_tokens for row in found} == {3_000}


def test_the_study_says_that_there_is_no_model_and_what_it_is_made_of(reader):
    (study,), (row,) = reader.rows(Study), reader.rows(synthetic.Synthetic)
    assert (study.synthetic, study.model, study.causal, study.n_eval_tokens) == (True, None, None, 3_000)
    assert (row.r, row.n_low, row.n_samples, row.n_evaluated) == (5, 60, 12_288, 3_000)
    assert row.verdict in synthetic.VERDICTS
    (ensemble,) = reader.rows(Ensemble)
    assert ensemble.computed == [
        "match",
        "activity",
        "ablate",
        "explain",
        "subspaces",
        "trajectory",
        "predictor",
        "function",
        "shared_spans",
    ]
    assert not reader.rows(Logit)
    assert {t.text for t in reader.rows(Token)} >= {" free 0", " low 59", " nothing"}
    groups = {row.group: row for row in reader.rows(synthetic.TrueGroup)}
    latents = reader.rows(synthetic.TrueLatent)
    for name, group in groups.items():
        assert group.n_latents == sum(latent.group == name for latent in latents)
    assert len(latents) == 60


def test_the_same_command_again_changes_nothing_and_the_map_is_added(root):
    before = {path: path.stat().st_mtime_ns for path in (root / "made").rglob("*.safetensors")}
    store = published(root / "made")
    run_synthetic(PLAN, root, "made", with_map=False, progress=QUIET)
    assert {path: path.stat().st_mtime_ns for path in (root / "made").rglob("*.safetensors")} == before
    assert published(root / "made") == store


def test_other_settings_take_the_place_of_the_former_ones_and_theta_stays(root, tmp_path):
    run_synthetic(PLAN, tmp_path, "made", with_map=False, progress=QUIET)
    catalogue.write(replace(catalogue.read(tmp_path / "made"), theta=0.6), tmp_path / "made")
    other = replace(PLAN, samples=replace(SAMPLES, r=3))
    run_synthetic(other, tmp_path, "made", with_map=False, progress=QUIET)
    plan = catalogue.read(tmp_path / "made")
    assert plan.theta == 0.6
    assert len(list((tmp_path / "made" / "sae").glob("*/*"))) == 1
    with StoreReader(tmp_path / "made" / published(tmp_path / "made").name) as reader:
        assert [row.r for row in reader.rows(synthetic.Synthetic)] == [3]
        assert [row.theta for row in reader.rows(Ensemble)] == [0.6]


def test_cells_that_are_there_are_published(root, tmp_path):
    from seedscope.engine.studies.synthetic.phase_map import draw_map

    run_synthetic(PLAN, tmp_path, "made", with_map=False, progress=QUIET)
    wanted = PLAN.cells(0.7, 0.05)
    drawn = draw_map(tmp_path / "made" / "cells", wanted[:2], workers=1)
    with StoreReader(publish(tmp_path / "made")) as reader:
        (row,) = reader.rows(synthetic.Synthetic)
        cells = reader.rows(synthetic.PhaseCell)
    assert row.n_map_cells == len(wanted)
    assert [(cell.r, cell.verdict) for cell in cells] == [(cell.r, cell.verdict) for cell in drawn]
    assert [cell.rate_low for cell in cells] == [cell.rate_low for cell in drawn]


def test_analyses_are_computed_again_on_the_same_samples(root):
    before = read_evaluation(root / "made")
    analyse(root / "made", only=("activity",), progress=QUIET)
    assert read_evaluation(root / "made") == before
    assert before.model is None


def test_a_model_or_text_is_refused_for_samples_that_are_made(root):
    plan = catalogue.read(root / "made")
    try:
        catalogue.write(replace(plan, model="gpt2"), root / "made")
        with pytest.raises(ValueError, match="is a synthetic study, measured on samples of its own"):
            analyse(root / "made", only=("activity",), progress=QUIET)
    finally:
        catalogue.write(plan, root / "made")


def test_a_language_model_has_nothing_to_read(root):
    with pytest.raises(ValueError, match="its samples are no text"):
        Interpretation(root / "made", Server(base_url="http://127.0.0.1:9/v1", model="none"))


def test_names_that_are_taken_or_pages_are_refused_before_any_work(tmp_path):
    catalogue.write(catalogue.StudyPlan("other"), tmp_path / "other")
    with pytest.raises(ValueError, match="is there and not synthetic"):
        run_synthetic(PLAN, tmp_path, "other", progress=QUIET)
    assert [path.name for path in (tmp_path / "other").iterdir() if path.name != ".lock"] == ["study.json"]
    with pytest.raises(ValueError, match="this one is a page"):
        run_synthetic(PLAN, tmp_path, "synthetic", progress=QUIET)
    assert not (tmp_path / "synthetic").exists()
