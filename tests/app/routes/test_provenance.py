"""Where SAEs come from: shown on every page that judges them, as text and never as anything else."""

import json
import re
import shutil

import pytest

from seedscope.app.figures.tradeoff import TradeOff, trade_off
from seedscope.app.formats import architecture
from seedscope.engine.contract.schema import ANALYSES
from support.reading import assert_valid_plotly, browse, figures_of, links, parsed, text_of
from support.studies import members_that_agree, publish_study

EVIL = "<script>alert(1)</script>"
KNOWN = {
    "source": "/data/l7/seed0/sae.safetensors",
    "library": "sae-lens 6.12.0",
    "trained_on": "gpt2 at blocks.7.hook_resid_pre",
}
HOSTILE = {name: f"\"'>{EVIL}&lt;{name}" for name in KNOWN} | {
    "remarks": (f"'{EVIL}", "seed taken from the folder's name")
}
NOTHING: dict = {}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two studies that share one ensemble's weights, and three ensembles of which different things are known."""
    root = tmp_path_factory.mktemp("provenance")
    one = members_that_agree(members=3)
    publish_study(
        root, "zoo",
        {
            "shared": (one, {"shared_start": "yes", "variant": "BatchTopKSAE", "hookpoint": "blocks.7.hook_resid_pre",
                             "data_order": "shared", "train_tokens": 50_000_000, "lr": 3e-4,
                             "remarks": ("members share a start: 3 rows are equal", EVIL)}),
            "unknown": (members_that_agree(members=3, seed=1), {}),
            "apart": (members_that_agree(members=3, seed=2), {"shared_start": "no"}),
        },
        origins=(KNOWN, HOSTILE, NOTHING),
    )  # fmt: skip
    publish_study(root, "copy", {"again": (one, {}), "other": (members_that_agree(members=2, seed=5), {})})
    return root


@pytest.fixture(scope="module")
def client(root):
    with browse(root) as client:
        yield client


@pytest.fixture(scope="module")
def digests(client) -> dict[str, list[str]]:
    """{ensemble: digests of its SAEs}."""
    studies = [client.get(f"/s/{name}.json").json() for name in ("zoo", "copy")]
    summaries = [ensemble for study in studies for ensemble in study["ensembles"]]
    return {e["ensemble"]["ensemble"]: [m["sae_digest"] for m in e["members"]] for e in summaries}


def card(client, ensemble: str) -> str:
    """What the study page says of one ensemble."""
    return text_of(parsed(client.get("/s/zoo").text).find("article", id=ensemble))


# -- the study page ----------------------------------------------------------------------------------------------


def test_a_study_says_of_every_ensemble_where_it_comes_from(client, digests):
    shown = card(client, "shared")
    wanted = (
        "origin imported", "hook point blocks.7.hook_resid_pre", "variant BatchTopK, k = 4",
        "48 features in 16 dimensions", "3 seeds", "shared start yes", "data order shared",
        "training tokens 50,000,000 per seed", "members share a start: 3 rows are equal",
        KNOWN["library"], KNOWN["trained_on"], "seed taken from the folder's name",
    )  # fmt: skip
    assert [text for text in wanted if text not in shown] == []
    assert "".join(KNOWN["source"].split()) in "".join(shown.split())
    assert all(digest in shown for digest in digests["shared"])


def test_what_nobody_knows_is_said_to_be_unknown(client):
    shown = card(client, "unknown")
    for name in ("hook point", "shared start", "data order", "training tokens"):
        assert f"{name} unknown" in shown
    for path in ("/s/zoo", "/s/zoo/unknown", "/s/zoo/unknown/2/7", "/s/zoo/unknown/features"):
        assert not re.search(r"\bNone\b", text_of(client.get(path).text))
    page = text_of(client.get("/s/zoo/unknown/2/7").text)
    assert "library unknown" in page
    assert "hook point unknown" in page


def test_a_permalink_names_library_and_source_of_its_sae(client):
    page = "".join(text_of(client.get("/s/zoo/shared/0/7").text).split())
    assert all("".join(value.split()) in page for value in KNOWN.values())
    data = client.get("/s/zoo/shared/0/7.json").json()
    assert {name: data[name] for name in KNOWN} == KNOWN


def test_markup_in_sources_and_remarks_is_shown_and_never_run(client):
    for path in ("/s/zoo", "/s/zoo/shared", "/s/zoo/shared/1/7"):
        page = client.get(path).text
        assert EVIL not in page
        assert "&lt;script&gt;alert(1)&lt;" in page
    assert client.get("/s/zoo.json").json()["ensembles"][1]["members"][1]["remarks"] == list(HOSTILE["remarks"])


@pytest.mark.parametrize(
    ("ensemble", "badge"),
    [("shared", "agreement (start shared)"), ("unknown", "agreement (start unknown)"), ("apart", None)],
)
def test_agreement_is_called_stability_only_where_the_members_began_apart(client, ensemble, badge):
    for path in (
        f"/s/zoo/{ensemble}",
        f"/s/zoo/{ensemble}/features",
        f"/s/zoo/{ensemble}/members",
        f"/s/zoo/{ensemble}/1/7",
    ):
        said = text_of(client.get(path).text).lower()
        assert (badge is None and "agreement (start" not in said) or badge in said, path
    feature = text_of(client.get(f"/s/zoo/{ensemble}/1/7").text)
    assert ("Stability over 2 other seeds" in feature) == (badge is None)
    data = client.get(f"/s/zoo/{ensemble}/1/7.json").json()
    assert {"stability", "shared_start"} <= set(data)


def test_the_embedded_study_needs_no_such_remark(client, study_root):
    for path in ("/s/small", "/s/small/topk-96", "/s/small/topk-96/0/5"):
        assert "agreement (start" not in text_of(browse(study_root).get(path).text).lower()
    assert "trained by SeedScope" in text_of(browse(study_root).get("/s/small").text)


@pytest.mark.parametrize(
    ("variant", "k", "words"),
    [
        ("topk", 32, "TopK, k = 32"), ("AutoEncoderTopK", 8, "TopK, k = 8"), ("BatchTopKSAE", None, "BatchTopK"),
        ("MatryoshkaBatchTopKSAE", None, "Matryoshka BatchTopK"), ("matryoshka_batchtopk", None, "Matryoshka BatchTopK"),
        ("jumprelu", None, "JumpReLU"), ("JumpReluAutoEncoder", None, "JumpReLU"), ("standard", None, "ReLU"),
        ("AutoEncoder", None, "ReLU"), ("GatedAutoEncoder", None, "Gated"), ("RATopKSAE", 3, "RATopKSAE, k = 3"),
        ("matryoshka", None, "Matryoshka BatchTopK"), ("relaxed-archetypal", 4, "Relaxed archetypal TopK, k = 4"),
    ],
)  # fmt: skip
def test_variants_are_named_as_the_field_names_them(variant, k, words):
    assert architecture(variant, k) == words


# -- home --------------------------------------------------------------------------------------------------------


def test_the_home_page_lists_studies_that_wait_for_their_results(root, tmp_path):
    shutil.copytree(root / "zoo", tmp_path / "zoo")
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "study.json").write_text(json.dumps({"format": "seedscope.study"}))
    (tmp_path / "Not a name").mkdir()
    (tmp_path / "Not a name" / "study.json").touch()
    client = browse(tmp_path)
    home = text_of(client.get("/").text)
    assert "decoders only" in home
    assert "later Imported, not analysed yet" in home
    assert "seedscope analyze later" in home
    assert client.get("/index.json").json()["waiting"] == [{"study": "later", "command": "seedscope analyze later"}]
    assert client.get("/s/later").status_code == 404
    assert "seedscope analyze later" in text_of(client.get("/s/later").text)
    for file in (root / "zoo").iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path / "later")
    assert client.get("/index.json").json()["waiting"] == []


def test_a_root_with_waiting_studies_alone_does_not_ask_for_the_demo(tmp_path):
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "study.json").touch()
    assert "seedscope demo" not in browse(tmp_path).get("/").text


# -- several ensembles -------------------------------------------------------------------------------------------


def test_ensembles_that_reconstruct_are_compared_with_their_stability(tmp_path, language_model, corpus):
    made = {
        name: (members_that_agree(d_in=128, members=3, shared=shared), {"hookpoint": f"blocks.{layer}.hook_resid_post"})
        for name, shared, layer in (("early", 20, 1), ("late", 8, 4))
    }
    publish_study(
        tmp_path,
        "two",
        made,
        model=language_model,
        texts=corpus.held_out,
        only=ANALYSES,
    )
    client = browse(tmp_path)
    page, data = client.get("/s/two"), client.get("/s/two.json").json()
    drawn = figures_of(page.text)["tradeoff"]
    assert_valid_plotly(drawn)
    (dots,) = drawn["data"]
    summaries = {e["ensemble"]["ensemble"]: e for e in data["ensembles"]}
    for x, y, name, link in zip(dots["x"], dots["y"], dots["text"], dots["customdata"], strict=True):
        assert (x, y) == (summaries[name]["ev"], summaries[name]["stable"])
        assert client.get(link).status_code == 200
    assert "blocks.1.hook_resid_post" in page.text
    assert "blocks.4.hook_resid_post" in page.text
    assert data["additions"] == []


def test_ensembles_without_explained_variance_are_not_compared(client):
    assert figures_of(client.get("/s/zoo").text) == {}
    assert not parsed(client.get("/s/zoo").text).select("[data-figure]")


@pytest.mark.parametrize(
    ("evs", "title"),
    [
        ((0.8, 0.9), "b reconstructs best, a comes back most"),
        ((0.9, 0.8), "a both reconstructs best and comes back most"),
    ],
)
def test_a_trade_off_is_titled_by_its_finding(evs, title):
    points = [TradeOff(name, stable, ev, "/") for name, stable, ev in zip("ab", (0.5, 0.2), evs, strict=True)]
    drawn = trade_off(points)
    assert drawn.title == title
    assert [row[0] for row in drawn.table] == ["a", "b"]


@pytest.mark.parametrize(
    ("agree", "title"),
    [
        ("c", "b reconstructs best, a comes back most"),
        ("bc", "b reconstructs best"),
        ("abc", "b reconstructs best, c agrees most"),
    ],
)
def test_only_ensembles_whose_members_began_apart_are_said_to_come_back(agree, title):
    shares = {"a": (0.5, 0.7), "b": (0.2, 0.9), "c": (0.9, 0.8)}
    drawn = trade_off([TradeOff(e, *shares[e], "/", agrees=e in agree) for e in shares])
    assert drawn.title == title
    named = {trace["name"]: set(trace["text"]) for trace in drawn.plot["data"]}
    assert {e for name, held in named.items() if "agreement" in name for e in held} == set(agree)


def test_a_control_is_no_rival():
    points = [TradeOff("a", 0.5, 0.8, "/"), TradeOff("a-random", 0.01, 0.9, "/", is_control=True)]
    drawn = trade_off(points)
    assert drawn.title == "50.0\u00a0% of a is stable, 1.0\u00a0% of its control on random weights"
    assert drawn.plot["data"][0]["marker"]["symbol"] == ["circle", "circle-open"]


# -- weights by their digest -------------------------------------------------------------------------------------


def test_weights_that_stand_in_one_place_lead_to_their_permalink(client, digests):
    (digest, *_) = digests["apart"]
    answer = client.get(f"/f/{digest}/7", follow_redirects=False)
    assert answer.status_code == 307
    assert re.fullmatch(r"/s/zoo/apart/0/7\?v=[0-9a-f]{16}", answer.headers["location"])
    assert client.get(f"/f/{digest}/7?embed=true").text.count('<body class="embed">') == 1
    data = client.get(f"/f/{digest}/7.json").json()
    assert (data["sae_digest"], data["feature"], data["ensemble"], data["asked_digest"]) == (
        digest,
        7,
        "apart",
        data["digest"],
    )


def test_a_feature_page_links_to_its_weights(client, digests):
    for ensemble in ("apart", "unknown"):
        (link,) = [link for link in links(client.get(f"/s/zoo/{ensemble}/1/7").text) if link.startswith("/f/")]
        assert link == f"/f/{digests[ensemble][1]}/7"
        assert client.get(link).url.path == f"/s/zoo/{ensemble}/1/7"


def test_weights_that_stand_in_several_places_are_listed(client, digests):
    digest = digests["shared"][2]
    assert digests["again"][2] == digest
    page, data = client.get(f"/f/{digest}/7"), client.get(f"/f/{digest}/7.json").json()
    assert page.status_code == 200
    assert [(h["study"], h["ensemble"], h["seed"], h["n_comparisons"]) for h in data["holders"]] == [
        ("copy", "again", 2, 2), ("zoo", "shared", 2, 2),
    ]  # fmt: skip
    for holder in data["holders"]:
        assert holder["address"] in links(page.text)
        assert client.get(holder["address"]).status_code == 200


@pytest.mark.parametrize("feature", ["48", "-1", "007", "seven", "9" * 40])
def test_a_feature_that_the_weights_do_not_have_is_refused_with_the_range(client, digests, feature):
    for ensemble in ("apart", "shared"):
        answer = client.get(f"/f/{digests[ensemble][0]}/{feature}.json")
        assert answer.status_code == 404
        assert answer.json()["problems"] == [{"name": "feature", "found": feature, "expected": "0 to 47"}]


@pytest.mark.parametrize("digest", ["0123456789abcdef", "x", EVIL.replace("/", "")])
def test_weights_that_no_study_holds_are_refused_with_the_studies_there_are(client, digest):
    page = client.get(f"/f/{digest}/0")
    assert page.status_code == 404
    assert "copy, zoo" in text_of(page.text)
    assert EVIL.replace("/", "") not in page.text
    assert client.get(f"/f/{digest}/0.json").json()["problems"][0]["found"] == digest


def test_a_copied_study_goes_by_the_name_of_its_folder(root, tmp_path, digests):
    for name in ("zoo", "renamed"):
        shutil.copytree(root / "zoo", tmp_path / name)
    client = browse(tmp_path)
    assert [study["study"]["study"] for study in client.get("/index.json").json()["studies"]] == ["renamed", "zoo"]
    for path in ("/s/renamed", "/s/renamed/apart/1/7"):  # but for the menu of all studies
        assert {link for link in links(client.get(path).text) if link.startswith("/s/zoo")} <= {"/s/zoo"}
    holders = client.get(f"/f/{digests['apart'][0]}/7.json").json()["holders"]
    assert [client.get(holder["address"]).url.path for holder in holders] == [
        "/s/renamed/apart/0/7",
        "/s/zoo/apart/0/7",
    ]
