"""What a feature, an ensemble and a study look like in a notebook: the numbers of their pages, as inert HTML."""

import re
from dataclasses import replace

import pytest
from bs4 import BeautifulSoup

import seedscope
from seedscope.app.formats import HIGHLIGHT_STEPS
from support.studies import ENSEMBLE, STUDY, members_that_agree, publish_study


@pytest.fixture
def ensemble(study_root):
    return seedscope.open(study_root)[STUDY][ENSEMBLE]


def text(html: str) -> str:
    soup = BeautifulSoup(html, "html.parser")
    soup.style.decompose()
    return " ".join(soup.get_text(" ").split())


def test_a_feature_shows_stability_with_its_interval_and_n_beside_chance(ensemble, client, address):
    for index in (0, 17, 40):
        feature = ensemble.feature(1, index, theta=0.6)
        page = client.get(f"{address}/1/{index}.json", params={"theta": 0.6}).json()
        said = text(feature._repr_html_())
        low, high = page["stability_low"], page["stability_high"]
        assert f"p = {page['stability']:.2f} : {page['n_matched']} of 3 other seeds" in said
        assert f"95 % interval {low:.2f} to {high:.2f}" in said
        assert page["bucket"] in said
        assert feature.chance == pytest.approx(page["null_rate"])
        for rate in feature.chance.values():
            assert (
                f"{100 * rate:.2f}\u202f%" in said
                or f"{100 * rate:.2f} %" in said
                or f"{100 * rate:.2f}\u00a0%" in said
            )
        assert "θ 0.6" in said


def test_the_strip_has_a_bar_per_other_seed_and_contexts_have_their_peak(ensemble):
    feature = next(
        each for each in (ensemble.feature(0, i) for i in range(96)) if each.contexts and each.bucket == "stable"
    )
    soup = BeautifulSoup(feature._repr_html_(), "html.parser")
    (track,) = soup.select("svg.strip.stable path.track")
    assert track["d"].count("M") == 3
    contexts = soup.select(".context")
    assert len(contexts) == 5
    strongest = max(feature.contexts[:5], key=lambda context: max(context.activations))
    peak = strongest.tokens[strongest.activations.index(max(strongest.activations))]
    assert peak.strip() in "".join(each.text for each in soup.select(f".a{HIGHLIGHT_STEPS}"))


def test_texts_are_escaped_and_nothing_is_fetched(ensemble):
    feature = ensemble.feature(0, 5)
    evil = '<img src=x onerror="alert(1)">'
    contexts = [replace(context, tokens=[evil] * len(context.tokens), document=evil) for context in feature.contexts]
    row = replace(feature.row, explanation=evil, explainer=evil)
    html = replace(feature, study=evil, ensemble=evil, permalink=evil, contexts=contexts, row=row)._repr_html_()
    soup = BeautifulSoup(html, "html.parser")
    assert not soup.select("img, script, link, iframe, a, object")
    assert evil in soup.get_text()
    assert not re.search(r"url\(|@import|https?:|src=[\"']|\bon\w+=\"[^&]", html.replace("onerror=&#34;", ""))
    assert not any(name.startswith("on") for tag in soup.find_all() for name in tag.attrs)


def test_an_ensemble_and_a_study_show_their_shares(study_root, ensemble):
    counts = ensemble.features(dead="exclude")["bucket"].to_pylist()
    n = len(counts)
    for said in (text(ensemble._repr_html_()), text(seedscope.open(study_root)[STUDY]._repr_html_())):
        assert "4 SAEs × 96 features" in said
        for bucket in ("stable", "middle", "unstable"):
            assert re.search(rf"{100 * counts.count(bucket) / n:.1f}\s%\s{bucket}", said)
        assert f"{4 * 96 - n} dead" in said


def test_one_sae_alone_and_an_unknown_start_are_told(tmp_path):
    members = members_that_agree()
    publish_study(tmp_path, "mixed", {"five": (members, {}), "alone": (members.only(1), {})})
    study = seedscope.open(tmp_path)["mixed"]
    alone = study["alone"].feature(1, 3)
    assert "stability is undefined" in text(alone._repr_html_())
    assert "stability is undefined" in text(study["alone"]._repr_html_())
    assert "no contexts" in text(alone._repr_html_())
    assert "agreement (start unknown)" in text(study["five"].feature(1, 3)._repr_html_())
    assert "2 without a direction" in text(study["five"]._repr_html_())
