"""The page Function and what other pages show of counterparts: against the store's own rows, read with plain SQL and NumPy."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup

from seedscope.engine.contract.tables.function import COUNTERPART_KINDS, SUBSTITUTES
from support.reading import answered, browse, republish, text_of
from support.studies import ask


@pytest.fixture(scope="module")
def store(study_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the published store, which the dashboard holds open."""
    (path,) = (study_root / "small").glob("study-*.duckdb")
    return Path(shutil.copy(path, tmp_path_factory.mktemp("copy")))


@pytest.fixture(scope="module")
def page(client, address) -> dict:
    return client.get(f"{address}/function.json").json()


@pytest.fixture(scope="module")
def features(client, address) -> dict[tuple[int, int], dict]:
    rows = client.get(f"{address}/features.json?limit=500").json()["rows"]
    return {(row["seed"], row["feature"]): row for row in rows}


def substitutes(store: Path, kind: str) -> list[tuple]:
    """(seed, feature, partners, cosines, correlations, jaccards, raw scores, scaled scores) of one kind."""
    columns = "seed, feature, partners, cosines, correlations, jaccards, substitutions, scaled_substitutions"
    return ask(store, f"SELECT {columns} FROM Substitute WHERE ensemble = 'topk-96' AND kind = '{kind}'")


@pytest.mark.parametrize("kind", COUNTERPART_KINDS)
@pytest.mark.parametrize("bucket", ["stable", "unstable"])
def test_shares_and_means_are_those_of_the_pairs(page, store, features, kind, bucket):
    found = [row for row in page["summaries"] if (row["bucket"], row["kind"]) == (bucket, kind)]
    correlations, raw, scaled = [], [], []
    for seed, feature, partners, _, correlation, _, score, scaled_score in substitutes(store, kind):
        if features[seed, feature]["bucket"] != bucket:
            continue
        has = [partner >= 0 for partner in partners]
        correlations += [value for value, there in zip(correlation, has, strict=True) if there]
        if score:
            raw += [value for value, there in zip(score, has, strict=True) if there]
            scaled += [value for value, there in zip(scaled_score, has, strict=True) if there]
    (row,) = found
    assert row["n_features"] == sum(each["bucket"] == bucket for each in features.values())
    assert row["n_pairs"] == len(correlations)
    assert row["n_scored"] == len(raw)
    assert row["correlation"] == pytest.approx(np.mean(correlations), abs=1e-5)
    assert row["raw_share"] == pytest.approx(np.mean(np.array(raw) >= SUBSTITUTES))
    assert row["scaled_share"] == pytest.approx(np.mean(np.array(scaled) >= SUBSTITUTES))
    assert row["scaled_share_low"] <= row["scaled_share"] <= row["scaled_share_high"]


def test_the_most_similar_pairs_are_counted_by_each_rules_own_measure(page, store):
    assert {row["kind"] for row in page["most_similar"]} >= {"argmax", "live", "transport", "active"}
    for row in page["most_similar"]:
        pairs = []
        for *_, partners, cosines, correlations, _, scores, _ in substitutes(store, row["kind"]):
            alike = correlations if row["kind"] == "active" else cosines
            pairs += [pair for *pair, partner in zip(alike, scores, partners, strict=False) if partner >= 0]
        best = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[: row["rank"]]
        assert row["n"] == len(best)
        assert row["share"] == pytest.approx(np.mean([score >= SUBSTITUTES for _, score in best]))


def test_the_marginal_gap_that_transport_reached_stands_beside_its_numbers(client, address, page, store):
    gaps = ask(store, "SELECT marginal_gap, share FROM TransportPlan WHERE ensemble = 'topk-96'")
    reached = page["transport"]
    assert reached["n_plans"] == len(gaps) > 0
    assert reached["marginal_gap"] == pytest.approx(max(gap for gap, _ in gaps))
    assert reached["share"] == pytest.approx(np.mean([share for _, share in gaps]))
    shown = text_of(client.get(f"{address}/function").text)
    assert f"marginal gap at most {reached['marginal_gap']:.1e}" in shown


def test_without_transport_the_page_says_so(own_root, address):
    republish(
        own_root,
        "DELETE FROM TransportPlan",
        "DELETE FROM Substitute WHERE kind = 'transport'",
        "DELETE FROM FunctionSummary WHERE kind = 'transport'",
    )
    bare = browse(own_root)
    page = bare.get(f"{address}/function.json").json()
    assert page["transport"] is None
    assert "transport" not in {row["kind"] for row in page["most_similar"] + page["summaries"]}
    assert "Optimal transport is not measured here" in text_of(bare.get(f"{address}/function").text)


def test_every_number_of_the_page_stands_in_its_twin(client, address, page):
    shown = text_of(client.get(f"{address}/function").text)
    (row,) = [row for row in page["summaries"] if (row["bucket"], row["kind"]) == ("unstable", "argmax")]
    assert page["sentence"].replace("\xa0", " ") in shown.replace("\xa0", " ")
    assert f"{row['correlation']:.2f}" in shown
    assert f"{100 * row['scaled_share']:.1f}" in shown
    csv = client.get(f"{address}/function.csv").text.splitlines()
    assert len(csv) == 1 + len(page["summaries"])


@pytest.mark.parametrize("rule", ["argmax", "live", "mutual", "active"])
def test_a_features_counterparts_say_what_they_do(client, address, store, rule):
    kind = {"mutual": "argmax"}.get(rule, rule)
    rows = {(row[0], row[1]): row[2:] for row in substitutes(store, kind)}
    for seed, feature in ((0, 5), (1, 30)):
        matches = client.get(f"{address}/{seed}/{feature}.json?rule={rule}").json()["matches"]
        partners, _, correlations, jaccards, scores, scaled = rows[seed, feature]
        for i, match in enumerate(matches):
            if match["rule_partner"] is None:
                assert match["correlation"] is match["jaccard"] is match["substitution"] is None
                continue
            assert match["rule_partner"] == partners[i]
            assert match["correlation"] == pytest.approx(correlations[i])
            assert match["jaccard"] == pytest.approx(jaccards[i])
            assert match["substitution"] == (pytest.approx(scores[i]) if scores else None)
            assert match["scaled_substitution"] == (pytest.approx(scaled[i]) if scores else None)


def test_lists_are_filtered_and_downloaded_by_co_firing(client, address, features):
    least = float(np.median([row["cofiring"] for row in features.values() if row["cofiring"] is not None]))
    least = round(least, 2)
    found = client.get(f"{address}/features.json?cofire_min={least}&limit=500").json()
    wanted = {key for key, row in features.items() if row["cofiring"] is not None and row["cofiring"] >= least}
    assert {(row["seed"], row["feature"]) for row in found["rows"]} == wanted
    assert 0 < found["total"] < len(features)
    assert client.get(f"{address}/features.json?cofire_min=2").status_code == 422


@pytest.mark.parametrize(
    "page", ["", "/features", "/buckets", "/members", "/members?a=0&b=1", "/0/5", "/1/30", "/try?text=def+f(x):&seed=0"]
)
def test_under_the_rule_of_activity_nothing_calls_a_correlation_a_cosine(client, address, page):
    """Beside it stand figures that are cosines under every rule: of encoders, and of worth against the mean cosine."""
    asked = f"{address}{page}{'&' if '?' in page else '?'}rule=active"
    soup = BeautifulSoup(answered(client, asked).text, "html.parser")
    for strip in soup.select("svg.strip"):
        assert "cosine" not in strip["aria-label"] + "".join(title.text for title in strip.select("title"))
    assert "a correlation of at least θ" in str(soup) or not soup.select("#theta")
    for caption in soup.select("figcaption, .caption"):
        assert "Grey dashes" not in caption.text
    for entry in soup.select(".entry"):
        entry.decompose()
    shown = soup.select_one("main").get_text(" ", strip=True)
    assert "best cosine" not in shown.replace("mean best cosine", "")
    assert "chance reaches" not in shown
    assert "By chance: not known" in shown or "/0/5" not in page


def test_chance_is_unknown_where_theta_cuts_correlations(client, address):
    for page, names in (
        ("", ("null_rates", "null_p999")),
        ("/buckets", ("null_rates", "null_p999")),
        ("/0/5", ("null_rate",)),
    ):
        under = {rule: client.get(f"{address}{page}.json?rule={rule}").json() for rule in ("argmax", "active")}
        for name in names:
            assert under["active"][name] == {} != under["argmax"][name]


def test_downloads_of_pairs_name_the_correlation(client, address, store):
    lines = client.get(f"{address}/members.csv?rule=active&a=0&b=1").text.replace('"', "").splitlines()
    assert lines[0] == "feature,partner,correlation,runner_up,mutual,dead"
    assert client.get(f"{address}/members.csv?a=0&b=1").text.startswith('"feature","partner","cosine","runner_up"')
    assert "mean_correlation" in client.get(f"{address}/members.csv?rule=active").text.splitlines()[0]
    rows = {(row[0], row[1]): row[4][0] for row in substitutes(store, "active")}
    for line in lines[1:]:
        feature, partner, correlation, *_ = line.split(",")
        if int(partner) >= 0:
            assert float(correlation) == pytest.approx(rows[0, int(feature)], abs=1e-6)


def test_without_the_analysis_the_page_names_the_command_and_lists_refuse_it(own_root, address):
    republish(
        own_root,
        "UPDATE Ensemble SET computed = list_filter(computed, lambda c: c != 'function')",
        "DELETE FROM Substitute",
        "DELETE FROM SmallSet",
        "DELETE FROM FunctionSummary",
        "DELETE FROM TransportPlan",
        "UPDATE Feature SET active_correlations = [], cofiring = NULL, substitution = NULL",
        "UPDATE Match SET active_partners = []",
        "DELETE FROM Pair WHERE rule = 'active'",
    )
    bare = browse(own_root)
    told = bare.get(f"{address}/function.json").json()
    assert told["summaries"] == told["most_similar"] == []
    assert "seedscope analyze small --only function" in told["missing"][0]["command"]
    assert "seedscope analyze small --only function" in text_of(bare.get(f"{address}/function").text)
    for query in ("sort=cofiring", "cofire_min=0.5", "rule=active"):
        refused = bare.get(f"{address}/features.json?{query}")
        assert refused.status_code == 422
        assert "--only function" in refused.text
    assert bare.get(f"{address}/0/5.json").json()["matches"][0]["correlation"] is None
    assert "fires alike" not in text_of(bare.get(f"{address}/features").text)
