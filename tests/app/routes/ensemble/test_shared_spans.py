"""Pages of small shared spans: a planted study whose spans are kept, one without any, and ensembles where nothing is searched."""

import shutil

import numpy as np
import pytest

from support.reading import assert_valid_plotly, browse, figures_of, links, parsed, republish, text_of
from support.span_study import N_SEEDS, RANKS, SPAN_ENSEMBLE, SPAN_STUDY, members_with_spans, planted_block
from support.studies import members_that_agree, publish_study

KEPT, BARE, PAIR = f"/s/{SPAN_STUDY}/{SPAN_ENSEMBLE}", "/s/bare/free", "/s/bare/pair"
NULLS = ("living", "density", "rotated", "second_moment")


@pytest.fixture(scope="module")
def root(tmp_path_factory, span_root):
    """SPAN_STUDY was run on tokens and has two kept spans; `bare` is of decoders alone: noise, a pair, and one SAE."""
    root = tmp_path_factory.mktemp("spans")
    shutil.copytree(span_root[0] / SPAN_STUDY, root / SPAN_STUDY)
    publish_study(
        root,
        "bare",
        {
            "free": (members_with_spans(24, ranks=(), n_noise=30, n_shared=6, n_seeds=4), {}),
            "pair": (members_that_agree(members=2), {}),
            "alone": (members_that_agree(members=1), {}),
        },
        only=("match", "shared_spans"),
    )
    return root


@pytest.fixture(scope="module")
def client(root):
    with browse(root) as client:
        yield client


@pytest.fixture(scope="module")
def listed(client) -> dict:
    return client.get(f"{KEPT}/spans.json").json()


@pytest.fixture(scope="module")
def spans(listed) -> list[dict]:
    return [line["span"] for line in listed["spans"]]


@pytest.fixture(scope="module")
def pages(client, spans) -> list[dict]:
    return [client.get(f"{KEPT}/spans/{span['span']}.json").json() for span in spans]


def shown(text: str) -> str:
    return text.replace("\xa0", " ")


def test_the_planted_spans_are_listed_and_the_answer_says_so(client, listed, spans):
    assert [span["kept"] for span in spans] == [True, True]
    assert sorted(span["rank"] for span in spans) == sorted(RANKS)
    ranks, sharing = {span["rank"] for span in spans}, {span["n_sharing"] for span in spans}
    assert listed["sentence"].startswith(
        f"2 small spans of rank {min(ranks)} to {max(ranks)} are shared by {sharing.pop()} of 5 seeds"
    )
    summary = listed["summary"]
    assert (
        f"{100 * summary['shared']:.0f} % [{100 * summary['shared_low']:.0f}, {100 * summary['shared_high']:.0f}]"
        in shown(listed["sentence"])
    )
    assert f"{100 * summary['chance_share']:.1f} %" in shown(listed["sentence"])
    page = client.get(f"{KEPT}/spans")
    text = shown(text_of(page.text))
    assert shown(listed["sentence"]) in text
    figure = figures_of(page.text)["spans-captured"]
    assert_valid_plotly(figure)
    (kept,) = [trace for trace in figure["data"] if trace["name"] == "kept"]
    assert kept["y"] == pytest.approx([span["energy"] for span in spans], abs=1e-3)
    assert kept["customdata"] == [f"{KEPT}/spans/{span['span']}" for span in spans]


def test_numbers_are_those_of_plain_numpy(span_root, spans, pages):
    """Members, their energies in the other seeds' span, and the seeds' overlaps, from the planted decoder rows."""
    decoders = span_root[1].W_dec.detach().double().numpy()
    decoders /= np.linalg.norm(decoders, axis=-1, keepdims=True)
    for span, page in zip(spans, pages, strict=True):
        members = [(each["seed"], each["feature"]) for each in page["features"]]
        assert len(members) == span["n_features"]
        assert len({planted_block(feature) for _, feature in members}) == 1
        rows = np.array([decoders[seed, feature] for seed, feature in members])
        seeds = np.array([seed for seed, _ in members])
        bases = {
            seed: np.linalg.svd(rows[seeds == seed], full_matrices=False)[2][: span["rank"]].T
            for seed in range(N_SEEDS)
        }
        for each, row in zip(page["features"], rows, strict=True):
            others = np.linalg.svd(rows[seeds != each["seed"]], full_matrices=False)[2][: span["rank"]].T
            assert each["energy"] == pytest.approx(((row @ others) ** 2).sum(), abs=1e-4)
        whole = np.linalg.svd(rows, full_matrices=False)[2][:2].T
        np.testing.assert_allclose(
            np.abs([[each["x"], each["y"]] for each in page["features"]]), np.abs(rows @ whole), atol=1e-4
        )
        for pair in page["pairs"]:
            a, b = bases[pair["seed"]], bases[pair["other"]]
            overlap = np.linalg.norm(a.T @ b) ** 2 / min(a.shape[1], b.shape[1])
            assert pair["overlap"] == pytest.approx(overlap, abs=1e-4)


def test_a_spans_page_shows_what_its_twin_holds(client, spans, pages):
    for span, page in zip(spans, pages, strict=True):
        answer = client.get(f"{KEPT}/spans/{span['span']}")
        text = shown(text_of(answer.text))
        assert shown(page["sentence"]) in text
        assert shown(page["ablation"]) in text
        assert f"{span['ev']:.4f}" in text
        assert f"{100 * span['energy']:.1f} %" in text
        figures = figures_of(answer.text)
        assert set(figures) == {"span-seeds", "span-pairs", "span-tiles"}
        for figure in figures.values():
            assert_valid_plotly(figure)
        (captured,) = [trace for trace in figures["span-seeds"]["data"] if trace["name"] == "captured"]
        tests = [member["test"] for member in page["members"]]
        assert captured["x"] == pytest.approx([test["energy"] for test in tests], abs=1e-3)
        for name in NULLS:
            assert all(test[f"{name}_mean"] <= test[f"{name}_high"] <= 1 for test in tests)
        cells = figures["span-pairs"]["data"][0]["z"]
        for pair in page["pairs"]:
            assert cells[pair["seed"]][pair["other"]] == pytest.approx(pair["energy"], abs=1e-4)
        tiled = [len(trace["x"]) for trace in figures["span-tiles"]["data"] if trace["name"].startswith("seed")]
        assert tiled == [test["n_members"] for test in tests]
        opened = links(answer.text, "#members td a")
        assert opened == [f"{KEPT}/{each['seed']}/{each['feature']}" for each in page["features"]]


def test_contexts_share_one_scale_and_token_shares_are_of_the_whole(client, spans, pages):
    for span, page in zip(spans, pages, strict=True):
        assert [each["seed"] for each in page["contexts"]] == list(range(N_SEEDS))
        norms = [max(context["activations"]) for each in page["contexts"] for context in each["contexts"]]
        html = parsed(client.get(f"{KEPT}/spans/{span['span']}").text)
        assert f"max {max(norms):.2f}" in text_of(html.select_one("#contexts h2"))
        assert {float(button.text) for button in html.select("#contexts .maximum")} == {
            float(f"{n:.2f}") for n in norms
        }
        assert len(html.select("#contexts .peak.a20")) >= 1  # the strongest of all seeds, and no other peak above it
        shares = [token["share"] for token in page["tokens"]]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1 + 1e-6
        for each in page["contexts"]:
            for context in each["contexts"]:
                assert len(context["tokens"]) == len(context["activations"])


def test_a_span_is_explained_as_a_whole_on_its_page_and_in_the_list(client, listed, spans, pages):
    for line, page in zip(listed["spans"], pages, strict=True):
        (told,) = page["explanations"]
        assert told == line["explanation"]
        html = parsed(client.get(f"{KEPT}/spans/{page['span']['span']}").text).select_one("#explanation")
        assert text_of(html.select_one(".said")) == " ".join(told["text"].split())
        assert f"{told['value']:.2f}" in text_of(html.select_one(".score"))
        assert f"on {told['n_active']} + {told['n_silent']} contexts" in text_of(html)
        if told["active_from"] > 0:
            assert f"reach {told['active_from']:.2f}" in text_of(html)
        found = client.get(f"{KEPT}/spans.json", params={"q": told["text"][4:60].upper()}).json()["spans"]
        assert [each["span"]["span"] for each in found] == [page["span"]["span"]]
    rows = client.get(f"{KEPT}/spans/explanations.csv").text.splitlines()
    assert len(rows) == 1 + len(spans)


def test_the_loss_stands_beside_its_controls_with_the_tokens_it_is_of(client, spans, pages):
    for span, page in zip(spans, pages, strict=True):
        assert page["no_loss"] is None
        assert 0 < page["n_loss_tokens"] < 100
        text = shown(text_of(parsed(client.get(f"{KEPT}/spans/{span['span']}").text).select_one("#ablation")))
        assert f"{span['loss']:.3f} nats instead of {span['loss_whole']:.3f}, on {page['n_loss_tokens']} tokens" in text
        assert f"with the same others masked it is {span['loss_control']:.3f} ± {span['loss_control_sd']:.3f}" in text
        assert f"{span['loss_control']:.4f} ± {span['loss_control_sd']:.4f}" in text


def test_what_a_former_version_did_not_measure_is_not_shown_as_a_number(root, spans, tmp_path):
    shutil.copytree(root / SPAN_STUDY, tmp_path / "small")
    republish(
        tmp_path,
        "UPDATE SharedSpan SET loss = NULL, loss_control = NULL, loss_control_sd = NULL, loss_whole = NULL",
        "UPDATE SharedSpanSummary SET n_loss_tokens = NULL",
        "DELETE FROM SharedSpanExplanation",
    )
    with browse(tmp_path) as client:
        here = f"/s/small/{SPAN_ENSEMBLE}/spans/{spans[0]['span']}"
        twin = client.get(f"{here}.json").json()
        assert "seedscope analyze small --only shared_spans,loss" in twin["no_loss"]
        assert (twin["explanations"], twin["n_loss_tokens"]) == ([], None)
        page = parsed(client.get(here).text)
        assert "was not measured" in text_of(page.select_one("#no-loss"))
        assert page.select_one("#explanation") is None
        assert "nats" not in text_of(page.select_one("#ablation"))
        assert [line["explanation"] for line in client.get(f"/s/small/{SPAN_ENSEMBLE}/spans.json").json()["spans"]] == [
            None
        ] * 2


def test_members_are_listed_with_their_explanations_those_first_that_carry_most(root, pages, tmp_path):
    assert pages[0]["explained"] == []  # not computed
    by_weight = sorted(pages[0]["features"], key=lambda each: -each["activation_energy"])
    told = f"seed = {by_weight[0]['seed']} AND feature = {by_weight[0]['feature']}"
    shutil.copytree(root / SPAN_STUDY, tmp_path / "small")
    republish(
        tmp_path,
        f"UPDATE Feature SET explanation = 'names of files', explainer = 'a rule', score = 0.75 WHERE {told}",
        "UPDATE Ensemble SET computed = list_append(computed, 'explain')",
    )
    with browse(tmp_path) as client:
        here = f"/s/small/{SPAN_ENSEMBLE}/spans/{pages[0]['span']['span']}"
        (member,) = client.get(f"{here}.json").json()["explained"]
        assert (member["explanation"], member["explainer"], member["score"]) == ("names of files", "a rule", 0.75)
        assert member["activation_energy"] == pytest.approx(by_weight[0]["activation_energy"])
        card = text_of(parsed(client.get(here).text).select_one("#explained"))
        assert f"#{by_weight[0]['feature']} names of files 0.75" in card


def test_the_list_filters_and_sorts_through_the_address(client, spans):
    def found(query: str) -> list[int]:
        return [line["span"]["number"] for line in client.get(f"{KEPT}/spans.json?{query}").json()["spans"]]

    by_rank = sorted(spans, key=lambda span: -span["rank"])
    assert found("sort=rank") == [span["number"] for span in by_rank]
    assert found("sort=rank&dir=asc") == [span["number"] for span in by_rank[::-1]]
    assert found(f"rank_min={by_rank[0]['rank']}") == [by_rank[0]["number"]]
    assert found(f"rank_max={by_rank[1]['rank']}&rank_min=&q=") == [by_rank[1]["number"]]
    assert found("show=kept") == [1, 2]
    assert found("show=unexplained") == found("sharing_min=6") == found("q=no+such+token") == found("first=2") == []
    token = client.get(f"{KEPT}/spans.json").json()["spans"][0]["top_tokens"][0]
    assert 1 in [
        line["span"]["number"] for line in client.get(f"{KEPT}/spans.json", params={"q": token}).json()["spans"]
    ]
    assert client.get(f"{KEPT}/spans.json?sort=colour").status_code == 422
    page = client.get(f"{KEPT}/spans?show=unexplained&sort=rank&theta=0.5")
    assert "No candidate fits all these filters" in text_of(page.text)
    (header,) = parsed(client.get(f"{KEPT}/spans?sort=rank").text).select("#candidates th[aria-sort]")
    assert header["aria-sort"] == "descending"
    assert "dir=asc" in header.a["href"]


def test_downloads_hold_every_row(client, spans, pages):
    assert len(client.get(f"{KEPT}/spans.csv").text.splitlines()) == 1 + len(spans)
    for table, field in (("pairs", "pairs"), ("features", "features"), ("seeds", "members")):
        rows = client.get(f"{KEPT}/spans/{table}.csv").text.splitlines()[1:]
        assert len(rows) == sum(len(page[field]) for page in pages)
        assert client.get(f"{KEPT}/spans/{table}.parquet").content[:4] == b"PAR1"


def test_a_permalink_is_pinned_and_an_unknown_span_says_where_they_are_listed(client, spans):
    here = f"{KEPT}/spans/{spans[0]['span']}"
    (copied,) = links(client.get(here).text, "[data-copy]")
    digest = client.get(f"{here}.json").json()["digest"]
    assert copied == f"{here}?v={digest}"
    assert "made for other data" not in client.get(copied).text
    assert "made for other data" in client.get(f"{here}?v=0123abcd").text
    missing = client.get(f"{KEPT}/spans/000000000000.json")
    assert missing.status_code == 404
    assert f"{KEPT}/spans" in missing.json()["problems"][0]["expected"]
    page = client.get(f"{KEPT}/spans/000000000000?v=0123abcd")
    assert page.status_code == 404
    assert KEPT in links(page.text, "#main a")


def test_a_features_page_names_its_span(client, pages, span_root):
    member = pages[0]["features"][0]
    place = f"{KEPT}/{member['seed']}/{member['feature']}"
    (twin,) = client.get(f"{place}.json").json()["shared_spans"]
    span = pages[0]["span"]
    assert {name: twin[name] for name in ("span", "number", "kept", "rank")} == {
        name: span[name] for name in ("span", "number", "kept", "rank")
    }
    assert twin["energy"] == pytest.approx(member["energy"])
    assert twin["explanation"] == pages[0]["explanations"][0]["text"]
    html = parsed(client.get(place).text).select_one("#shared-span")
    assert text_of(html.a) == f"part of span #1, which {span['n_sharing']} of 5 seeds share"
    assert html.a["href"] == f"{KEPT}/spans/{span['span']}"
    assert " ".join(twin["explanation"].split()) in text_of(html)
    shared = span_root[1].d_sae - 1  # the last row is the same in all seeds: not unstable
    assert client.get(f"{KEPT}/0/{shared}.json").json()["shared_spans"] == []


def test_the_overview_answers_the_papers_question(client, listed):
    page = client.get(KEPT)
    card = shown(text_of(parsed(page.text).select_one("#shared-spans")))
    assert shown(listed["question"]) in card
    assert "2 of 2 candidates are kept" in card
    summary = client.get(f"{KEPT}.json").json()["shared_spans"]
    assert summary == listed["summary"]
    assert f"{KEPT}/spans" in links(page.text, "#shared-spans a")


def test_candidates_that_nothing_keeps_apart_from_chance_say_why(root, spans, tmp_path):
    """The same study with its candidates unexplained: one in the list's words, its page and its features'."""
    shutil.copytree(root / SPAN_STUDY, tmp_path / "small")
    republish(
        tmp_path,
        "UPDATE SharedSpan SET kept = false, failed = 'living', p_value = 0.4, n_sharing = 0 WHERE number = 1",
        "UPDATE SharedSpan SET kept = false, failed = 'not_found_again', p_value = 1, energy = NULL WHERE number = 2",
        "UPDATE SharedSpanSummary SET n_kept = 0, failures = ['living', 'not_found_again'], failure_counts = [1, 1], "
        "n_members = 0, shared = 0, shared_low = 0, shared_high = 0, chance_share = 0, member_share = 0",
    )
    with browse(tmp_path) as client:
        twin = client.get(f"/s/small/{SPAN_ENSEMBLE}/spans.json").json()
        assert twin["sentence"] == (
            "None of the 2 candidates beats all four nulls: 1 is explained as well by random living features and 1 is not "
            "found again when single seeds are left out."
        )
        assert "no part is shown to lie in small shared spans" in twin["question"]
        page = client.get(f"/s/small/{SPAN_ENSEMBLE}/spans")
        assert twin["sentence"] in text_of(page.text)
        assert text_of(parsed(page.text).select_one("#candidates tbody")).startswith("#1 living as well")
        assert "random living features explain it as well 1" in text_of(parsed(page.text).select_one("#unexplained"))
        (circles,) = [t for t in figures_of(page.text)["spans-captured"]["data"] if t["name"] == "unexplained"]
        assert circles["marker"]["symbol"] == "circle-open"
        assert circles["x"] == ["#1"]  # of the other nothing is known
        first = client.get(f"/s/small/{SPAN_ENSEMBLE}/spans/{spans[0]['span']}")
        assert "Why is it not kept?" in text_of(first.text)
        second = shown(text_of(client.get(f"/s/small/{SPAN_ENSEMBLE}/spans/{spans[1]['span']}").text))
        assert "nothing is measured of it" in second
        member = client.get(f"/s/small/{SPAN_ENSEMBLE}/spans/{spans[0]['span']}.json").json()["features"][0]
        feature = text_of(client.get(f"/s/small/{SPAN_ENSEMBLE}/{member['seed']}/{member['feature']}").text)
        assert "in candidate #1, which nothing keeps apart from chance" in feature


def test_the_control_stands_beside_what_it_is_of(root, tmp_path):
    shutil.copytree(root / "bare", tmp_path / "small")
    republish(tmp_path, "UPDATE Ensemble SET control_of = 'free' WHERE ensemble = 'pair'")
    with browse(tmp_path) as client:
        for ensemble in ("free", "pair"):
            sides = client.get(f"/s/small/{ensemble}/spans.json").json()["sides"]
            assert [(side["ensemble"], side["is_control"]) for side in sides] == [("free", False), ("pair", True)]
        says = "On the model with random weights nothing was searched: found 2 seeds"
        assert client.get("/s/small/free/spans.json").json()["control"].startswith(says)
        assert client.get("/s/small/pair/spans.json").json()["control"] is None
        assert client.get("/s/small/free.json").json()["shared_spans_control"].startswith(says)
        assert client.get("/s/small/pair.json").json()["shared_spans_control"] is None
        assert says in text_of(parsed(client.get("/s/small/free").text).select_one("#shared-spans"))
        page = parsed(client.get("/s/small/free/spans?theta=0.5").text)
        assert "random weights" in text_of(page.select_one("#control"))
        assert says in text_of(page.select_one("#control"))
        assert page.select_one("#control td a")["href"] == "/s/small/pair/spans?theta=0.5"


def test_noise_has_no_candidate_and_the_page_says_so(client):
    twin = client.get(f"{BARE}/spans.json").json()
    assert (twin["spans"], twin["summary"]["n_kept"]) == ([], 0)
    page = client.get(f"{BARE}/spans")
    assert page.status_code == 200
    assert "No candidate was found" in text_of(page.text)
    assert not figures_of(page.text)


def test_fewer_than_three_seeds_are_said(client):
    page = client.get(f"{PAIR}/spans")
    assert page.status_code == 200
    assert "found 2 seeds, expected at least 3" in text_of(page.text)
    alone = client.get("/s/bare/alone/spans")
    assert alone.status_code == 200
    assert "three seeds" in text_of(alone.text) or "at least 3" in text_of(alone.text)


def test_what_was_not_computed_names_the_command_and_offers_the_job(tmp_path):
    publish_study(tmp_path, "mine", {"topk": (members_that_agree(), {}), "one": (members_that_agree(members=1), {})})
    with browse(tmp_path) as client:
        twin = client.get("/s/mine/topk/spans.json").json()
        (lack,) = twin["missing"]
        assert lack["command"] == "seedscope analyze mine --only shared_spans"
        assert (twin["summary"], twin["spans"]) == (None, [])
        page = parsed(client.get("/s/mine/topk/spans").text)
        assert "seedscope analyze mine --only shared_spans" in text_of(page)
        assert page.select_one("form.compute input[name=only]")["value"] == "shared_spans"
        tab = next(tab for tab in page.select(".tabs a") if tab.text == "Spans")
        assert (tab["aria-current"], tab["title"]) == ("page", "not computed yet")
        one = client.get("/s/mine/one/spans")
        assert one.status_code == 200
        assert "three seeds" in text_of(one.text)
        lacks = {lack["field"] for lack in client.get("/s/mine/topk/0/5.json").json()["missing"]}
        assert "shared_spans" in lacks
