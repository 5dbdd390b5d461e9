"""The page of a study's ensembles beside each other: trained from one file with a sweep, judged, downloaded, exported."""

from dataclasses import fields, replace
from io import BytesIO
from statistics import fmean, stdev

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from seedscope.app.routes.study.variant_lines import Spread, VariantLine
from seedscope.app.routes.study.variant_sentence import sentence
from seedscope.app.routes.study.variants import VariantsPage
from seedscope.app.store.studies import Studies
from seedscope.engine.contract.tables.features import Feature
from seedscope.engine.demo import stdlib
from seedscope.engine.export.formats import export
from seedscope.engine.progress import Progress
from seedscope.engine.store import catalogue
from seedscope.engine.studies.run import run_file
from seedscope.engine.studies.studyfile.read import read_study_file
from support.reading import assert_valid_plotly, browse, figures_of, links, text_of
from support.studies import publish_study

FILE = f"""[study]
name = "several"
analyses = ["match", "activity", "ablate", "loss"]
[model]
path = "{stdlib.MODEL_DIR}"
hookpoint = "blocks.2.hook_attn_out"
[tokens]
source = "texts/*.txt"
n_ctx = 32
eval = 400
[[ensemble]]
name = "topk"
train = {{ k = 4, d_sae = 48, seeds = 3, tokens = 6144, batch = 128 }}
[[ensemble]]
name = "relu"
train = {{ variant = "relu", l0 = 4, d_sae = 48, seeds = 3, tokens = 6144, batch = 128 }}
[[ensemble]]
name = "wide"
train = {{ k = 4, seeds = 3, tokens = 6144, batch = 128 }}
sweep = {{ d_sae = [24] }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("file")
    (folder / "texts").mkdir()
    for i, (_, text) in enumerate(corpus.train[:12]):
        (folder / "texts" / f"{i}.txt").write_text(text)
    (folder / "study.toml").write_text(FILE)
    return folder


@pytest.fixture(scope="module")
def root(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    run_file(read_study_file(folder / "study.toml"), root, device="cpu", progress=Progress(quiet=True))
    return root


@pytest.fixture(scope="module")
def several(root):
    with browse(root) as client:
        yield client


def lines(client, **asked) -> dict[str, dict]:
    answer = client.get("/s/several/variants.json", params=asked)
    assert answer.status_code == 200, answer.text
    return {line["ensemble"]: line for line in answer.json()["lines"]}


def test_page_and_twin_hold_the_same_context(several):
    page, data = several.get("/s/several/variants"), several.get("/s/several/variants.json").json()
    assert set(data) == {f.name for f in fields(VariantsPage) if not f.name.startswith(("nav_", "figure_"))}
    assert " ".join(data["sentence"].split()) in text_of(page.text)
    for drawn in figures_of(page.text).values():
        assert_valid_plotly(drawn)
    for link in {link for link in links(page.text, "[href], [src]") if link.startswith("/s/")}:
        assert several.get(link).status_code == 200, link
    assert '"/s/several/variants"' in several.get("/s/several").text


@pytest.mark.parametrize(("theta", "epsilon", "dead"), [(0.7, 0.05, None), (0.31, 0.4, None), (0.555, 0.05, "count")])
def test_shares_are_those_of_the_stored_cosines_at_any_judgement(several, root, theta, epsilon, dead):
    store = Studies(root).get("several")
    asked = {"theta": theta, "epsilon": epsilon} | ({"dead": dead} if dead else {})
    for name, line in lines(several, **asked).items():
        rows = store.rows(Feature, "ensemble = ?", [name])
        shares = []
        for seed in range(3):
            judged = [row for row in rows if row.seed == seed and (dead or not row.dead)]
            p = [np.mean(np.float32(row.cosines) >= np.float32(theta)) for row in judged]
            shares.append((fmean(x >= 1 - epsilon for x in p), fmean(x <= epsilon for x in p), fmean(p)))
        for bucket, values in zip(("stable", "unstable", "p_hat"), zip(*shares, strict=True), strict=True):
            assert line[bucket]["mean"] == pytest.approx(fmean(values)), (name, bucket)
            assert line[bucket]["sd"] == pytest.approx(stdev(values), abs=1e-12)
        assert line["n_comparisons"] == 2
        assert line["dead"]["mean"] == pytest.approx(fmean(row.dead for row in rows))


def test_loss_recovered_is_between_the_models_own_loss_and_zeros(several, root):
    store = Studies(root).get("several")
    for name, line in lines(several).items():
        recovered = [(m.loss_zero - m.loss_spliced) / (m.loss_zero - m.loss_own) for m in store.members(name)]
        assert line["loss_recovered"]["mean"] == pytest.approx(fmean(recovered))
        assert line["ev"]["mean"] == pytest.approx(fmean(m.ev for m in store.members(name)))


def test_only_what_differs_in_one_setting_is_a_sweep(several):
    data = several.get("/s/several/variants.json").json()
    (sweep,) = data["sweeps"]
    assert (sweep["factor"], sweep["values"]) == ("d_sae", [24, 48])
    assert sweep["ensembles"] == ["wide-d_sae24", "topk"]
    drawn = figures_of(several.get("/s/several/variants").text)["sweep_0"]
    stable = next(trace for trace in drawn["data"] if trace["name"] == "stable")
    assert stable["y"] == [lines(several)[name]["stable"]["mean"] for name in sweep["ensembles"]]


def test_ensembles_of_one_width_are_compared_at_their_l0(several):
    told = lines(several)
    assert {name for name, line in told.items() if line["l0_matched"] is not None} == {"topk", "relu"}
    assert told["topk"]["l0_asked"] == told["relu"]["l0_asked"] == 4


def test_the_found_l1_and_the_asked_l0_stand_in_the_catalogue_and_nothing_is_sought_again(folder, root, capsys):
    entry = catalogue.read(root / "several").ensemble("relu")
    assert entry.recipe["l0"] == 4
    assert any(f"l1 = {entry.recipe['l1']:.4g} was found for L0 = 4" in remark for remark in entry.remarks)
    run_file(read_study_file(folder / "study.toml"), root, device="cpu", progress=Progress())
    said = capsys.readouterr().err
    assert "was found for L0 = 4" in said
    assert "trying l1" not in said
    assert catalogue.read(root / "several").ensemble("relu") == entry


def test_only_the_asked_analyses_are_computed(root):
    for row in Studies(root).get("several").ensembles.values():
        assert row.computed == ["match", "activity", "ablate", "loss"]


def test_downloads_hold_the_lines(several):
    told = lines(several, theta=0.5)
    for kind, read in (("csv", pyarrow.csv.read_csv), ("parquet", pyarrow.parquet.read_table)):
        table = read(BytesIO(several.get(f"/s/several/variants.{kind}?theta=0.5").content)).to_pylist()
        assert {row["ensemble"]: row["stable"] for row in table} == {
            name: pytest.approx(line["stable"]["mean"]) for name, line in told.items()
        }
        assert {row["ensemble"]: row["factor_d_sae"] for row in table} == {n: t["d_sae"] for n, t in told.items()}


def test_an_export_has_the_sweeps_curves(several, root, tmp_path):
    export(root, "several", tmp_path / "out")
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "curves.parquet").to_pylist()
    swept = {row["ensemble"]: row for row in rows if row["kind"] == "sweep"}
    told = lines(several)
    assert {row["factor"] for row in swept.values()} == {"d_sae"}
    for name, row in swept.items():
        assert row["value"] == told[name]["d_sae"]
        for column in ("stable", "middle", "unstable", "dead", "ev", "l0"):
            assert row[column] == pytest.approx(told[name][column]["mean"])
            assert row[f"{column}_sd"] == pytest.approx(told[name][column]["sd"], abs=1e-12)


def test_decoders_alone_are_compared_and_what_is_missing_is_named(make_sae, tmp_path):
    starts = {"a": "no", "b": "unknown"}
    made = {name: (make_sae(members=3, d_sae=20), {"shared_start": start}) for name, start in starts.items()}
    publish_study(tmp_path, "bare", made)
    with browse(tmp_path) as client:
        page, data = client.get("/s/bare/variants"), client.get("/s/bare/variants.json").json()
        assert page.status_code == 200
        assert [line["ev"] for line in data["lines"]] == [None, None]
        assert "EV is not known" in data["sentence"]
        assert "seedscope analyze bare --model" in page.text
        assert "agreement (start unknown)" in text_of(page.text)
        assert client.get("/s/bare/variants.csv").status_code == 200


def test_one_ensemble_alone_is_told_how_to_get_others(client, address):
    study = address.rsplit("/", 1)[0]
    page = client.get(f"{study}/variants")
    assert page.status_code == 200
    assert "sweep = { d_sae" in page.text
    assert client.get(f"{study}/variants.json").json()["sentence"] is None


@pytest.mark.parametrize(
    ("relu", "topk", "says"),
    [
        ((0.6, 0.70), (0.2, 0.86), "(paper A) holds here"),
        ((0.2, 0.70), (0.6, 0.86), "second half holds here"),
        ((0.6, 0.86), (0.2, 0.70), "first half holds here"),
        ((0.201, 0.8601), (0.2, 0.86), "does not hold here"),
    ],
)
def test_the_verdict_follows_from_the_numbers(several, root, relu, topk, says):
    page = several.get("/s/several/variants.json").json()
    made = []
    for line in page["lines"]:
        if line["ensemble"] in ("topk", "relu"):
            stable, ev = relu if line["ensemble"] == "relu" else topk
            held = {k: Spread(**v) if isinstance(v, dict) and "mean" in v else v for k, v in line.items()}
            made.append(
                replace(VariantLine(**held), stable=Spread(stable, 0.01, 3), ev=Spread(ev, 0.01, 3), l0_matched=True)
            )
    told = sentence(made, 4.0)
    assert says in told
    assert f"{100 * relu[0]:.1f}\u00a0%" in told
    assert "reconstructs best" in told
