"""`pool.json`: a record in the format of version 2, written by hand, opens; what is malformed does not."""

import json
from copy import deepcopy
from pathlib import Path

import pytest

from seedscope.engine.contract.tables.pools import FeaturePool, PooledFeature, PoolPoint
from seedscope.engine.store.catalogue import EnsemblePlan, MemberPlan, StudyPlan
from seedscope.engine.store.database import Writer
from seedscope.engine.store.evaluation import Evaluation
from seedscope.engine.studies.pools.record import PoolRecord, add_pool, current, pool_folder, read

POINT = {
    "kind": "halves", "tokens": 512, "ev": [0.8, 0.75], "l0": [2.0, 2.0], "dead": [0.0, 0.5], "n_living": [4, 2],
    "loss": [3.5, 3.25], "shares": [0.5, 1.0], "shared": 0.6, "mmcs": 0.9,
}  # fmt: skip
WRITTEN = {
    "format": "seedscope.pool",
    "version": 2,
    "study": "small",
    "ensemble": "topk-4",
    "theta": 0.7,
    "members": [{"seed": seed, "digest": f"digest {seed}"} for seed in range(4)],
    "halves": [[0, 2], [1, 3]],
    "d_sae": 2,
    "d_in": 3,
    "k": 2,
    "tokens": 512,
    "recipe": {"d_sae": 4, "k": 2, "lr": 0.03, "batch": 512, "data_order": "shared", "group_fracs": [0.5, 0.5]},
    "unique_by_holders": [1, 0, 0, 1],
    "features": [
        {"seed": 0, "feature": 3, "holders": 4, "density": 0.25},
        {"seed": 1, "feature": 0, "holders": 1, "density": 0.125},
    ],
    "curves": [
        {"kind": "pool", "tokens": 0, "ev": [0.5], "l0": [2.0], "dead": [0.0], "n_living": [2], "loss": None,
         "shares": None, "shared": None, "mmcs": None},
        POINT,
    ],
    "evaluation": {"rows": 300, "tokens": "token digest", "model": "model digest", "hookpoint": "blocks.0.hook_resid_post",
                   "loss_tokens": 0},
    "training": {"text": "train.txt", "tokens": "training digest", "rows": 1024},
    "fresh": {"d_sae": 4, "k": 2, "seeds": [4, 5], "n_tokens": 2048},
    "remarks": ["a remark"],
    "made_from": "0123456789abcdef",
    "digest": "fedcba9876543210",
}  # fmt: skip
BARE = WRITTEN | {
    "features": [{"seed": 0, "feature": 3, "holders": 3}], "curves": [], "evaluation": None, "training": None,
    "fresh": None, "recipe": None, "k": None, "halves": [], "tokens": 0, "remarks": [],
}  # fmt: skip
ENSEMBLE = EnsemblePlan(
    "topk-4", "trained", "sae/topk-4", tuple(MemberPlan(seed, f"digest {seed}") for seed in range(4)),
    hookpoint="blocks.0.hook_resid_post",
)  # fmt: skip
PLAN = StudyPlan("small", ensembles=(ENSEMBLE,))


def write(folder: Path, content: object) -> Path:
    """A pool's folder with this record, and files in the place of its SAE."""
    (folder / "sae").mkdir(parents=True, exist_ok=True)
    for name in ("cfg.json", "sae_weights.safetensors"):
        (folder / "sae" / name).touch()
    (folder / "pool.json").write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return folder


@pytest.mark.parametrize("content", [WRITTEN, BARE])
def test_a_record_that_was_written_before_opens_and_is_written_as_it_was(tmp_path, content):
    record = read(write(tmp_path, content))
    assert isinstance(record, PoolRecord)
    assert json.dumps(record.to_json(), indent=1) == (tmp_path / "pool.json").read_text()
    assert record.members[1].digest == "digest 1"
    assert record.features[0].density == content["features"][0].get("density")
    assert record.fresh_seeds == ([4, 5] if content is WRITTEN else [])


def changed(**changes: object) -> dict:
    return deepcopy(WRITTEN) | changes


MALFORMED = [
    "", "{", "[]", "null", "7", changed(version=1), changed(version="2"), changed(format="other"), changed(d_sae="2"),
    changed(d_sae=2.5), changed(theta=None), changed(members=[{"seed": 0}]), changed(members="all"), changed(features=None),
    changed(features=[{"seed": 0, "feature": True, "holders": 1}]), changed(curves=[{**POINT, "ev": ["0.5"]}]),
    changed(curves=[{name: value for name, value in POINT.items() if name != "mmcs"}]), changed(evaluation={"rows": 3}),
    changed(training=[]), changed(fresh={"seeds": 4}), changed(fresh={"seeds": ["4"]}), changed(recipe="topk"),
    changed(remarks="a remark"), changed(digest=None), *({n: v for n, v in WRITTEN.items() if n != name} for name in WRITTEN),
]  # fmt: skip


@pytest.mark.parametrize("content", MALFORMED)
def test_what_is_no_record_of_this_version_is_none(tmp_path, content):
    assert read(write(tmp_path, content)) is None


def test_a_record_without_its_sae_or_folder_is_none(tmp_path):
    assert read(tmp_path / "missing") is None
    folder = write(tmp_path / "pool", WRITTEN)
    assert read(folder / "pool.json") is None
    (folder / "sae" / "cfg.json").unlink()
    assert read(folder) is None


def test_a_number_that_is_not_finite_is_refused_in_writing(tmp_path):
    record = read(write(tmp_path, json.dumps(WRITTEN).replace("0.125", "NaN")))
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.to_json()


def test_a_pool_is_current_for_its_members_theta_and_tokens(tmp_path):
    evaluation = Evaluation("model", "model digest", None, True, 8, "all", "token digest", 300, "text", (), ())
    write(pool_folder(tmp_path, "topk-4"), WRITTEN)
    assert current(tmp_path, PLAN, ENSEMBLE, evaluation) == current(tmp_path, PLAN, ENSEMBLE, None) is not None
    for content in (changed(theta=0.5), changed(members=WRITTEN["members"][:3])):
        write(pool_folder(tmp_path, "topk-4"), content)
        assert current(tmp_path, PLAN, ENSEMBLE, evaluation) is None
    write(pool_folder(tmp_path, "topk-4"), changed(evaluation=WRITTEN["evaluation"] | {"tokens": "others"}))
    assert current(tmp_path, PLAN, ENSEMBLE, evaluation) is None
    assert current(tmp_path, PLAN, ENSEMBLE, None) is not None


def test_rows_of_the_contract_hold_what_the_file_says(monkeypatch, tmp_path):
    rows: list[object] = []
    columns: dict[type, dict] = {}
    monkeypatch.setattr("seedscope.engine.studies.pools.record.add_row", lambda writer, row: rows.append(row))
    monkeypatch.setattr(Writer, "add", lambda self, table, values: columns.update({table: values}))
    add_pool(writer := object.__new__(Writer), read(write(tmp_path, WRITTEN)))
    add_pool(writer, None)
    whole, first, second = rows
    assert isinstance(whole, FeaturePool)
    assert (whole.halves, whole.fresh, whole.text, whole.n_loss_tokens) == ([0, 2, 1, 3], [4, 5], "train.txt", None)
    assert json.loads(whole.recipe) == WRITTEN["recipe"]
    assert isinstance(first, PoolPoint)
    assert (first.losses, first.shares, second.losses, second.shares) == ([], [], POINT["loss"], POINT["shares"])
    assert columns[PooledFeature]["density"] == [0.25, 0.125]
