"""One public SAE and no other seeds: three of them, as SAELens wrote them, from a study file or by hand to every page."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file, save_file
from starlette.testclient import TestClient

from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.app.store.ceiling import ceiling
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.studies import Studies
from seedscope.engine.activations.documents import Document, documents, split
from seedscope.engine.activations.harvest import LanguageModel, harvest, tokenize
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.demo import stdlib
from seedscope.engine.export.formats import export
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.anchor import anchor_ensemble
from seedscope.engine.studies.publish import publish
from seedscope.engine.studies.run import run_file
from seedscope.engine.studies.studyfile.read import read_study_file
from seedscope.engine.training.ensemble import train_ensemble
from support.commands import assert_one_line, run
from support.golden import explained_variance, jumprelu_codes, normalised_forward, relu_codes, topk_codes, unit_rows
from support.layouts import write_saelens
from support.reading import links, parsed, text_of

HOOKPOINT = "blocks.2.hook_resid_post"
D_SAE, N_COMPARISONS = 48, 3
# How each public SAE was trained: with another rate, on other text, for another length than its comparisons.
PUBLIC = {
    "topk": ("saelens/topk", TrainConfig(k=3)),
    "jumprelu": ("saelens/jumprelu", TrainConfig(variant="jumprelu", k=4)),
    "relu": ("saelens/standard", TrainConfig(variant="relu", l1=0.2)),
}
HEAD = f"""[study]
name = "mine"
[model]
path = "{stdlib.MODEL_DIR}"
hookpoint = "{HOOKPOINT}"
[tokens]
source = "texts/*.txt"
n_ctx = 32
eval = 300
"""
ENSEMBLE = """[[ensemble]]
name = "{name}"
anchor = "public/{name}/seed_5"
train = {{ seeds = 3, tokens = 6144, batch = 256 }}
"""
PAGES = ("", "/features", "/0/3", "/2/3", "/buckets", "/members", "/ablation", "/subspaces", "/explanations")


def quiet() -> Progress:
    return Progress(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus, language_model) -> Path:
    """Public SAEs, text of one's own, and a study file that asks for comparisons of each."""
    folder = tmp_path_factory.mktemp("file")
    (folder / "texts").mkdir()
    for i, (_, text) in enumerate(corpus.train[:12]):
        (folder / "texts" / f"{i}.txt").write_text(text)
    theirs = tokenize(corpus.train[12:], language_model, n_ctx=32)
    rows = np.array(harvest(language_model, theirs, HOOKPOINT, folder / "rows")[:], np.float32)
    for name, (fixture, config) in PUBLIC.items():
        config = replace(config, d_sae=D_SAE, seeds=(5,), n_tokens=10_240, batch=256, lr=1e-3)
        tensors = {key: each.numpy() for key, each in train_ensemble(rows, config).member_tensors(0).items()}
        norms = np.float32(1)
        if name != "topk":  # rows as other libraries leave them
            norms = np.random.default_rng(0).uniform(0.5, 2, D_SAE).astype(np.float32)
            tensors["W_dec"] = tensors["W_dec"] * norms[:, None]
            tensors |= {key: tensors[key] / norms for key in ("W_enc", "b_enc", "threshold") if key in tensors}
        write_saelens(folder / "public" / name, {5: tensors}, config.k, fixture=fixture)
    (folder / "study.toml").write_text(HEAD + ENSEMBLE.format(name="jumprelu"))
    return folder


def anchored(folder: Path, study: Path, name: str, model: LanguageModel) -> catalogue.EnsemblePlan:
    """What the study file asks for, without it."""
    return anchor_ensemble(
        study, name, folder / "public" / name / "seed_5", HOOKPOINT, model, own_text(folder), 32, quiet(),
        settings={"seeds": (1, 2, 3), "n_tokens": 6144, "batch": 256},
    )  # fmt: skip


def own_text(folder: Path) -> Iterator[Document]:
    """What comparisons are trained on."""
    return split(documents(folder / "texts" / "*.txt"), "train")


@pytest.fixture(scope="module")
def root(folder, language_model, tmp_path_factory) -> Path:
    """One of a study file, with all there is to compute, two beside it with what the tests ask for."""
    root = tmp_path_factory.mktemp("root")
    run_file(read_study_file(folder / "study.toml"), root, device="cpu", progress=quiet())
    study = root / "mine"
    for name in ("topk", "relu"):
        catalogue.write(catalogue.read(study).with_ensemble(anchored(folder, study, name, language_model)), study)
    analyse(study, only=("match", "activity"), model=language_model, device="cpu", progress=quiet())
    publish(study)
    return root


@pytest.fixture(scope="module")
def pages(root):
    with TestClient(create_app(Settings(root)), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="module")
def rows(folder, language_model) -> np.ndarray:
    """Activations of the text that comparisons were trained on."""
    tokens = tokenize(own_text(folder), language_model, n_ctx=32)
    return np.array(harvest(language_model, tokens, HOOKPOINT, folder / "own")[:], np.float64)


def given(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The tensors of a public SAE's file."""
    held = load_file(folder / "public" / name / "seed_5" / "sae_weights.safetensors")
    return {key: each.astype(np.float64) for key, each in held.items()}


def codes_of(t: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    """Dense activations by the public SAE's own forward pass."""
    pre = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    if name == "topk":
        return topk_codes(x, t["W_enc"], t["b_enc"], t["b_dec"], PUBLIC[name][1].k)
    return relu_codes(pre) if name == "relu" else jumprelu_codes(pre, t["threshold"], inclusive=False)


def l0_of(rows: np.ndarray, members: sae.SAE, member: int) -> float:
    """Active features per token of a member, by the format's own forward pass in NumPy."""
    tensors = {key: each.double().numpy() for key, each in members.member_tensors(member).items()}
    return float((normalised_forward(rows, tensors, members.convention)[0] > 0).sum(1).mean())


def held(root: Path, name: str) -> tuple[catalogue.EnsemblePlan, sae.SAE]:
    entry = catalogue.read(root / "mine").ensemble(name)
    return entry, sae.load(root / "mine" / entry.folder, entry.seeds)


def best_cosines(root: Path, name: str) -> np.ndarray:
    """(members, d_sae, members) largest cosine of every feature in every member, by NumPy; NaN in its own."""
    units = unit_rows(held(root, name)[1].W_dec.detach().double().numpy())
    best = np.einsum("afd,bgd->afbg", units, units).max(-1)
    best[range(len(units)), :, range(len(units))] = np.nan
    return best


# -- what is made --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLIC)
def test_the_anchor_is_the_public_sae(name, folder, root, rows):
    entry, members = held(root, name)
    t = given(folder, name)
    assert (entry.anchor, entry.seeds) == (0, (0, 1, 2, 3))
    mine = members.member_tensors(0)
    np.testing.assert_allclose(unit_rows(mine["W_dec"].double().numpy()), unit_rows(t["W_dec"]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(mine["W_dec"], axis=1), 1, atol=1e-4)
    wanted = codes_of(t, name, rows) @ t["W_dec"] + t["b_dec"]
    folded = {key: each.double().numpy() for key, each in mine.items()}
    _, out = normalised_forward(rows, folded, members.convention)
    assert np.median(np.abs(out - wanted).max(1)) < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", PUBLIC)
def test_comparisons_have_its_width_and_sparsity_and_everything_says_where_it_comes_from(name, folder, root, rows):
    entry, members = held(root, name)
    t = given(folder, name)
    codes = codes_of(t, name, rows)
    l0 = (codes > 0).sum(1).mean()
    wanted = PUBLIC[name][1].k if name == "topk" else l0
    assert members.d_sae == D_SAE
    if name == "relu":  # its l1 was found
        assert abs(entry.recipe["l0"] - l0) < 0.02
        assert "l1 = " in " ".join(entry.remarks)
        found = [l0_of(rows, members, i) for i in (1, 2, 3)]
        assert abs(np.mean(found) / l0 - 1) < 0.1
    else:
        assert abs(entry.recipe["k"] - wanted) <= (0 if name == "topk" else 0.51)
    assert (entry.variant, entry.shared_start, entry.origin) == (name, "no", "trained")
    assert (entry.train_tokens, entry.batch, entry.hookpoint) == (6144, 256, HOOKPOINT)
    anchor, *others = entry.members
    assert anchor.source == str(folder / "public" / name / "seed_5")
    assert (anchor.library, anchor.trained_on) == ("sae-lens 6.54.12", f"pythia-70m at {HOOKPOINT}")
    assert {(each.source, each.library.split()[0]) for each in others} == {(None, "seedscope")}
    assert [each.digest for each in entry.members] == [members.digest(i) for i in range(4)]
    told = " ".join(entry.remarks)
    assert "recipe differs" in told
    assert anchor.source in told
    ev = explained_variance(rows, codes @ t["W_dec"] + t["b_dec"])
    assert abs(float(re.search(r"explains (0\.\d+) of the variance", told)[1]) - ev) < 0.002
    assert (name == "topk") or f"{l0:.1f} on" in told


@pytest.mark.parametrize("name", PUBLIC)
def test_its_stability_is_the_share_of_comparisons_that_have_the_direction(name, root):
    store = Studies(root).get("mine")
    best = best_cosines(root, name)
    near = np.abs(best[0][:, 1:] - 0.7).min(1) < 1e-5
    counted = (best[0][:, 1:] >= 0.7).sum(1)
    listed = {row.feature: row for row in store.features(FeatureQuery(name, seed=0)).page(limit=500)}
    assert len(listed) == D_SAE
    assert all(listed[i].n_matched == counted[i] for i in range(D_SAE) if not near[i])
    assert all(row.anchor for row in listed.values())
    assert not any(row.anchor for row in store.features(FeatureQuery(name, seed=2)).page(limit=500))


@pytest.mark.parametrize("theta", [0.4, 0.333])
@pytest.mark.parametrize("dead", [None, "count"])
def test_the_ceiling_is_what_comparisons_reach_among_themselves(theta, dead, root):
    store = Studies(root).get("mine")
    found = ceiling(store, FeatureQuery("topk", theta, 0.05, dead=dead))
    matched = best_cosines(root, "topk") >= np.float32(theta)
    living = np.stack([~store.dead("topk", seed) if dead is None else np.full(D_SAE, True) for seed in range(4)])
    # Every comparison in turn is left out of the anchor's, so that both are counted over two.
    of_anchor = np.concatenate(
        [matched[0][living[0]][:, [b for b in (1, 2, 3) if b != out]].sum(1) for out in (1, 2, 3)]
    )
    each = [matched[a][living[a]][:, [b for b in (1, 2, 3) if b != a]].sum(1) for a in (1, 2, 3)]
    for level, counts in ((found.of_anchor, of_anchor), (found.of_comparisons, np.concatenate(each))):
        assert level.mean == pytest.approx(counts.mean() / 2, abs=2e-3)
        assert level.stable == pytest.approx((counts == 2).mean(), abs=4e-3)
        assert level.unstable == pytest.approx((counts == 0).mean(), abs=4e-3)
    assert (found.of_anchor.n_features, found.of_comparisons.n_features) == (living[0].sum(), living[1:].sum())
    assert found.means == pytest.approx([counts.mean() / 2 for counts in each], abs=4e-3)
    assert (found.anchor, found.n_comparisons) == (0, 2)
    assert 0 < found.of_comparisons.mean < 1


def test_asked_for_again_it_is_loaded_and_nothing_is_trained(folder, root, language_model):
    entry, _ = held(root, "relu")
    files = sorted((root / "mine" / entry.folder).glob("seed-[1-9]*"))
    before = [path.stat().st_mtime_ns for path in files]
    assert anchored(folder, root / "mine", "relu", language_model) == entry
    assert [path.stat().st_mtime_ns for path in files] == before
    assert len(files) == N_COMPARISONS


# -- wherever the number is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_page_and_twin_says_that_the_recipe_differs(page, pages):
    address = f"/s/mine/jumprelu{page}"
    shown, data = pages.get(address), pages.get(f"{address}.json")
    assert (shown.status_code, data.status_code) == (200, 200)
    for text in (shown.text, data.json()["recipe_differs"]):
        assert "Recipe differs: seed 0 is a public SAE, the 3 others were trained here" in text
    assert "/s/mine/jumprelu/features?seed=0" in shown.text


def test_a_feature_says_what_its_own_number_means(pages):
    for seed, said in (
        (0, "a feature of the anchor, a public SAE. p counts 3 comparisons"),
        (2, "one of the 3 that p counts"),
    ):
        data, text = pages.get(f"/s/mine/relu/{seed}/3.json").json(), pages.get(f"/s/mine/relu/{seed}/3").text
        assert data["anchor"] is (seed == 0)
        assert said in data["remarks"][0]
        (card,) = (s for s in parsed(text).select("section.card") if s.h2 and text_of(s.h2).startswith("Stability"))
        assert said in text_of(card)


def test_rows_of_the_table_say_whose_they_are(pages):
    for suffix in ("csv", "parquet"):
        content = io.BytesIO(pages.get(f"/s/mine/topk/features.{suffix}").content)
        table = pyarrow.csv.read_csv(content) if suffix == "csv" else pyarrow.parquet.read_table(content)
        for row in table.select(["seed", "anchor", "remark"]).to_pylist():
            assert row["anchor"] is (row["seed"] == 0)
            assert ("a feature of the anchor" in row["remark"]) == row["anchor"]
            assert row["remark"].startswith("Recipe differs")
    listed = pages.get("/s/mine/topk/features.json?limit=500").json()["rows"]
    assert {(row["seed"] == 0, row["anchor"]) for row in listed} == {(True, True), (False, False)}


def test_the_overview_shows_the_ceiling_beside_the_anchor_and_leads_to_its_features(pages):
    data, text = pages.get("/s/mine/topk.json?theta=0.5").json(), pages.get("/s/mine/topk?theta=0.5").text
    held = data["ceiling"]
    assert f"mean p of {held['of_anchor']['mean']:.2f}" in text
    assert f"among themselves, by one recipe, with {held['of_comparisons']['mean']:.2f}" in text
    assert "/s/mine/topk/features?seed=0&theta=0.5" in links(text)
    study = pages.get("/s/mine").text
    assert study.count("recipe differs</span>") == len(PUBLIC)
    assert "one public SAE, the others trained by SeedScope" in study


def test_an_ensemble_of_one_recipe_says_nothing_of_it(client, address):
    page = client.get(f"{address}/0/5")
    assert "ecipe differs" not in page.text + client.get(address).text + client.get(f"{address}/features").text
    data = client.get(f"{address}/0/5.json").json()
    assert data["anchor"] is False
    assert "recipe_differs" not in data
    assert client.get(f"{address}.json").json()["ceiling"] is None
    lines = pyarrow.csv.read_csv(io.BytesIO(client.get(f"{address}/features.csv").content))
    assert set(lines["anchor"].to_pylist()) == {False}
    assert not any(lines["remark"].to_pylist())


def test_exports_name_the_anchor_and_come_back_with_it(root, tmp_path):
    export(root, "mine", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for each in told["ensembles"]:
        assert each["anchor"] == 0
        assert "recipe differs" in each["remarks"][0]
        assert each["saes"][0]["source"]
    table = pyarrow.parquet.read_table(tmp_path / "out" / "features.parquet", columns=["seed", "anchor"]).to_pylist()
    assert {(row["seed"] == 0) == row["anchor"] for row in table} == {True}
    done = run("import", "mine", tmp_path / "out", "--root", tmp_path / "again", "--quiet")
    assert done.returncode == 0, done.stderr
    assert Studies(tmp_path / "again").get("mine").ensemble("relu").anchor == 0


# -- the command, and what is refused ------------------------------------------------------------------------------


def command(folder: Path, root: Path, name: str = "topk", **options: object) -> list[object]:
    told = {"model": stdlib.MODEL_DIR, "tokens": folder / "texts" / "*.txt", "n-ctx": 32, "eval-tokens": 300,
            "train-tokens": 2048, "batch": 256, "comparisons": 2, "device": "cpu", "root": root} | options  # fmt: skip
    path = folder / "public" / name / "seed_5"
    return ["anchor", "by-hand", name, path, *(part for key, value in told.items() if value is not None
                                              for part in (f"--{key}", value))]  # fmt: skip


def test_the_command_trains_comparisons_on_text_that_it_does_not_measure_on_and_publishes(folder, tmp_path):
    done = run(*command(folder, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "2 comparisons: topk, k 3, 2,048 tokens each" in done.stderr
    assert "by-hand/topk: 3 × 48 features" in done.stdout
    plan = catalogue.read(tmp_path / "by-hand")
    assert (plan.tokens.part, plan.ensemble("topk").seeds) == ("held-out", (0, 1, 2))
    assert_one_line(
        run(*command(folder, tmp_path, "topk")[:3], folder / "public" / "relu", "--root", tmp_path), "--replace"
    )


def test_what_the_command_needs_is_asked_for(folder, tmp_path):
    assert_one_line(run(*command(folder, tmp_path, model=None)), "expected --model")
    assert_one_line(run(*command(folder, tmp_path, tokens=None)), "--tokens")
    assert not (tmp_path / "by-hand" / catalogue.FILE).exists()


def test_an_sae_that_cannot_stand_beside_those_trained_here_is_refused_before_anything_is_trained(
    folder, tmp_path, language_model, corpus
):
    def refuse(*said: str, change=lambda config, tensors: None, hookpoint: str | None = None, **options) -> None:
        place = shutil.copytree(folder / "public" / "relu" / "seed_5", tmp_path / "changed", dirs_exist_ok=True)
        config, tensors = json.loads((place / "cfg.json").read_text()), load_file(place / "sae_weights.safetensors")
        change(config, tensors)
        (place / "cfg.json").write_text(json.dumps(config))
        save_file({key: np.ascontiguousarray(each) for key, each in tensors.items()}, place / "sae_weights.safetensors")
        with pytest.raises(ValueError, match=".*".join(map(re.escape, said))):
            anchor_ensemble(
                tmp_path / "study", "e", place, hookpoint, language_model, corpus.train[:3], 32, quiet(), **options
            )
        assert not list((tmp_path / "study").rglob("*.safetensors"))

    def narrower(config, tensors) -> None:
        tensors["W_enc"], tensors["W_dec"] = tensors["W_enc"][:-1], tensors["W_dec"][:, :-1]
        tensors["b_dec"] = tensors["b_dec"][:-1]
        config["d_in"] -= 1

    refuse("normalize is layer_norm", change=lambda config, _: config.update(normalize_activations="layer_norm"))
    refuse("reads 127 numbers per token", "has 128 at", change=narrower)
    refuse("is never active", change=lambda _, tensors: tensors["b_enc"].fill(-1e6))
    refuse("explains nothing", "--force", change=lambda _, tensors: tensors["W_dec"].__imul__(-30))
    refuse("changed says", "--force", hookpoint="blocks.1.hook_resid_post")
    refuse("does not say where it reads", change=lambda config, _: config["metadata"].pop("hook_name"))
    refuse("settings are k", settings={"k": 3})
    refuse("seeds are [0, 1]", settings={"seeds": (0, 1)})


@pytest.mark.parametrize(
    ("part", "instead", "line", "said"),
    [
        ("tokens = 6144", "k = 3", 13, "k stands beside anchor, which decides it"),
        ("tokens = 6144", 'variant = "topk"', 13, "variant stands beside anchor"),
        ("tokens = 6144", "d_sae = 48", 13, "d_sae stands beside anchor"),
        ("seeds = 3", "seeds = [0, 1]", 13, "seed 0 is the anchor's"),
        ("seeds = 3", "seeds = 1", 13, "expected 2 to"),
        ("seed_5", "*", 12, "names 2 SAEs, expected one"),
        ('anchor = "', 'import = "public/topk/seed_5"\nanchor = "', 12, "import stands beside anchor"),
    ],
)
def test_a_study_file_is_told_what_the_anchor_decides(part, instead, line, said, folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "file", ignore=shutil.ignore_patterns("rows", "own"))
    shutil.copytree(place / "public" / "topk" / "seed_5", place / "public" / "topk" / "seed_6")
    text = HEAD + ENSEMBLE.format(name="topk")
    assert part in text
    (place / "study.toml").write_text(text)
    (wanted,) = read_study_file(place / "study.toml").ensembles
    assert wanted.settings == {"seeds": (1, 2, 3), "n_tokens": 6144, "batch": 256}
    (place / "study.toml").write_text(text.replace(part, instead, 1))
    with pytest.raises(ValueError, match=re.escape(said)) as info:
        read_study_file(place / "study.toml")
    assert f"study.toml:{line}:" in str(info.value)
