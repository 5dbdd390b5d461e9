"""Lists of features: an address that keeps its order, the table's filters within it, and files with notes and settings."""

import csv
import io
import json

import pyarrow.parquet
import pytest

from support.reading import links, parsed, text_of
from support.studies import ENSEMBLE, STUDY

IDS = "3/37,0/40,1/2,0/5"
PLACES = [(3, 37), (0, 40), (1, 2), (0, 5)]


def places(rows: list[dict]) -> list[tuple[int, int]]:
    return [(row["seed"], row["feature"]) for row in rows]


def test_a_list_keeps_its_order_drops_repeats_and_names_what_is_not_here(client, address):
    answer = client.get(f"{address}/list?id={IDS},3/37,9/1,0/500")
    assert answer.status_code == 200
    page = parsed(answer.text)
    assert [text_of(link) for link in page.select(".row-link")] == ["3/ #37", "0/ #40", "1/ #2", "0/ #5"]
    assert "9/1 , 0/500" in text_of(page.select_one(".notice"))
    data = client.get(f"{address}/list.json?id={IDS},3/37,9/1,0/500").json()
    assert places(data["rows"]) == PLACES
    assert data["unknown"] == ["9/1", "0/500"]
    assert [entry["id"] for entry in data["listed"]] == IDS.split(",")
    assert places(client.get(f"{address}/list.json?id=37,0/40").json()["rows"]) == [
        *((s, 37) for s in range(4)),
        (0, 40),
    ]
    assert places(client.get(f"{address}/list.json?id=37").json()["rows"]) == [(s, 37) for s in range(4)]
    assert client.get(f"{address}/list.json").json()["rows"] == []


@pytest.mark.parametrize(
    "query", ["seed=0", "sort=density", "sort=density&dir=asc", "bucket=stable", "theta=0.3&bucket=stable"]
)
def test_filters_and_orders_of_the_table_hold_within_the_list(client, address, query):
    within = client.get(f"{address}/list.json?id={IDS}&{query}").json()
    whole = client.get(f"{address}/features.json?limit=500&{query}").json()["rows"]
    wanted = [row for row in whole if (row["seed"], row["feature"]) in PLACES]
    if "sort" not in query:
        wanted.sort(key=lambda row: PLACES.index((row["seed"], row["feature"])))
    assert within["rows"] == wanted
    assert within["total"] == len(wanted)
    assert len(within["listed"]) == 4
    assert sum(client.get(f"{address}/list.json?id={IDS}").json()["seeds"].values()) == 4


def test_the_table_understands_a_list_as_well(client, address):
    rows = client.get(f"{address}/features.json?id={IDS}").json()["rows"]
    assert sorted(places(rows)) == sorted(PLACES)
    assert places(client.get(f"{address}/features.json?id={IDS}&sort=listed").json()["rows"]) == PLACES
    first = client.get(f"{address}/features.json?id={IDS}&sort=listed&limit=2").json()
    assert (
        places(client.get(f"{address}/features.json?id={IDS}&sort=listed&after={first['after']}").json()["rows"])
        == PLACES[2:]
    )


def test_a_feature_opened_from_a_list_walks_on_in_its_order_and_leads_back(client, address):
    row = links(client.get(f"{address}/list?id={IDS}&theta=0.5").text, ".row-link")[1]
    page = client.get(row).text
    assert "2 of 4" in text_of(page)
    assert links(page, "[data-previous]")[0].startswith(f"{address}/3/37?")
    assert links(page, "[data-next]")[0].startswith(f"{address}/1/2?")
    back = links(page, "[data-up]")[0]
    assert back.startswith(f"{address}/list?")
    assert places(client.get(back.replace("/list?", "/list.json?")).json()["rows"]) == PLACES


TOO_MANY = "id=" + ",".join(f"1/{i}" for i in range(501))


@pytest.mark.parametrize(
    "bad", ["id=x", "id=1/2/3", "id=0/99999999999", "id=,", "id=3/37&notes=[]", "sort=best&id=1", TOO_MANY]
)
def test_what_is_no_list_is_refused(client, address, bad):
    assert client.get(f"{address}/list.json?{bad}").status_code == 422
    assert client.get(f"{address}/features.json?sort=listed").status_code == 422


def test_files_hold_the_settings_the_digest_permalinks_and_notes(client, address):
    notes = {"3/37": 'says "a, b"\nand more', "0/5": "ü"}
    query = {"id": IDS, "theta": "0.5", "rule": "mutual", "notes": json.dumps(notes)}
    rows = list(csv.DictReader(io.StringIO(client.get(f"{address}/list.csv", params=query).text)))
    table = pyarrow.parquet.read_table(
        io.BytesIO(client.get(f"{address}/list.parquet", params=query).content)
    ).to_pylist()
    data = client.get(f"{address}/list.json", params=query).json()
    assert [(int(row["seed"]), int(row["feature"])) for row in rows] == places(table) == PLACES
    for place, text_row, row, entry in zip(PLACES, rows, table, data["listed"], strict=True):
        note = notes.get("{}/{}".format(*place), "")
        assert text_row["note"] == row["note"] == entry["note"] == note
        assert (text_row["study"], text_row["ensemble"]) == (STUDY, ENSEMBLE)
        assert (row["theta"], row["epsilon"], row["rule"]) == (0.5, 0.05, "mutual")
        assert row["digest"] == data["ensemble"]["digest"]
        assert row["permalink"] == text_row["permalink"] == entry["permalink"]
        twin = client.get(row["permalink"].replace("?", ".json?")).json()
        assert (twin["seed"], twin["feature"], twin["theta"], twin["rule"]) == (*place, 0.5, "mutual")
        assert (twin["bucket"], twin["n_matched"]) == (row["bucket"], row["n_matched"])
    assert (data["theta"], data["rule"]) == (0.5, "mutual")


def test_what_is_starred_can_be_starred_on_every_page_of_features(client, address):
    stars = [star["data-star"] for star in parsed(client.get(f"{address}/features").text).select("[data-star]")]
    assert len(stars) == 50
    (star,) = parsed(client.get(f"{address}/3/37").text).select("[data-star]")
    assert star["data-star"] == f"{STUDY}/{ENSEMBLE}/3/37"
    assert client.get("/list").status_code == 200
