"""What counterparts do in a study: rows against plain forward passes, what is asked for again, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from seedscope.engine.activations.documents import documents
from seedscope.engine.activations.harvest import LanguageModel, stream, tokenize
from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.contract.tables.features import Feature, Match, Pair
from seedscope.engine.contract.tables.function import (
    COUNTERPART_KINDS,
    N_NEAREST,
    FunctionSummary,
    SmallSet,
    Substitute,
    TransportPlan,
)
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import StoreReader
from seedscope.engine.studies.analyses import function
from seedscope.engine.studies.publish import publish
from support.analyses import D_SAE, N_CTX, PLACE, SEEDS, K, enrol_one, on_tokens, run
from support.golden import explained_variance, plan_of, topk_codes, unit_rows
from support.tiny_models import VOCABULARY, tiny


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return tiny("llama")


def make_study(folder: Path) -> Path:
    """A study of three SAEs that normalise their input, with tokens to measure them on."""
    words = folder / "words.txt"
    words.write_text(" ".join(f"w{word}" for word in np.random.default_rng(5).integers(2, VOCABULARY, 1400)))
    enrol_one(folder, "one", decoder_scale=0.03)
    study = folder / "root" / "mine"
    plan = catalogue.read(study)
    catalogue.write(plan.__class__(**vars(plan) | on_tokens(words)), study)
    return study


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, llama: LanguageModel) -> Path:
    """The same, measured and published."""
    study = make_study(tmp_path_factory.mktemp("function"))
    run(study, llama)
    publish(study)
    return study


@pytest.fixture
def store(measured: Path):
    with StoreReader(measured / (measured / "CURRENT").read_text().split()[0]) as store:
        yield store


@pytest.fixture(scope="module")
def forward(measured: Path, llama: LanguageModel) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """Activations, and of every member its tensors, codes and reconstruction in plain NumPy."""
    plan = catalogue.read(measured)
    tokens = tokenize(documents(list(plan.tokens.source)), llama, n_ctx=N_CTX)
    rows = [batch.rows.numpy() for batch in stream(llama, tokens, PLACE)]
    x = np.concatenate(rows).astype(np.float16).astype(np.float64)
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    members = []
    for seed in SEEDS:
        held = load_file(measured / plan.ensembles[0].folder / f"seed-{seed}.safetensors")
        t = {name: tensor.astype(np.float64) for name, tensor in held.items()}
        codes = topk_codes((x - mean) / (std + 1e-5), t["W_enc"], t["b_enc"], t["b_dec"], K)
        whole = (codes @ t["W_dec"] + t["b_dec"]) * std + mean
        members.append({"decoder": t["W_dec"], "codes": codes, "weights": codes * std, "whole": whole})
    return x, members


def test_every_row_is_what_dense_activations_and_masking_give(store, forward):
    x, members = forward
    rows = store.rows(Substitute)
    kinds = {row.kind for row in rows}
    assert kinds == set(COUNTERPART_KINDS)
    assert len(rows) == len(kinds) * len(SEEDS) * D_SAE
    checked = {"alike": 0, "scored": 0}
    for row in rows:
        own = members[SEEDS.index(row.seed)]
        others = [members[i] for i, seed in enumerate(SEEDS) if seed != row.seed]
        acts, d = own["codes"][:, row.feature], own["decoder"][row.feature]
        without = own["whole"] - own["weights"][:, [row.feature]] * d
        ev, ev_without = (explained_variance(x, each) for each in (own["whole"], without))
        if acts.any() and abs(ev - ev_without) > 1e-6:
            assert len(row.substitutions) == (2 if ev > ev_without else 0)
        for slot, (other, partner) in enumerate(zip(others, row.partners, strict=True)):
            if partner < 0:
                assert (row.cosines[slot], row.correlations[slot], row.jaccards[slot]) == (NO_MATCH, 0, 0)
                continue
            theirs, e = other["codes"][:, partner], other["decoder"][partner]
            both, either = ((acts > 0) & (theirs > 0)).sum(), ((acts > 0) | (theirs > 0)).sum()
            assert row.cosines[slot] == pytest.approx(d @ e / np.linalg.norm(d) / np.linalg.norm(e), abs=1e-5)
            assert row.jaccards[slot] == pytest.approx(both / max(either, 1), abs=0.02)
            if both > 2:
                assert row.correlations[slot] == pytest.approx(np.corrcoef(acts, theirs)[0, 1], abs=0.02)
                checked["alike"] += 1
            if len(row.substitutions):
                put = without + other["weights"][:, [partner]] * e
                score = (explained_variance(x, put) - ev_without) / (ev - ev_without)
                assert row.substitutions[slot] == pytest.approx(score, abs=0.02 * max(abs(score), 1))
                assert row.scaled_substitutions[slot] >= max(row.substitutions[slot] - 1e-3, 0)
                checked["scored"] += 1
    assert min(checked.values()) > 300


def test_partners_by_activity_are_the_most_alike_of_the_nearest_rows(store, forward):
    _, members = forward
    features = {(row.seed, row.feature): row for row in store.rows(Feature)}
    n_other = 0
    for row in store.rows(Match):
        at, feature = SEEDS.index(row.seed), features[row.seed, row.feature]
        others = [member for i, member in enumerate(members) if i != at]
        for slot, partner in enumerate(row.active_partners):
            if partner < 0:
                assert feature.active_correlations[slot] == NO_MATCH
                continue
            mine = members[at]["codes"][:, row.feature]
            nearest = np.argsort(
                -(unit_rows(members[at]["decoder"])[row.feature] @ unit_rows(others[slot]["decoder"]).T), kind="stable"
            )[:N_NEAREST]
            assert partner in nearest
            codes = others[slot]["codes"][:, nearest]
            alike = [
                np.corrcoef(mine, theirs)[0, 1] if (mine * theirs).any() else 0 for theirs in codes.T if theirs.any()
            ]
            assert feature.active_correlations[slot] == pytest.approx(max(alike), abs=0.02)
            n_other += partner != row.partners[slot]
    assert n_other > 10
    pairs = [row for row in store.rows(Pair) if row.rule == "active"]
    assert len(pairs) == 6
    correlations = np.array([features[0, feature].active_correlations[0] for feature in range(D_SAE)])
    first = next(row for row in pairs if (row.seed, row.other) == (0, 1))
    assert first.matched[70] == (correlations >= np.float32(0.7)).sum()


def test_partners_by_transport_are_where_the_plain_plan_sends_most_mass(store, forward):
    _, members = forward
    rows = {(row.seed, row.feature): row for row in store.rows(Substitute, kind="transport")}
    plans = {(row.seed, row.other): row for row in store.rows(TransportPlan)}
    assert sorted(plans) == [(0, 1), (0, 3), (1, 3)]
    differing = 0
    for (seed, other), reached in plans.items():
        cosines = unit_rows(members[SEEDS.index(seed)]["decoder"]) @ unit_rows(members[SEEDS.index(other)]["decoder"]).T
        plan = plan_of(cosines, reached.epsilon)
        assert 0 <= reached.marginal_gap <= 1e-3
        of_rows, of_columns = plan / plan.sum(1, keepdims=True), (plan / plan.sum(0)).T
        assert reached.share == pytest.approx(np.mean([of_rows.max(1), of_columns.max(1)]), abs=0.01)
        for anchor, partner_of, shares in ((seed, other, of_rows), (other, seed, of_columns)):
            slot = [each for each in SEEDS if each != anchor].index(partner_of)
            for feature, share in enumerate(shares):
                second, first = np.sort(share)[-2:]
                if first - second > 0.01:
                    assert rows[anchor, feature].partners[slot] == share.argmax()
            differing += int((shares.argmax(1) != (cosines if anchor == seed else cosines.T).argmax(1)).sum())
    assert differing > 0  # argmax would not do


def test_where_transport_takes_long_it_is_left_out_and_said(tmp_path, llama, monkeypatch):
    study = make_study(tmp_path)
    monkeypatch.setattr(function, "EXPONENTIAL", 1e12)
    said = run(study, llama).said
    assert any(
        "one: function: counterparts by optimal transport left out, 24 rows of 3 members" in line for line in said
    )
    with StoreReader(publish(study)) as store:
        assert "transport" not in {row.kind for row in store.rows(Substitute)} | {
            row.kind for row in store.rows(FunctionSummary)
        }
        assert store.rows(TransportPlan) == []
    assert "one: co-firing and substitution" not in run(study, llama, only=["function"]).stages
    monkeypatch.setattr(function, "EXPONENTIAL", 150)
    assert "one: co-firing and substitution" in run(study, llama, only=["function"]).stages


def test_columns_of_features_are_means_and_medians_of_the_nearest_rows(store):
    nearest = {(row.seed, row.feature): row for row in store.rows(Substitute, kind="argmax")}
    some = 0
    for feature in store.rows(Feature):
        row = nearest[feature.seed, feature.feature]
        if feature.dead:
            assert feature.cofiring is feature.substitution is None
            continue
        assert feature.cofiring == pytest.approx(np.mean(row.correlations), abs=1e-6)
        if row.substitutions:
            assert feature.substitution == pytest.approx(np.median(row.substitutions), rel=1e-5)
            some += 1
        else:
            assert feature.substitution is None
    assert some > 20


def test_small_sets_and_summaries_have_their_controls(store):
    sets, summaries = store.rows(SmallSet), store.rows(FunctionSummary)
    assert sets
    for row in sets:
        assert 1 <= len(row.partners) == len(row.scales) <= 8
        assert row.other == SEEDS[(SEEDS.index(row.seed) + 1) % 3]
        assert min(row.score, row.control_score) >= -1e-6
    by_kind = {(row.bucket, row.kind): row for row in summaries}
    for bucket in {row.bucket for row in sets}:
        of_bucket = [row for row in sets if row.bucket == bucket]
        share = by_kind[bucket, "small_set"].scaled_share
        assert share == pytest.approx(np.mean([row.score >= 0.8 for row in of_bucket]), abs=1e-6)
        assert by_kind[bucket, "small_set_control"].n_features == len(of_bucket)
    stable = by_kind["stable", "argmax"]
    assert stable.correlation > by_kind["stable", "random_density"].correlation
    assert stable.raw_share_low <= stable.raw_share <= stable.raw_share_high


def test_it_is_measured_once_and_publishing_again_gives_the_same_store(measured, llama):
    before = publish(measured)
    progress = run(measured, llama, only=["function"])
    assert not [stage for stage in progress.stages if "co-firing" in stage or "activity" in stage]
    assert publish(measured) == before


def test_measured_alone_it_is_what_it_is_beside_all_else(measured, llama, tmp_path):
    study = make_study(tmp_path)
    run(study, llama, only=["activity"])
    run(study, llama, only=["function"])
    with (
        StoreReader(publish(study)) as alone,
        StoreReader(measured / (measured / "CURRENT").read_text().split()[0]) as beside,
    ):
        for table in (Substitute, SmallSet):
            assert alone.rows(table) == beside.rows(table)


def test_without_activity_the_command_is_named(tmp_path):
    enrol_one(tmp_path, "one")
    said = run(tmp_path / "root" / "mine", only=["function"]).said
    assert any(
        "function: left out, it needs activity" in line and "seedscope analyze mine --model" in line for line in said
    )


def test_one_member_has_no_counterparts(tmp_path, llama):
    study = make_study(tmp_path)
    plan = catalogue.read(study)
    (ensemble,) = plan.ensembles
    alone = ensemble.__class__(**vars(ensemble) | {"members": ensemble.members[:1]})
    catalogue.write(plan.with_ensemble(alone), study)
    said = run(study, llama).said
    assert any("one: function: left out, counterparts are in other seeds" in line for line in said)
    with StoreReader(publish(study)) as store:
        assert store.rows(Substitute) == store.rows(FunctionSummary) == []


def test_what_takes_long_is_left_out_and_named_unless_it_is_asked_for(tmp_path, llama, monkeypatch):
    study = make_study(tmp_path)
    monkeypatch.setattr(function, "LONG", 1.0)
    progress = run(study, llama)
    assert any(
        "function: left out" in line and "seedscope analyze mine --only function" in line for line in progress.said
    )
    assert "one: co-firing and substitution" not in progress.stages
    assert "one: co-firing and substitution" in run(study, llama, only=["function"]).stages
