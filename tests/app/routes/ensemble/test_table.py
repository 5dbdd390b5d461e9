"""The table page beside its rows: the page that holds a feature, and downloads that say what they are."""

import csv
import io
import json
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow.parquet
import pytest

from seedscope.app.formats import hit_runs
from seedscope.app.store.download import METADATA_KEY
from support.reading import browse, links, parsed, republish
from support.studies import ENSEMBLE, STUDY

QUERY = {"bucket": "unstable", "theta": 0.6, "epsilon": 0.1, "rule": "mutual", "sort": "density"}


def test_a_feature_leads_back_to_its_row_on_its_page(client, address):
    query = "sort=density&theta=0.6"
    order, after = [], ""
    while after is not None:
        data = client.get(f"{address}/features.json?{query}{after and f'&after={after}'}").json()
        order += [[(row["seed"], row["feature"]) for row in data["rows"]]]
        after = data["after"]
    for number, index in ((0, 0), (0, 49), (1, 0), (3, 17), (7, 33)):
        seed, feature = order[number][index]
        up = links(client.get(f"{address}/{seed}/{feature}?{query}").text, "[data-up]")[0]
        page = parsed(client.get(up).text)
        shown = [row["href"].split("?")[0] for row in page.select(".row-link")]
        assert shown == [f"{address}/{s}/{f}" for s, f in order[number]]
        (selected,) = page.select("tr.selected .row-link")
        assert selected["href"].split("?")[0] == f"{address}/{seed}/{feature}"
        assert all("at=" not in link for link in links(client.get(up).text, "main a"))
    outside = client.get(f"{address}/features?bucket=stable&at=0/99999999")
    assert (outside.status_code, parsed(outside.text).select("tr.selected")) == (200, [])
    assert client.get(f"{address}/features.json?at=x").status_code == 422


def _of_densities(rows: list[dict], bins: list[dict]) -> list[int]:
    """Features per bin, by NumPy, from rows with a density."""
    densities = np.array([row["density"] for row in rows if row["density"]])
    places = np.floor(np.log10(densities) * 8).astype(int) + len(bins)
    return np.bincount(np.minimum(places, len(bins) - 1), minlength=len(bins)).tolist()


def test_densities_are_counted_on_a_log_scale_under_all_filters_but_their_own(client, address, stored):
    bins = client.get(f"{address}/features.json").json()["densities"]
    rows = stored("SELECT seed, density, n_tokens FROM Feature WHERE ensemble = ?", ENSEMBLE)
    assert [b["features"] for b in bins] == _of_densities(rows, bins)
    assert sum(b["features"] for b in bins) == sum(row["density"] > 0 for row in rows)
    edges = [b["low"] for b in bins] + [bins[-1]["high"]]
    assert edges[-1] == 1
    assert edges[0] <= 1 / max(row["n_tokens"] for row in rows)
    assert np.allclose(np.diff(np.log10(edges)), 1 / 8)

    # Its own bounds leave the bars as they are; another filter does not.
    for query, wanted in (("density_min=0.01&density_max=0.2", rows), ("seed=3", [r for r in rows if r["seed"] == 3])):
        data = client.get(f"{address}/features.json?{query}").json()["densities"]
        assert [b["features"] for b in data] == _of_densities(wanted, bins), query

    # The page draws a bar for each bin that holds a feature, and its handles count in bins.
    page = parsed(client.get(f"{address}/features").text)
    drawn = [int(bar.split()[0]) for bar in page.select_one("#density-bars path")["d"].split("M")[1:]]
    assert drawn == [i for i, b in enumerate(bins) if b["features"]]
    assert {(handle["min"], handle["max"]) for handle in page.select(".density-range input")} == {("0", str(len(bins)))}


def _read(client, address: str, kind: str) -> tuple[list[dict], dict | None]:
    """(rows, what the file says of itself) of a download."""
    tail = "/features/rows.json" if kind == "json" else f"/features.{kind}"
    answer = client.get(address + tail, params=QUERY)
    assert answer.status_code == 200
    assert f'{STUDY}-{ENSEMBLE}-features.{kind}"' in answer.headers["content-disposition"]
    if kind == "json":
        told = answer.json()
        rows = told.pop("rows")
        assert told.pop("n") == len(rows)
        return rows, told
    if kind == "parquet":
        table = pyarrow.parquet.read_table(io.BytesIO(answer.content))
        return table.to_pylist(), json.loads(table.schema.metadata[METADATA_KEY])
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    for row in rows:
        for name in ("top_tokens", "top_token_shares"):
            row[name] = json.loads(row[name])
        for name in ("seed", "feature", "n_matched", "n_active", "theta", "epsilon"):
            row[name] = json.loads(row[name])
    return rows, None


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_an_export_holds_the_rows_of_the_page_and_how_they_were_judged(client, address, kind):
    page = client.get(f"{address}/features.json", params=QUERY | {"limit": 500}).json()
    digest = page["ensemble"]["digest"]
    rows, about = _read(client, address, kind)
    assert len(rows) == page["total"] == len(page["rows"]) > 0
    for row, shown in zip(rows, page["rows"], strict=True):
        for name in ("seed", "feature", "n_matched", "n_active", "bucket", "top_tokens"):
            assert row[name] == shown[name], name
        assert row["top_token_shares"] == pytest.approx(shown["top_token_shares"], abs=1e-12)
        assert (row["theta"], row["epsilon"], row["rule"], row["digest"]) == (0.6, 0.1, "mutual", digest)
    address_of = urlsplit(rows[0]["permalink"])
    assert address_of.path == f"{address}/{rows[0]['seed']}/{rows[0]['feature']}"
    assert parse_qs(address_of.query) == {"v": [digest], "theta": ["0.6"], "epsilon": ["0.1"], "rule": ["mutual"]}
    opened = client.get(f"{address_of.path}.json?{address_of.query}").json()
    assert (opened["bucket"], opened["n_matched"]) == ("unstable", rows[0]["n_matched"])
    if about is not None:
        assert about == {
            "study": STUDY, "ensemble": ENSEMBLE, "digest": digest, "theta": 0.6, "epsilon": 0.1, "rule": "mutual",
            "dead": None, "filter": {"bucket": "unstable"}, "sort": "density", "descending": True,
        }  # fmt: skip


def test_exports_say_dead_features_counted_and_leave_out_tokens_that_nobody_measured(own_root, address, client):
    rows = client.get(f"{address}/features/rows.json?dead=count&seed=0").json()["rows"]
    assert all(row["permalink"].endswith("&dead=count") for row in rows)
    republish(own_root, "UPDATE Ensemble SET computed = list_filter(computed, lambda c: c != 'activity')")
    bare = browse(own_root).get(f"{address}/features/rows.json").json()["rows"]
    assert {row["top_tokens"] for row in bare} == {None}


def test_the_page_offers_the_download_with_its_count_and_filter(client, address):
    page = client.get(f"{address}/features", params=QUERY).text
    total = client.get(f"{address}/features.json", params=QUERY).json()["total"]
    (menu,) = parsed(page).select("details.download")
    assert f"Download {total:,} rows" in menu.get_text()
    targets = [a["href"] for a in menu.select("a[download]")]
    assert [urlsplit(t).path for t in targets] == [
        f"{address}/features{tail}" for tail in (".csv", ".parquet", "/rows.json")
    ]
    for target in targets:
        assert client.get(target).status_code == 200
        assert parse_qs(urlsplit(target).query)["bucket"] == ["unstable"]


@pytest.mark.parametrize(
    "more", [{}, {"limit": "7"}, {"limit": "500", "sort": "feature"}, {"at": "1/30", "limit": "20"}]
)
def test_rows_alone_are_those_of_the_page_with_facets(client, address, more):
    whole = client.get(f"{address}/features.json", params=QUERY | more).json()
    alone = client.get(f"{address}/features/page.json", params=QUERY | more).json()
    same = ("rows", "total", "after", "before", "theta", "epsilon", "rule")
    assert {name: alone[name] for name in same} == {name: whole[name] for name in same}
    assert alone["rows"]
    assert alone["digest"] == whole["ensemble"]["digest"]
    assert client.get(f"{address}/features/page.json?seed=99").status_code == 404
    if whole["after"]:
        further = client.get(f"{address}/features/page.json", params=QUERY | more | {"after": whole["after"]}).json()
        assert not {(r["seed"], r["feature"]) for r in further["rows"]} & {
            (r["seed"], r["feature"]) for r in alone["rows"]
        }


def test_a_hit_far_into_an_explanation_is_brought_into_sight():
    text = "any token after a long list of words, then return"
    assert hit_runs(text, "return", before=6) == [("…then ", False), ("return", True)]
