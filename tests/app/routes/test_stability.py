"""`/stability/..`: what studies say of an SAE found by its digest; against the store, NumPy and SciPy, and browsers' rules."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from bs4 import Tag
from scipy.stats import beta
from starlette.testclient import TestClient

from seedscope.app.figures.badge import LIGHT_DARK, NEUTRAL, written_share
from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.engine.saes import sae
from support.paths import ROOT
from support.reading import parsed
from support.studies import members_that_agree, publish_study

LOCAL, THETA, EPSILON, TOKEN = "http://127.0.0.1", 0.7, 0.05, "a-long-secret"
LONELY = members_that_agree(members=1, seed=1)
READER, STRANGER = "https://reader.example", "https://stranger.example"


@pytest.fixture(scope="module")
def features(stored) -> dict[tuple[int, int], dict]:
    return {(row["seed"], row["feature"]): row for row in stored("SELECT * FROM Feature")}


@pytest.fixture(scope="module")
def digests(stored) -> dict[int, str]:
    return {row["seed"]: row["sae_digest"] for row in stored("SELECT seed, sae_digest FROM Member")}


def first_members(members: sae.SAE, n: int) -> sae.SAE:
    tensors = (members.W_enc, members.b_enc, members.W_dec, members.b_dec)
    return sae.SAE(*(tensor.detach()[:n] for tensor in tensors), k=4, seeds=members.seeds[:n])


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A root in which three ensembles of two studies hold one SAE, the first of whose rows are zero; and its digest."""
    root = tmp_path_factory.mktemp("several")
    members = members_that_agree()
    pair = {"pair": (first_members(members, 2), {"shared_start": "no"})}
    alone = {"alone": (first_members(members, 1), {}), "lonely": (LONELY, {})}
    publish_study(root, "a", pair | alone)
    publish_study(root, "b", {"whole": (members, {"shared_start": "yes"})})
    return root, members.digest(0)


def browse(root: Path, **settings: object) -> TestClient:
    return TestClient(create_app(Settings(root, **settings)), base_url=LOCAL, follow_redirects=False)


@pytest.fixture(scope="module")
def shared(study_root: Path) -> TestClient:
    """The small study, which pages of one other site may read."""
    return browse(study_root, allowed_origins=(READER,))


def counted(row: dict) -> int:
    return int((np.array(row["cosines"], np.float32) >= np.float32(THETA)).sum())


def only(answer) -> dict:
    assert answer.status_code == 200, answer.text
    (holder,) = answer.json()["holders"]
    return holder


# -- numbers -----------------------------------------------------------------------------------------------------


def test_the_summary_of_an_sae_is_what_numpy_counts_in_its_features(client, digests, features):
    for seed, digest in digests.items():
        held = only(client.get(f"/stability/{digest}"))
        rows = [row for (of, _), row in features.items() if of == seed]
        living = np.array([not row["dead"] for row in rows])
        p = np.array([counted(row) for row in rows])[living] / 3
        expected = {"stable": p >= 1 - EPSILON, "middle": (p > EPSILON) & (p < 1 - EPSILON), "unstable": p <= EPSILON}
        assert held["counts"] == {name: int(mask.sum()) for name, mask in expected.items()}
        assert held["shares"] == pytest.approx({name: mask.mean() for name, mask in expected.items()})
        assert (held["n_features"], held["n_judged"], held["n_dead"]) == (96, living.sum(), (~living).sum())
        assert held["mean_stability"] == pytest.approx(p.mean())
        assert held["median_stability"] == np.median(p)
        assert (held["n_comparisons"], held["theta"], held["epsilon"]) == (3, THETA, EPSILON)
        assert client.get(held["address"]).status_code == 200
        assert client.get(held["address"].replace("?", ".json?")).json()["total"] == 96


def test_a_feature_is_what_its_permalink_and_numpy_say(client, digests, features, address):
    buckets = set()
    for (seed, feature), row in list(features.items())[::23]:
        held = only(client.get(f"/stability/{digests[seed]}/{feature}"))
        twin = client.get(f"{address}/{seed}/{feature}.json").json()
        common = ("stability", "stability_low", "stability_high", "n_matched", "n_comparisons", "bucket", "theta", "epsilon",
                  "rule", "null_rate", "null_p999", "digest", "hookpoint", "study", "ensemble", "seed", "feature",
                  "shared_start")  # fmt: skip
        assert {name: held[name] for name in common} == {name: twin[name] for name in common}
        x = counted(row)
        assert held["n_matched"] == x
        assert held["stability"] == x / 3
        low, high = beta.ppf(0.025, x, 4 - x) if x else 0, beta.ppf(0.975, x + 1, 3 - x) if x < 3 else 1
        assert (held["stability_low"], held["stability_high"]) == pytest.approx((low, high))
        assert held["permalink"] == f"{address}/{seed}/{feature}?v={held['digest']}"
        assert client.get(f"/stability/{digests[seed]}/{feature}.json").json()["holders"] == [held]
        buckets.add(held["bucket"])
    assert {"dead", "unstable"} < buckets


def test_a_batch_answers_in_the_order_of_the_question(client, digests):
    asked = [95, 3, 3, 0, *range(40, 60)]
    held = only(client.post(f"/stability/{digests[1]}", json={"features": asked}))
    singles = [only(client.get(f"/stability/{digests[1]}/{feature}")) for feature in asked]
    assert [each["feature"] for each in held["features"]] == asked
    assert held["features"] == [{name: one[name] for name in held["features"][0]} for one in singles]
    assert only(client.post(f"/stability/{digests[1]}", json={"features": []}))["features"] == []


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"features": [0, 96, 4000]}, 422, "96, 4000"),
        ({"features": [-1, "3", True, None, 1.5]}, 422, "and 2 more"),
        ({"features": list(range(1001))}, 422, "up to 1,000"),
        ({"features": 3}, 422, "list"),
        ({}, 422, "required"),
        ([3], 422, "dictionary"),
    ],
    ids=str,
)
def test_a_question_that_cannot_be_answered_gets_one_error(client, digests, body, status, says):
    answer = client.post(f"/stability/{digests[0]}", json=body)
    assert answer.status_code == status
    (problem,) = answer.json()["problems"]
    assert says in f"{problem['found']} {problem['expected']}"
    assert "body" in answer.json()["title"]


def test_what_is_no_json_is_refused_in_words(client, digests):
    for content in (b"{", b"\xff", b"[" * 60_000):
        answer = client.post(f"/stability/{digests[0]}", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422)
        assert "JSON" in str(answer.json()["problems"])


@pytest.mark.parametrize(
    ("path", "status"),
    [("0000000000000000", 404), ("0000000000000000.svg", 404), ("{}/96", 404), ("{}/x", 404), ("{}/١", 404), ("{}/96.svg", 404),
     ("{}?theta=0.8", 422), ("{}/3?v=1", 422)],
)  # fmt: skip
def test_what_is_not_there_is_refused_as_data(client, digests, path, status):
    """An ignored theta would pass for an answer at it."""
    answer = client.get(f"/stability/{path.format(digests[0])}")
    assert answer.status_code == status
    assert answer.json()["problems"][0]["expected"]


# -- several places ----------------------------------------------------------------------------------------------


def test_every_place_is_listed_the_one_with_most_comparisons_first(several):
    root, digest = several
    client = browse(root)
    answer = client.get(f"/stability/{digest}").json()
    assert [(h["study"], h["ensemble"], h["n_comparisons"]) for h in answer["holders"]] == [
        ("b", "whole", 4), ("a", "pair", 1), ("a", "alone", 0),
    ]  # fmt: skip
    assert answer["agree"] is False
    assert "most comparisons" in answer["chosen_by"]
    whole, _, alone = answer["holders"]
    assert whole["n_dead"] is None  # nothing ran on tokens
    assert whole["n_undirected"] == 2
    assert whole["n_judged"] == 46
    assert [lack["result"].partition(":")[0] for lack in whole["missing"]] == ["activity"]
    assert alone["mean_stability"] is alone["median_stability"] is None
    assert set(alone["counts"].values()) == set(alone["shares"].values()) == {None}
    assert "anchor" in alone["missing"][0]["command"]
    one = client.get(f"/stability/{digest}/7").json()["holders"][-1]
    assert [one[name] for name in ("stability", "stability_low", "stability_high", "n_matched", "bucket")] == [None] * 5
    many = client.post(f"/stability/{digest}", json={"features": [7]}).json()["holders"]
    assert [len(each["features"]) for each in many] == [1, 1, 1]


def test_a_badge_says_that_other_studies_say_something_else(several):
    root, digest = several
    client = browse(root)
    differing = next(i for i in range(2, 48) if client.get(f"/stability/{digest}/{i}").json()["agree"] is False)
    whole = client.get(f"/stability/{digest}/{differing}").json()["holders"][0]
    badge = badge_at(client, f"/stability/{digest}/{differing}.svg")
    label, value = (text.text for text in badge.select("text"))
    assert label == "agreement"  # they began alike
    assert value == f"{written_share(whole['stability'])} · 4 seeds · 1 of 2 results"
    assert "most comparisons" in badge.title.text
    assert "b, whole, seed 0" in badge.title.text


# -- badges ------------------------------------------------------------------------------------------------------


def badge_at(client: TestClient, path: str) -> Tag:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/svg+xml"
    ElementTree.fromstring(answer.text)  # an image is XML, or browsers show none
    return parsed(answer.text)


def test_a_badge_has_the_words_and_colours_of_its_bucket(client, digests):
    seen = {}
    for feature in range(96):
        held = only(client.get(f"/stability/{digests[0]}/{feature}"))
        seen.setdefault(held["bucket"], (feature, held))
    assert set(seen) == {"stable", "middle", "unstable", "dead"}
    for bucket, (feature, held) in seen.items():
        svg = badge_at(client, f"/stability/{digests[0]}/{feature}.svg").svg
        label, value = svg.select("text")
        assert label.text == "stability"
        assert value.text == ("dead" if bucket == "dead" else f"{held['stability']:.2f} · 3 seeds")
        (light, ink), (dark, dark_ink) = LIGHT_DARK[bucket]
        ground = svg.select("rect")[-1]
        assert (ground["fill"], value["fill"]) == (light, ink)
        assert ground["style"] == f"fill: light-dark({light}, {dark})"
        assert value["style"] == f"fill: light-dark({ink}, {dark_ink})"
        assert svg["role"] == "img"
        assert svg["aria-label"] == svg.title.text
        assert bucket in svg.title.text
        assert "<script" not in str(svg)


def test_the_badge_of_an_sae_tells_its_mean(client, digests):
    held = only(client.get(f"/stability/{digests[2]}"))
    svg = badge_at(client, f"/stability/{digests[2]}.svg").svg
    assert [text.text for text in svg.select("text")] == ["mean stability", f"{held['mean_stability']:.2f} · 3 seeds"]


def test_a_badge_without_a_number_says_why(several):
    root, digest = several
    client = browse(root)
    assert badge_at(client, f"/stability/{digest}/0.svg").select("text")[1].text == "no direction"
    lonely = LONELY.digest(0)
    for path in (f"/stability/{lonely}.svg", f"/stability/{lonely}/5.svg"):
        svg = badge_at(client, path).svg
        assert svg.select("text")[1].text == "no other seed"
        assert svg.select("rect")[-1]["fill"] == NEUTRAL[0][0]


def test_colours_of_badges_are_those_of_the_pages():
    css = (ROOT / "static" / "app.css").read_text()
    light, _, dark = css.partition("prefers-color-scheme: dark")
    for scheme, part in enumerate((light, dark)):
        for bucket, pairs in LIGHT_DARK.items():
            found = [re.search(rf"--{bucket}-{name}: (#[0-9a-f]+)", part)[1] for name in ("wash", "ink")]
            assert list(pairs[scheme]) == found, (bucket, scheme)
        assert NEUTRAL[scheme] == (
            re.search("--accent-wash: (#[0-9a-f]+)", part)[1], re.search("--accent: (#[0-9a-f]+)", part)[1],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("p", "text"), [(0, "0.00"), (1, "1.00"), (0.001, "<0.01"), (0.999, ">0.99"), (6 / 7, "0.86"), (0.995, ">0.99")]
)
def test_what_is_not_quite_all_or_nothing_is_not_written_so(p, text):
    assert written_share(p) == text


# -- caches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["", ".json", ".svg", "/3", "/3.json", "/3.svg"])
def test_answers_are_kept_by_a_strong_etag(client, digests, form):
    path = f"/stability/{digests[0]}{form}"
    first = client.get(path, headers={"Accept-Encoding": "gzip"})
    etag = first.headers["etag"]
    assert re.fullmatch('"[0-9a-f]{32}"', etag)
    assert first.headers["cache-control"] == "public, max-age=300"
    assert first.headers["content-encoding"] == "identity"  # packed, it would be other bytes under one strong ETag
    for named in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        again = client.get(path, headers={"If-None-Match": named})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    head = client.head(path)
    assert (head.status_code, head.headers["etag"], head.headers["content-type"]) == (
        200, etag, first.headers["content-type"],
    )  # fmt: skip


def test_the_list_of_places_is_kept_as_pages_are(several):
    root, digest = several
    client = browse(root)
    for path in (f"/f/{digest}/7", f"/f/{digest}/7.json"):
        answer = client.get(path)
        assert len(re.findall("whole", answer.text)) > 0
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_what_needs_a_token_is_in_no_shared_cache(study_root, digests):
    guarded = browse(study_root, token=TOKEN)
    path = f"/stability/{digests[0]}"
    assert guarded.get(path).status_code == 401
    assert guarded.post(path, json={"features": [3]}).status_code == 401
    answer = guarded.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.headers["cache-control"] == "private, max-age=300"
    open_server = browse(study_root)  # a proxy in front may ask who it is
    assert open_server.get(path, headers={"Authorization": "Basic eDp5"}).headers["cache-control"].startswith("private")


# -- other sites -------------------------------------------------------------------------------------------------


def test_pages_of_a_named_site_read_what_is_shared_and_nothing_else(shared, digests, address):
    d = digests[0]
    for path in (
        f"/stability/{d}",
        f"/stability/{d}.svg",
        f"/stability/{d}/3",
        f"{address}/0/3.json",
        f"/f/{d}/3.json",
    ):
        answer = shared.get(path, headers={"Origin": READER})
        assert answer.headers["access-control-allow-origin"] == READER, path
        assert "ETag" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        for origin in ({}, {"Origin": STRANGER}, {"Origin": "null"}, {"Origin": f"{READER}.evil"}):
            other = shared.get(path, headers=origin)
            assert "access-control-allow-origin" not in other.headers
            assert "Origin" in other.headers["vary"]  # a cache must not hand this one to the named site
    for path in (
        f"{address}/features.json",
        f"{address}/0/3/loss.json",
        f"/f/{d}/3",
        "/jobs.json",
        "/healthz",
        "/stability",
    ):
        assert "access-control-allow-origin" not in shared.get(path, headers={"Origin": READER}).headers, path


def test_an_answer_that_still_holds_names_the_site_too(shared, digests, address):
    for path in (f"/stability/{digests[0]}", f"{address}/0/3.json"):
        etag = shared.get(path, headers={"Origin": READER}).headers["etag"]
        again = shared.get(path, headers={"Origin": READER, "If-None-Match": etag})
        assert again.status_code == 304
        assert again.headers["access-control-allow-origin"] == READER
        assert "Origin" in again.headers["vary"]


def test_a_refusal_can_be_read_by_the_named_site(shared):
    answer = shared.get("/stability/0000000000000000", headers={"Origin": READER})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (404, READER)


def asks(method: str, origin: str = READER) -> dict[str, str]:
    """The headers of a browser that asks what it may send."""
    return {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": "content-type"}


def test_a_browser_that_asks_first_learns_what_it_may_send(shared, digests):
    path = f"/stability/{digests[0]}"
    answer = shared.options(path, headers=asks("POST"))
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == READER
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST"
    assert "content-type" in answer.headers["access-control-allow-headers"].lower()
    assert "authorization" not in answer.headers["access-control-allow-headers"].lower()
    assert int(answer.headers["access-control-max-age"]) > 0
    assert "POST" not in shared.options(f"{path}/3", headers=asks("POST")).headers["access-control-allow-methods"]
    for refused in (shared.options(path, headers=asks("POST", STRANGER)), shared.options("/jobs", headers=asks("POST")),
                    shared.options(path, headers={"Origin": READER})):  # fmt: skip
        assert refused.status_code == 405
        assert "access-control-allow-methods" not in refused.headers


def test_the_batch_question_is_the_only_post_that_another_site_may_send(shared, client, digests):
    path, body, from_reader = (
        f"/stability/{digests[0]}",
        {"features": [3]},
        {"Origin": READER, "Sec-Fetch-Site": "cross-site"},
    )
    answer = shared.post(path, json=body, headers=from_reader)
    assert only(answer)["features"][0]["feature"] == 3
    assert answer.headers["access-control-allow-origin"] == READER
    assert shared.post(path, json=body, headers={"Origin": STRANGER}).status_code == 403
    assert shared.post(path, json=body, headers={"Origin": "null"}).status_code == 403
    assert (
        shared.post(path, content=json.dumps(body), headers=from_reader | {"Content-Type": "text/plain"}).status_code
        == 403
    )
    for other in ("/jobs", f"{path}/3", "/", "/stability"):
        assert shared.post(other, json=body, headers=from_reader).status_code == 403, other
    for method in ("PUT", "PATCH", "DELETE"):
        assert shared.request(method, path, json=body, headers=from_reader).status_code == 403
    assert client.post(path, json=body, headers=from_reader).status_code == 403  # no site was named
    assert client.post(path, json=body, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post(path, json=body).status_code == 200  # a program
    assert shared.post(path, json=body, headers={"Host": "evil.example"} | from_reader).status_code == 403


def test_any_site_may_read_a_server_that_says_so(study_root, digests):
    anyone = browse(study_root, allowed_origins=("*",))
    path = f"/stability/{digests[0]}"
    for origin in (STRANGER, "null"):
        answer = anyone.get(path, headers={"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "Origin" not in answer.headers.get("vary", "")
        assert anyone.post(path, json={"features": [1]}, headers={"Origin": origin}).status_code == 200
        assert anyone.post("/jobs", json={}, headers={"Origin": origin}).status_code == 403
    with pytest.raises(ValueError, match="name each"):
        browse(study_root, allowed_origins=("*",), token=TOKEN)


def test_a_named_site_brings_the_token_along_itself(study_root, digests):
    guarded = browse(study_root, allowed_origins=(READER,), token=TOKEN)
    path = f"/stability/{digests[0]}"
    asked = guarded.options(path, headers=asks("GET"))  # browsers ask without it
    assert asked.status_code == 204
    assert "Authorization" in asked.headers["access-control-allow-headers"]
    refused = guarded.get(path, headers={"Origin": READER})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, READER)
    bearer = {"Origin": READER, "Authorization": f"Bearer {TOKEN}"}
    assert guarded.get(path, headers=bearer).status_code == 200
    assert guarded.post(path, json={"features": [1]}, headers=bearer).status_code == 200
    assert guarded.post(path, json={"features": [1]}, headers={"Origin": READER}).status_code == 401


@pytest.mark.parametrize(
    ("given", "means"),
    [("https://Reader.Example", READER), (f"{READER}/", READER), (f"{READER}:443", READER), ("http://a.b:8080", "http://a.b:8080"),
     ("http://[::1]:80", "http://[::1]"), ("*", "*")],
)  # fmt: skip
def test_an_origin_is_taken_as_browsers_write_it(study_root, given, means):
    from seedscope.app.cross_origin import origin_of

    assert origin_of(given) == means


@pytest.mark.parametrize(
    "given", ["", "null", "reader.example", "https://", "ftp://a.b", f"{READER}/path", f"{READER}?q", "https://*.a.b", "https://u@a.b",
              "https://a.b, https://c.d", "https://a.b:x", "https://[", "https://é.example"],
)  # fmt: skip
def test_what_no_browser_sends_is_no_origin(study_root, given):
    from seedscope.app.cross_origin import origin_of

    with pytest.raises(ValueError, match="expected"):
        origin_of(given)
