"""A study of recorded activations: measured without a model, and what tokens alone would tell is undefined on every page."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from seedscope.engine.contract.directions import NOT_RECORDED
from seedscope.engine.progress import Progress
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.studies.evaluator import HookPoint
from seedscope.engine.studies.recorded import open_rows
from support.commands import assert_one_line, run
from support.golden import explained_variance, topk_codes
from support.reading import answered, browse, links, text_of, twin
from support.studies import members_that_agree

N, D_IN, D_SAE, K = 900, 16, 48, 4
PAGES = (
    "/s/mine", "/s/mine/topk", "/s/mine/topk/features", "/s/mine/topk/features?sort=density", "/s/mine/topk/1/5",
    "/s/mine/topk/0/0", "/s/mine/topk/members", "/s/mine/topk/buckets",
    "/s/mine/topk/ablation", "/s/mine/topk/subspaces", "/s/mine/topk/explanations",
    "/s/mine/topk/trajectory", "/s/mine/topk/subspaces/map", "/s/mine/topk/try", "/s/mine/pool", "/s/mine/variants",
)  # fmt: skip
OF_TOKENS = {
    "contexts", "top_tokens", "trigger", "trigger_share", "trigger_what", "token_entropy", "top_token_share", "explanations",
    "positive_logits", "negative_logits",
}  # fmt: skip
NO_PREDICTED = f"undefined: {NOT_RECORDED}"


@pytest.fixture(scope="module")
def members():
    return members_that_agree(members=3, d_in=D_IN, d_sae=D_SAE)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Activations in float16, three of them far longer than all others."""
    rows = np.random.default_rng(5).normal(size=(N, D_IN)).astype(np.float16)
    rows[[3, 400, 899]] *= 40
    return rows


@pytest.fixture(scope="module")
def root(tmp_path_factory, members, rows) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    members.save(folder / "saes")
    (folder / "acts").mkdir()
    for i, part in enumerate(np.split(rows, [250, 300, 700])):
        np.save(folder / "acts" / f"shard-{i}.npy", part)
    done = run(
        "import",
        "mine",
        "topk",
        folder / "saes",
        "--activations",
        folder / "acts",
        "--root",
        folder / "root",
        "--quiet",
    )
    assert done.returncode == 0, done.stderr
    kept = np.delete(np.arange(N), [3, 400, 899])
    ev, l0 = measured(members, rows[kept].astype(np.float64))
    assert f"self-check on 897 rows: EV {spread(ev, '.3f')}, L0 {spread(l0, '.1f')}" in done.stdout
    assert done.stdout.strip().splitlines()[-1].endswith(f"seedscope analyze mine --root {folder / 'root'}")
    done = run("analyze", "mine", "--root", folder / "root", "--quiet")
    assert done.returncode == 0, done.stderr
    return folder


def spread(values: list[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def codes_of(members, member: int, x: np.ndarray) -> np.ndarray:
    return topk_codes(x, members.W_enc[member].detach().double().numpy(), 0, 0, K)


def measured(members, x: np.ndarray) -> tuple[list[float], list[float]]:
    """(EV, L0) of every member, in plain NumPy."""
    evs, l0s = [], []
    for member in range(3):
        codes = codes_of(members, member, x)
        evs.append(explained_variance(x, codes @ members.W_dec[member].detach().double().numpy()))
        l0s.append((codes > 0).sum(1).mean())
    return evs, l0s


@pytest.fixture(scope="module")
def client(root):
    with browse(root / "root") as client:
        yield client


def test_activity_ev_and_l0_are_those_of_the_rows(client, members, rows):
    x = np.delete(rows, [3, 400, 899], axis=0).astype(np.float64)
    evs, l0s = measured(members, x)
    overview = client.get("/s/mine/topk.json").json()
    for member, ev, l0 in zip(overview["members"], evs, l0s, strict=True):
        assert member["ev"] == pytest.approx(ev, abs=1e-4)
        directed = np.linalg.norm(members.W_dec[member["seed"]].detach().numpy(), axis=1) > 0
        fires = (codes_of(members, member["seed"], x) > 0)[:, directed]
        assert member["l0"] == pytest.approx(fires.sum(1).mean(), abs=0.01)
        assert l0 >= member["l0"]
    codes, norms = codes_of(members, 1, x), np.linalg.norm(members.W_dec[1].detach().double().numpy(), axis=1)
    table = {row["feature"]: row for row in client.get("/s/mine/topk/features.json?seed=1&limit=500").json()["rows"]}
    for feature in range(D_SAE):
        n_active = (codes[:, feature] > 0).sum()
        assert table[feature]["n_active"] == n_active
        assert table[feature]["density"] == pytest.approx(n_active / 897)
        assert table[feature]["max_activation"] == pytest.approx(codes[:, feature].max() * norms[feature], rel=1e-4)
    page = client.get("/s/mine/topk/1/5.json").json()
    fired = codes[:, 5][codes[:, 5] > 0] * norms[5]
    assert page["mean_activation"] == pytest.approx(fired.mean(), rel=1e-4)
    edges = np.array(page["histogram_edges"])
    counts = np.bincount(np.clip(np.searchsorted(edges, fired.astype(np.float32), "right") - 1, 0, 23), minlength=24)
    assert page["histogram"] == counts.tolist()
    squared = ((x - x.mean(0)) ** 2).sum()
    residual = x - codes @ members.W_dec[1].detach().double().numpy()
    without = residual + codes[:, [5]] * members.W_dec[1, 5].detach().double().numpy()
    assert page["ablation"]["marginal_ev"] == pytest.approx(
        ((without**2).sum() - (residual**2).sum()) / squared, rel=1e-4
    )


@pytest.mark.parametrize("path", PAGES)
def test_pages_answer_and_say_what_is_undefined(client, path):
    page, data = client.get(path), client.get(twin(path))
    assert (page.status_code, data.status_code) == (200, 200), text_of(page.text)[-500:]
    assert not re.findall(r"\b(None|nan)\b", text_of(page.text))


@pytest.mark.parametrize("path", PAGES)
def test_every_link_of_a_page_answers(client, path):
    page = client.get(path).text
    for link in {re.sub(r"\d+", "N", link): link for link in links(page) if link.startswith("/")}.values():
        assert answered(client, link).status_code == 200, link


def test_what_needs_tokens_is_undefined_with_the_reason(client):
    data = client.get("/s/mine/topk/1/5.json").json()
    reasons = {lack["field"]: lack for lack in data["missing"]}
    for field in OF_TOKENS:
        assert data[field] is None
        assert reasons[field]["needs"].endswith("undefined: activations without tokens")
        assert reasons[field]["command"] is None
    assert "undefined: activations without tokens" in text_of(client.get("/s/mine/topk").text)
    assert "activations without tokens" in text_of(client.get("/s/mine").text)
    for query in ("sort=entropy", "trigger=number", "q=def"):
        answer = client.get(f"/s/mine/topk/features.json?{query}")
        assert answer.status_code == 422
        assert "undefined: activations without tokens" in answer.json()["problems"][0]["expected"]
    assert client.get("/s/mine/topk/1/5/loss.json").status_code == 404
    assert "Undefined: activations without tokens" in text_of(client.get("/s/mine/topk/try").text)


def test_the_study_names_its_source_by_digest(client, root):
    plan = catalogue.read(root / "root" / "mine")
    study = client.get("/s/mine.json").json()["study"]
    assert study["eval_token_digest"] == plan.activations.digest
    assert (study["model"], study["n_eval_tokens"], study["n_ctx"]) == (None, N, None)
    assert study["corpus_remark"] == "900 rows of float16 in " + "/".join((root / "acts").parts[-2:])
    assert "longer than 10 times the median excluded" in study["token_policy"]
    assert plan.activations.digest in text_of(client.get("/s/mine").text)
    (ensemble,) = client.get("/s/mine.json").json()["ensembles"]
    assert ensemble["ensemble"]["n_outliers"] == 3


def test_an_export_says_what_is_undefined_and_comes_back(root, tmp_path):
    done = run("export", "mine", tmp_path / "out", "--format", "parquet", "--root", root / "root", "--quiet")
    assert done.returncode == 0, done.stderr
    table = pyarrow.parquet.read_table(tmp_path / "out" / "features.parquet")
    assert table.num_rows == 3 * D_SAE
    assert table["density"].null_count == 0
    assert not any(table["top_tokens"].to_pylist())
    done = run("export", "mine", tmp_path / "lines", "--format", "json", "--root", root / "root", "--quiet")
    assert done.returncode == 0, done.stderr
    text = "".join(each.read_text() for each in (tmp_path / "lines").rglob("*.jsonl"))
    assert "undefined: activations without tokens" in text
    done = run("import", "mine", tmp_path / "out", "--root", tmp_path / "again", "--quiet")
    assert done.returncode == 0, done.stderr
    with browse(tmp_path / "again") as client, browse(root / "root") as before:
        assert client.get("/s/mine/topk/1/5.json").json() == before.get("/s/mine/topk/1/5.json").json()


def test_another_analysis_finds_what_is_there_and_changed_files_are_noticed(root, members, rows, tmp_path):
    np.save(tmp_path / "a.npy", rows)
    members.save(tmp_path / "saes")
    done = run("import", "b", "topk", tmp_path / "saes", "--root", tmp_path, "--quiet", "--activations", tmp_path / "a.npy",
               "--eval-tokens", 200, "--outliers", "include", "--no-check")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert run("analyze", "b", "--only", "activity", "--root", tmp_path, "--quiet").returncode == 0
    with browse(tmp_path) as client:
        study = client.get("/s/b.json").json()["study"]
    assert study["n_eval_tokens"] == 200
    assert study["token_policy"] == "200 of 900 rows, drawn with seed 0; norm outliers counted"
    np.save(tmp_path / "a.npy", rows[::-1])
    done = run("analyze", "b", "--only", "activity", "--root", tmp_path, "--quiet")
    assert_one_line(done, "are others than those that study b was given", f"--activations {tmp_path / 'a.npy'}")
    done = run("analyze", "b", "--only", "activity", "--root", tmp_path, "--quiet", "--activations", tmp_path / "a.npy")
    assert done.returncode == 0, done.stderr
    assert catalogue.read(tmp_path / "b").activations.n_eval is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "gpt2"], ["--model given with --activations"]),
        (["--tokens", "x.txt"], ["--tokens given with --activations"]),
        (["--bos", "include"], ["--bos given with --activations"]),
    ],
)
def test_options_that_contradict_are_refused(root, tmp_path, options, words):
    done = run(
        "import", "c", "topk", root / "saes", "--activations", root / "acts", "--root", tmp_path, "--quiet", *options
    )
    assert_one_line(done, *words)
    assert not (tmp_path / "c" / catalogue.FILE).exists()


def test_rows_of_another_width_and_rows_that_are_not_finite_are_refused_before_anything_is_written(
    root, tmp_path, rows
):
    np.save(tmp_path / "wide.npy", np.zeros((5, 32), np.float32))
    done = run(
        "import", "c", "topk", root / "saes", "--activations", tmp_path / "wide.npy", "--root", tmp_path, "--quiet"
    )
    assert_one_line(done, "wide.npy", "32 numbers per row", "read 16")
    bad = rows.astype(np.float32)
    bad[77, 2] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    done = run(
        "import", "c", "topk", root / "saes", "--activations", tmp_path / "bad.npy", "--root", tmp_path, "--quiet"
    )
    assert_one_line(done, "bad.npy", "row 77", "NaN")
    assert not (tmp_path / "c" / catalogue.FILE).exists()


def test_activations_given_as_tokens_are_pointed_to_their_option(root, tmp_path):
    done = run("import", "d", "topk", root / "saes", "--root", tmp_path, "--quiet", "--tokens", root / "acts" / "shard-0.npy",
               "--model", Path("engine/demo/model").absolute(), "--hookpoint", "blocks.2.hook_resid_post")  # fmt: skip
    assert "--activations" in done.stdout + done.stderr


def test_a_study_file_names_them(root, rows, tmp_path):
    np.save(tmp_path / "a.npy", rows)
    saes = root / "saes"
    head = f'[study]\nname = "f"\nanalyses = ["match", "activity"]\n[[ensemble]]\nname = "topk"\nimport = ["{saes}/seed-*"]\n'
    (tmp_path / "study.toml").write_text(head + '[activations]\nsource = "a.npy"\neval = 100\n')
    done = run("run", tmp_path / "study.toml", "--root", tmp_path / "root", "--quiet")
    assert done.returncode == 0, done.stderr
    plan = catalogue.read(tmp_path / "root" / "f")
    assert (plan.activations.source, plan.activations.n_eval) == (str(tmp_path / "a.npy"), 100)
    with browse(tmp_path / "root") as client:
        assert client.get("/s/f.json").json()["study"]["n_eval_tokens"] == 100
    (tmp_path / "study.toml").write_text(head + '[activations]\nsource = "b.npy"\n[model]\npath = "gpt2"\n')
    done = run("run", tmp_path / "study.toml", "--root", tmp_path / "root", "--quiet")
    assert done.returncode == 1
    assert "stand beside [model]" in done.stderr
    assert "found no file or folder" in done.stderr


def test_a_pool_is_measured_on_the_rows_and_not_trained_on(root, tmp_path):
    unit = members_that_agree(members=3, d_in=D_IN, d_sae=D_SAE, undirected=0)
    unit.W_dec.data /= unit.W_dec.data.norm(dim=-1, keepdim=True)
    unit.save(tmp_path / "saes")
    done = run("import", "p", "topk", tmp_path / "saes", "--activations", root / "acts", "--root", tmp_path, "--quiet",
               "--hookpoint", "blocks.2.hook_resid_post")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert run("analyze", "p", "--only", "match,activity", "--root", tmp_path, "--quiet").returncode == 0
    done = run("pool", "p", "topk", "--root", tmp_path, "--quiet")
    assert_one_line(done, "recorded activations", "--tokens 0")
    done = run("pool", "p", "topk", "--root", tmp_path, "--quiet", "--tokens", "0")
    assert done.returncode == 0, done.stderr


def test_activations_of_one_place_are_not_taken_for_those_of_another(root, tmp_path, rows):
    np.save(tmp_path / "a.npy", rows)
    for name, place in (("six", "blocks.6.hook_resid_post"), ("seven", "blocks.7.hook_resid_post")):
        done = run("import", "w", name, root / "saes", "--root", tmp_path, "--quiet", "--hookpoint", place)
        assert done.returncode == 0, done.stderr
    done = run("analyze", "w", "--only", "activity", "--root", tmp_path, "--quiet", "--activations", tmp_path / "a.npy")
    assert_one_line(done, "say which with --hookpoint")
    done = run("analyze", "w", "--only", "activity", "--root", tmp_path, "--activations", tmp_path / "a.npy",
               "--hookpoint", "blocks.7.hook_resid_post")  # fmt: skip
    assert done.returncode == 0, done.stderr
    with browse(tmp_path) as client:
        by_name = {e["ensemble"]["ensemble"]: e["ensemble"] for e in client.get("/s/w.json").json()["ensembles"]}
    assert "activity" in by_name["seven"]["computed"]
    assert "activity" not in by_name["six"]["computed"]
    assert any("recorded at blocks.7.hook_resid_post" in remark for remark in by_name["six"]["remarks"])


@pytest.mark.parametrize(("d_out", "place_out"), [(D_IN, None), (D_IN, "blocks.2.hook_mlp_out"), (10, None)])
def test_of_transcoders_activity_is_known_and_what_needs_their_output_is_undefined(d_out, place_out, tmp_path, rows):
    encoder = members_that_agree(members=3, d_in=D_IN, d_sae=D_SAE).W_enc.detach()
    decoder = members_that_agree(members=3, d_in=d_out, d_sae=D_SAE, seed=1).W_dec.detach()
    convention = Convention("topk", k=K, subtract_b_dec=False, transcoder=True)
    biases = torch.zeros(3, D_SAE), torch.zeros(3, d_out)
    SAE(encoder, biases[0], decoder, biases[1], seeds=(0, 1, 2), convention=convention).save(tmp_path / "saes")
    np.save(tmp_path / "a.npy", rows)
    at = ("--hookpoint-out", place_out) if place_out else ()
    done = run("import", "t", "trans", tmp_path / "saes", "--activations", tmp_path / "a.npy", "--root", tmp_path,
               "--hookpoint", "blocks.2.hook_resid_mid", "--quiet", *at)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "self-check on 897 rows: EV undefined, L0 " in done.stdout
    assert f"direct logits: {NO_PREDICTED}" in done.stdout
    assert "--hookpoint-out NAME" not in done.stdout
    done = run("analyze", "t", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"ablate: left out, {NO_PREDICTED}" in done.stdout + done.stderr
    assert "--hookpoint-out NAME" not in done.stdout
    with browse(tmp_path) as client:
        overview = client.get("/s/t/trans.json").json()
        assert all(member["ev"] is None for member in overview["members"])
        ensemble = overview["ensemble"]
        assert set(ensemble["computed"]) == {"match", "activity", "subspaces", "function", "predictor", "shared_spans"}
        assert [f"no reconstruction: {NO_PREDICTED}"] == [text for text in ensemble["remarks"] if "undefined" in text]
        lacks = {each["result"].split(":")[0]: each for each in overview["missing"]}
        assert (lacks["ablation"]["reason"], lacks["ablation"]["command"]) == (NO_PREDICTED, None)
        x = np.delete(rows, [3, 400, 899], axis=0).astype(np.float64)
        fires = topk_codes(x, encoder[1].double().numpy(), 0, 0, K) > 0
        table = client.get("/s/t/trans/features.json?seed=1&limit=500").json()["rows"]
        assert [row["n_active"] for row in sorted(table, key=lambda row: row["feature"])] == fires.sum(0).tolist()
        feature = client.get("/s/t/trans/1/5.json").json()
        assert feature["ablation"] is None
        for page in ("", "/1/5", "/ablation", "/members", "/subspaces"):
            assert client.get(f"/s/t/trans{page}").status_code == 200
            assert NO_PREDICTED in text_of(client.get(f"/s/t/trans{page}").text)
        assert client.get("/s/t/trans/1/5/loss.json").status_code == 404
    done = run("export", "t", tmp_path / "lines", "--format", "json", "--root", tmp_path, "--quiet")
    assert done.returncode == 0, done.stderr
    text = "".join(each.read_text() for each in (tmp_path / "lines").rglob("*.jsonl"))
    assert json.dumps({"field": "ablation", "needs": NO_PREDICTED}) in text
    assert_one_line(run("pool", "t", "trans", "--root", tmp_path, "--quiet", "--tokens", "0"), "transcoders")


def test_a_recording_gives_no_activations_of_a_second_place(root):
    study = root / "root" / "mine"
    plan = catalogue.read(study)
    evaluator = open_rows(study, plan, plan.activations, Progress(quiet=True))
    with pytest.raises(ValueError, match=r"blocks\.2\.hook_mlp_out were asked for: .*were not given"):
        evaluator.activations("blocks.2.hook_resid_mid", D_IN, HookPoint("blocks.2.hook_mlp_out", D_IN))
