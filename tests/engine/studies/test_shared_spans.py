"""Shared spans of a study: a planted one is kept and followed on tokens, and what cannot be searched is said."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from seedscope.engine.activations.documents import documents
from seedscope.engine.activations.harvest import LanguageModel, stream, tokenize
from seedscope.engine.activations.tokens import PADDING, TokenSet
from seedscope.engine.contract.tables.shared_spans import (
    NULL_SETS,
    SharedSpan,
    SharedSpanContext,
    SharedSpanDirection,
    SharedSpanExplanation,
    SharedSpanFeature,
    SharedSpanPair,
    SharedSpanSeed,
    SharedSpanSummary,
    SharedSpanToken,
)
from seedscope.engine.store import catalogue
from seedscope.engine.store.consistency import require_consistent
from seedscope.engine.store.database import StoreReader
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.import_ensemble import enrol
from seedscope.engine.studies.publish import publish
from support.analyses import N_CTX, PLACE, K, Kept, enrol_one, on_tokens, run
from support.golden import explained_variance, topk_codes
from support.imports import make_run
from support.layouts import LAYOUTS
from support.tiny_models import VOCABULARY, WIDTH, tiny

D_SAE, SEEDS, RANK, N_BLOCK = 40, (0, 1, 2, 3, 5), 3, 5
N_LOSS = 40  # tokens that `run` asks for
THETA = 0.97  # that random features of three dimensions seldom reach


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return tiny("llama")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, llama: LanguageModel) -> Path:
    """Five SAEs whose first features are random in one subspace of three dimensions, measured and published."""
    folder = tmp_path_factory.mktemp("spans")
    tensors = make_run(d_in=WIDTH, d_sae=D_SAE, seeds=SEEDS)
    rng = np.random.default_rng(4)
    span = np.linalg.qr(rng.standard_normal((WIDTH, RANK)))[0]
    for of_seed in tensors.values():
        of_seed["W_dec"][:] = rng.standard_normal(of_seed["W_dec"].shape)
        of_seed["W_dec"][:N_BLOCK] = rng.standard_normal((N_BLOCK, RANK)) @ span.T
        of_seed["W_dec"] /= np.linalg.norm(of_seed["W_dec"], axis=1, keepdims=True)
        of_seed["W_enc"][:] = of_seed["W_dec"].T
    LAYOUTS["openai"].write(folder / "files", tensors, K)
    enrol(folder / "root", "mine", "one", [folder / "files"], hookpoint=PLACE)
    words = folder / "words.txt"
    words.write_text(" ".join(f"w{word}" for word in np.random.default_rng(5).integers(2, VOCABULARY, 1400)))
    plan = catalogue.read(folder / "root" / "mine")
    catalogue.write(plan.__class__(**vars(plan) | on_tokens(words) | {"theta": THETA}), folder / "root" / "mine")
    run(folder / "root" / "mine", llama, only=["shared_spans", "activity", "loss"])
    publish(folder / "root" / "mine")
    return folder / "root" / "mine"


@pytest.fixture
def store(study: Path):
    with StoreReader(study / (study / "CURRENT").read_text().split()[0]) as store:
        yield store


def test_the_planted_span_is_kept_and_the_rest_is_counted(store):
    [summary] = store.rows(SharedSpanSummary)
    spans = store.rows(SharedSpan)
    kept = [span for span in spans if span.kept]
    assert [(span.rank, span.number) for span in kept] == [(RANK, 1)]
    assert summary.n_kept == 1
    assert summary.n_candidates == len(spans) == 1 + sum(summary.failure_counts)
    assert kept[0].energy > 0.85  # seeds whose members match by chance have few in the pool
    assert max(getattr(kept[0], f"{name}_energy") for name in NULL_SETS) < 0.9
    assert kept[0].p_value == max(getattr(kept[0], f"p_{name}") for name in NULL_SETS) <= summary.level
    assert summary.weighted
    assert 0 < summary.shared_low <= summary.shared <= summary.shared_high < 1
    assert kept[0].energy_share == pytest.approx(summary.shared, abs=1e-5)


def test_a_feature_is_in_one_span_and_lies_where_its_row_does(store, study):
    features = store.rows(SharedSpanFeature)
    assert len({(row.seed, row.feature) for row in features}) == len(features)
    [kept] = [span.span for span in store.rows(SharedSpan) if span.kept]
    mine = [row for row in features if row.span == kept]
    assert sum(row.feature < N_BLOCK for row in mine) > 0.9 * len(mine)
    axes = [row for row in store.rows(SharedSpanDirection) if row.basis == -1]
    vectors = np.array([row.vector for row in axes])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(RANK), atol=1e-5)
    folder = study / catalogue.read(study).ensembles[0].folder
    for row in mine:
        decoder = load_file(folder / f"seed-{row.seed}.safetensors")["W_dec"][row.feature].astype(float)
        place = vectors @ decoder / np.linalg.norm(decoder)
        assert (row.x, row.y) == pytest.approx(tuple(place[:2]), abs=1e-4)
    assert all(len(row.raised) == len(row.raised_logits) > 0 for row in axes)


def test_contexts_tokens_and_masks_are_those_of_plain_arrays(store, study, llama):
    plan = catalogue.read(study)
    tokens = tokenize(documents(list(plan.tokens.source)), llama, n_ctx=N_CTX)
    x = np.concatenate([batch.rows.numpy() for batch in stream(llama, tokens, PLACE)])
    x = x.astype(np.float16).astype(np.float64)
    positions = np.flatnonzero(tokens.counted)
    [kept] = [span for span in store.rows(SharedSpan) if span.kept]
    axes = np.array([row.vector for row in store.rows(SharedSpanDirection) if row.basis == -1])
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    squares, evs = np.zeros(VOCABULARY), []
    for seed in SEEDS:
        t = load_file(study / plan.ensembles[0].folder / f"seed-{seed}.safetensors")
        t = {name: tensor.astype(np.float64) for name, tensor in t.items()}
        codes = topk_codes((x - mean) / (std + 1e-5), t["W_enc"], t["b_enc"], t["b_dec"], K)
        members = [row.feature for row in store.rows(SharedSpanFeature) if (row.seed, row.span) == (seed, kept.span)]
        norms = np.linalg.norm(codes[:, members] @ t["W_dec"][members] @ axes.T, axis=1)
        np.add.at(squares, tokens.ids.ravel()[positions], norms**2)
        codes[:, members] = 0
        evs.append(explained_variance(x, (codes @ t["W_dec"] + t["b_dec"]) * std + mean))
        contexts = [row for row in store.rows(SharedSpanContext) if row.seed == seed]
        assert contexts[0].norms[contexts[0].peak] == pytest.approx(norms.max(), rel=0.01)
        for row in contexts:
            assert row.norms[row.peak] == max(row.norms[row.peak], 0)
            assert len(row.norms) == len(row.token_ids)
    assert kept.ev == pytest.approx(np.mean(evs), abs=0.02)
    assert kept.ev_control is not None
    shares = {row.token: row.share for row in store.rows(SharedSpanToken)}
    for token, share in shares.items():
        assert share == pytest.approx(squares[token] / squares.sum(), abs=0.005)


def test_the_loss_without_the_span_is_that_of_plain_forward_passes(store, study, llama):
    """Every seed's reconstruction without its members in place of what the second block gives, one window at a time."""
    plan = catalogue.read(study)
    windows = tokenize(documents(list(plan.tokens.source)), llama, n_ctx=N_CTX).sample(N_LOSS)
    [kept] = [span for span in store.rows(SharedSpan) if span.kept]
    whole, without, n_read = [], [], 0
    for seed in SEEDS:
        t = load_file(study / plan.ensembles[0].folder / f"seed-{seed}.safetensors")
        t = {name: tensor.astype(np.float64) for name, tensor in t.items()}
        members = [row.feature for row in store.rows(SharedSpanFeature) if (row.seed, row.span) == (seed, kept.span)]

        def rebuilt(x: np.ndarray, left_out: list[int], t: dict = t) -> np.ndarray:
            mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
            codes = topk_codes((x - mean) / (std + 1e-5), t["W_enc"], t["b_enc"], t["b_dec"], K)
            codes[:, left_out] = 0
            return (codes @ t["W_dec"] + t["b_dec"]) * std + mean

        own, masked = (plain_losses(llama, windows, partial(rebuilt, left_out=each)) for each in ([], members))
        whole, without, n_read = [*whole, own.mean()], [*without, masked.mean()], len(own)
    [summary] = store.rows(SharedSpanSummary)
    assert summary.n_loss_tokens == n_read
    assert kept.loss_whole == pytest.approx(np.mean(whole), abs=2e-4)
    assert kept.loss == pytest.approx(np.mean(without), abs=2e-4)
    assert kept.loss != pytest.approx(kept.loss_whole, abs=1e-3)
    assert kept.loss_control > 0
    assert kept.loss_control_sd >= 0
    assert all(span.loss is None for span in store.rows(SharedSpan) if not span.kept)


def plain_losses(model: LanguageModel, tokens: TokenSet, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    losses = []
    for row, counted in zip(tokens.ids, tokens.counted, strict=True):
        real, at = row[row != PADDING], np.flatnonzero(counted[row != PADDING])

        def hook(_module, _inputs, output, at=at):
            rows = (output[0] if isinstance(output, tuple) else output).clone()
            rows[0, at] = torch.from_numpy(change(rows[0, at].double().numpy())).float()
            return (rows, *output[1:]) if isinstance(output, tuple) else rows

        handle = model.network.model.layers[1].register_forward_hook(hook)
        with torch.no_grad():
            logits = model.network(torch.from_numpy(real).long()[None]).logits[0].double()
        handle.remove()
        p = torch.log_softmax(logits, -1)
        losses += [-float(p[each, real[each + 1]]) for each in at if each + 1 < len(real)]
    return np.array(losses)


def test_the_kept_span_is_explained_as_a_whole(store):
    [kept] = [span.span for span in store.rows(SharedSpan) if span.kept]
    [explained] = store.rows(SharedSpanExplanation)
    assert (explained.span, explained.explainer) == (kept, "token rule")
    assert explained.text or explained.failure


def test_a_loss_on_other_tokens_is_measured_anew_and_the_search_is_not(study, llama, tmp_path):
    copy = shutil.copytree(study, tmp_path / "mine")
    options = {"model": llama, "device": "cpu", "only": ["shared_spans", "loss"]}
    for n_tokens, again in ((100, True), (None, False)):
        progress = Kept()
        analyse(copy, loss_tokens=n_tokens, progress=progress, **options)
        assert any("loss of shared spans" in stage for stage in progress.stages) == again
        assert not any(stage.endswith(": shared spans") for stage in progress.stages)
    publish(copy)
    with StoreReader(copy / (copy / "CURRENT").read_text().split()[0]) as store:
        [summary] = store.rows(SharedSpanSummary)
        assert summary.n_loss_tokens > 2 * N_LOSS


def test_the_store_is_consistent_and_every_seed_has_its_row(store, study):
    spans = store.rows(SharedSpan)
    assert len(store.rows(SharedSpanSeed)) == len(spans) * len(SEEDS)
    assert len(store.rows(SharedSpanPair)) == len(spans) * len(SEEDS) * (len(SEEDS) - 1)
    require_consistent(store._connection)


def test_it_is_done_once(study, llama):
    assert not [stage for stage in run(study, llama, only=["shared_spans"]).stages if "shared spans" in stage]


def test_two_seeds_are_said_to_be_too_few(tmp_path):
    tensors = make_run(d_in=8, d_sae=12, seeds=(0, 1))
    LAYOUTS["openai"].write(tmp_path / "files", tensors, K)
    enrol(tmp_path / "root", "mine", "one", [tmp_path / "files"], hookpoint=PLACE)
    said = run(tmp_path / "root" / "mine", only=["shared_spans"]).said
    assert any("shared spans: left out, found 2 seeds, expected at least 3" in line for line in said)
    publish(tmp_path / "root" / "mine")
    study = tmp_path / "root" / "mine"
    with StoreReader(study / (study / "CURRENT").read_text().split()[0]) as store:
        [summary] = store.rows(SharedSpanSummary)
        assert "found 2 seeds" in summary.remark
        assert summary.shared is None
        assert store.rows(SharedSpan) == []


def test_without_activity_decoders_alone_are_searched(tmp_path):
    enrol_one(tmp_path, "one")
    run(tmp_path / "root" / "mine")
    study = tmp_path / "root" / "mine"
    publish(study)
    with StoreReader(study / (study / "CURRENT").read_text().split()[0]) as store:
        [summary] = store.rows(SharedSpanSummary)
        assert not summary.weighted
        assert all(row.p_density is None for row in store.rows(SharedSpan))
