"""Effect of removing features: the page against sums over the store's rows, made by DuckDB and NumPy."""

import re
import shutil
from dataclasses import fields
from io import BytesIO

import duckdb
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from seedscope.app.routes.ensemble.ablation import AblationPage
from support.reading import assert_valid_plotly, browse, figures_of, links, republish, text_of
from support.studies import members_that_agree, publish_study

CONTROL = "topk-96-control"
KINDS = ("stable", "unstable", "random", "matched to stable", "matched to unstable")
EVIL = "<script>alert(1)</script>"
NO_LOSS = (
    "UPDATE Ensemble SET computed = ['match', 'activity', 'ablate']",
    "UPDATE Ablation SET loss = NULL, loss_sd = NULL",
    "UPDATE Member SET loss_own = NULL, loss_spliced = NULL, loss_zero = NULL, n_loss_tokens = NULL",
)


@pytest.fixture(scope="module")
def sql(study_root, tmp_path_factory):
    """The rows of a statement on a copy of the published store, which the dashboard holds open."""
    name = (study_root / "small" / "CURRENT").read_text().split()[0]
    copy = shutil.copy(study_root / "small" / name, tmp_path_factory.mktemp("copy"))
    with duckdb.connect(copy, read_only=True) as connection:
        yield lambda statement: connection.execute(statement).fetchall()


@pytest.fixture(scope="module")
def data(client, address) -> dict:
    answer = client.get(f"{address}/ablation.json")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def shown(client, address) -> str:
    return client.get(f"{address}/ablation").text


# -- numbers -----------------------------------------------------------------------------------------------------


def test_every_mask_is_the_mean_and_spread_over_members_of_the_stores_rows(data, sql):
    wanted = sql(
        "SELECT m.mask, avg(m.n_masked), max(m.n_draws), count(*), avg(m.ev), stddev_samp(m.ev), avg(u.ev - m.ev), "
        "avg(m.loss), stddev_samp(m.loss), avg(m.loss - u.loss) FROM Ablation m JOIN Ablation u USING (ensemble, seed) "
        f"WHERE u.mask = 'none' AND m.mask NOT IN {KINDS} GROUP BY ALL"
    )
    names = ("n_masked", "n_draws", "n_members", "ev", "ev_spread", "ev_lost", "loss", "loss_spread", "loss_added")
    lines = {line["mask"]: [line[name] for name in names] for line in data["masks"]}
    assert {"none", "N stable", "4N unstable", "N random", "4N random"} <= set(lines)
    assert lines.keys() == {row[0] for row in wanted}
    for mask, *values in wanted:
        assert lines[mask] == pytest.approx(values, abs=1e-9)
    assert [line["mask"] for line in data["masks"] if line["is_control"]] == [
        "N matched to stable", "N random", "4N matched to unstable", "4N random",
    ]  # fmt: skip


def test_the_sentence_and_the_table_say_the_same_numbers(data, shown):
    text = text_of(shown)
    assert data["sentence"] in text
    lines = {line["mask"]: line for line in data["masks"]}
    first = lines["N stable"]
    assert (
        f"Removing {first['n_masked']:.0f} stable features per SAE takes EV from {lines['none']['ev']:.2f}"
        in data["sentence"]
    )
    assert f"by {abs(first['loss_added']):.3f} nats" in data["sentence"]
    assert (
        f"unstable ones: {lines['4N unstable']['ev']:.2f}, {lines['4N unstable']['loss_added']:+.3f}"
        in data["sentence"]
    )
    for line in lines.values():
        assert f"{line['ev']:.3f} ± {line['ev_spread']:.3f}" in text
        assert f"{line['loss']:.3f} ± {line['loss_spread']:.3f}" in text
    assert f"θ = {data['theta']}, ε = {data['epsilon']}" in text


def test_curves_begin_at_one_feature_end_at_all_and_take_equal_places_of_every_member(data, sql):
    rows = sql(f"SELECT mask, seed, n_masked, ev, loss FROM Ablation WHERE mask IN {KINDS} ORDER BY ALL")
    assert {row[0] for row in rows} == {line["kind"] for line in data["curves"]}
    for kind in {row[0] for row in rows}:
        members = {}
        for _, seed, *values in (row for row in rows if row[0] == kind):
            members.setdefault(seed, []).append(values)
        found = [line for line in data["curves"] if line["kind"] == kind]
        assert len(found) == max(map(len, members.values()))
        assert {line["n_members"] for line in found} == {len(members)}
        for place in (0, -1):
            wanted = np.mean([held[place] for held in members.values()], axis=0)
            assert [found[place][n] for n in ("n_masked", "ev", "loss")] == pytest.approx(wanted.tolist())
            spread = np.std([held[place] for held in members.values()], axis=0, ddof=1)
            assert [found[place][n] for n in ("ev_spread", "loss_spread")] == pytest.approx(spread[1:].tolist())
        if len({len(held) for held in members.values()}) == 1:
            wanted = np.mean(list(members.values()), axis=0)
            assert np.allclose([[line[n] for n in ("n_masked", "ev", "loss")] for line in found], wanted)


def test_members_keep_the_share_of_the_loss_that_zeros_would_cost(data, sql):
    wanted = sql(
        "SELECT seed, ev, loss_own, loss_spliced, loss_zero, (loss_zero - loss_spliced) / (loss_zero - loss_own), "
        "n_loss_tokens FROM Member ORDER BY seed"
    )
    assert [list(member.values()) for member in data["members"]] == [pytest.approx(list(row)) for row in wanted]


def test_figures_draw_the_curves_beside_the_models_own_loss(data, shown):
    drawn = figures_of(shown)
    assert list(drawn) == ["masked_ev", "masked_loss"]
    for figure, value in zip(drawn.values(), ("ev", "loss"), strict=True):
        assert_valid_plotly(figure)
        assert figure["layout"]["xaxis"]["type"] == "log"
        lines = [trace for trace in figure["data"] if trace.get("fill") is None]
        of_kind = {kind: [p[value] for p in data["curves"] if p["kind"] == kind] for kind in KINDS}
        assert {trace["legendgroup"]: trace["y"] for trace in lines} == {k: held for k, held in of_kind.items() if held}
    levels = [shape["y0"] for shape in drawn["masked_loss"]["layout"]["shapes"]]
    members = data["members"]
    assert levels == pytest.approx(
        [np.mean([m[f"loss_{name}"] for m in members]) for name in ("own", "spliced", "zero")]
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_download_is_every_row_of_the_store(client, address, sql, kind):
    read = {"csv": pyarrow.csv.read_csv, "parquet": pyarrow.parquet.read_table}[kind]
    table = read(BytesIO(client.get(f"{address}/ablation.{kind}").content))
    wanted = sql("SELECT * FROM Ablation ORDER BY ensemble, seed, mask, n_masked")
    assert [tuple(row.values()) for row in table.to_pylist()] == [pytest.approx(row) for row in wanted]


# -- the page ----------------------------------------------------------------------------------------------------


def test_the_twin_has_every_field_and_every_link_answers(client, address, data, shown):
    assert set(data) == {f.name for f in fields(AblationPage) if not f.name.startswith(("nav_", "figure_"))}
    assert not re.findall(r"\b(None|nan|undefined)\b", text_of(shown))
    for link in (link for link in links(shown) if link.startswith("/")):
        assert client.get(link).status_code == 200, link
    assert f"{address}/ablation" in links(client.get(address).text)


def test_masks_keep_their_buckets_so_a_theta_is_refused_with_what_the_page_takes(client, address, shown):
    answer = client.get(f"{address}/ablation.json?theta=0.5")
    assert answer.status_code == 422
    assert answer.json()["problems"][0] == {
        "name": "theta", "found": "an unknown parameter", "expected": "one of embed",
    }  # fmt: skip
    assert "another θ chosen on other pages does not change them" in text_of(shown)


def test_a_bucket_too_small_for_the_headline_is_said(own_root, address):
    republish(own_root, "DELETE FROM Ablation WHERE mask LIKE 'N %' OR mask LIKE '4N %'")
    with browse(own_root) as client:
        data = client.get(f"{address}/ablation.json").json()
        assert data["sentence"].startswith("The buckets are too small")
        assert {line["mask"] for line in data["masks"]} == {"none", "all stable", "all middle", "all unstable"}
        assert list(figures_of(client.get(f"{address}/ablation").text)) == ["masked_ev", "masked_loss"]


def test_members_without_a_mask_are_left_out_of_both_sides_of_its_cost(own_root, address, sql):
    republish(own_root, "DELETE FROM Ablation WHERE seed = 2 AND mask != 'none'")
    with browse(own_root) as client:
        data = client.get(f"{address}/ablation.json").json()
        line = next(line for line in data["masks"] if line["mask"] == "N stable")
        assert "3 seeds" in text_of(client.get(f"{address}/ablation").text)
    ((lost,),) = sql(
        "SELECT avg(u.ev - m.ev) FROM Ablation m JOIN Ablation u USING (ensemble, seed) "
        "WHERE u.mask = 'none' AND m.mask = 'N stable' AND seed != 2"
    )
    assert (line["n_members"], line["ev_lost"]) == (3, pytest.approx(lost))


# -- the control -------------------------------------------------------------------------------------------------


def test_an_ensemble_and_its_control_stand_side_by_side_on_both_pages(own_root, address):
    copies = [
        f"INSERT INTO {table} SELECT * REPLACE ('{CONTROL}' AS ensemble {more}) FROM {table}"
        for table, more in {
            "Ensemble": ", 'topk-96' AS control_of", "Pair": "", "NullMatch": "", "Ablation": "", "Feature": "",
            "Member": ", ev - 0.25 AS ev, loss_own AS loss_zero",
        }.items()
    ]  # fmt: skip
    republish(own_root, *copies, f"UPDATE Feature SET dead = true WHERE ensemble = '{CONTROL}' AND feature % 2 = 0")
    with browse(own_root) as client:
        control = address.replace("topk-96", CONTROL)
        first, second = (client.get(f"{a}/ablation.json").json()["sides"] for a in (address, control))
        assert first == second
        trained, random = first
        assert (trained["ensemble"], trained["is_control"]) == ("topk-96", False)
        assert (random["ensemble"], random["is_control"]) == (CONTROL, True)
        assert random["ev"] == pytest.approx(trained["ev"] - 0.25)
        assert random["loss_recovered"] is None
        for side in first:
            buckets = client.get(f"/s/small/{side['ensemble']}.json").json()["buckets"]
            judged = sum(n for bucket, n in buckets.items() if bucket != "dead")
            assert side["stable"] == pytest.approx(buckets["stable"] / judged)
        for page in (address, control):
            text = client.get(f"{page}/ablation").text
            assert "same model with random weights" in text_of(text)
            assert f"{control if page == address else address}/ablation" in links(text)
        assert "nothing is to be recovered" in text_of(client.get(f"{control}/ablation").text)


def test_without_a_control_nothing_is_said_of_one(data, shown):
    assert data["sides"] == []
    assert "random weights" not in text_of(shown)


# -- what was not computed ---------------------------------------------------------------------------------------


def test_without_loss_there_is_ev_and_the_command_that_adds_the_loss(own_root, address, data):
    republish(own_root, *NO_LOSS)
    with browse(own_root) as client:
        now, page = client.get(f"{address}/ablation.json").json(), client.get(f"{address}/ablation").text
    assert [entry["command"] for entry in now["missing"]] == ["seedscope analyze small --only loss"]
    assert "seedscope analyze small --only loss" in text_of(page)
    assert [line["ev"] for line in now["masks"]] == [line["ev"] for line in data["masks"]]
    assert {line["loss"] for line in now["masks"]} | {line["loss_added"] for line in now["masks"]} == {None}
    assert "nats" not in now["sentence"]
    assert list(figures_of(page)) == ["masked_ev"]
    assert not re.findall(r"\b(None|nan|undefined)\b", text_of(page))


def test_where_tokens_see_what_follows_the_loss_is_undefined_and_no_command_adds_it(own_root, address):
    republish(own_root, *NO_LOSS, f"UPDATE Study SET causal = false, model = '{EVIL}'")
    with browse(own_root) as client:
        (loss,) = client.get(f"{address}/ablation.json").json()["missing"]
        page = client.get(f"{address}/ablation").text
    assert (loss["reason"].split(":")[0], loss["command"]) == ("undefined", None)
    assert "every token sees the tokens after it" in text_of(page)
    assert EVIL not in page
    assert EVIL in text_of(page)


def test_loss_without_masks_says_what_the_reconstruction_costs(own_root, address):
    republish(own_root, "UPDATE Ensemble SET computed = ['match', 'activity', 'loss']", "DELETE FROM Ablation",
              "UPDATE Member SET ev = NULL")  # fmt: skip
    with browse(own_root) as client:
        data, page = client.get(f"{address}/ablation.json").json(), client.get(f"{address}/ablation").text
    assert "zeros to" in data["sentence"]
    assert [entry["command"] for entry in data["missing"]] == ["seedscope analyze small --only ablate"]
    assert (data["masks"], data["curves"], figures_of(page)) == ([], [], {})
    assert "loss recovered" in text_of(page)


def test_decoders_alone_have_no_worth_and_the_page_says_what_gives_them_one(tmp_path):
    publish_study(tmp_path, "mine", {"topk": (members_that_agree(), {"hookpoint": "blocks.7.hook_resid_pre"})})
    with browse(tmp_path) as client:
        data, page = client.get("/s/mine/topk/ablation.json").json(), client.get("/s/mine/topk/ablation").text
        table = client.get("/s/mine/topk/ablation.parquet")
    assert data["sentence"] == "What removing features costs was not measured."
    assert {e["command"] for e in data["missing"]} == {"seedscope analyze mine --model DIR_OR_ID --tokens FILE"}
    assert "seedscope analyze mine --model DIR_OR_ID --tokens FILE" in text_of(page)
    assert figures_of(page) == {}
    assert not re.findall(r"\b(None|nan)\b", text_of(page))
    assert pyarrow.parquet.read_table(BytesIO(table.content)).num_rows == 0


def test_markup_in_what_a_file_names_stays_text(own_root, address):
    republish(own_root, f"UPDATE Ensemble SET hookpoint = '{EVIL}'")
    with browse(own_root) as client:
        page = client.get(f"{address}/ablation").text
    assert EVIL not in page
    assert f"Spliced at {EVIL}" in text_of(page)
