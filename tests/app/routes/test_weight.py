"""What goes over the wire: static files by digest and packed, pages packed, a reload answered by an empty 304."""

import gzip
import re

import pytest

from seedscope.app.freshness import code_digest
from seedscope.app.settings import STATIC
from support.reading import browse, links, parsed, republish

KEPT = ("", "/features", "/0/5", "/members", "/buckets", "/ablation", "/subspaces", "/explanations", "/trajectory")
LIVE = ("/try?text=x", "/0/5/neighbours", "/members/match?a=0&b=1&rule=argmax")


@pytest.mark.parametrize("tail", [*KEPT, ".json", "/features.json"])
def test_a_reload_costs_an_empty_answer(client, address, tail):
    first = client.get(address + tail)
    again = client.get(address + tail, headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert again.headers["etag"] == first.headers["etag"]


def test_another_address_another_fragment_and_another_store_have_other_etags(client, address, own_root):
    with browse(own_root) as own:
        before = own.get(f"{address}/features").headers["etag"]
        tags = {before, own.get(f"{address}/features?theta=0.5").headers["etag"]}
        tags.add(own.get(f"{address}/features", headers={"HX-Request": "true"}).headers["etag"])
        assert len(tags) == 3
        republish(own_root, "UPDATE Ensemble SET theta = 0.6")
        after = own.get(f"{address}/features", headers={"If-None-Match": before})
        assert after.status_code == 200
        assert after.headers["etag"] not in tags


@pytest.mark.parametrize("tail", LIVE)
def test_what_the_live_engine_answers_is_not_kept(client, address, tail):
    assert "etag" not in client.get(address + tail).headers


@pytest.mark.parametrize("tail", ["/features?theta=7", "/features?seed=99"])
def test_refusals_are_not_kept(client, address, tail):
    assert "etag" not in client.get(address + tail).headers


def test_the_code_of_pages_is_part_of_their_etags():
    assert re.fullmatch(r"[0-9a-f]{64}", code_digest())


def test_static_files_are_kept_for_ever_under_their_digest_only(client):
    page = client.get("/").text
    addresses = [a for a in re.findall(r'/static/[^"\s]+', page)]
    assert {"app.css", "figures.js", "plotly-plain.min.js"} <= {a.split("/")[-1].split("?")[0] for a in addresses}
    for at in addresses:
        answer = client.get(at)
        assert "immutable" in answer.headers["cache-control"], at
        assert client.get(at.split("?")[0]).headers["cache-control"] == "no-cache"
        assert client.get(at, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_static_files_are_sent_packed_to_those_who_take_it(client):
    at = next(a for a in links(client.get("/").text) if "app.css" in a)
    with client.stream("GET", at, headers={"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        packed = b"".join(answer.iter_raw())
    assert gzip.decompress(packed) == (STATIC / "app.css").read_bytes()
    plain = client.get(at, headers={"Accept-Encoding": "identity"})
    assert plain.content == (STATIC / "app.css").read_bytes()


@pytest.mark.parametrize("name", ["../app/main.py", "%2e%2e/app/main.py", "none.css", "gallery", ""])
def test_nothing_beside_the_folder_is_served(client, name):
    assert client.get(f"/static/{name}").status_code == 404


def test_a_table_page_weighs_at_most_25_kb_and_brings_no_plotly(client, address):
    with client.stream("GET", f"{address}/features", headers={"Accept-Encoding": "gzip"}) as answer:
        weight = sum(map(len, answer.iter_raw()))
    assert weight <= 25_000
    scripts = parsed(client.get(f"{address}/features").text).select("script[src]")
    assert not [script["src"] for script in scripts if "plotly" in script["src"]]  # figures.js fetches it for a figure


def test_csv_is_packed_and_parquet_is_not(client, address):
    for kind, packed in (("csv", True), ("parquet", False)):
        answer = client.get(f"{address}/features.{kind}", headers={"Accept-Encoding": "gzip"})
        assert (answer.headers.get("content-encoding") == "gzip") is packed
