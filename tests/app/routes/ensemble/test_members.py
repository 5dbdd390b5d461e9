"""Seed x seed, pairs, rules and neighbours: against plain NumPy and SciPy on the decoder matrices themselves."""

import re
import shutil
from io import BytesIO

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from scipy.optimize import linear_sum_assignment

from support.golden import unit_rows
from support.reading import answered, assert_valid_plotly, browse, figures_of, republish, text_of

D_SAE = 96
RULES = ("argmax", "live", "mutual", "hungarian", "both")


@pytest.fixture(scope="module")
def decoders(ensemble_saes) -> np.ndarray:
    return unit_rows(ensemble_saes.W_dec.detach().double().numpy())


@pytest.fixture(scope="module")
def encoders(ensemble_saes) -> np.ndarray:
    return unit_rows(ensemble_saes.W_enc.detach().double().numpy().transpose(0, 2, 1))


@pytest.fixture(scope="module")
def dead(client, address) -> np.ndarray:
    """(members, d_sae), as the table says."""
    found = np.zeros((4, D_SAE), bool)
    for row in client.get(f"{address}/features.json?limit=500").json()["rows"]:
        found[row["seed"], row["feature"]] = row["bucket"] == "dead"
    return found


@pytest.fixture(scope="module")
def wanted(decoders, encoders, dead):
    """(partner, cosine that theta is compared with) of every feature of a in b under a rule; -1 without a pair."""

    def find(rule: str, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        cosines = decoders[a] @ decoders[b].T
        every = np.arange(D_SAE)
        if rule == "live":
            cosines = np.where(dead[b], -np.inf, cosines)
        partner = cosines.argmax(1)
        if rule in ("hungarian", "both"):
            partner = linear_sum_assignment(cosines, maximize=True)[1]
        cosine = cosines[every, partner]
        none = np.zeros(D_SAE, bool)
        if rule == "mutual":
            none = cosines.argmax(0)[partner] != every
        if rule == "both":
            between = encoders[a] @ encoders[b].T
            none = linear_sum_assignment(between, maximize=True)[1] != partner
            cosine = np.minimum(cosine, between[every, partner])
        return np.where(none, -1, partner), np.where(none, -1, cosine)

    return find


def pair(client, address: str, query: str) -> dict:
    answer = client.get(f"{address}/members.json?limit=500&{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()["pair"]


def lines(detail: dict) -> dict[int, tuple[int | None, float | None]]:
    """{feature: (partner, cosine)} of a pair's matched and unmatched features."""
    return {line["feature"]: (line["partner"], line["cosine"]) for line in detail["matched"] + detail["unmatched"]}


# -- rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_pair_is_what_the_matrices_say_under_every_rule(client, address, wanted, dead, rule):
    detail = pair(client, address, f"a=1&b=3&rule={rule}")
    partner, cosine = wanted(rule, 1, 3)
    found = lines(detail)
    assert sorted(found) == np.flatnonzero(~dead[1]).tolist()
    for feature, (its_partner, its_cosine) in found.items():
        if partner[feature] < 0:
            assert (its_partner, its_cosine) == (None, None)
        else:
            assert its_partner == partner[feature]
            assert its_cosine == pytest.approx(cosine[feature], abs=1e-5)
    assert all(line["mutual"] for line in detail["matched"]) or rule != "mutual"
    nearest = wanted("argmax", 1, 3)[0]
    assert not [m for m in detail["matched"] if m["mutual"] and m["partner"] != nearest[m["feature"]]]
    living = cosine[~dead[1]]
    assert detail["n_matched"] == (living >= 0.7).sum() == len(detail["matched"])
    assert detail["mean_cosine"] == pytest.approx(living[living > -1].mean(), abs=1e-5)


def test_a_matching_one_to_one_says_how_far_from_the_best_it_can_be(client, address):
    assert pair(client, address, "a=1&b=3&rule=hungarian")["gap"] <= 1e-5
    assert pair(client, address, "a=1&b=3")["gap"] is None


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("theta", ["0.7", "0.55", "0.5555"])
def test_a_features_matches_under_a_rule_are_counted_alike_on_every_page(client, address, wanted, rule, theta):
    """Stored counts, lists counted on the spot, the feature's own page, and NumPy."""
    rows = client.get(f"{address}/features.json?limit=500&rule={rule}&theta={theta}").json()["rows"]
    cosines = {seed: [wanted(rule, seed, other)[1] for other in range(4) if other != seed] for seed in range(4)}
    for row in rows[::7]:
        mine = np.array([of_pair[row["feature"]] for of_pair in cosines[row["seed"]]])
        if (np.abs(mine - float(theta)) > 1e-5).all():
            assert row["n_matched"] == (mine >= float(theta)).sum()
    for row in rows[::60]:
        page = client.get(f"{address}/{row['seed']}/{row['feature']}.json?rule={rule}&theta={theta}").json()
        assert (page["n_matched"], page["bucket"]) == (row["n_matched"], row["bucket"])
        assert [m["rule_cosine"] for m in page["matches"]] == pytest.approx(row["cosines"])


def test_a_rules_partner_is_the_one_that_the_feature_page_leads_to(client, address, wanted):
    for rule in RULES:
        data = client.get(f"{address}/2/11.json?rule={rule}").json()
        text = text_of(client.get(f"{address}/2/11?rule={rule}").text)
        for match in data["matches"]:
            partner = wanted(rule, 2, match["seed"])[0][11]
            assert match["rule_partner"] == (None if partner < 0 else partner)
            if partner >= 0:
                row = rf"{match['seed']} #{partner} [a-z0-9 -]*? ?{match['rule_cosine']:.3f}\b"
                assert re.search(row, text), (rule, match["seed"])


# -- the matrix --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?theta=0.5", "?theta=0.505", "?rule=hungarian", "?dead=count&theta=0.6"])
def test_every_cell_of_the_matrix_is_the_shared_fraction_of_its_pair(client, address, wanted, dead, query):
    data = client.get(f"{address}/members.json{query}").json()
    assert [(p["a"], p["b"]) for p in data["pairs"]] == [(a, b) for a in range(4) for b in range(4) if a != b]
    for cell in data["pairs"]:
        cosine = wanted(data["rule"], cell["a"], cell["b"])[1]
        if data["dead"] != "count":
            cosine = cosine[~dead[cell["a"]]]
        assert cell["n_anchors"] == len(cosine)
        if (np.abs(cosine - data["theta"]) > 1e-5).all():
            assert cell["n_matched"] == (cosine >= data["theta"]).sum()
        assert cell["shared"] == cell["n_matched"] / cell["n_anchors"]
    drawn = figures_of(client.get(f"{address}/members{query}").text)
    assert_valid_plotly(drawn["matrix"])
    cells = [value for row in drawn["matrix"]["data"][0]["z"] for value in row if value is not None]
    assert cells == pytest.approx([p["shared"] for p in data["pairs"]], abs=1e-4)


def test_pairwise_mcc_is_the_mean_over_pairs_of_the_mean_matched_cosine(client, address, decoders):
    values = []
    for a in range(4):
        for b in range(a):
            cosines = decoders[a] @ decoders[b].T
            values.append(cosines[linear_sum_assignment(cosines, maximize=True)].mean())
    assert client.get(f"{address}.json").json()["pw_mcc"] == pytest.approx(np.mean(values), abs=1e-5)


# -- one pair ----------------------------------------------------------------------------------------------------


def test_contested_features_are_those_that_several_have_as_their_match(client, address, wanted, dead):
    detail = pair(client, address, "a=0&b=2&theta=0.45")
    partner, cosine = wanted("argmax", 0, 2)
    hits = np.flatnonzero(~dead[0] & (cosine >= 0.45))
    claimed = {p: sorted(hits[partner[hits] == p].tolist()) for p in set(partner[hits].tolist())}
    several = {p: features for p, features in claimed.items() if len(features) > 1}
    assert several
    assert detail["n_contested"] == len(several)
    assert {c["partner"]: sorted(line["feature"] for line in c["claimants"]) for c in detail["contested"]} == several
    assert detail["n_unclaimed"] == D_SAE - len(claimed)


def test_lists_are_cut_at_the_limit_and_counts_are_not(client, address):
    whole = pair(client, address, "a=0&b=2")
    cut = client.get(f"{address}/members.json?a=0&b=2&limit=2").json()["pair"]
    assert cut["matched"] == whole["matched"][:2]
    assert cut["unmatched"] == whole["unmatched"][:2]
    assert cut["n_matched"] == whole["n_matched"] > 2
    assert [line["cosine"] for line in whole["matched"]] == sorted(
        (line["cosine"] for line in whole["matched"]), reverse=True
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_pairs_download_is_the_complete_matching(client, address, wanted, kind):
    read = {"csv": pyarrow.csv.read_csv, "parquet": pyarrow.parquet.read_table}[kind]
    table = read(BytesIO(client.get(f"{address}/members.{kind}?a=1&b=0&rule=mutual").content)).to_pydict()
    partner, cosine = wanted("mutual", 1, 0)
    assert table["feature"] == list(range(D_SAE))
    assert table["partner"] == partner.tolist()
    assert table["cosine"] == pytest.approx(cosine, abs=1e-5)
    matrix = read(BytesIO(client.get(f"{address}/members.{kind}").content))
    assert matrix.num_rows == 12


@pytest.mark.parametrize(
    ("query", "found", "there_is"),
    [("a=9&b=0", "9", "seeds 0, 1, 2, 3"), ("a=0&b=0", "0", "seeds 1, 2, 3"), ("a=0&b=7", "7", "seeds 1, 2, 3")],
)
def test_a_member_that_is_not_there_is_refused_with_those_that_are(client, address, query, found, there_is):
    for path in ("members", "members/match"):
        answer = client.get(f"{address}/{path}.json?{query}")
        assert answer.status_code == 404
        assert answer.json()["problems"][0]["found"] == found
        assert there_is in answer.json()["problems"][0]["expected"]


# -- what was not computed ---------------------------------------------------------------------------------------

NOT_ONE_TO_ONE = (
    "DELETE FROM Pair WHERE rule IN ('hungarian', 'both')",
    "UPDATE Feature SET hungarian_cosines = [], both_cosines = []",
    "UPDATE Match SET hungarian_partners = [], hungarian_encoder_cosines = [], encoder_partners = []",
)


def test_without_one_to_one_matching_pages_say_so_and_pairs_are_matched_on_demand(
    own_root, study_root, address, wanted
):
    shutil.copytree(study_root / "small" / "sae", own_root / "small" / "sae")
    republish(own_root, *NOT_ONE_TO_ONE)
    with browse(own_root) as client:
        for page in ("", "/features", "/members", "/0/5"):
            refused = client.get(f"{address}{page}.json?rule=hungarian")
            assert refused.status_code == 422
            assert "argmax, live, mutual" in refused.json()["problems"][0]["expected"]
            shown = client.get(f"{address}{page}")
            assert shown.status_code == 200
            assert '<option value="hungarian"' not in shown.text
        assert client.get(f"{address}.json").json()["pw_mcc"] is None
        assert {m["hungarian_partner"] for m in client.get(f"{address}/0/5.json").json()["matches"]} == {None}
        assert "was not computed" in text_of(client.get(f"{address}/members").text)
        now = answered(client, f"{address}/members/match.json?a=0&b=1&rule=hungarian&dead=count&limit=500").json()[
            "pair"
        ]
    assert {f: p for f, (p, _) in lines(now).items()} == dict(enumerate(wanted("hungarian", 0, 1)[0].tolist()))


def test_pages_judge_by_the_ensembles_own_settings_unless_told_otherwise(own_root, address):
    republish(own_root, "UPDATE Ensemble SET theta = 0.55, epsilon = 0.34")
    with browse(own_root) as client:
        for page in ("", "/features", "/members", "/0/5"):
            data = client.get(f"{address}{page}.json").json()
            assert data["theta"] == 0.55
            assert client.get(f"{address}{page}.json?theta=0.7").json()["theta"] == 0.7
        listed = client.get(f"{address}/features.json?limit=500").json()
        assert listed["buckets"]["middle"] == 0
        assert "theta=" not in client.get(f"{address}/features", headers={"HX-Request": "true"}).headers["hx-push-url"]
        pushed = client.get(f"{address}/features?theta=0.7", headers={"HX-Request": "true"}).headers["hx-push-url"]
        assert "theta=0.7" in pushed


# -- matched now -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["argmax", "mutual", "hungarian", "both"])
def test_a_pair_matched_now_is_the_stored_one(client, address, rule):
    stored = pair(client, address, f"a=3&b=1&rule={rule}")
    now = answered(client, f"{address}/members/match.json?limit=500&a=3&b=1&rule={rule}").json()["pair"]
    assert lines(now).keys() == lines(stored).keys()
    for feature, (partner, cosine) in lines(now).items():
        assert lines(stored)[feature][0] == partner
        assert lines(stored)[feature][1] == (None if cosine is None else pytest.approx(cosine, abs=1e-5))
    assert {k: now[k] for k in ("n_matched", "n_contested", "n_unclaimed")} == {
        k: stored[k] for k in ("n_matched", "n_contested", "n_unclaimed")
    }
    page = answered(client, f"{address}/members/match?a=3&b=1&rule={rule}")
    assert page.status_code == 200
    assert f"{now['n_matched']} matched" in text_of(page.text)
    assert_valid_plotly(figures_of(page.text)["pair"])


def test_absolute_matching_takes_the_largest_cosine_of_either_sign(client, address, decoders):
    query = "limit=500&a=3&b=1&absolute=true&dead=count"
    now = answered(client, f"{address}/members/match.json?{query}").json()["pair"]
    cosines = np.abs(decoders[3] @ decoders[1].T)
    assert {f: p for f, (p, _) in lines(now).items()} == dict(enumerate(cosines.argmax(1).tolist()))
    assert {f: c for f, (_, c) in lines(now).items()} == pytest.approx(dict(enumerate(cosines.max(1))), abs=1e-5)


# -- neighbours --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "by", "members", "k"),
    [
        ("", "decoder", [0, 1, 2, 3], 3),
        ("?by=encoder&k=5", "encoder", [0, 1, 2, 3], 5),
        ("?members=2&k=1", "decoder", [2], 1),
        ("?members=3,1&k=2&theta=0.5&bucket=stable", "decoder", [1, 3], 2),
    ],
)
def test_neighbours_are_the_largest_cosines_in_every_member_asked_for(
    client, address, decoders, encoders, query, by, members, k
):
    rows = {"decoder": decoders, "encoder": encoders}[by]
    data = answered(client, f"{address}/1/17/neighbours.json{query}").json()
    found = [(n["seed"], n["feature"]) for n in data["neighbours"]]
    wanted = []
    for member in members:
        cosines = rows[member] @ rows[1, 17]
        if member == 1:
            cosines[17] = -np.inf
        wanted += [(member, int(f)) for f in np.argsort(-cosines, kind="stable")[:k]]
    assert found == wanted
    for n in data["neighbours"]:
        assert n["cosine"] == pytest.approx(rows[n["seed"], n["feature"]] @ rows[1, 17], abs=1e-5)
        page = client.get(f"{address}/{n['seed']}/{n['feature']}.json{'?theta=0.5' if 'theta' in query else ''}").json()
        assert n["bucket"] == page["bucket"]
    text = text_of(answered(client, f"{address}/1/17/neighbours{query}").text)
    for n in data["neighbours"]:
        assert re.search(rf"#{n['feature']} ([a-z ]+ )?{n['cosine']:.3f}", text)


@pytest.mark.parametrize(
    ("query", "said"),
    [("members=7", "0, 1, 2, 3"), ("members=x", "seeds as numbers"), ("k=0", "greater than"), ("by=bias", "decoder"),
     ("bad=1", "absolute")],
)  # fmt: skip
def test_neighbours_that_cannot_be_searched_are_refused_with_what_can(client, address, query, said):
    answer = client.get(f"{address}/1/17/neighbours.json?{query}")
    assert answer.status_code == 422
    assert said in answer.json()["problems"][0]["expected"]


def test_while_the_engine_starts_a_page_says_so_and_asks_again(own_root, study_root, address):
    shutil.copytree(study_root / "small" / "sae", own_root / "small" / "sae")
    with browse(own_root) as client:
        path = f"{address}/1/17/neighbours?k=2"
        first = client.get(path, headers={"HX-Request": "true"})
        assert first.status_code == 202
        assert f'hx-get="{path}"' in first.text
        assert "starting" in first.text
        machine = client.get(f"{address}/1/17/neighbours.json?k=2")
        assert machine.status_code == 503
        assert machine.headers["retry-after"] == "1"
        assert client.get(f"{address}/1/17").status_code == 200
        assert answered(client, path).status_code == 200
