"""Buckets beside each other: quartiles, effect sizes and trigger classes against plain NumPy on rows read with DuckDB."""

import shutil

import duckdb
import numpy as np
import pytest

from seedscope.app.findings.bucket_comparison import metric_line
from seedscope.app.store import compare
from seedscope.engine.contract.schema import TRIGGERS
from support.reading import assert_valid_plotly, browse, cell_links, figures_of, republish, text_of

COLUMNS = {
    "density": "density", "entropy": "token_entropy", "top_share": "top_token_share", "worth_ev": "worth_ev",
    "worth_loss": "worth_loss", "norm": "decoder_norm", "max": "max_activation",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(study_root, tmp_path_factory) -> dict[str, np.ndarray]:
    """All features as columns; x counts cosines >= 0.6 without the derived columns."""
    folder = study_root / "small"
    # A copy: the dashboard holds the store itself open, configured otherwise.
    copy = shutil.copy(folder / (folder / "CURRENT").read_text().split()[0], tmp_path_factory.mktemp("rows"))
    names = ", ".join(COLUMNS.values())
    with duckdb.connect(copy, read_only=True) as connection:
        return connection.execute(
            f"SELECT seed, feature, dead, trigger, {names}, len(list_filter(cosines, lambda c: c >= 0.6::FLOAT)) AS x FROM Feature"
        ).fetchnumpy()


def of_bucket(rows) -> dict[str, np.ndarray]:
    """With 3 comparisons and epsilon 0.05: all or none."""
    living = ~np.asarray(rows["dead"], bool)
    x = np.asarray(rows["x"])
    return {"stable": living & (x == 3), "middle": living & (x > 0) & (x < 3), "unstable": living & (x == 0)}


def values_of(rows, column: str, held: np.ndarray) -> np.ndarray:
    values = np.asarray(rows[column], float)[held]
    return values.round(5) if column == "decoder_norm" else values


def superiority(a: np.ndarray, b: np.ndarray) -> float:
    return ((a[:, None] > b).sum() + (a[:, None] == b).sum() / 2) / (len(a) * len(b))


@pytest.fixture(scope="module")
def twin(client, address) -> dict:
    return client.get(f"{address}/buckets.json?theta=0.6").json()


def test_quartiles_and_effect_sizes_are_those_of_the_rows(twin, rows):
    buckets = of_bucket(rows)
    assert [line["metric"] for line in twin["comparison"]["metrics"]] == list(COLUMNS)
    for line in twin["comparison"]["metrics"]:
        column = COLUMNS[line["metric"]]
        for bucket, held in buckets.items():
            values = values_of(rows, column, held)
            found = line["buckets"][bucket]
            assert found["n"] == len(values) > 0
            expected = np.percentile(values, (25, 50, 75))
            assert [found["low"], found["median"], found["high"]] == pytest.approx(expected.tolist())
        expected = superiority(*(values_of(rows, column, buckets[bucket]) for bucket in ("stable", "unstable")))
        assert line["auc"] == pytest.approx(expected)
        assert line["auc_low"] <= line["auc"] <= line["auc_high"]


def test_the_interval_is_that_of_members_drawn_whole(twin, rows):
    """Every draw written out: members' rows repeated, all pairs compared."""
    buckets = of_bucket(rows)
    seeds = np.asarray(rows["seed"])
    line = next(line for line in twin["comparison"]["metrics"] if line["metric"] == "max")
    drawn = []
    for times in np.random.default_rng(0).multinomial(4, np.full(4, 1 / 4), 200):
        picked = {}
        for bucket in ("stable", "unstable"):
            parts = [
                values_of(rows, "max_activation", buckets[bucket] & (seeds == m)) for m in np.repeat(range(4), times)
            ]
            picked[bucket] = np.concatenate(parts)
        if len(picked["stable"]) and len(picked["unstable"]):
            drawn.append(superiority(picked["stable"], picked["unstable"]))
    low, high = np.quantile(drawn, (0.025, 0.975), method="inverted_cdf")
    assert (line["auc_low"], line["auc_high"]) == pytest.approx((low, high))


def test_copies_in_all_seeds_do_not_narrow_the_interval():
    """The same features in every member say no more than one member does; independent pairs would."""
    rng = np.random.default_rng(1)
    shift = np.linspace(-1, 1, 8)[:, None]  # members differ; features within one do not say how
    values = np.concatenate([rng.normal(size=(8, 200)) + shift, rng.normal(size=(8, 200))], 1)
    member, bucket = np.repeat(range(8), 400), np.tile(np.repeat([0, 2], 200), 8)
    line = metric_line("max", values.ravel(), bucket, member, 8)
    assert line.auc_high - line.auc_low > 0.15  # 1,600 independent pairs of each kind: 0.04


def test_trigger_classes_hold_every_feature_that_fires_in_the_order_of_the_schema(twin, rows, client, address):
    lines = twin["comparison"]["triggers"]
    assert tuple(line["trigger"] for line in lines) == TRIGGERS
    trigger = np.asarray(rows["trigger"])
    for bucket, held in of_bucket(rows).items():
        assert sum(line["shares"][bucket] for line in lines) == pytest.approx(1)
        for line in lines:
            assert line["counts"][bucket] == (held & (trigger == line["trigger"])).sum()
    for line in lines:
        if line["shares"]["stable"]:
            assert line["ratio"] == pytest.approx(line["shares"]["unstable"] / line["shares"]["stable"])
        else:
            assert line["ratio"] is None
    most = max(lines, key=lambda line: line["counts"]["unstable"])
    parameters = {"theta": 0.6, "trigger": most["trigger"], "bucket": "unstable", "limit": 500}
    assert len(client.get(f"{address}/features.json", params=parameters).json()["rows"]) == most["counts"]["unstable"]


@pytest.mark.parametrize("metric", COLUMNS)
def test_every_living_feature_is_one_point_within_half_a_step_of_its_stability(client, address, rows, metric):
    figure = figures_of(client.get(f"{address}/buckets?theta=0.6&metric={metric}").text)["scatter"]
    assert_valid_plotly(figure)
    expected = {
        f"/{s}/{f}": (x / 3, v)
        for s, f, x, v, dead in zip(
            rows["seed"], rows["feature"], rows["x"], rows[COLUMNS[metric]], rows["dead"], strict=True
        )
        if not dead
    }
    seen = {}
    for trace in figure["data"]:
        assert trace["meta"] == {"base": address, "query": "?theta=0.6"}
        seen |= dict(zip(trace["customdata"], zip(trace["x"], trace["y"], strict=True), strict=True))
    assert seen.keys() == expected.keys()
    log = figure["layout"]["yaxis"].get("type") == "log"
    lowest = min(y for _, y in seen.values())
    for key, (x, y) in seen.items():
        assert abs(x - expected[key][0]) < 0.5 / 3
        assert y == pytest.approx(expected[key][1], rel=1e-3) or (log and y == lowest > expected[key][1])


def test_a_filter_pales_the_other_points_and_keeps_them(client, address, rows):
    page = client.get(f"{address}/buckets?theta=0.6&bucket=unstable&density_max=0.01")
    traces = {t["name"]: len(t["x"]) for t in figures_of(page.text)["scatter"]["data"]}
    held = of_bucket(rows)["unstable"] & (np.asarray(rows["density"]) <= 0.01)
    assert traces == {"not in the filter": (~np.asarray(rows["dead"], bool)).sum() - held.sum(), "unstable": held.sum()}
    assert f"The filter finds {held.sum():,}" in text_of(page.text)


@pytest.mark.parametrize("metric", ["density", "entropy", "norm"])
def test_too_many_points_are_counted_in_cells_that_hold_them_all(client, address, rows, metric, monkeypatch):
    monkeypatch.setattr(compare, "MOST_POINTS", 10)
    page = client.get(f"{address}/buckets?theta=0.6&metric={metric}&bucket=stable")
    everything, chosen = figures_of(page.text)["scatter"]["data"]
    assert_valid_plotly({"data": [everything, chosen], "layout": {}})

    def total(layer: dict) -> int:
        return sum(int(n.replace(",", "")) for row in layer["text"] for n in row if n)

    assert total(everything) == (~np.asarray(rows["dead"], bool)).sum()
    assert total(chosen) == of_bucket(rows)["stable"].sum()
    link, n = next(
        (link, n) for links, row in zip(cell_links(chosen), chosen["text"], strict=True)
        for link, n in zip(links, row, strict=True) if n
    )  # fmt: skip
    assert client.get(link).status_code == 200
    if metric == "density":
        path, _, query = link.partition("?")
        assert len(client.get(f"{path}.json?{query}&limit=500").json()["rows"]) == int(n)


def test_a_metric_that_was_not_computed_is_not_offered_and_its_address_names_the_command(own_root):
    republish(
        own_root,
        "UPDATE Ensemble SET computed = ['match', 'activity', 'ablate']",
        "UPDATE Feature SET worth_loss = NULL",
    )
    client = browse(own_root)
    page = client.get("/s/small/topk-96/buckets")
    assert 'value="worth_loss"' not in page.text
    assert 'value="worth_ev"' in page.text
    answer = client.get("/s/small/topk-96/buckets?metric=worth_loss")
    assert answer.status_code == 422
    assert "seedscope analyze small --only loss" in text_of(answer.text)
