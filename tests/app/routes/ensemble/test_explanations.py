"""Explanations on pages, in twins and downloads: against the store's rows, counted with plain Python and NumPy."""

import re
import time
from collections import Counter
from io import BytesIO

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from scipy.stats import binom

from seedscope.app.findings.word_contrast import rule_kinds
from support.reading import assert_valid_plotly, browse, figures_of, links, republish, text_of

THETA = 0.7
WORDS = re.compile(r"\w+")


@pytest.fixture(scope="module")
def features(stored) -> dict[tuple[int, int], dict]:
    """{(seed, feature): row} with what explains it and its score, joined here."""
    found = {}
    for row in stored("SELECT seed, feature, dead, cosines, explanation, explainer, score FROM Feature"):
        x = int((np.array(row["cosines"], np.float32) >= np.float32(THETA)).sum())
        bucket = "dead" if row["dead"] else {3: "stable", 0: "unstable"}.get(x, "middle")
        found[row["seed"], row["feature"]] = row | {"x": x, "bucket": bucket, "told": None, "scored": None}
    for row in stored("SELECT * FROM Explanation"):
        found[row["seed"], row["feature"]]["told"] = row
    for row in stored("SELECT * FROM Score"):
        found[row["seed"], row["feature"]]["scored"] = row
    return found


@pytest.fixture(scope="module")
def good(features) -> dict:
    """A feature whose explanation was right and wrong on scored contexts."""
    return next(
        row
        for row in features.values()
        if row["scored"] and row["scored"]["value"] is not None and 0.55 < row["scored"]["value"] < 0.95
    )


def at(address: str, row: dict, more: str = "") -> str:
    return f"{address}/{row['seed']}/{row['feature']}{more}"


def words_of(text: str) -> set[str]:
    return set(WORDS.findall(text.lower()))


# -- one feature ---------------------------------------------------------------------------------------------------


def test_the_twin_holds_every_explanation_and_score_of_the_store(client, address, features):
    for row in list(features.values())[::17]:
        told = client.get(at(address, row, ".json")).json()["explanations"]
        if row["told"] is None:
            assert told == []
            continue
        (one,) = told
        assert {name: one[name] for name in ("explainer", "text", "failure")} == {
            name: row["told"][name] for name in ("explainer", "text", "failure")
        }
        names = ("kind", "value", "shuffled", "shuffled_p95", "n_active", "n_silent", "failure")
        wanted = [{name: row["scored"][name] for name in names}] if row["scored"] else []
        assert one["scores"] == wanted


def test_the_page_says_the_score_with_its_contexts_and_its_chance(client, address, good):
    text = text_of(client.get(at(address, good)).text)
    scored = good["scored"]
    assert good["explanation"] in text
    assert f"detection {scored['value']:.2f} on {scored['n_active']} + {scored['n_silent']} contexts" in text
    assert f"chance level {scored['shuffled_p95']:.2f}" in text
    assert "language model" not in text.split("Top activations")[0].split("Explanation")[1]


def test_a_failure_is_shown_as_one_with_its_reason_and_never_as_a_score(client, address, features):
    failed = [row for row in features.values() if row["told"] and row["told"]["text"] is None]
    assert failed
    text = text_of(client.get(at(address, failed[0])).text)
    assert f"not explained {failed[0]['told']['failure']}" in text
    unscored = [row for row in features.values() if row["scored"] and row["scored"]["value"] is None]
    for row in unscored[:1]:
        text = text_of(client.get(at(address, row)).text)
        assert f"detection failed {row['scored']['failure']}" in text
    data = client.get(f"{address}/features.json?sort=score&dir=asc&limit=500").json()
    assert all(r["score"] is None for r in data["rows"][-len(failed) :])


def test_scored_contexts_stand_in_four_groups_that_count_to_the_score(client, address, good, stored):
    data = client.get(at(address, good, "/scored.json")).json()
    groups = {group["name"]: group["contexts"] for group in data["groups"]}
    said, scored = np.array(good["scored"]["said"]), good["scored"]
    (held,) = stored("SELECT * FROM Scored WHERE seed = ? AND feature = ?", good["seed"], good["feature"])
    kinds = np.array(held["kinds"])
    active = kinds == 0
    wanted = {
        "hits": (active & (said == 1)).sum(), "missed": (active & (said == 0)).sum(),
        "false alarms": (~active & (said == 1)).sum(), "rightly silent": (~active & (said == 0)).sum(),
    }  # fmt: skip
    assert {name: len(contexts) for name, contexts in groups.items()} == {k: n for k, n in wanted.items() if n}
    balanced = (wanted["hits"] / scored["n_active"] + wanted["rightly silent"] / scored["n_silent"]) / 2
    assert balanced == pytest.approx(scored["value"], abs=1e-6)
    assert sum(c["near_miss"] for contexts in groups.values() for c in contexts) == (kinds == 1).sum()
    for name, contexts in groups.items():
        assert all(any(c["active"]) == (name in ("hits", "missed")) for c in contexts)


def test_a_scored_context_is_the_stretch_of_its_window_with_the_mask_as_active_tokens(client, address, good, stored):
    (held,) = stored("SELECT * FROM Scored WHERE seed = ? AND feature = ?", good["seed"], good["feature"])
    windows = {row["id"]: row["token_ids"] for row in stored("SELECT id, token_ids FROM TokenWindow")}
    texts = {row["id"]: row["text"] for row in stored("SELECT * FROM Token")}
    wanted = Counter()
    for kind, window, offset, length, mask in zip(
        *(held[name] for name in ("kinds", "windows", "offsets", "lengths", "masks")), strict=True
    ):
        ids = windows[window][offset : offset + length]
        assert len(ids) == length
        wanted[tuple(texts[i] for i in ids), tuple(bool(mask >> i & 1) for i in range(length)), kind == 1] += 1
    data = client.get(at(address, good, "/scored.json")).json()
    shown = Counter(
        (tuple(c["tokens"]), tuple(c["active"]), c["near_miss"]) for g in data["groups"] for c in g["contexts"]
    )
    assert shown == wanted
    page = client.get(at(address, good, "/scored")).text
    assert page.count('class="t on"') == sum(sum(active) * n for (_, active, _), n in wanted.items())


def test_an_unknown_explainer_or_kind_is_refused_with_those_there_are(client, address, good):
    for query, there_is in (("explainer=nobody", "token rule"), ("kind=fuzzing", "detection")):
        refused = client.get(at(address, good, f"/scored.json?{query}"))
        assert refused.status_code == 422
        assert there_is in refused.json()["problems"][0]["expected"]
    for query in ("explainer=nobody", "kind=fuzzing", "kind=worth"):
        assert client.get(f"{address}/explanations.json?{query}").status_code == 422


def test_label_agreement_is_the_mean_jaccard_with_the_labels_of_the_matches(client, address, features):
    several = [row for row in features.values() if row["explanation"] and row["x"] >= 2]
    assert several
    for row in several[:5]:
        data = client.get(at(address, row, ".json")).json()
        own, likeness = words_of(row["explanation"]), []
        for match in data["matches"]:
            partner = features[match["seed"], match["rule_partner"]]
            assert (match["explanation"], match["score"]) == (partner["explanation"], partner["score"])
            if match["matched"] and partner["explanation"]:
                other = words_of(partner["explanation"])
                likeness.append(len(own & other) / len(own | other))
        told = data["label_agreement"]
        assert (told["n"], told["n_matched"]) == (len(likeness), row["x"])
        assert told["mean"] == pytest.approx(np.mean(likeness))
        # The fixture is small: chance is taken over every explained feature of the bucket in other seeds.
        peers = [
            words_of(peer["explanation"])
            for peer in features.values()
            if peer["explanation"] and peer["bucket"] == row["bucket"] and peer["seed"] != row["seed"]
        ]
        assert told["n_chance"] == len(peers) <= 200
        assert told["chance"] == pytest.approx(np.mean([len(own & p) / len(own | p) for p in peers]))


# -- the table -----------------------------------------------------------------------------------------------------


def test_the_score_facet_counts_what_choosing_it_would_find(client, address):
    for query in ("", "&bucket=stable", "&seed=1&score_min=0.8"):
        facet = client.get(f"{address}/features.json?limit=1{query}").json()["scores"]
        assert sum(facet.values())
        others = re.sub(r"&score_min=[\d.]+", "", query)
        for step, n in facet.items():
            assert client.get(f"{address}/features.json?limit=1{others}&score_min={step}").json()["total"] == n


def test_downloads_carry_explanation_explainer_and_score(client, address, features):
    for kind, read in (("csv", pyarrow.csv.read_csv), ("parquet", pyarrow.parquet.read_table)):
        rows = read(BytesIO(client.get(f"{address}/features.{kind}?score_min=0.6").content)).to_pylist()
        assert rows
        for row in rows:
            held = features[row["seed"], row["feature"]]
            assert (row["explanation"], row["explainer"]) == (held["explanation"], held["explainer"])
            assert row["score"] == pytest.approx(held["score"], abs=1e-6)


# -- the ensemble --------------------------------------------------------------------------------------------------


def test_scores_by_bucket_are_those_of_the_rows(client, address, features):
    data = client.get(f"{address}/explanations.json").json()
    assert data["explainer"] == "token rule"
    for line in data["buckets"]:
        mine = [row for row in features.values() if row["bucket"] == line["bucket"]]
        assert line["n_features"] == len(mine)
        assert line["n_explained"] == sum(bool(row["told"] and row["told"]["text"]) for row in mine)
        scores = [r["scored"] for r in mine if r["scored"] and r["scored"]["value"] is not None]
        failed = sum(
            bool(row["told"] and (row["told"]["failure"] or (row["scored"] and row["scored"]["failure"])))
            for row in mine
        )
        assert (line["n_scored"], line["n_failed"]) == (len(scores), failed)
        quartiles = np.percentile([s["value"] for s in scores], (25, 50, 75))
        assert [line["score"][name] for name in ("low", "median", "high")] == pytest.approx(quartiles.tolist())
        assert line["shuffled_p95"] == pytest.approx(np.median([s["shuffled_p95"] for s in scores]))
        assert line["n_above"] == sum(s["value"] > s["shuffled_p95"] for s in scores)


def test_the_curve_is_the_mean_score_of_what_matches_so_often(client, address, features):
    data = client.get(f"{address}/explanations.json").json()
    for point in data["points"]:
        held = [
            (row["seed"], row["scored"]["value"])
            for row in features.values()
            if row["bucket"] != "dead"
            and row["x"] == point["n_matched"]
            and row["scored"]
            and row["scored"]["value"] is not None
        ]
        assert point["n"] == len(held)
        assert point["mean"] == pytest.approx(np.mean([value for _, value in held]))
        assert point["low"] <= point["mean"] <= point["high"]
        own = [
            np.mean([v for s, v in held if s == seed]) if any(s == seed for s, _ in held) else None for seed in range(4)
        ]
        assert point["members"] == [None if mean is None else pytest.approx(mean) for mean in own]
    drawn = figures_of(client.get(f"{address}/explanations").text)["scores"]
    assert_valid_plotly(drawn)
    curve = next(trace for trace in drawn["data"] if trace["mode"] == "lines+markers+text")
    assert curve["y"] == pytest.approx([point["mean"] for point in data["points"]])


def test_words_are_counted_as_python_counts_them(client, address, features):
    contrast = client.get(f"{address}/explanations.json").json()["contrast"]
    texts = {
        bucket: [r["explanation"] for r in features.values() if r["bucket"] == bucket and r["explanation"]]
        for bucket in ("stable", "unstable")
    }
    assert (contrast["n_stable"], contrast["n_unstable"]) == (len(texts["stable"]), len(texts["unstable"]))
    counts = {bucket: Counter(word for text in held for word in words_of(text)) for bucket, held in texts.items()}
    wanted = {w for w in counts["stable"] | counts["unstable"] if counts["stable"][w] + counts["unstable"][w] >= 5}
    assert {line["word"] for line in contrast["words"]} == wanted
    size = [abs(line["difference"]) for line in contrast["words"]]
    assert size == sorted(size, reverse=True)
    for line in contrast["words"]:
        assert (line["n_stable"], line["n_unstable"]) == (
            counts["stable"][line["word"]],
            counts["unstable"][line["word"]],
        )
        shares = [line[f"n_{bucket}"] / len(texts[bucket]) for bucket in ("stable", "unstable")]
        assert line["difference"] == pytest.approx(shares[1] - shares[0])
        for bucket, share in zip(("stable", "unstable"), shares, strict=True):
            assert line[f"{bucket}_low"] <= share <= line[f"{bucket}_high"]
        assert line["low"] <= line["high"]


def test_intervals_of_shares_are_those_in_which_the_count_is_not_unlikely(client, address):
    """Clopper-Pearson by its definition: at either end the tail beyond the count has 2.5 %."""
    contrast = client.get(f"{address}/explanations.json").json()["contrast"]
    n = contrast["n_stable"]
    for line in contrast["words"][:10]:
        k = line["n_stable"]
        if 0 < k < n:
            assert binom.sf(k - 1, n, line["stable_low"]) == pytest.approx(0.025, rel=1e-4)
            assert binom.cdf(k, n, line["stable_high"]) == pytest.approx(0.025, rel=1e-4)


def test_word_downloads_hold_every_line_of_the_twin(client, address):
    contrast = client.get(f"{address}/explanations.json?theta=0.6").json()["contrast"]
    for kind, read in (("csv", pyarrow.csv.read_csv), ("parquet", pyarrow.parquet.read_table)):
        rows = read(BytesIO(client.get(f"{address}/explanations.{kind}?theta=0.6").content)).to_pylist()
        of = {about: [row for row in rows if row["about"] == about] for about in ("word", "kind of rule")}
        for about, lines in (("word", contrast["words"]), ("kind of rule", contrast["rule_kinds"])):
            assert [str(row["word"]) for row in of[about]] == [line["word"] for line in lines]
            assert [row["difference"] for row in of[about]] == pytest.approx([line["difference"] for line in lines])


@pytest.mark.parametrize(
    ("sentence", "kinds"),
    [
        ('the tokens " def" or "after"', {"one token or several"}),
        ('any token after "contains"', {"token in front"}),
        ('tokens that contain "get" inside brackets', {"substring", "place"}),
        ('a number that ends in "in any form"', {"end"}),
        ('"self" in any form', {"a word in any form"}),
        ("a capitalised word", {"class of tokens alone"}),
    ],
)
def test_kinds_of_rules_are_told_by_the_sentence_and_not_by_what_it_quotes(sentence, kinds):
    assert rule_kinds(sentence) == kinds


def test_the_control_stands_beside_its_ensemble(own_root, address):
    """A copy of the ensemble, said to be the control, with every score lowered by a tenth."""
    tables = ("Ensemble", "Member", "Feature", "Match", "Pair", "NullMatch", "Explanation", "Score", "Word")
    lowered = {"Score": ", value - 0.1 AS value", "Ensemble": ", 'topk-96' AS control_of"}
    copies = [
        f"INSERT INTO {t} SELECT * REPLACE ('control' AS ensemble{lowered.get(t, '')}) FROM {t} WHERE ensemble = 'topk-96'"
        for t in tables
    ]
    republish(own_root, *copies)
    client = browse(own_root)
    data = client.get(f"{address}/explanations.json").json()
    assert (data["control"]["ensemble"], data["control"]["is_random"]) == ("control", True)
    for mine, other in zip(data["points"], data["control"]["points"], strict=True):
        assert other["mean"] == pytest.approx(mine["mean"] - 0.1)
    names = [trace.get("name") for trace in figures_of(client.get(f"{address}/explanations").text)["scores"]["data"]]
    assert "control" in names
    back = client.get("/s/small/control/explanations.json").json()["control"]
    assert (back["ensemble"], back["is_random"]) == ("topk-96", False)


def test_several_explainers_are_all_shown_and_each_has_its_own_page(own_root, address, good):
    where = f"seed = {good['seed']} AND feature = {good['feature']}"
    republish(
        own_root,
        "INSERT INTO Explanation SELECT * REPLACE ('openai:small' AS explainer, 'zebra stripes' AS text) FROM Explanation "
        f"WHERE {where}",
        "INSERT INTO Explanation SELECT * REPLACE ('openai:small' AS explainer, NULL AS text, 'server is gone' AS failure) "
        f"FROM Explanation WHERE seed = {good['seed']} AND feature = {good['feature']} + 1",
        f"INSERT INTO Score SELECT * REPLACE ('openai:small' AS explainer, 'fuzzing' AS kind, [] AS said) FROM Score WHERE {where}",
        f"INSERT INTO Word SELECT ensemble, 'zebra', seed, feature FROM Feature WHERE {where}",
        f"UPDATE Feature SET explanation = 'zebra stripes', explainer = 'openai:small', score = NULL WHERE {where}",
    )
    client = browse(own_root)
    data = client.get(at(address, good, ".json")).json()
    assert [told["explainer"] for told in data["explanations"]] == ["openai:small", "token rule"]
    text = text_of(client.get(at(address, good)).text)
    assert "zebra stripes language model small fuzzing" in text
    assert f"{good['explanation']} token rule detection" in text
    found = client.get(f"{address}/features.json?q=zeb").json()["rows"]
    assert (good["seed"], good["feature"]) in {(row["seed"], row["feature"]) for row in found}
    theirs = client.get(f"{address}/explanations.json?explainer=openai:small").json()
    assert (theirs["kind"], theirs["explainers"]["openai:small"]) == ("fuzzing", 1)
    assert theirs["contrast"]["rule_kinds"] is None
    assert sum(line["n_failed"] for line in theirs["buckets"]) <= 1
    unknown = client.get(at(address, good, "/scored.json?explainer=openai:small")).json()
    assert {group["name"] for group in unknown["groups"]} == {"active", "silent"}


def test_without_explanations_every_page_says_what_adds_them(own_root, address):
    republish(
        own_root, "DELETE FROM Explanation", "DELETE FROM Score", "DELETE FROM Scored", "DELETE FROM Word",
        "UPDATE Feature SET explanation = NULL, explainer = NULL, score = NULL",
        "UPDATE Ensemble SET computed = list_filter(computed, lambda c: c != 'explain')",
    )  # fmt: skip
    client, command = browse(own_root), "seedscope analyze small --only explain"
    for path in (f"{address}/explanations", f"{address}/features", f"{address}/0/5", address):
        page = client.get(path)
        assert page.status_code == 200
        assert command in text_of(page.text)
    assert 'name="only" value="explain"' in client.get(f"{address}/explanations").text
    data = client.get(f"{address}/0/5.json").json()
    assert (data["explanations"], data["label_agreement"]) == (None, None)
    assert {e["field"] for e in data["missing"] if e["command"] == command} >= {"explanations", "label_agreement"}
    for query in ("sort=score", "score_min=0.5"):
        refused = client.get(f"{address}/features.json?{query}")
        assert refused.status_code == 422
        assert command in refused.text
    assert client.get(f"{address}/features.json?q=def").status_code == 200
    assert client.get(f"{address}/explanations.csv").status_code == 200


def test_pages_lead_to_the_explanations_and_keep_the_judgement(client, address):
    for path in (address, f"{address}/buckets"):
        assert any(
            link.startswith(f"{address}/explanations?theta=0.6") for link in links(client.get(f"{path}?theta=0.6").text)
        )
    assert 'id="explanations"' in client.get("/methods").text


def test_markup_in_an_explanation_is_text(own_root, address):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    republish(own_root, f"UPDATE Feature SET explanation = '{hostile}'", f"UPDATE Explanation SET text = '{hostile}'")
    client = browse(own_root)
    for path in (f"{address}/features", f"{address}/0/5", f"{address}/0/5/scored", f"{address}/explanations"):
        page = client.get(path).text
        assert "<script>alert" not in page
        assert "<img" not in page


def test_pages_of_explanations_answer_quickly(client, address, good):
    for path in (
        f"{address}/explanations",
        at(address, good),
        at(address, good, "/scored"),
        f"{address}/features?q=after",
    ):
        client.get(path)
        took = []
        for _ in range(3):
            began = time.perf_counter()
            client.get(path)
            took.append(time.perf_counter() - began)
        assert min(took) < 0.5
