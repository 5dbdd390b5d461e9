"""A text of one's own on the page and in its twin: against the engine's arrays, the feature page and plain counting."""

import html
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from starlette.testclient import TestClient

from seedscope.app.routes.ensemble.text_question import LONGEST_ADDRESS
from seedscope.app.routes.ensemble.try_text import TryPage
from seedscope.engine.activations.harvest import load_model
from seedscope.engine.contract.queries import LiveQuery
from seedscope.engine.progress import Progress
from seedscope.engine.saes.sae import SAE
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.publish import publish
from support.reading import answered, browse, links, parsed, republish, text_of
from support.studies import members_that_agree, publish_study
from support.tiny_models import save, tokenizer

TEXT = 'def parse(self, text):\n    """Parse a text."""\n    return [int(part) for part in text.split(",")]\n'
HOSTILE = (
    '</textarea><script>document.title = "owned"</script><img src=x onerror="document.title=1">"\'&amp;{{ 7 * 7 }}'
)
SEEDS = range(4)
RULES = ("argmax", "live", "mutual", "hungarian", "both")


@pytest.fixture(scope="module")
def ask(client, address):
    """The page or its twin for a text and more parameters."""

    def get(text: str = TEXT, *, twin: bool = True, **more: object):
        path = f"{address}/try{'.json' if twin else ''}?{urlencode({'text': text, **more})}"
        return answered(client, path)

    return get


@pytest.fixture(scope="module")
def tried(ask) -> dict:
    return ask().json()


def dense(data: dict, d_sae: int = 96) -> np.ndarray:
    """(members, tokens, d_sae) activations of a twin."""
    found = np.zeros((len(data["members"]), len(data["tokens"]), d_sae))
    for i, member in enumerate(data["members"]):
        found[i, member["token"], member["feature"]] = member["activation"]
    return found


# -- what the twin says --------------------------------------------------------------------------------------------


def test_the_twin_holds_the_tokens_and_everything_that_is_active_on_them(tried, address):
    assert set(tried) == {f.name for f in fields(TryPage) if not f.name.startswith("nav_")}
    assert "".join(tried["tokens"]) == TEXT
    assert tried["n_read"] == tried["n_all"] == len(tried["tokens"]) == len(tried["ids"])
    assert [member["seed"] for member in tried["members"]] == list(SEEDS)
    active = dense(tried)
    assert ((active > 0).sum(2) <= 2).all()  # k
    assert ((active > 0).sum(2) == 2).mean() > 0.9
    assert (tried["on_text"], tried["missing"], tried["seed"]) == (None, None, 0)


@pytest.mark.parametrize("seed", [0, 2])
def test_the_strongest_features_are_those_of_the_seed_shown(ask, client, address, seed):
    data = ask(seed=seed).json()
    mine = dense(data)[seed]
    largest = mine.max(0)
    order = [f for f in np.argsort(-largest, kind="stable") if largest[f] > 0][:20]
    assert [s["max_activation"] for s in data["strongest"]] == [largest[f] for f in order]
    assert {s["feature"] for s in data["strongest"]} == set(order)
    for s in data["strongest"]:
        assert mine[s["at"], s["feature"]] == s["max_activation"]
        assert s["n_active"] == (mine[:, s["feature"]] > 0).sum()
        page = client.get(f"{address}/{seed}/{s['feature']}.json").json()
        assert s["bucket"] == page["bucket"]
        assert s["cosines"] == [match["cosine"] for match in page["matches"]]


@pytest.mark.parametrize("rule", RULES)
def test_counterparts_are_those_of_the_feature_page_with_their_own_activations(ask, client, address, tried, rule):
    seed, feature = 1, tried["members"][1]["feature"][0]
    judged = {"rule": rule, "theta": 0.5, "epsilon": 0.1}
    data = ask(seed=seed, feature=feature, **judged).json()
    page = client.get(f"{address}/{seed}/{feature}.json", params=judged).json()
    active = dense(data)
    itself, *others = data["on_text"]
    assert (itself["seed"], itself["feature"], itself["cosine"], itself["bucket"]) == (
        seed,
        feature,
        None,
        page["bucket"],
    )
    assert itself["activations"] == active[seed, :, feature].tolist()
    assert [one["seed"] for one in others] == [match["seed"] for match in page["matches"]]
    for one, match in zip(others, page["matches"], strict=True):
        assert one["feature"] == match["rule_partner"]
        assert one["bucket"] == match["partner_bucket"]
        if one["feature"] is None:
            assert (one["cosine"], one["matched"], one["n_active"]) == (None, None, 0)
            assert not any(one["activations"])
        else:
            assert (one["cosine"], one["matched"]) == (match["rule_cosine"], match["matched"])
            assert one["activations"] == active[one["seed"], :, one["feature"]].tolist()
            assert one["max_activation"] == max(one["activations"])


def test_buckets_follow_theta_and_epsilon(ask, client, address, tried):
    for judged in ({"theta": 0.95}, {"theta": 0.333}, {"dead": "count"}, {"epsilon": 0.4}):
        for s in ask(**judged).json()["strongest"][:5]:
            page = client.get(f"{address}/0/{s['feature']}.json", params=judged).json()
            assert s["bucket"] == page["bucket"]


def test_a_second_question_about_a_text_is_answered_without_computing(ask, client):
    ask("a text for the cache")
    engine = client.app.state.live
    before = client.portal.call(engine.ask, LiveQuery("status")).status["computed"]
    for more in ({"seed": 2}, {"at": 1}, {"seed": 1, "feature": 5}, {"theta": 0.4}):
        assert ask("a text for the cache", **more).status_code == 200
    assert client.portal.call(engine.ask, LiveQuery("status")).status["computed"] == before
    ask("another text for the cache")
    assert client.portal.call(engine.ask, LiveQuery("status")).status["computed"] == before + 1


def test_a_text_beyond_the_context_is_cut_visibly(ask, study_config):
    n_read = study_config.n_ctx - 1
    data = ask(TEXT * 4).json()
    assert data["n_read"] == n_read < data["n_all"]
    says = text_of(ask(TEXT * 4, twin=False).text)
    assert f"Cut after {n_read} tokens of {data['n_all']}" in says
    assert "Cut after" not in text_of(ask(twin=False).text)


def test_line_ends_are_those_of_a_form_whoever_sends_them(ask):
    assert ask("a\nb\n").json() == ask("a\r\nb\r\n").json() == ask("a\rb\r").json()


# -- what the page shows -------------------------------------------------------------------------------------------


def test_every_token_can_be_chosen_and_says_what_is_active_on_it(ask, tried):
    page = ask(twin=False).text
    choices = parsed(page).select("input[type=radio][name=at]")
    assert [int(choice["value"]) for choice in choices] == list(range(len(tried["tokens"])))
    mine = dense(tried)[0]
    assert [int(c["value"]) for c in choices if c.has_attr("checked")] == [int(mine.max(1).argmax())]
    titles = [label["title"] for label in parsed(page).select("label[title]")]
    for i, title in enumerate(titles):
        assert title.startswith(f"token {i + 1}")
        best = mine[i].argmax()
        if mine[i, best] > 0:
            assert f"strongest #{best} {mine[i, best]:.2f}" in title
            assert sum(map(int, re.findall(r"(\d+) (?:stable|middle|unstable|dead)", title))) == (mine[i] > 0).sum()


def test_the_features_at_a_token_are_listed_for_every_seed_strongest_first(ask, client, address, tried):
    page = ask(twin=False, at=7, seed=2, epsilon=0.1).text
    listed = page[page.index('id="listed"') : page.index("Strongest on this text")]
    parts = re.split(r"<h3>seed (\d+)</h3>", listed)[1:]
    assert [int(seed) for seed in parts[::2]] == [2, 0, 1, 3]
    for seed, part in zip(map(int, parts[::2]), parts[1::2], strict=True):
        here = dense(tried)[seed, 7]
        chips = re.findall(r'class="chip (\w+)" href="([^"]*)">#(\d+) <b>([\d.]+)</b> <small>(\w+)</small>', part)
        assert [int(chip[2]) for chip in chips] == [f for f in np.argsort(-here) if here[f] > 0]
        for bucket, link, feature, shown, says in chips:
            assert (float(shown), says) == (round(here[int(feature)], 2), bucket)
            assert link == f"{address}/{seed}/{feature}?epsilon=0.1"
            assert client.get(f"{address}/{seed}/{feature}.json?epsilon=0.1").json()["bucket"] == bucket


def test_rows_of_counterparts_are_aligned_and_share_one_scale(ask, tried):
    seed, feature = 0, tried["strongest"][0]["feature"]
    data, page = ask(seed=seed, feature=feature).json(), ask(twin=False, seed=seed, feature=feature).text
    largest = max(one["max_activation"] for one in data["on_text"])
    assert f"the strongest is {largest:.2f}" in text_of(page)
    steps = [int(step) for step in re.findall(r'<span class="t a(\d+)"', page)]
    expected = [
        max(1, round(20 * np.log10(1 + 9 * a / largest)))
        for one in data["on_text"]
        for a in one["activations"]
        if a > 0
    ]
    assert sorted(steps) == sorted(expected)
    assert max(steps) == 20
    for stretch in page.split('<div class="stretch">')[1:]:
        rows = re.findall(r'<span class="tokens" dir="auto">(.*?)</span>\s*</div>', stretch, re.DOTALL)
        assert len(rows) == len(SEEDS)
        assert len({re.sub("<[^>]*>", "", row) for row in rows}) == 1  # the same text in every row: aligned
    shown = [one["feature"] for one in data["on_text"]]
    who = [(row.small.text, row.a.text.removeprefix("#")) for row in parsed(page).select("span.who") if row.a]
    assert {(int(s), int(f)) for s, f in who} == {(one["seed"], one["feature"]) for one in data["on_text"]}
    assert shown[0] == feature


def test_the_page_is_well_formed_and_its_links_answer(ask, client, address, tried):
    feature = tried["strongest"][0]["feature"]
    for page in (ask(twin=False).text, ask(twin=False, seed=0, feature=feature).text, ask("", twin=False).text):
        assert page.count("<form") == page.count("</form>")
        one_per_kind = {re.sub(r"\d+", "N", link)[:60]: link for link in links(page, "[href], [src]") if link[0] == "/"}
        for link in one_per_kind.values():
            assert answered(client, link).status_code == 200, link


@pytest.mark.parametrize("more", [{}, {"seed": 0, "feature": 5}, {"at": 3}])
def test_markup_in_a_text_is_inert(ask, more):
    plain, page = ask("x", twin=False, **({} if "at" in more else more)).text, ask(HOSTILE, twin=False, **more).text
    for tag in ("script", "img"):
        assert len(parsed(page)(tag)) == len(parsed(plain)(tag))
    assert not any(name.startswith("on") for element in parsed(page)(True) for name in element.attrs)
    assert parsed(page).textarea
    assert "owned" in text_of(page)
    assert "{{ 7 * 7 }}" in html.unescape(page)


@pytest.mark.parametrize(
    "text",
    ["   ", "שלום עולם مرحبا", "😀👩\u200d👩\u200d👧", "\x07\x1b[31m\x7f", "\u202egnirts", "\t\n \n", "#"],
)
def test_any_text_gives_a_page(ask, text):
    page = ask(text, twin=False)
    assert page.status_code == 200
    assert text.strip("\n") in html.unescape(page.text)
    assert ask(text).json()["tokens"]


def test_control_characters_are_shown_as_pictures(ask):
    page = ask("a\x00b\x07c", twin=False).text
    assert "␇" in page
    assert "\0" not in page


# -- without a text, and where one cannot be tried -----------------------------------------------------------------


def test_without_a_text_there_is_the_box_and_passages_of_the_studys_documents(client, address, corpus, tried):
    page = client.get(f"{address}/try").text
    assert parsed(page).select("textarea[name=text]")
    documents = " ".join(text for _, text in corpus.held_out)
    examples = parsed(page).select("a.example")
    assert examples
    for example in examples:
        assert example.text in documents
        assert quote(example.text[:5]).lower()[:3] in example["href"].lower()
        assert answered(client, example["href"]).status_code == 200
    assert client.get(f"{address}/try.json").json()["tokens"] is None
    seed, feature = 0, tried["strongest"][0]["feature"]
    own = client.get(f"{address}/try?seed={seed}&feature={feature}").text
    top = client.get(f"{address}/{seed}/{feature}.json").json()["contexts"][0]
    assert "".join(top["tokens"]).strip() in html.unescape(own)


@pytest.mark.parametrize("page", ["{study}", "{ensemble}", "{ensemble}?theta=0.6", "{ensemble}/2/17?theta=0.6"])
def test_other_pages_have_the_box(client, address, page):
    shown = client.get(page.format(study=address.rsplit("/", 1)[0], ensemble=address)).text
    (form,) = parsed(shown).select("form.try-box")
    assert form["action"] == f"{address}/try"
    hidden = {field["name"]: field["value"] for field in form.select("input[type=hidden]")}
    expected = {"theta": "0.6"} if "theta" in page else {}
    assert hidden == (expected | {"seed": "2", "feature": "17"} if "17" in page else expected)


def test_an_address_too_long_to_share_is_refused_and_the_text_kept(client, address):
    text = "word " * (LONGEST_ADDRESS // 5 + 1)
    page = client.get(f"{address}/try", params={"text": text})
    assert page.status_code == 422
    says = text_of(page.text)
    assert re.search(
        rf"makes an address of 8,\d+ bytes, and a link to this page can have at most {LONGEST_ADDRESS:,}", says
    )
    assert text in html.unescape(page.text)
    twin = client.get(f"{address}/try.json", params={"text": text})
    assert twin.status_code == 422
    assert "shorten the text" in twin.json()["problems"][0]["expected"]
    fits = "text=" + "a" * (LONGEST_ADDRESS - 5)
    assert answered(client, f"{address}/try?{fits}").status_code == 200
    assert client.get(f"{address}/try?{fits}a").status_code == 422


@pytest.mark.parametrize(
    ("parameters", "status", "says"),
    [
        ({"feature": 3}, 422, "the seed of feature 3"),
        ({"seed": 9}, 404, "seeds 0, 1, 2, 3"),
        ({"seed": 9, "feature": 3}, 404, "seeds 0, 1, 2, 3"),
        ({"seed": 0, "feature": 96}, 404, "0 to 95"),
        ({"at": 31}, 422, "a token of the text, 0 to 30"),
        ({"at": "x"}, 422, "integer"),
        ({"theta": 2}, 422, "less than or equal to 1"),
    ],
)
def test_unusable_values_are_refused_with_what_is_expected(ask, parameters, status, says):
    for twin in (False, True):
        answer = ask(twin=twin, **parameters)
        assert answer.status_code == status
        assert says in html.unescape(answer.text)


def test_only_get_is_answered(client, address):
    answer = client.post(f"{address}/try", data={"text": "x"}, headers={"Origin": "http://127.0.0.1"})
    assert answer.status_code == 405


def test_while_the_engine_starts_the_page_stands_and_asks_again(own_root: Path, address):
    with browse(own_root) as client:
        page = client.get(f"{address}/try?text=hello&seed=1")
        assert page.status_code == 202
        assert "The engine is starting" in text_of(page.text)
        (polls,) = parsed(page.text).select("[hx-trigger^=load]")
        assert polls["hx-get"] == f"{address}/try?text=hello&seed=1"
        assert "hello" in page.text
        twin = client.get(f"{address}/try.json?text=hello")
        assert twin.status_code == 503
        page = answered(client, f"{address}/try?text=hello&seed=1")
        assert (page.status_code, "found no study.json" in text_of(page.text).lower()) == (422, True)


def test_a_study_without_a_model_says_what_is_missing_and_the_command(tmp_path: Path):
    known = {"hookpoint": "blocks.7.hook_resid_pre"}
    publish_study(
        tmp_path, "mine", {"topk": (members_that_agree(), known), "pair": (members_that_agree(members=2), {})}
    )
    with browse(tmp_path) as client:
        for ensemble, command in (
            ("topk", "seedscope analyze mine --model DIR_OR_ID --tokens FILE"),
            ("pair", "seedscope analyze mine --model DIR_OR_ID --hookpoint NAME --tokens FILE"),
        ):
            page = client.get(f"/s/mine/{ensemble}/try?text=hello")
            assert page.status_code == 200
            assert not parsed(page.text).textarea
            assert command in html.unescape(page.text)
            assert client.get(f"/s/mine/{ensemble}/try.json?text=x").json()["missing"]["command"] == command


# -- a study of eight members over a model of another kind ---------------------------------------------------------


def make_wide(root: Path, family: str, n_ctx: int) -> SAE:
    """A study of 8 members with k = 10 over a tiny model of word tokens."""
    save(root / "model", family, max_position_embeddings=n_ctx, n_positions=n_ctx)
    members = members_that_agree(members=8, d_in=16, d_sae=512, shared=200)
    members.convention = type(members.convention)("topk", k=10)
    folder = root / "wide"
    place = Path("sae") / "some" / "0"
    members.save(folder / place)
    held = tuple(catalogue.MemberPlan(seed, members.digest(i)) for i, seed in enumerate(members.seeds))
    ensemble = catalogue.EnsemblePlan("some", "imported", str(place), held, hookpoint="blocks.1.hook_resid_post")
    tokens = catalogue.Tokens(("texts",), n_ctx=n_ctx)
    catalogue.write(catalogue.StudyPlan("wide", str(root / "model"), tokens, ensembles=(ensemble,)), folder)
    rng = np.random.default_rng(0)
    texts = [(f"text {i}", " ".join(f"w{w}" for w in rng.integers(2, 97, 300))) for i in range(5)]
    model = load_model(str(root / "model"))
    analyse(folder, only=("match", "activity"), model=model, texts=texts, device="cpu", progress=Progress(quiet=True))
    publish(folder)
    return members


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("wide")
    make_wide(root, "gpt2", 256)
    with browse(root) as client:
        yield client


def test_a_page_of_256_tokens_and_eight_members_is_below_a_megabyte(wide):
    text = " ".join(f"w{2 + i % 95}" for i in range(255))
    data = answered(wide, f"/s/wide/some/try.json?{urlencode({'text': text})}").json()
    assert (data["n_read"], len(data["members"])) == (255, 8)
    assert sum(len(member["feature"]) for member in data["members"]) > 0.9 * 255 * 8 * 10
    for more in ({}, {"seed": 3, "feature": data["members"][3]["feature"][0]}):
        page = answered(wide, f"/s/wide/some/try?{urlencode({'text': text, **more})}")
        assert page.status_code == 200
        assert len(page.content) < 500_000


def test_a_text_of_which_the_tokenizer_makes_nothing_keeps_the_box(wide):
    page = answered(wide, "/s/wide/some/try?text=+++")
    assert page.status_code == 422
    assert "makes no token of this text" in text_of(page.text)
    assert parsed(page.text).textarea


def test_an_encoder_reads_texts_too(tmp_path: Path):
    make_wide(tmp_path, "bert", 64)
    with browse(tmp_path) as client:
        data = answered(client, "/s/wide/some/try.json?text=w5+w6+w7").json()
        assert data["tokens"] == ["w5", "w6", "w7"]
        assert all(member["feature"] for member in data["members"])


def test_a_model_that_changed_or_left_is_told_and_the_box_stays(tmp_path: Path):
    make_wide(tmp_path, "gpt2", 64)
    save(tmp_path / "model", "gpt2", seed=9, max_position_embeddings=64, n_positions=64)
    tokenizer().save_pretrained(tmp_path / "model")
    with browse(tmp_path) as client:
        page = answered(client, "/s/wide/some/try?text=w5")
        assert page.status_code == 422
        assert "put that model back, or measure again" in text_of(page.text)
        assert parsed(page.text).textarea


def test_a_control_takes_no_text_because_its_model_is_not_the_studys(own_root, address):
    republish(own_root, "UPDATE Ensemble SET control_of = 'topk-96'")
    page = browse(own_root).get(f"{address}/try?text=def")
    assert page.status_code == 200
    assert "with random weights" in page.text
