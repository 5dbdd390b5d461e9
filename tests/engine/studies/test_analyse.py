"""What an analysis of a study's catalogue computes, what it computes again, and what it never does."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seedscope.engine.activations.documents import documents
from seedscope.engine.activations.harvest import LanguageModel, stream, tokenize
from seedscope.engine.contract.files import only_writer
from seedscope.engine.contract.schema import ANALYSES
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.publish import publish
from support.analyses import D_SAE, N_CTX, PLACE, K, Kept, column, enrol_one, on_tokens, one, run
from support.golden import explained_variance, topk_codes, unit_rows
from support.imports import refused
from support.paths import ROOT
from support.studies import DiesOncePerStage, Killed, ask
from support.tiny_models import CONTEXT, VOCABULARY, WIDTH, save, tiny

MEASURED = [name for name in ANALYSES if name != "trajectory"]  # nothing is known of how imports were trained


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return tiny("llama")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two corpora of the tiny tokenizer's words."""
    folder, rng = tmp_path_factory.mktemp("words"), np.random.default_rng(5)
    files = [folder / "a.txt", folder / "b.txt"]
    for file in files:
        file.write_text(" ".join(f"w{word}" for word in rng.integers(2, VOCABULARY, 700)))
    return files


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study with one ensemble, `one`, and neither model nor tokens."""
    enrol_one(tmp_path, "one")
    return tmp_path / "root" / "mine"


def changed(study: Path, **settings: object) -> None:
    """Change the study's settings, as the command line does."""
    catalogue.write(replace(catalogue.read(study), **settings), study)


def parts(study: Path) -> dict[str, tuple[int, int]]:
    """Every file of every part, with what changes when it is written again."""
    found = (study / "parts").glob("*/*/*/*")
    return {str(p.relative_to(study / "parts")): (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


def of(held: dict[str, tuple[int, int]], prefix: str) -> dict[str, tuple[int, int]]:
    return {path: stamp for path, stamp in held.items() if path.startswith(prefix)}


def decoders(study: Path, name: str = "one") -> dict[int, np.ndarray]:
    from safetensors.numpy import load_file

    ensemble = catalogue.read(study).ensemble(name)
    return {seed: load_file(study / ensemble.folder / f"seed-{seed}.safetensors") for seed in ensemble.seeds}


# -- decoders alone ------------------------------------------------------------------------------------------------


def test_without_a_model_matching_is_all_and_the_rest_is_absent(study):
    progress = run(study)
    assert any("left out, no --model and --tokens" in line for line in progress.said)
    store = publish(study)
    assert one(store, "SELECT computed FROM Ensemble") == (["match", "subspaces", "shared_spans"],)
    nothing = one(
        store, "SELECT model, model_digest, causal, n_ctx, token_policy, n_eval_tokens, corpus_remark FROM Study"
    )
    assert set(nothing) == {None}
    absent = ("dead", "density", "n_active", "n_tokens", "mean_activation", "max_activation", "worth_ev")
    for name in absent:
        assert set(column(store, name)) == {None}, name
    for name in ("live_cosines", "histogram", "top_token_ids"):
        assert ask(store, f"SELECT DISTINCT len({name}) FROM Feature") == [(0,)]
    assert one(store, "SELECT count(*), count(ev), count(l0), count(n_dead) FROM Member") == (3, 0, 0, 0)
    for table in ("Context", "Ablation", "Token", "Document"):
        assert one(store, f"SELECT count(*) FROM {table}") == (0,), table
    assert {rule for (rule,) in ask(store, "SELECT DISTINCT rule FROM Pair")} == {
        "argmax",
        "mutual",
        "hungarian",
        "both",
    }


def test_cosines_are_those_of_the_decoder_rows(study):
    run(study)
    rows = {seed: unit_rows(held["W_dec"].astype(np.float64)) for seed, held in decoders(study).items()}
    expected = [np.stack([(rows[a] @ rows[b].T).max(1) for b in rows if b != a], 1) for a in rows]
    found = column(publish(study), "cosines")
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)
    assert 0 < (found > 0.7).mean() < 1


def test_a_model_or_tokens_alone_are_not_enough_and_the_other_is_named(study, words, llama):
    changed(study, model="tiny")
    assert any("no --tokens" in line and "--model" not in line for line in run(study).said)
    changed(study, model=None, tokens=catalogue.Tokens((str(words[0]),)))
    assert any("no --model" in line and "--tokens" not in line for line in run(study).said)


def test_an_ensemble_without_a_hook_point_is_matched_and_that_is_said(study, words, llama, tmp_path):
    enrol_one(tmp_path, "nowhere", first=10, hookpoint=None)
    changed(study, **on_tokens(words[0]))
    assert any("nowhere" in line and "--hookpoint" in line for line in run(study, llama).said)
    store = publish(study)
    assert ask(store, "SELECT ensemble, computed FROM Ensemble ORDER BY ensemble") == [
        ("nowhere", ["match", "subspaces", "shared_spans"]),
        ("one", MEASURED),
    ]


# -- with a model --------------------------------------------------------------------------------------------------


def test_a_model_added_later_adds_activity_and_keeps_the_matches(study, words, llama):
    run(study)
    before = publish(study)
    kept = [column(before, "cosines"), column(before, "hungarian_cosines"), column(before, "partners", table="Match")]
    changed(study, **on_tokens(words[0]))
    run(study, llama)
    after = publish(study)
    assert one(after, "SELECT computed FROM Ensemble") == (MEASURED,)
    again = [column(after, "cosines"), column(after, "hungarian_cosines"), column(after, "partners", table="Match")]
    for mine, theirs in zip(kept, again, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert "live" in {rule for (rule,) in ask(after, "SELECT DISTINCT rule FROM Pair")}
    assert None not in set(column(after, "density"))
    assert one(after, "SELECT count(*) > 0 FROM Context") == (True,)
    assert one(after, "SELECT count(ev) FROM Member") == (3,)


def test_activity_and_worth_are_those_of_a_plain_forward_pass(study, words, llama):
    changed(study, **on_tokens(*words))
    run(study, llama)
    store = publish(study)
    tokens = tokenize(documents([str(file) for file in words]), llama, n_ctx=N_CTX)
    x = (
        np.concatenate([batch.rows.numpy() for batch in stream(llama, tokens, PLACE)])
        .astype(np.float16)
        .astype(np.float64)
    )
    assert one(store, "SELECT n_eval_tokens, n_ctx, model, causal FROM Study") == (len(x), N_CTX, "llama", True)
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    n_active = column(store, "n_active").reshape(3, D_SAE)
    for index, (seed, held) in enumerate(decoders(study).items()):
        t = {name: tensor.astype(np.float64) for name, tensor in held.items()}
        codes = topk_codes((x - mean) / (std + 1e-5), t["W_enc"], t["b_enc"], t["b_dec"], K)
        assert np.abs(n_active[index] - (codes > 0).sum(0)).max() <= 1
        ev, l0 = one(store, f"SELECT ev, l0 FROM Member WHERE seed = {seed}")
        assert ev == pytest.approx(explained_variance(x, (codes @ t["W_dec"] + t["b_dec"]) * std + mean), abs=1e-3)
        assert l0 == pytest.approx((codes > 0).sum(1).mean(), abs=1e-2)


def test_ids_are_read_as_text_is(study, words, llama, tmp_path):
    ids = np.array(llama.tokenizer(words[0].read_text(), add_special_tokens=False)["input_ids"])
    np.save(tmp_path / "ids.npy", ids)
    changed(study, **on_tokens(words[0]))
    run(study, llama)
    from_text = publish(study)
    changed(study, **on_tokens(tmp_path / "ids.npy"))
    run(study, llama)
    from_ids = publish(study)
    assert one(from_ids, "SELECT n_eval_tokens FROM Study") == (len(ids),)
    np.testing.assert_array_equal(column(from_ids, "n_active"), column(from_text, "n_active"))


def test_an_encoders_activity_is_computed_and_that_it_is_none_of_a_causal_model_is_kept(study, words, tmp_path):
    enrol_one(tmp_path, "one", hookpoint="encoder.layer.1", replaced=True)
    changed(study, **on_tokens(words[0]))
    run(study, tiny("bert", bos=False))
    store = publish(study)
    assert one(store, "SELECT causal, model FROM Study") == (False, "bert")
    assert "activity" in one(store, "SELECT computed FROM Ensemble")[0]
    assert 0 < column(store, "density").max() <= 1


def test_a_model_is_loaded_from_the_folder_that_the_catalogue_names(study, words, tmp_path):
    save(tmp_path / "model", "llama")
    changed(study, **on_tokens(words[0]) | {"model": str(tmp_path / "model")})
    run(study)
    assert one(publish(study), "SELECT model, computed FROM Study, Ensemble") == ("model", MEASURED)


def test_activations_beyond_float16_are_taken_in_float32(study, words):
    model = tiny("llama")
    with torch.no_grad():
        model.network.get_input_embeddings().weight *= 1e6
    changed(study, **on_tokens(words[0]))
    progress = run(study, model)
    assert any("taken in float32" in line for line in progress.said)
    store = publish(study)
    assert one(store, "SELECT computed FROM Ensemble") == (MEASURED,)
    assert 0 < one(store, "SELECT max(l0) FROM Member")[0] <= K
    tokens = tokenize(documents(str(words[0])), model, n_ctx=N_CTX)
    x = np.concatenate([batch.rows.numpy() for batch in stream(model, tokens, PLACE)]).astype(np.float64)
    assert np.abs(x).max() > np.finfo(np.float16).max
    t = {name: tensor.astype(np.float64) for name, tensor in decoders(study)[0].items()}
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    codes = topk_codes((x - mean) / (std + 1e-5), t["W_enc"], t["b_enc"], t["b_dec"], K)
    expected = explained_variance(x, (codes @ t["W_dec"] + t["b_dec"]) * std + mean)
    assert one(store, "SELECT ev FROM Member WHERE seed = 0")[0] == pytest.approx(expected, abs=1e-3)


# -- what is computed again ----------------------------------------------------------------------------------------


@pytest.fixture
def measured(study, words, llama) -> Path:
    """The study with everything computed on the first corpus."""
    changed(study, **on_tokens(words[0]))
    run(study, llama)
    return study


def test_a_second_analysis_computes_nothing(measured, llama):
    before, store = parts(measured), publish(measured)
    evaluation = (measured / "parts/evaluation.json").read_bytes()
    progress = run(measured, llama)
    assert progress.stages == ["tokenizing"]
    assert parts(measured) == before
    assert (measured / "parts/evaluation.json").read_bytes() == evaluation
    assert publish(measured).name == store.name


def test_another_theta_changes_the_masks_alone(measured, llama):
    before, worth = parts(measured), column(publish(measured), "worth_ev")
    changed(measured, theta=0.3)
    assert "ablate" not in one(publish(measured), "SELECT computed FROM Ensemble")[0]  # not judged by this theta yet
    run(measured, llama)
    after = parts(measured)
    assert of(after, "one/match") == of(before, "one/match")
    assert of(after, "one/activity") == of(before, "one/activity")
    assert not of(after, "one/ablate").items() & of(before, "one/ablate").items()
    again = publish(measured)
    assert one(again, "SELECT theta, computed FROM Ensemble") == (0.3, MEASURED)
    np.testing.assert_array_equal(column(again, "worth_ev"), worth)


def test_another_corpus_changes_activity_and_not_the_cosines(measured, words, llama):
    store, before = publish(measured), parts(measured)
    changed(measured, **on_tokens(*words))
    assert one(publish(measured), "SELECT n_eval_tokens FROM Study") == one(store, "SELECT n_eval_tokens FROM Study")
    run(measured, llama)
    again = publish(measured)
    asked = "SELECT n_eval_tokens, eval_token_digest FROM Study"
    (few, digest), (more, another) = one(store, asked), one(again, asked)
    assert more > 1.5 * few
    assert another != digest
    assert ask(again, "SELECT DISTINCT n_tokens FROM Feature") == [(more,)]
    assert (column(again, "n_active") != column(store, "n_active")).any()
    np.testing.assert_array_equal(column(again, "cosines"), column(store, "cosines"))
    assert not of(parts(measured), "one/activity").items() & of(before, "one/activity").items()


def test_a_new_ensemble_leaves_the_parts_of_the_others(measured, llama, tmp_path):
    before = parts(measured)
    enrol_one(tmp_path, "two", first=10, hookpoint="layers.0.mlp")
    assert [row for (row,) in ask(publish(measured), "SELECT ensemble FROM Ensemble")] == ["one"]  # two waits
    progress = run(measured, llama)
    assert not [stage for stage in progress.stages if stage.startswith("one:")]
    assert of(parts(measured), "one/") == before
    store = publish(measured)
    assert ask(store, "SELECT ensemble, hookpoint, computed FROM Ensemble ORDER BY ensemble") == [
        ("one", PLACE, MEASURED),
        ("two", "layers.0.mlp", MEASURED),
    ]


def test_parts_of_a_replaced_ensemble_are_never_shown(measured, llama, tmp_path):
    old = publish(measured)
    found = enrol_one(tmp_path, "one", first=20, replaced=True)
    with pytest.raises(ValueError, match=r"no ensemble of mine was matched.*seedscope analyze mine"):
        publish(measured)
    run(measured, llama)
    new = publish(measured)
    assert [row for (row,) in ask(new, "SELECT sae_digest FROM Member ORDER BY seed")] == [
        m.digest for m in found.members
    ]
    assert column(new, "cosines").shape == column(old, "cosines").shape
    assert (column(new, "cosines") != column(old, "cosines")).any()
    assert (column(new, "n_active") != column(old, "n_active")).any()


def test_the_same_saes_at_another_hook_point_lose_what_was_measured_there(measured, llama, tmp_path):
    store = publish(measured)
    cosines, n_active = column(store, "cosines"), column(store, "n_active")
    enrol_one(tmp_path, "one", hookpoint="layers.0", replaced=True)
    run(measured, llama, only=("match",))
    between = publish(measured)
    assert one(between, "SELECT computed FROM Ensemble") == (["match"],)
    assert "live" not in {rule for (rule,) in ask(between, "SELECT DISTINCT rule FROM Pair")}
    run(measured, llama)
    again = publish(measured)
    np.testing.assert_array_equal(column(again, "cosines"), cosines)
    assert (column(again, "n_active") != n_active).any()


def test_only_what_is_asked_for_is_computed_with_what_it_needs(study, words, llama):
    changed(study, **on_tokens(words[0]))
    run(study, llama, only=("match",))
    assert one(publish(study), "SELECT computed FROM Ensemble") == (["match"],)
    run(study, llama, only=("activity",))
    assert one(publish(study), "SELECT computed FROM Ensemble") == (["match", "activity"],)
    before = parts(study)
    run(study, llama, only=("ablate",))
    assert set(one(publish(study), "SELECT computed FROM Ensemble")[0]) >= {"match", "activity", "ablate"}
    assert of(parts(study), "one/activity") == of(before, "one/activity")


def test_one_to_one_matching_asked_for_later_changes_the_matches_alone(study, words, llama):
    changed(study, **on_tokens(words[0]))
    run(study, llama, one_to_one=False)
    store, before = publish(study), parts(study)
    assert ask(store, "SELECT DISTINCT len(hungarian_cosines) FROM Feature") == [(0,)]
    run(study, llama, one_to_one=True)
    again, after = publish(study), parts(study)
    assert ask(again, "SELECT DISTINCT len(hungarian_cosines) FROM Feature") == [(2,)]
    np.testing.assert_array_equal(column(again, "cosines"), column(store, "cosines"))
    for analysis in ("activity", "ablate"):
        assert of(after, f"one/{analysis}") == of(before, f"one/{analysis}")
    run(study, llama, one_to_one=False)  # what is there stays
    assert parts(study) == after


# -- what is refused -----------------------------------------------------------------------------------------------


def test_a_hook_point_that_the_model_lacks_is_refused_with_the_nearest(study, words, llama, tmp_path):
    enrol_one(tmp_path, "far", first=10, hookpoint="blocks.7.hook_resid_post")
    changed(study, **on_tokens(words[0]))
    enrol_one(tmp_path, "one", hookpoint="blocks.8.hook_resid_post", replaced=True)  # no ensemble is left
    with refused(study, "ensemble far", "'blocks.7.hook_resid_post'", "nearest: ", "blocks.2.hook_resid_post"):
        run(study, llama)


def test_one_ensemble_that_the_model_cannot_be_read_for_gets_a_remark_and_blocks_no_other(
    study, words, llama, tmp_path
):
    enrol_one(tmp_path, "far", first=10, hookpoint="blocks.7.hook_resid_post")
    enrol_one(tmp_path, "wide", first=20, d_in=WIDTH + 2)
    changed(study, **on_tokens(words[0]))
    said = run(study, llama).said
    store = publish(study)
    rows = {name: (set(computed), remarks) for name, computed, remarks in ask(
        store, "SELECT ensemble, computed, remarks FROM Ensemble"
    )}  # fmt: skip
    assert rows["one"] == (set(MEASURED), [])
    for name, reason in (("far", "'blocks.7.hook_resid_post' is not in this model"), ("wide", f"read {WIDTH + 2}")):
        computed, (remark,) = rows[name]
        assert not {"activity", "ablate", "loss"} & computed
        assert "match" in computed
        assert remark.startswith("no activity: ")
        assert reason in remark
        assert any(name in line and reason in line for line in said)
    enrol_one(tmp_path, "far", first=10, hookpoint=PLACE, replaced=True)
    run(study, llama)
    assert one(publish(study), "SELECT remarks FROM Ensemble WHERE ensemble = 'far'") == ([],)


def test_saes_of_another_width_than_the_model_are_refused_before_the_model_runs_on_all_tokens(
    study, words, llama, tmp_path
):
    enrol_one(tmp_path, "one", d_in=WIDTH + 2, first=10, replaced=True)
    changed(study, **on_tokens(words[0]))
    progress = Kept()
    with pytest.raises(ValueError, match=f"{PLACE} llama has {WIDTH} numbers per token, the SAEs read {WIDTH + 2}"):
        analyse(study, model=llama, device="cpu", loss_tokens=40, progress=progress)
    assert progress.stages == ["tokenizing"]
    assert parts(study) == {}


def test_ids_of_another_tokenizer_are_refused_by_file_and_id(study, llama, tmp_path):
    np.save(tmp_path / "ids.npy", np.array([5, 6, VOCABULARY, 7]))
    changed(study, **on_tokens(tmp_path / "ids.npy"))
    with refused(study, str(tmp_path / "ids.npy"), f"token id {VOCABULARY} at position 2", "another tokenizer"):
        run(study, llama)


def test_tokens_that_are_not_there_or_do_not_fit_are_refused(study, words, llama, tmp_path):
    changed(study, **on_tokens(tmp_path / "nothing*.txt"))
    with refused(study, "found no file at", "nothing*.txt"):
        run(study, llama)
    changed(study, **on_tokens(words[0], n_ctx=CONTEXT + 1))
    with refused(study, f"n_ctx is {CONTEXT + 1}", str(CONTEXT)):
        run(study, llama)
    (tmp_path / "empty.txt").touch()
    changed(study, **on_tokens(tmp_path / "empty.txt"))
    with refused(study, "found no document in", "empty.txt"):
        run(study, llama)


def test_a_model_that_is_not_there_is_refused(study, words, tmp_path):
    changed(study, **on_tokens(words[0]) | {"model": str(tmp_path / "no-model")})
    with refused(study, str(tmp_path / "no-model")):
        run(study)


def test_a_folder_without_a_catalogue_and_unknown_analyses_are_refused(study, tmp_path):
    (tmp_path / "bare").mkdir()
    with refused(tmp_path / "bare", "study.json", "seedscope import"):
        analyse(tmp_path / "bare")
    with refused(tmp_path / "bare", "study.json", "seedscope import"):
        publish(tmp_path / "bare")
    with refused(study, "colours", "match"):
        run(study, only=("match", "colours"))
    with refused(study, "no ensemble of mine was matched"):
        publish(study)


# -- stopped, and two at a time ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_analysis_that_dies_in_every_stage_resumes_after_it_to_the_same_store(study, words, llama, tmp_path):
    changed(study, **on_tokens(words[0]))
    whole, stopped = tmp_path / "whole" / "mine", tmp_path / "stopped" / "mine"
    for folder in (whole, stopped):
        shutil.copytree(study, folder)
    stages = run(whole, llama).stages
    assert len(stages) > 5
    survived: list[str] = []
    while not set(stages) <= set(survived):  # a pass for what is left has a name of its own
        with pytest.raises(Killed):
            analyse(stopped, model=llama, device="cpu", loss_tokens=40, progress=DiesOncePerStage(survived))
        assert not (stopped / "CURRENT").exists()
    assert len(run(stopped, llama).stages) < len(stages)
    assert publish(stopped).name == publish(whole).name
    assert not (stopped / "scratch").exists()


@pytest.mark.slow
def test_an_analysis_killed_outright_resumes_to_the_same_store(study, words, tmp_path):
    save(tmp_path / "model", "llama")
    changed(study, **on_tokens(words[0]) | {"model": str(tmp_path / "model")})
    whole = tmp_path / "whole" / "mine"
    shutil.copytree(study, whole)
    run(whole)
    script = (
        "import sys, time\nfrom contextlib import contextmanager\nfrom pathlib import Path\n"
        "from seedscope.engine.studies.analyse import analyse\nfrom seedscope.engine.contract.files import only_writer\n"
        "from seedscope.engine.progress import Progress\n"
        "class Waits(Progress):\n"
        "    @contextmanager\n"
        "    def stage(self, name, unit):\n"
        "        if name.endswith('matching'):\n"
        "            print('ready', flush=True)\n"
        "            time.sleep(60)\n"
        "        with super().stage(name, unit) as report:\n"
        "            yield report\n"
        "with only_writer(Path(sys.argv[1])):\n"
        "    analyse(Path(sys.argv[1]), device='cpu', loss_tokens=40, progress=Waits(quiet=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, study], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(RuntimeError, match=f"another process is building {study}"), only_writer(study):
            pass
        os.kill(process.pid, signal.SIGKILL)
    assert not (study / "CURRENT").exists()
    activity = of(parts(study), "one/activity")
    assert activity
    with only_writer(study):  # a dead process holds nobody up
        run(study)
    assert of(parts(study), "one/activity") == activity
    assert publish(study).name == publish(whole).name
