"""`export --format saebench`: numbers from NumPy alone, and the classes of SAEBench themselves as the judge of its files."""

import importlib.util
import json
import subprocess
import sys
import warnings
import zipfile
from dataclasses import field, make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from scipy import stats

from seedscope.engine.export.formats import export
from seedscope.engine.export.saebench import mean_over_comparisons
from seedscope.engine.saes.importers.saelens import read
from support.studies import members_that_agree, publish_study

STUDY, ENSEMBLE = "small", "topk-96"
SAEBENCH = "sae-bench==0.6.0"
# Fields of BaseEvalOutput and their JSON types; the slow test holds them against the class.
TEXT_OR_NULL = {"type": ["string", "null"]}
FIELDS: dict[str, dict[str, Any]] = {
    "eval_type_id": {"type": "string"}, "eval_config": {"type": "object"}, "eval_id": {"type": "string"},
    "datetime_epoch_millis": {"type": "integer", "minimum": 0, "maximum": 9_999_999_999_999},
    "eval_result_metrics": {"type": "object"}, "eval_result_details": {"type": "array", "items": {"type": "object"}},
    "sae_bench_commit_hash": {"type": "string"}, "sae_lens_id": TEXT_OR_NULL, "sae_lens_release_id": TEXT_OR_NULL,
    "sae_lens_version": TEXT_OR_NULL, "sae_cfg_dict": {"type": ["object", "null"]}, "eval_result_unstructured": {},
}  # fmt: skip
# Metrics are numbers or null, one level deep.
CATEGORIES = {
    "type": "object", "additionalProperties": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
}  # fmt: skip
LAYOUT = {
    "type": "object",
    "properties": FIELDS | {"eval_result_metrics": CATEGORIES},
    "required": list(FIELDS),
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(study_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saebench") / "out"
    export(study_root, STUDY, folder, format="saebench")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict]:
    """One per seed."""
    names = [f"seed_stability/{STUDY}_{ENSEMBLE}_seed-{seed}_eval_results.json" for seed in range(4)]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*_eval_results.json")) == names
    return [json.loads((folder / name).read_text()) for name in names]


@pytest.fixture(scope="module")
def tables(exported: Path) -> dict[str, list[dict]]:
    return {name: pq.read_table(exported / f"{name}.parquet").to_pylist() for name in ("features", "matches", "nulls")}


def test_every_file_has_the_layout_of_an_eval_output(results):
    for result in results:
        Draft202012Validator(LAYOUT).validate(result)
        assert result["eval_type_id"] == "seed_stability"
        assert str(UUID(result["eval_id"])) == result["eval_id"]
    assert len({result["eval_id"] for result in results}) == 4


def test_metrics_are_those_that_numpy_finds_in_the_cosines(results, tables):
    for seed, result in enumerate(results):
        features = [row for row in tables["features"] if row["seed"] == seed]
        cosines = np.array([row["cosine"] for row in tables["matches"] if row["seed"] == seed]).reshape(96, 3)
        living = ~np.array([row["dead"] for row in features])
        hits = cosines[living] >= np.float32(0.7)
        shares, n = hits.mean(0), int(living.sum())
        low, high = stats.t.interval(0.95, 2, shares.mean(), shares.std(ddof=1) / np.sqrt(3))
        found = result["eval_result_metrics"]["stability"]
        assert found["n_features"] == 96
        assert (found["n_judged"], found["n_dead"], found["n_comparisons"]) == (n, 96 - n, 3)
        assert 0 < found["n_dead"] < 96
        assert found["mean_stability"] == pytest.approx(hits.mean())
        assert found["mean_stability_low"] == pytest.approx(max(low, 0))
        assert found["mean_stability_high"] == pytest.approx(min(high, 1))
        stable, unstable = (hits.sum(1) == 3).mean(), (hits.sum(1) == 0).mean()  # 3 comparisons: epsilon moves neither
        assert found["stable_share"] == pytest.approx(stable)
        assert found["unstable_share"] == pytest.approx(unstable)
        assert found["middle_share"] == pytest.approx(1 - stable - unstable)
        assert found["mean_best_cosine"] == pytest.approx(cosines[living].mean(), rel=1e-6)


def test_chance_is_what_numpy_finds_in_the_nulls(results, tables):
    for seed, result in enumerate(results):
        for kind in ("haar", "second_moment"):
            rows = [row["cosines"] for row in tables["nulls"] if (row["seed"], row["kind"]) == (seed, kind)]
            hits = np.array(rows, np.float32) >= np.float32(0.7)
            found = result["eval_result_metrics"]["chance"]
            assert found[f"n_features_{kind}"] == len(rows)
            assert found[f"mean_stability_{kind}"] == pytest.approx(hits.mean())
            assert found[f"stable_share_{kind}"] == pytest.approx(hits.all(1).mean())
            assert found[f"best_cosine_p999_{kind}"] == pytest.approx(np.quantile(rows, 0.999))


def test_details_and_config_say_what_pages_say(results, client, address):
    for seed, result in enumerate(results):
        assert [detail["feature"] for detail in result["eval_result_details"]] == list(range(96))
        for detail in result["eval_result_details"][::37]:
            page = client.get(f"{address}/{seed}/{detail['feature']}.json").json()
            same = (
                "stability", "stability_low", "stability_high", "p_stable", "p_unstable", "n_matched", "n_comparisons", "bucket",
                "dead", "density", "n_active", "n_tokens", "decoder_norm",
            )  # fmt: skip
            assert {name: detail[name] for name in same} == {name: page[name] for name in same}
            assert detail["best_cosines"] == [match["cosine"] for match in page["matches"]]
        config = result["eval_config"]
        assert (config["theta"], config["epsilon"], config["rule"], config["sign"]) == (
            0.7,
            0.05,
            "argmax",
            "signed cosine",
        )
        assert config["seed"] == seed
        assert config["comparison_seeds"] == [other for other in range(4) if other != seed]


def test_the_config_of_the_sae_is_that_of_its_saelens_folder(results, study_root, tmp_path):
    export(study_root, STUDY, tmp_path / "out", format="saelens")
    for seed, result in enumerate(results):
        place = tmp_path / "out" / ENSEMBLE / f"seed-{seed}"
        written = json.loads((place / "cfg.json").read_text())
        told = result["sae_cfg_dict"]
        metadata = told.pop("metadata")
        assert {name: written[name] for name in told} == told
        assert {name: written["metadata"][name] for name in metadata} == metadata
        assert read(place).d_sae == told["d_sae"]


def test_what_is_not_known_is_null_and_one_sae_alone_has_no_result(tmp_path):
    members = members_that_agree()
    publish_study(tmp_path, "mixed", {"five": (members, {}), "alone": (members.only(1), {})})
    export(tmp_path, "mixed", tmp_path / "out", format="saebench")
    files = list((tmp_path / "out" / "seed_stability").iterdir())
    assert len(files) == 5
    for path in files:
        result = json.loads(path.read_text())
        Draft202012Validator(LAYOUT).validate(result)
        assert result["eval_result_metrics"]["stability"]["n_dead"] is None
        assert {detail["density"] for detail in result["eval_result_details"]} == {None}
        assert result["eval_config"]["model_name"] is None
    (first,) = (path for path in files if "seed-0" in path.name)
    assert json.loads(first.read_text())["eval_result_metrics"]["stability"]["n_without_direction"] == 2
    assert "alone" in json.loads((tmp_path / "out" / "manifest.json").read_text())["left_out"]
    publish_study(tmp_path, "single", {"alone": (members.only(1), {})})
    with pytest.raises(ValueError, match=r"study single has no stability to export: one SAE"):
        export(tmp_path, "single", tmp_path / "none", format="saebench")


def test_the_interval_of_a_mean_is_not_known_of_one_comparison():
    assert mean_over_comparisons(np.array([[True], [False]])) == (0.5, None, None)
    assert mean_over_comparisons(np.zeros((0, 3), bool)) == (None, None, None)


# -- the real counterpart ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """SAEBench's module of base classes, from its wheel: the package itself needs an older NumPy than this project."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), SAEBENCH]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot download {SAEBENCH}: {done.stderr.strip().splitlines()[-1:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        path = archive.extract("sae_bench/evals/base_eval_output.py", folder)
    spec = importlib.util.spec_from_file_location("base_eval_output", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with warnings.catch_warnings():  # it is written for an earlier pydantic
            warnings.simplefilter("ignore", DeprecationWarning)
            spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


def declared(name: str, parent: type, content: dict[str, Any]) -> type:
    """A class as SAEBench wants it declared for an evaluation: a field for everything in `content`, nothing besides."""

    def kind(value: Any) -> Any:
        if isinstance(value, dict | list):
            return type(value)
        if type(value) in (int, float):  # true and false are whole numbers, too
            return int | float | None
        return type(value) | None if value is not None else Any

    fields = [(key, kind(value), field(default=None)) for key, value in content.items()]
    return dataclass(make_dataclass(name, fields, bases=(parent,)), config=ConfigDict(extra="forbid", strict=True))


@pytest.mark.slow
def test_saebenchs_own_classes_accept_every_file(base, results):
    for result in results:
        metrics = {
            name: declared(name, base.BaseMetrics, values) for name, values in result["eval_result_metrics"].items()
        }
        categories = dataclass(
            make_dataclass("Categories", list(metrics.items()), bases=(base.BaseMetricCategories,)),
            config=ConfigDict(extra="forbid"),
        )
        config = declared("Config", base.BaseEvalConfig, result["eval_config"])
        detail = declared("Detail", base.BaseResultDetail, result["eval_result_details"][0])

        @dataclass(config=ConfigDict(extra="forbid"))
        class SeedStability(base.BaseEvalOutput[config, categories, detail]):
            eval_config: config = Field()  # stated again, as SAEBench's own evaluations do
            eval_result_metrics: categories = Field()
            eval_result_details: list[detail] = Field()

        adapter = TypeAdapter(SeedStability)
        output = adapter.validate_json(json.dumps(result))
        assert json.loads(output.to_json()) == result
        nested = result["eval_result_metrics"] | {
            "chance": {name: {"a": 1} for name in result["eval_result_metrics"]["chance"]}
        }
        for wrong in (
            {**result, "eval_result_metrics": nested},
            {**result, "datetime_epoch_millis": -1},
            {name: value for name, value in result.items() if name != "sae_bench_commit_hash"},
        ):
            with pytest.raises(ValidationError):
                adapter.validate_json(json.dumps(wrong))


@pytest.mark.slow
def test_the_layout_that_the_default_test_checks_is_that_of_saebench(base):
    config, categories = (declared(name, parent, {}) for name, parent in
                          (("Config", base.BaseEvalConfig), ("Categories", base.BaseMetricCategories)))  # fmt: skip
    detail = declared("Detail", base.BaseResultDetail, {})

    @dataclass
    class SeedStability(base.BaseEvalOutput[config, categories, detail]):
        pass

    schema = TypeAdapter(SeedStability).json_schema()
    assert set(schema["properties"]) == set(FIELDS)
    assert set(schema["required"]) <= set(FIELDS)
    for name, ours in FIELDS.items():
        theirs = schema["properties"][name]
        kinds = {each.get("type", "object") for each in theirs.get("anyOf", [theirs])}
        if "type" in ours:
            allowed = {ours["type"]} if isinstance(ours["type"], str) else set(ours["type"])
            assert kinds == allowed, name
