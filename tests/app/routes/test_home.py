"""The first page: what stability is by an example of the study at hand, three ways in, studies with their shares."""

import re

import pytest

from support.reading import links, parsed, text_of
from support.studies import ENSEMBLE, STUDY


@pytest.fixture(scope="module")
def home(client):
    return client.get("/").text


def test_the_example_is_a_feature_whose_numbers_are_those_of_its_page(client, home):
    example = client.get("/index.json").json()["example"]
    feature = client.get(f"{example['address']}.json").json()
    assert example["feature"]["n_matched"] == feature["n_matched"]
    n = feature["n_comparisons"]
    assert f"{feature['n_matched']}/{n} = {feature['n_matched'] / n:.2f}" in text_of(home)
    bars = parsed(home).select(".explained .strip rect:not(.track)")
    assert len(bars) == n
    assert sum("solid" in bar["class"] for bar in bars) == feature["n_matched"]


def test_three_ways_in_lead_where_they_say(client, home, address):
    ways = links(home, ".ways a.way")
    assert ways == [
        f"{address}/features?bucket=stable",
        f"{address}/features?bucket=unstable&sort=density",
        f"{address}/subspaces",
    ]
    counts = [int(e.text.replace(",", "")) for e in parsed(home).select("b.way-count")]
    for way, count in zip(ways, counts, strict=False):
        assert client.get(way.replace("?", ".json?")).json()["total"] == count


def test_a_study_of_one_ensemble_opens_it_at_once(home, address):
    assert links(home, ".study-card h3 a") == [address]


def test_share_bars_are_the_shares_of_the_overview(client, home, address):
    label = parsed(home).select_one(".share-line .shares")["aria-label"]
    shown = [float(share) / 100 for share in re.findall(r"([\d.]+)\s%", label)]
    (summary,) = client.get(f"/s/{STUDY}.json").json()["ensembles"]
    assert shown == pytest.approx([summary[b] for b in ("stable", "middle", "unstable")], abs=5e-4)
    assert ENSEMBLE in text_of(parsed(home).select_one(".share-line"))


def test_how_to_load_ones_own_is_said_in_commands(home):
    assert "seedscope import mine" in text_of(parsed(home).select_one(".own"))
    assert "/manual/importing" in links(home, ".own a")
