"""The cost model of `seedscope plan`: work from sizes, seconds from constants, and a run beside them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seedscope.engine.bench.planning import PUBLISHED_ROW_S, CalibrationRun, fitted_costs
from seedscope.engine.contract.stage_times import FILE, RunTimes, StageTime
from seedscope.engine.demo import stdlib
from seedscope.engine.progress import Progress
from seedscope.engine.studies.planning.against import MeasuredStage, compare, finished_runs, measured_stages, stage_of
from seedscope.engine.studies.planning.constants import DEFAULT, Cost, PlanConstants, read_constants, write_constants
from seedscope.engine.studies.planning.gpus import GPUS, known_gpu
from seedscope.engine.studies.planning.plan import plan_study
from seedscope.engine.studies.planning.shape import GivenShape, study_shape
from seedscope.engine.studies.planning.work import STAGES, study_work
from seedscope.engine.studies.studyfile.read import read_study_file

D_MODEL, N_CTX = 128, 256  # of the embedded model, and of the file below


def shape_of(tmp_path: Path, *, given: GivenShape | None = None, model: object = stdlib.MODEL_DIR, **recipe: object):
    settings = {"d_sae": 512, "seeds": 8, "k": 8, "tokens": 400_000, "batch": 512} | recipe
    train = ", ".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    file = tmp_path / "study.toml"
    file.write_text(
        f'[study]\nname = "planned"\n[model]\npath = "{model}"\nhookpoint = "blocks.2.hook_resid_post"\n'
        f'[tokens]\nsource = "python:stdlib"\nn_ctx = {N_CTX}\neval = 50_000\n[[ensemble]]\nname = "e"\ntrain = {{ {train} }}\n'
    )
    return study_shape(read_study_file(file), given or GivenShape())


def work_of(tmp_path: Path, *, on_gpu: bool = False, **recipe: object):
    return {work.stage: work for work in study_work(shape_of(tmp_path, **recipe), on_gpu=on_gpu)}


def test_the_shape_of_a_model_is_read_without_its_weights(tmp_path):
    shape = shape_of(tmp_path).model
    config = json.loads((stdlib.MODEL_DIR / "config.json").read_text())
    per_block = 4 * 128 * 128 + 3 * 128 * 384 + 2 * 128  # attention, gated MLP, two norms
    assert shape.n_parameters == 4096 * 128 + 6 * per_block + 128
    assert (shape.d_model, shape.n_layers, shape.vocabulary) == (128, config["num_hidden_layers"], 4096)


def test_a_model_that_is_not_here_has_to_be_described(tmp_path):
    with pytest.raises(ValueError, match=r"nobody/nothing.*--layers, --parameters, --vocabulary"):
        shape_of(tmp_path, model="nobody/nothing", given=GivenShape(d_in=768))
    shape = shape_of(tmp_path, model="nobody/nothing", given=GivenShape(768, 12, 124_000_000, 50_257))
    assert shape.model.d_model == shape.ensembles[0].d_in == 768
    assert any("as given" in each for each in shape.assumed)


def test_training_costs_what_its_products_take(tmp_path):
    train = work_of(tmp_path)["train"]
    assert train.flops == pytest.approx(8 * 400_000 * (2 * D_MODEL * 512 + 12 * D_MODEL * 8))
    assert train.units["entries"] == 8 * 400_000 * 512
    assert train.stored >= 8 * 4 * 2 * D_MODEL * 512


def test_a_forward_pass_takes_two_flops_per_weight_and_what_attention_adds(tmp_path):
    harvest = work_of(tmp_path)["harvest"]
    weights = 4 * 128 * 128 + 3 * 128 * 384 + 2 * 128
    per_token = 3 * (2 * weights + 2 * N_CTX * D_MODEL)
    assert harvest.flops == pytest.approx(1.02 * 400_000 * per_token, rel=1e-3)
    assert harvest.written == pytest.approx(1.02 * 400_000 * D_MODEL * 2)  # float16


@pytest.mark.parametrize(("seeds", "pairs"), [(2, 1), (4, 6), (8, 28)])
def test_matching_costs_pairs(tmp_path, seeds, pairs):
    match = work_of(tmp_path, seeds=seeds, d_sae=256)["match"]
    assert match.units["cosines"] == pairs * 256**2
    assert match.kept == {"parts: matches": seeds * 256 * (seeds - 1)}


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"start", "map"}))
def test_no_stage_gets_cheaper_with_more_seeds(tmp_path, stage):
    few, many = (work_of(tmp_path, seeds=seeds)[stage] for seeds in (3, 6))
    assert many.flops >= few.flops
    assert all(many.units[name] >= few.units[name] for name in few.units)
    assert many.memory >= few.memory


def test_what_takes_long_on_a_cpu_is_left_out_there_and_planned_on_a_gpu(tmp_path):
    sizes = {"d_sae": 65_536, "seeds": 16}
    here, there = (work_of(tmp_path, on_gpu=on_gpu, **sizes) for on_gpu in (False, True))
    for stage in ("shared spans", "function"):
        assert not here[stage].units
        assert "left out on a CPU" in here[stage].remark
        assert there[stage].flops > 0
    assert "without one-to-one matching" in here["match"].remark


def planted_constants(**stages: dict[str, float]) -> PlanConstants:
    costs = {name: Cost(units, units) for name, units in stages.items()}
    return PlanConstants("a processor", 1, "2026-01-01", "0", 1e9, 1e9, 1e10, 1e8, costs, {"store: rows": 10.0})


def test_seconds_are_flops_over_the_rate_and_units_times_their_cost(tmp_path):
    shape = shape_of(tmp_path)
    plan = plan_study(shape, planted_constants(train={"entries": 1e-9}))
    stages = {stage.stage: stage for stage in plan.stages}
    work = work_of(tmp_path)["train"]
    assert stages["train"].wall_s == pytest.approx(work.flops / 1e9 + work.units["entries"] * 1e-9)
    assert stages["harvest"].wall_s is None  # unknown, never 0
    assert stages["publish"].stored == 10 * 8 * 512 * 7


def test_gpus_share_device_work_and_leave_the_hosts(tmp_path):
    shape = shape_of(tmp_path)
    constants = planted_constants(train={"entries": 1e-9}, map={"points": 1e-3})
    one, eight = (
        {stage.stage: stage for stage in plan_study(shape, constants, gpu=GPUS["H100"], n_gpus=n).stages}
        for n in (1, 8)
    )
    assert eight["train"].wall_s == pytest.approx(one["train"].wall_s / 8)
    assert eight["map"].wall_s == one["map"].wall_s
    assert "not measured" in plan_study(shape, constants, gpu=GPUS["H100"]).basis


def test_an_unknown_gpu_is_told_the_known_ones():
    assert known_gpu("rtx 4090") is GPUS["RTX4090"]
    with pytest.raises(ValueError, match=r"TPU.*A100, H100, H200, B200, L40S, RTX4090"):
        known_gpu("TPU")


def test_constants_of_planted_costs_are_found_again(tmp_path):
    """Seconds made from known costs of a unit; what is fitted to four studies predicts a fifth."""
    rng = np.random.default_rng(0)
    known = {stage: dict.fromkeys(work.units, 0.0) for stage, work in work_of(tmp_path).items()}
    for units in known.values():
        for name in units:
            units[name] = float(rng.uniform(1, 2)) * 1e-3
    known["publish"]["rows"] = PUBLISHED_ROW_S  # small studies do not tell it

    def seconds(work):
        return work.flops / 1e9 + sum(known[work.stage][name] * n for name, n in work.units.items())

    recipes = [
        {"seeds": 4, "d_sae": 256}, {"seeds": 3, "d_sae": 1024, "batch": 256}, {"seeds": 8, "k": 16}, {"seeds": 2, "k": 32},
    ]  # fmt: skip
    runs = []
    for recipe in recipes:
        work = work_of(tmp_path, **recipe)
        measured = {stage: MeasuredStage(seconds(each), seconds(each)) for stage, each in work.items()}
        runs.append(CalibrationRun(work, measured, 0, {}))
    costs = fitted_costs(runs, 1e9, 1e9)
    for stage, work in work_of(tmp_path, seeds=5, d_sae=512).items():
        predicted = work.flops / 1e9 + sum(costs[stage].cpu_s.get(name, 0) * n for name, n in work.units.items())
        assert predicted == pytest.approx(seconds(work), rel=0.3), stage


def test_the_constants_of_the_package_know_every_stage():
    constants = read_constants()
    assert set(constants.stages) == set(STAGES)
    assert constants.processor
    assert constants.date
    assert min(constants.flops_wall, constants.bandwidth, constants.memory, *constants.kept_bytes.values()) >= 0


@pytest.mark.parametrize("content", [None, "", "[]", '{"format": "seedscope.bench", "version": 1}'])
def test_a_file_without_constants_is_refused(tmp_path, content):
    file = tmp_path / "constants.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=r"constants\.json.*bench plan --constants"):
        read_constants(file)


def test_constants_are_read_as_they_were_written(tmp_path):
    write_constants(read_constants(DEFAULT), tmp_path / "again.json")
    assert read_constants(tmp_path / "again.json") == read_constants(DEFAULT)


@pytest.mark.parametrize(
    ("name", "stage"),
    [("training activations at blocks.2.hook_attn_out", "harvest"), ("e: 8 SAEs in lockstep", "train"),
     ("activations at blocks.2", "activations"), ("some activations at b", "activations"), ("e: worth", "activity, ablation"),
     ("e: shared spans on tokens", "shared spans"), ("e: small sets", "function"), ("importing", "other")],
)  # fmt: skip
def test_stages_of_progress_belong_to_stages_of_a_plan(name, stage):
    assert stage_of(name) == stage


def test_a_run_is_compared_whole(tmp_path):
    run = RunTimes(
        0.0,
        "p",
        1,
        100.0,
        90.0,
        0,
        True,
        [StageTime("e: matching", "pairs", 3, 30.0, 20.0), StageTime("x", "y", 1, 5.0, 5.0)],
    )
    measured = measured_stages([run, replace(run, stages=[])])
    assert sum(each.wall_s for each in measured.values()) == 200
    assert measured["match"] == MeasuredStage(30, 20)
    rows = {row.stage: row for row in compare(plan_study(shape_of(tmp_path), planted_constants(match={})), [run])}
    assert rows["match"].wall_ratio == pytest.approx(work_of(tmp_path)["match"].flops / 1e9 / 30)
    assert rows["total"].measured_cpu_s == 90
    assert rows["other"].wall_ratio is None


def test_a_study_that_left_no_times_is_named(tmp_path):
    with pytest.raises(ValueError, match="found no times"):
        finished_runs(tmp_path, "study")
    (tmp_path / "study").mkdir()
    progress = Progress(quiet=True)
    with progress.timed(tmp_path / "study"), progress.stage("e: matching", "pairs"):
        pass
    assert (tmp_path / "study" / FILE).exists()
    assert len(finished_runs(tmp_path, "study")) == 1
