"""One SAE is an ensemble of one: everything but stability, which is undefined and never a number."""

import gzip
import json
import re

import pytest

import seedscope
from seedscope.engine.demo import stdlib
from seedscope.engine.store import catalogue
from support.commands import run
from support.reading import answered, browse, links, text_of, twin
from support.studies import members_that_agree

ALONE = "One SAE: stability is undefined; seedscope anchor trains comparisons."
ONE = "/s/mine/alone"
HOOKPOINT = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module", params=["decoder", "model"])
def root(request, tmp_path_factory, corpus):
    """A study of one SAE, by the commands: of its decoder alone, and with a model and text."""
    root = tmp_path_factory.mktemp("one")
    members_that_agree(members=1, d_in=128, undirected=1).save(root / "files")
    settings: list = []
    if request.param == "model":
        text = root / "text.txt"
        text.write_text("\n\n".join(text for _, text in corpus.held_out)[:20_000])
        more = "".join(text for _, text in corpus.held_out)[20_000:40_000]
        (root / "more.txt").write_text(more)
        settings = ["--model", stdlib.MODEL_DIR, "--hookpoint", HOOKPOINT, "--n-ctx", 64]
        settings += ["--tokens", text, "--tokens", root / "more.txt"]
    done = run("import", "mine", "alone", root / "files", "--root", root / "studies", "--quiet", *settings)
    assert done.returncode == 0, done.stderr
    done = run("analyze", "mine", "--root", root / "studies", "--loss-tokens", "40", "--quiet")
    assert done.returncode == 0, done.stderr
    return root / "studies"


@pytest.fixture(scope="module")
def client(root):
    with browse(root) as client:
        yield client


PAGES = (
    "/", "/s/mine", ONE, f"{ONE}?theta=0.555&dead=count", f"{ONE}/features", f"{ONE}/features?sort=feature",
    f"{ONE}/features?bucket=dead", f"{ONE}/members", f"{ONE}/buckets", f"{ONE}/ablation", f"{ONE}/subspaces",
    f"{ONE}/trajectory", f"{ONE}/explanations", f"{ONE}/subspaces/map", f"{ONE}/0/5", f"{ONE}/0/0", f"{ONE}/0/5/neighbours",
    "/s/mine/variants", "/s/mine/starts", "/s/mine/pool",
)  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_every_page_and_its_twin_answer(client, path):
    page, data = answered(client, path), answered(client, twin(path))
    assert (page.status_code, data.status_code) == (200, 200), text_of(page.text)
    if client.get("/s/mine.json").json()["study"]["model"] is None:  # else tokens of Python may be None
        assert not re.findall(r"\b(nan|NaN|inf|None)\b", text_of(page.text))
    json.loads(data.text, parse_constant=lambda name: pytest.fail(f"{name} in {path}"))


@pytest.mark.parametrize("path", PAGES)
def test_every_link_of_a_page_answers(client, path):
    page = answered(client, path).text
    for link in {re.sub(r"\d+", "N", link): link for link in links(page) if link.startswith("/")}.values():
        answer = answered(client, link)
        assert answer.status_code == 200 or "not computed yet" in answer.text, link


def test_stability_is_undefined_and_anchor_is_offered(client, root):
    page = client.get(ONE)
    assert ALONE in text_of(page.text)
    plan = catalogue.read(root / "mine")
    file = root / "mine" / plan.ensembles[0].folder / "seed-0.safetensors"
    assert f"seedscope anchor mine alone-anchored {file}" in text_of(page.text)
    data = client.get(f"{ONE}.json").json()
    assert {data["buckets"][bucket] for bucket in ("stable", "middle", "unstable")} == {None}
    assert data["p_stable_at_all"] is None
    assert data["members"][0]["stable"] is None
    feature = client.get(f"{ONE}/0/5.json").json()
    names = ("stability", "stability_low", "stability_high", "p_stable", "p_unstable")
    assert [feature[name] for name in names] == [None] * 5
    assert ALONE in text_of(client.get(f"{ONE}/0/5").text)


@pytest.mark.parametrize("format", ["parquet", "json", "neuronpedia", "saelens", "delphi"])
def test_every_export_is_written_without_a_number_for_stability(root, tmp_path, format):
    done = run("export", "mine", tmp_path / "out", "--format", format, "--root", root, "--quiet")
    if format in ("neuronpedia", "delphi") and done.returncode:
        assert "activity" in done.stderr or "explan" in done.stderr  # of decoders alone
        return
    assert done.returncode == 0, done.stderr
    for file in (tmp_path / "out").rglob("*.json*"):
        text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
        assert "NaN" not in text.replace('"NaN"', "")


@pytest.mark.parametrize("sort", ["stability", "feature", "density", "worth", "loss", "max", "entropy"])
def test_the_feature_table_works_and_sorts(client, sort):
    for direction in ("asc", "desc"):
        address = f"{ONE}/features.json?sort={sort}&dir={direction}&limit=20"
        answer = client.get(address)
        if answer.status_code == 422 or answer.status_code == 400:
            assert "model" in answer.text  # what was not computed
            return
        first = answer.json()
        second = client.get(f"{address}&after={first['after']}").json()
        places = [row["feature"] for row in first["rows"] + second["rows"]]
        assert len(set(places)) == 40
        assert {row["bucket"] for row in first["rows"] + second["rows"]} <= {None, "dead"}
    downloaded = client.get(f"{ONE}/features.csv").text
    assert len(downloaded.splitlines()) == 49
    assert "undefined" not in downloaded


def test_notebooks_are_told_the_same(root):
    ensemble = seedscope.open(root)["mine"]["alone"]
    feature = ensemble.feature(seed=0, index=5)
    assert (feature.stability, feature.stability_low, feature.p_stable) == (None, None, None)
    assert (feature.n_comparisons, feature.matches) == (0, [])
    assert feature.bucket in (None, "dead")
    assert ensemble.features().column("stability").null_count == ensemble.features().num_rows
