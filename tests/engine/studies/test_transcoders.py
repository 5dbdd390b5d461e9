"""A study of transcoders: matched by decoder rows, active where they read, judged where they predict, or said not to be."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seedscope.engine.activations.documents import documents
from seedscope.engine.activations.harvest import LanguageModel, TokenSet, stream, tokenize
from seedscope.engine.contract.directions import NO_OUTPUT
from seedscope.engine.contract.tables.features import Ablation, Logit
from seedscope.engine.contract.tables.study import Ensemble, Member
from seedscope.engine.features.logits import direct_logits
from seedscope.engine.features.loss import Splice, exact_loss
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import StoreReader
from seedscope.engine.studies.anchor import anchor_ensemble
from seedscope.engine.studies.import_ensemble import enrol
from seedscope.engine.studies.pools.build import pool_ensemble
from seedscope.engine.studies.publish import publish
from seedscope.engine.studies.self_check import look_at
from support.analyses import N_CTX, column, on_tokens, run
from support.golden import explained_variance, jumprelu_codes, unit_rows
from support.studies import ask
from support.tiny_models import VOCABULARY, WIDTH, save, tiny

D_SAE, D_IN, SEEDS, LAYER = 20, 24, (0, 1, 3), 1
READS, PREDICTS = f"blocks.{LAYER}.mlp.hook_post", f"blocks.{LAYER}.hook_mlp_out"


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return tiny("llama")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("words") / "a.txt"
    rng = np.random.default_rng(5)
    file.write_text(" ".join(f"w{word}" for word in rng.integers(2, VOCABULARY, 700)))
    return file


def written(folder: Path, model: LanguageModel, *, hook_out: str | None = PREDICTS) -> Path:
    """Three transcoders of an MLP's neurons to its output in SAELens' layout, some of whose decoder rows agree."""
    weight = model.network.model.layers[LAYER].mlp.down_proj.weight.detach().float()
    common = np.random.default_rng(99).normal(size=(D_SAE // 2, WIDTH))
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        rows = np.concatenate([common + 0.1 * rng.normal(size=common.shape), rng.normal(size=common.shape)])
        arrays = {
            "W_enc": rng.normal(size=(D_IN, D_SAE)), "b_enc": 0.1 * rng.normal(size=D_SAE), "W_dec": rows,
            "b_dec": 0.1 * rng.normal(size=WIDTH), "threshold": np.full(D_SAE, 0.05),
        }  # fmt: skip
        tensors = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
        here = folder / f"seed_{seed}"
        here.mkdir(parents=True)
        save_file(tensors | {"W_skip": (0.8 * weight).contiguous()}, here / "sae_weights.safetensors")
        metadata = {"sae_lens_version": "6.54.12", "hook_name": READS} | (
            {"hook_name_out": hook_out} if hook_out else {}
        )
        config = {"architecture": "jumprelu_skip_transcoder", "d_in": D_IN, "d_out": WIDTH, "d_sae": D_SAE}
        more = {"apply_b_dec_to_input": False, "normalize_activations": "none", "metadata": metadata}
        (here / "cfg.json").write_text(json.dumps(config | more))
    return folder


def enrolled(tmp_path: Path, model: LanguageModel, words: Path, **options: str | None) -> Path:
    files = written(tmp_path / "files", model, **options)
    enrol(tmp_path / "root", "mine", "one", [files])
    study = tmp_path / "root" / "mine"
    catalogue.write(replace(catalogue.read(study), **on_tokens(words)), study)
    return study


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory, llama: LanguageModel, words: Path) -> tuple[Path, Path]:
    """A study whose transcoders say what they predict, and its store."""
    study = enrolled(tmp_path_factory.mktemp("study"), llama, words)
    run(study, llama)
    return study, publish(study)


@pytest.fixture
def tokens(words: Path, llama: LanguageModel) -> TokenSet:
    return tokenize(documents(str(words)), llama, n_ctx=N_CTX)


def tensors_of(study: Path) -> dict[int, dict[str, np.ndarray]]:
    entry = catalogue.read(study).ensemble("one")
    members = sae.load(study / entry.folder, SEEDS)
    return {
        seed: {name: t.numpy().astype(np.float64) for name, t in members.member_tensors(i).items()}
        for i, seed in enumerate(SEEDS)
    }


def taken(model: LanguageModel, tokens: TokenSet, hookpoint: str) -> np.ndarray:
    """Activations as a study keeps them."""
    rows = np.concatenate([batch.rows.numpy() for batch in stream(model, tokens, hookpoint)])
    return rows.astype(np.float16).astype(np.float64)


def encoded(t: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    return jumprelu_codes(x @ t["W_enc"] + t["b_enc"], t["threshold"], inclusive=False)


def predicted(t: dict[str, np.ndarray], x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return codes @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"]


def only_row(store: Path) -> Ensemble:
    with StoreReader(store) as reader:
        (row,) = reader.rows(Ensemble)
    return row


# -- known output --------------------------------------------------------------------------------------------------


def test_the_store_says_what_was_matched_and_where(analysed):
    study, store = analysed
    row = only_row(store)
    assert set(row.computed) == {
        "match",
        "activity",
        "ablate",
        "explain",
        "loss",
        "subspaces",
        "predictor",
        "function",
        "shared_spans",
    }
    assert (row.transcoder, row.directions, row.hookpoint, row.hookpoint_out) == (
        True, "output directions", READS, PREDICTS,
    )  # fmt: skip
    assert (row.d_in, row.d_out, row.place) == (D_IN, WIDTH, f"{READS} → {PREDICTS}")
    assert not any("undefined" in remark for remark in row.remarks)
    assert catalogue.read(study).ensemble("one").transcoder


def test_stability_is_of_decoder_rows(analysed):
    study, store = analysed
    rows = {seed: unit_rows(t["W_dec"]) for seed, t in tensors_of(study).items()}
    expected = [np.stack([(rows[a] @ rows[b].T).max(1) for b in rows if b != a], 1) for a in rows]
    cosines = column(store, "cosines")
    np.testing.assert_allclose(cosines, np.concatenate(expected), atol=1e-6)
    assert 0.2 < (cosines > 0.7).mean() < 0.9


def test_activity_is_of_the_input_and_reconstruction_of_the_output(analysed, tokens, llama):
    study, store = analysed
    x, y = taken(llama, tokens, READS), taken(llama, tokens, PREDICTS)
    n_active = column(store, "n_active").reshape(len(SEEDS), D_SAE)
    worth = column(store, "worth_ev").reshape(len(SEEDS), D_SAE)
    with StoreReader(store) as reader:
        members, masked = reader.rows(Member), reader.rows(Ablation)
    for i, (member, t) in enumerate(zip(members, tensors_of(study).values(), strict=True)):
        codes = encoded(t, x)
        assert np.abs(n_active[i] - (codes > 0).sum(0)).max() <= 1
        ev = explained_variance(y, predicted(t, x, codes))
        assert member.ev == pytest.approx(ev, abs=1e-4)
        assert member.l0 == pytest.approx((codes > 0).sum(1).mean(), abs=0.02)
        for feature in range(0, D_SAE, 5):
            without = codes.copy()
            without[:, feature] = 0
            lost = ev - explained_variance(y, predicted(t, x, without))
            assert worth[i, feature] == pytest.approx(lost, abs=1e-4)
        (none,) = [each.ev for each in masked if each.seed == member.seed and each.mask == "none"]
        assert none == pytest.approx(ev, abs=1e-4)


def test_direct_logits_are_of_decoder_rows(analysed, llama):
    study, store = analysed
    t = tensors_of(study)[0]
    expected = direct_logits(llama, torch.from_numpy(t["W_dec"]).float())
    with StoreReader(store) as reader:
        rows = [row for row in reader.rows(Logit, seed=0, feature=4) if row.sign == 1]
    assert [row.token for row in rows] == expected.positive_ids[4].tolist()


@contextmanager
def spliced_by_hand(model: LanguageModel, change, keep: torch.Tensor) -> Iterator[None]:
    """The MLP's output at tokens that count replaced by `change(its neurons)`."""
    mlp, seen = model.network.model.layers[LAYER].mlp, {}

    def read(_module, inputs):
        seen["x"] = inputs[0]

    def write(_module, _inputs, output):
        new = output.clone()
        new[keep] = change(seen["x"][keep])
        return new

    handles = [mlp.down_proj.register_forward_pre_hook(read), mlp.register_forward_hook(write)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def losses_by_hand(model: LanguageModel, tokens: TokenSet, change) -> float:
    """Mean next-token loss with the output replaced, over all windows at once."""
    ids, counted = torch.from_numpy(tokens.ids).long(), torch.from_numpy(tokens.counted)
    with torch.no_grad(), spliced_by_hand(model, change, counted):
        logits = model.network(ids.clamp_min(0), use_cache=False).logits.double()
    read = counted.clone()
    read[:, :-1] &= ids[:, 1:] != -1
    read[:, -1] = False
    at = read.nonzero()
    p = torch.log_softmax(logits, -1)
    return float(-p[at[:, 0], at[:, 1], ids[at[:, 0], at[:, 1] + 1]].mean())


def test_a_prediction_is_spliced_in_where_it_belongs(analysed, tokens, llama):
    study, store = analysed
    entry = catalogue.read(study).ensemble("one")
    member = sae.load(study / entry.folder, (0,)).requires_grad_(False)
    splice = Splice(llama, tokens, PREDICTS, reads=READS)
    whole = losses_by_hand(llama, tokens, lambda x: member(x)[:, 0])
    assert splice.spliced(member) == pytest.approx(whole, abs=2e-5)
    assert float(splice.zeroed().mean()) == pytest.approx(
        losses_by_hand(llama, tokens, lambda x: torch.zeros(len(x), WIDTH)), abs=2e-5
    )
    own = losses_by_hand(llama, tokens, lambda x: x @ llama.network.model.layers[LAYER].mlp.down_proj.weight.T)
    assert float(splice.own().mean()) == pytest.approx(own, abs=2e-5)
    assert abs(own - whole) > 1e-3
    feature = int(column(store, "n_active").reshape(len(SEEDS), D_SAE)[0].argmax())

    def without(x: torch.Tensor) -> torch.Tensor:
        codes = member.encode(x)
        return member.decode(codes._replace(values=codes.values.masked_fill(codes.indices == feature, 0)))[:, 0]

    exact = exact_loss(llama, tokens, READS, member, feature, hookpoint_out=PREDICTS)
    added = losses_by_hand(llama, tokens, without) - whole
    assert exact.added.sum() / exact.read.sum() == pytest.approx(added, abs=2e-5)
    assert exact.active.sum() > 0
    (attributed,) = ask(store, f"SELECT worth_loss FROM Feature WHERE seed = 0 AND feature = {feature}")[0]
    assert np.isfinite(attributed)
    with StoreReader(store) as reader:
        first = reader.rows(Member)[0]
    assert min(first.loss_own, first.loss_spliced, first.loss_zero) > 0


def test_what_is_read_has_to_pass_before_what_is_replaced(llama, tokens):
    splice = Splice(llama, tokens, READS, reads=PREDICTS)
    with pytest.raises(ValueError, match="before it passes"):
        splice.zeroed()


def test_the_subspaces_baseline_is_of_the_output(analysed):
    study, _ = analysed
    (part,) = (study / "parts" / "one" / "activations").glob("*/seed-0.npz")
    with np.load(part) as arrays:
        assert arrays["covariance"].shape == (WIDTH, WIDTH)


# -- unknown output ------------------------------------------------------------------------------------------------


def test_without_an_output_hook_point_nothing_is_compared_with_the_model(tmp_path, llama, words):
    study = enrolled(tmp_path, llama, words, hook_out=None)
    said = run(study, llama).said
    store = publish(study)
    row = only_row(store)
    assert set(row.computed) == {"match", "activity", "explain", "subspaces", "predictor", "function", "shared_spans"}
    assert (row.directions, row.hookpoint_out) == ("output directions", None)
    assert NO_OUTPUT in row.remarks
    assert sum(NO_OUTPUT in line for line in said) == 4
    assert ask(store, "SELECT count(ev), count(l0), count(loss_own) FROM Member") == [(0, 3, 0)]
    assert ask(store, "SELECT count(*) FROM Logit") == ask(store, "SELECT count(*) FROM Ablation") == [(0,)]
    alike = "SELECT count(*) > 0, max(list_max(correlations)) > 0, max(len(substitutions)) FROM Substitute"
    assert ask(store, alike) == [(True, True, 0)]  # whether features fire alike needs no output
    assert (
        ask(store, "SELECT count(*) FROM SmallSet") == ask(store, "SELECT count(substitution) FROM Feature") == [(0,)]
    )
    # The output hook point, given later, adds what is missing.
    plan = catalogue.read(study)
    catalogue.write(plan.with_ensemble(replace(plan.ensemble("one"), hookpoint_out=PREDICTS)), study)
    run(study, llama)
    row = only_row(publish(study))
    assert {"ablate", "loss", "function"} <= set(row.computed)
    assert NO_OUTPUT not in row.remarks


@pytest.mark.parametrize(
    ("hookpoint", "said"),
    [("blocks.9.hook_mlp_out", "is not in this model"), (READS, "24 numbers per token, the transcoders give 16")],
)
def test_an_output_hook_point_that_the_model_lacks_is_said_and_the_rest_computed(
    hookpoint, said, tmp_path, llama, words
):
    study = enrolled(tmp_path, llama, words, hook_out=hookpoint)
    run(study, llama)
    row = only_row(publish(study))
    assert set(row.computed) == {"match", "activity", "explain", "subspaces", "predictor", "function", "shared_spans"}
    assert any(remark.startswith("no reconstruction: undefined: ") and said in remark for remark in row.remarks)


def test_a_first_look_is_at_the_output(tmp_path, llama, words, tokens):
    save(tmp_path / "model", "llama")
    study = enrolled(tmp_path, llama, words)
    plan = replace(catalogue.read(study), model=str(tmp_path / "model"))
    looks = look_at(study, plan, plan.ensemble("one"), "cpu", run(study, llama, only=("match",)))
    x = np.concatenate([batch.rows.numpy() for batch in stream(llama, tokens, READS)]).astype(np.float64)
    y = np.concatenate([batch.rows.numpy() for batch in stream(llama, tokens, PREDICTS)]).astype(np.float64)
    for look, t in zip(looks, tensors_of(study).values(), strict=True):
        assert look.ev == pytest.approx(explained_variance(y, predicted(t, x, encoded(t, x))), abs=1e-4)
    blind = replace(plan.ensemble("one"), hookpoint_out=None)
    assert [look.ev for look in look_at(study, plan, blind, "cpu", run(study, llama, only=("match",)))] == [None] * 3


# -- imports and refusals ------------------------------------------------------------------------------------------


def test_the_users_word_is_taken_where_files_do_not_say_it(tmp_path, llama):
    files = written(tmp_path / "files", llama, hook_out=None)
    entry = enrol(tmp_path / "root", "mine", "one", [files], hookpoint_out=PREDICTS)
    assert entry.hookpoint_out == PREDICTS
    assert entry.members[0].facts["output hook point"] == (PREDICTS, "you")
    again = written(tmp_path / "again", llama)
    with pytest.raises(ValueError, match=r"output hook point blocks\.0.*leave --hookpoint-out out, or give --force"):
        enrol(tmp_path / "root", "mine", "two", [again], hookpoint_out="blocks.0.hook_mlp_out")
    forced = enrol(tmp_path / "root", "mine", "two", [again], hookpoint_out="blocks.0.hook_mlp_out", force=True)
    assert any(remark.startswith("forced: output hook point") for remark in forced.remarks)


def test_files_that_do_not_say_that_they_are_transcoders(tmp_path):
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        arrays = {"W_enc": rng.normal(size=(6, 20)), "b_enc": rng.normal(size=20), "W_dec": rng.normal(size=(20, 6)),
                  "b_dec": rng.normal(size=6)}  # fmt: skip
        (tmp_path / "files").mkdir(exist_ok=True)
        file = tmp_path / "files" / f"sae_seed{seed}.safetensors"
        save_file({name: torch.from_numpy(array).float() for name, array in arrays.items()}, file)
        file.with_suffix(".json").write_text(json.dumps({"architecture": "relu", "subtract_b_dec": False}))
    entry = enrol(
        tmp_path / "root", "mine", "one", [tmp_path / "files"], hookpoint="h.1.mlp.input", hookpoint_out="h.1.mlp"
    )
    assert (entry.transcoder, entry.hookpoint, entry.hookpoint_out) == (True, "h.1.mlp.input", "h.1.mlp")
    assert any("by your word" in remark for remark in entry.members[0].remarks)
    plain = enrol(tmp_path / "root", "mine", "two", [tmp_path / "files"])
    assert not plain.transcoder
    assert plain.members[0].digest != entry.members[0].digest
    for seed in (0, 1):
        beside = tmp_path / "files" / f"sae_seed{seed}.json"
        beside.write_text(json.dumps({"architecture": "relu", "subtract_b_dec": True}))
    with pytest.raises(ValueError, match="is an SAE: it gives back what it reads"):
        enrol(tmp_path / "root", "mine", "three", [tmp_path / "files"], hookpoint_out="h.1.mlp")


def test_pools_and_anchors_of_transcoders_are_refused(analysed, tmp_path, llama, tokens):
    study, _ = analysed
    with pytest.raises(ValueError, match="holds transcoders: a pool is trained to give back what it reads"):
        pool_ensemble(study, "one", tmp_path / "pool")
    files = written(tmp_path / "files", llama)
    progress = run(study, llama, only=("match",))
    with pytest.raises(ValueError, match="is a transcoder, and comparisons that are trained here"):
        anchor_ensemble(tmp_path, "a", files / "seed_0", None, llama, tokens, None, progress)
