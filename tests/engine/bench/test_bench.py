"""The benchmarks run, measure what they say and report it whole; never how fast."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console

from seedscope.engine.bench import assignment, function, geometry, pages, products, run, training, transport, versions
from seedscope.engine.bench.report import BenchLine, interleaved
from seedscope.engine.contract.recipe import VARIANTS, TrainConfig
from seedscope.engine.geometry.subspaces import log_ranks
from seedscope.engine.training.ensemble import train_ensemble
from support.golden import explained_variance


def test_runs_take_turns_and_the_first_turn_is_not_counted():
    order = []
    found = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert set(found) == {"a", "b"}


def test_a_ratio_needs_both_times():
    assert BenchLine("work", 3.0, limit_s=2.0).ratio == 1.5
    assert BenchLine("work", None, limit_s=2.0).ratio is None
    assert BenchLine("work", 3.0).ratio is None


def test_products_and_assignments_are_measured_against_their_limits():
    for line in (*products.lines(n=256, d_in=16), next(assignment.lines(n=2100, d_in=16))):
        if line.ours_s is None:
            assert "not measured" in line.remark
        else:
            assert line.ours_s > 0 < line.limit_s
            assert line.peers_s
        assert line.goal


def test_comparing_versions_is_measured_and_counts_what_was_changed():
    line, large = versions.lines(n=400, d_in=64)
    assert line.ours_s > 0 < line.limit_s
    assert "20 lost" in line.remark
    assert large.ours_s is None


def test_transport_is_measured_against_the_products_of_its_passes():
    line, large = transport.lines(n=200, d_in=32)
    assert line.ours_s > 0 < line.limit_s
    assert line.numbers["marginal_gap"] <= 1e-3
    assert line.numbers["peak_bytes"] > 0
    assert large.ours_s is None


@pytest.fixture(scope="module")
def page_lines() -> list[BenchLine]:
    return list(pages.lines(n_members=4, d_sae=64))


def test_every_page_of_a_written_study_is_measured(page_lines):
    assert [line.work.split(" page")[0].rsplit("the ", 1)[1] for line in page_lines] == [
        "overview", "seed x seed", "feature table", "feature",
    ]  # fmt: skip
    assert all(line.ours_s > 0 for line in page_lines)


def test_lines_are_shown_and_written_whole(page_lines, tmp_path):
    lines = [*page_lines, BenchLine("work on a device", None, remark="not measured: no CUDA device")]
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    run.show(lines, console)
    console.file.close()
    text = " ".join(console.export_text().split())
    assert "not measured" in text
    assert "theta moved" in text
    run.write_json(lines, tmp_path / "bench.json")
    found = json.loads((tmp_path / "bench.json").read_text())
    assert (found["format"], found["version"]) == ("seedscope.bench", 1)
    assert found["machine"]["n_cores"] >= 1
    assert found["machine"]["kernel"].startswith(("plain", "fused"))
    assert [line["ours_s"] for line in found["lines"]] == [line.ours_s for line in lines]


def test_geometry_is_measured_against_svds_and_products():
    energy, overlap = geometry.lines(n_members=3, n_rows=40, d=16)
    for line in (energy, overlap):
        assert line.ours_s > 0 < line.limit_s
        assert f"3 members x 40 unstable rows x 16 at {len(log_ranks(16))} ranks" in line.work
    assert "all 6 ordered pairs" in energy.work
    assert sum(energy.peers_s.values()) == pytest.approx(energy.limit_s)


def test_co_firing_and_substitution_are_measured_against_the_encoder_and_the_activity_pass():
    size = function.FunctionSize(members=3, d_sae=64, d_in=16, k=4, n_tokens=700)
    alike, substitution = function.lines(size=size)
    for line in (alike, substitution):
        assert line.ours_s > 0 < line.limit_s
        assert "3 x 64, d_in 16, k 4, 700 tokens" in line.work
    assert "largest memory" in alike.remark


@pytest.fixture(scope="module")
def rows() -> training.BenchRows:
    rng = np.random.default_rng(0)
    found = rng.normal(size=(300, 20)) * (rng.random((300, 20)) < 0.2) @ rng.normal(size=(20, 8))
    return training.BenchRows(found[:200].astype(np.float32), found[200:].astype(np.float32))


@pytest.mark.parametrize("variant", ["topk", "relu"])
def test_training_is_measured_against_the_encoders_products_and_peers_that_may_be_missing(rows, variant):
    config = TrainConfig(variant=variant, d_sae=16, k=3, seeds=(0, 1), n_tokens=640, batch=64)
    line = training.line(config, rows)
    assert line.ours_s > 0 < line.limit_s
    assert f"2 x 16 {variant}, d_in 8, 640 tokens each" in line.work
    assert set(line.peers_s) == {"dictionary_learning", "SAELens", "overcomplete"}
    assert "member-tokens/s, EV" in line.remark


def test_every_variant_is_measured_and_peers_get_the_same_recipe():
    found = training.recipes(1024, (0, 1))
    assert [config.variant for config in found] == list(VARIANTS)
    assert all((config.n_tokens, config.seeds, config.d_sae) == (1024, (0, 1), 512) for config in found)


def test_quality_is_l0_and_explained_variance_at_inference(rows):
    members = train_ensemble(rows.train, TrainConfig(variant="relu", d_sae=16, seeds=(0, 1), n_tokens=640, batch=64))
    found = training.quality(members, rows.held)
    x = torch.from_numpy(rows.held)
    out = members(x).detach().numpy()
    assert found.ev == pytest.approx(np.mean([explained_variance(rows.held, out[:, m]) for m in range(2)]), abs=1e-5)
    assert found.l0 == pytest.approx(float((members.encode(x).values > 0).sum(-1).float().mean()), rel=1e-5)


def test_ev_at_an_l0_is_read_between_those_measured():
    found = [training.Quality(20.0, 0.9), training.Quality(5.0, 0.7)]
    assert training.at_l0(found, 10.0) == pytest.approx(0.8)
    assert training.at_l0(found, 40.0) == pytest.approx(0.9)
