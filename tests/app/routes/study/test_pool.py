"""The page of a feature pool: made of what the command left, published, carried by exports, and gone when it is not current."""

import json
import shutil
import time
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from seedscope.app.findings.pool_verdict import EV_KEPT, PairSpread, judge_pool, least_difference
from seedscope.app.jobs.kinds import Job, JobRefusedError, checked, words
from seedscope.app.jobs.queue import Jobs
from seedscope.app.routes.study.pool import PoolPage
from seedscope.app.store.missing import pool_missing
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.contract.tables.pools import PoolPoint
from seedscope.engine.contract.tables.study import Ensemble, Study
from seedscope.engine.export.formats import export
from seedscope.engine.export.restore import restore
from seedscope.engine.progress import Progress
from seedscope.engine.store import catalogue
from seedscope.engine.studies.pools.settings import PoolSettings
from seedscope.engine.studies.publish import publish
from seedscope.engine.studies.run import pool_study, run_synthetic
from seedscope.engine.studies.synthetic.generator import SyntheticConfig
from seedscope.engine.studies.synthetic.plan import SyntheticPlan
from support.reading import assert_valid_plotly, browse, figures_of, links, text_of

SAMPLES = SyntheticConfig(d_in=20, n_free=14, n_low=90, r=5, rate_free=0.1, rate_low=0.02)
RECIPE = TrainConfig(d_sae=64, k=3, seeds=(0, 1, 2, 3, 4), n_tokens=12_288, batch=256)
PLAN = SyntheticPlan(SAMPLES, RECIPE, replace(RECIPE, n_tokens=1_024), n_evaluated=3_000)
STUDY, ENSEMBLE = "made", "topk-64"
PAGE, BASE = f"/s/{STUDY}/pool", f"/s/{STUDY}/{ENSEMBLE}"
ASKED = PoolSettings(tokens=2_048)
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A small synthetic study with a pool. Tests read it; those that write take a copy."""
    root = tmp_path_factory.mktemp("root")
    run_synthetic(PLAN, root, STUDY, with_map=False, progress=QUIET)
    pool_study(root / STUDY, ENSEMBLE, ASKED, progress=QUIET)
    return root


@pytest.fixture
def own(root, tmp_path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "own"))


@pytest.fixture(scope="module")
def told(root) -> dict:
    """What the command left."""
    return json.loads((root / STUDY / "pool" / ENSEMBLE / "pool.json").read_text())


@pytest.fixture(scope="module")
def made(root):
    with browse(root) as client:
        yield client


@pytest.fixture(scope="module")
def data(made):
    return made.get(f"{PAGE}.json").json()


@pytest.fixture(scope="module")
def page(made):
    return made.get(PAGE).text


def test_page_and_twin_hold_what_the_command_left(data, page, told):
    assert set(data) == {f.name for f in fields(PoolPage) if not f.name.startswith(("nav_", "figure_"))}
    assert data["pool"]["unique_by_holders"] == told["unique_by_holders"]
    assert data["pool"]["sae_digest"] == told["digest"]
    assert data["pool"]["halves"] == [seed for half in told["halves"] for seed in half] == [0, 2, 1, 3]
    assert json.loads(data["pool"]["recipe"])["aux_k"] == RECIPE.aux_k
    assert data["pool"]["remarks"] == told["remarks"]
    held = {(each["kind"], each["tokens"]): each for each in told["curves"]}
    assert len(data["points"]) == len(held) == 25
    for point in data["points"]:
        was = held[point["curve"], point["tokens"]]
        assert point["evs"] == pytest.approx(was["ev"], abs=1e-6)
        assert point["n_living"] == was["n_living"]
        assert point["shares"] == pytest.approx(was["shares"] or [], abs=1e-6)
        if point["shares"]:
            both = np.average(point["shares"], weights=point["n_living"])
            assert point["shared"] == pytest.approx(both, abs=1e-6)
    assert [each["curve"] for each in data["at_length"]] == ["pool", "halves", "members", "fresh", "subset"]
    shown = text_of(page)
    assert " ".join(data["sentence"].split()) in shown
    for said in data["says"]:
        assert " ".join(said.split()) in shown
    for point in data["at_length"]:
        assert " · ".join(f"{ev:.3f}" for ev in point["evs"]) in shown
    assert 'SAE.load_from_disk("' + data["folder"] in shown
    assert (Path(data["folder"]) / "cfg.json").is_file()


def test_every_pooled_feature_is_listed_once_with_its_original(made, data, page, told):
    rows, first = [], 0
    while True:
        answer = made.get(f"{PAGE}.json", params={"first": first} if first else {}).json()
        rows += answer["features"]
        further = [link for link in links(made.get(PAGE, params={"first": first}).text) if f"first={len(rows)}" in link]
        if not further:
            break
        first = len(rows)
    assert [(r["seed"], r["feature"], r["holders"]) for r in rows] == [
        (f["seed"], f["feature"], f["holders"]) for f in told["features"]
    ]
    assert first > 0
    for row in rows[:60:7]:
        original = made.get(f"{BASE}/{row['seed']}/{row['feature']}.json").json()
        assert (row["stability"], row["n_matched"], row["bucket"]) == tuple(
            original[name] for name in ("stability", "n_matched", "bucket")
        )
        assert row["density"] == pytest.approx(original["density"], abs=1e-9)
    for row in data["features"]:
        assert f"{BASE}/{row['seed']}/{row['feature']}" in links(page)
        assert row["holders"] == row["n_matched"] + 1
    given = {each["seed"]: each for each in data["given"]}
    for seed in RECIPE.seeds:
        own = [row for row in rows if row["seed"] == seed]
        assert given[seed]["n"] == len(own) == made.get(f"{PAGE}.json?seed={seed}").json()["total"]
        assert given[seed]["n_by_all"] == sum(row["holders"] == 5 for row in own)
    alone = made.get(f"{PAGE}.json?holders=1&seed=0").json()
    assert alone["total"] == given[0]["n_alone"]


def test_figures_hold_every_curve_and_every_unique_feature(data, page, told):
    drawn = figures_of(page)
    assert set(drawn) == {"holders", "pool_shared", "pool_ev", "pool_dead", "pool_l0"}
    for figure in drawn.values():
        assert_valid_plotly(figure)
    bars = drawn["holders"]["data"]
    assert [a + b for a, b in zip(bars[0]["y"], bars[1]["y"], strict=True)] == told["unique_by_holders"]
    assert sum(bars[0]["y"]) == told["d_sae"]
    means = [trace for trace in drawn["pool_ev"]["data"] if "lines" in trace["mode"]]
    assert len(means) == 5
    for trace in means:
        assert trace["x"] == [0, 512, 1024, 2048, 4096]
    shares = [trace for trace in drawn["pool_shared"]["data"] if "lines" in trace["mode"]]
    assert [trace["name"] for trace in shares] == ["two halves", "members", "fresh", "random"]
    assert shares[0]["y"] == [p["shared"] for p in data["points"] if p["curve"] == "halves"]


def test_downloads_hold_all_rows(made, told):
    table = pyarrow.csv.read_csv(BytesIO(made.get(f"{PAGE}.csv").content)).to_pylist()
    assert [(r["seed"], r["feature"]) for r in table] == [(f["seed"], f["feature"]) for f in told["features"]]
    assert all(r["holders"] == r["n_matched"] + 1 for r in table)
    curves = pyarrow.parquet.read_table(BytesIO(made.get(f"{PAGE}.parquet?table=curves").content)).to_pylist()
    assert len(curves) == 5 * (1 + 4 * 2)
    for each in told["curves"]:
        rows = [r for r in curves if (r["curve"], r["tokens"]) == (each["kind"], each["tokens"])]
        assert [r["ev"] for r in rows] == pytest.approx(each["ev"], abs=1e-6)


@pytest.mark.parametrize(
    ("address", "status", "says"),
    [("?ensemble=other", 404, ENSEMBLE), ("?first=64", 422, "0 to 63"), ("?holders=0", 422, "greater"), ("?seed=9", 404, "seeds 0"),
     ("?colour=red", 422, "ensemble"), ("?holders=5&first=9999", 422, "features are listed")],
)  # fmt: skip
def test_an_address_that_names_nothing_is_refused(made, address, status, says):
    answer = made.get(f"{PAGE}.json{address}")
    assert answer.status_code == status
    assert says in answer.text


def test_study_and_ensemble_lead_to_the_page_and_methods_define_it(made):
    assert PAGE in links(made.get(f"/s/{STUDY}").text)
    assert f"{PAGE}?ensemble={ENSEMBLE}" in links(made.get(BASE).text)
    assert f"lose at most {EV_KEPT}" in text_of(made.get("/methods").text)


def test_the_same_pool_is_not_made_again_and_another_needs_a_word(own, told):
    folder = own / STUDY / "pool" / ENSEMBLE
    before, current = (folder / "pool.json").stat(), (own / STUDY / "CURRENT").read_text()
    began = time.monotonic()
    assert pool_study(own / STUDY, ENSEMBLE, replace(ASKED, replaced=True), progress=QUIET).to_json() == told
    assert time.monotonic() - began < 5
    assert (folder / "pool.json").stat().st_mtime_ns == before.st_mtime_ns
    assert (own / STUDY / "CURRENT").read_text() == current
    for other in (replace(ASKED, tokens=1_024), replace(ASKED, theta=0.5), PoolSettings()):
        with pytest.raises(ValueError, match="of other seeds or settings; pass --replace"):
            pool_study(own / STUDY, ENSEMBLE, other, progress=QUIET)


@pytest.mark.slow
def test_a_pool_of_another_theta_or_other_members_is_not_shown_and_a_job_makes_a_new_one(own):
    plan = catalogue.read(own / STUDY)
    for entry in (
        plan.ensemble(ENSEMBLE),
        replace(plan.ensemble(ENSEMBLE), members=plan.ensemble(ENSEMBLE).members[:4]),
    ):
        catalogue.write(replace(plan, theta=0.6).with_ensemble(entry), own / STUDY)
        from seedscope.engine.studies.analyse import analyse

        analyse(own / STUDY, only=("match",), progress=QUIET)
        publish(own / STUDY)
        client = browse(own)
        data = client.get(f"{PAGE}.json").json()
        assert data["pool"] is None
        assert data["points"] == data["features"] == []
        job = data["missing"][0]["job"]
        assert job == {"kind": "pool", "study": STUDY, "ensemble": ENSEMBLE}
        assert data["missing"][0]["command"] == f"seedscope pool {STUDY} {ENSEMBLE}"
        assert 'name="ensemble" value="topk-64"' in client.get(PAGE).text
        assert client.get(f"{PAGE}.csv").status_code == 422
    jobs = Jobs(own, "cpu")
    try:
        begun = jobs.start("pool", STUDY, {"ensemble": ENSEMBLE, "tokens": "512"})
        assert begun.command == f"seedscope pool {STUDY} {ENSEMBLE} --tokens 512 --replace"
        until = time.monotonic() + 120
        while jobs.get(begun.id).is_active and time.monotonic() < until:
            time.sleep(0.1)
        ended = jobs.get(begun.id)
        assert (ended.state, ended.republished) == ("done", True), jobs.log(begun.id)
    finally:
        jobs.close()
    pool = browse(own).get(f"{PAGE}.json").json()["pool"]
    assert (pool["tokens"], pool["theta"], pool["halves"]) == (512, 0.6, [0, 2, 1, 3])


@pytest.mark.parametrize(
    ("given", "wrong"),
    [({}, "ensemble is not given"), ({"ensemble": "../up"}, "ensemble is"), ({"ensemble": "a", "tokens": "-1"}, "0 to 100000000"),
     ({"ensemble": "a", "tokens": "1e9"}, "tokens is"), ({"ensemble": "a", "loss_tokens": "9" * 9}, "loss_tokens is"),
     ({"ensemble": "a", "text": "/etc/passwd"}, "text is an unknown parameter"), ({"ensemble": "--out"}, "ensemble is")],
)  # fmt: skip
def test_a_job_takes_an_ensemble_and_lengths_alone(given, wrong):
    with pytest.raises(JobRefusedError, match=wrong):
        checked("pool", STUDY, given)
    taken = checked("pool", STUDY, {"ensemble": "a", "tokens": "0", "loss_tokens": "0"})
    assert words(Job("0", "pool", STUDY, taken, 0.0)) == [
        "pool", STUDY, "a", "--tokens", "0", "--loss-tokens", "0", "--replace",
    ]  # fmt: skip


def test_a_job_for_an_ensemble_that_is_not_there_is_refused(made):
    answer = made.post("/jobs", json={"kind": "pool", "study": STUDY, "ensemble": "other"},
                       headers={"Origin": "http://127.0.0.1"})  # fmt: skip
    assert answer.status_code == 422
    assert ENSEMBLE in answer.text


def test_an_export_carries_the_pool_and_brings_it_back(root, made, tmp_path):
    export(root, STUDY, tmp_path / "out")
    kinds = pyarrow.parquet.read_table(tmp_path / "out" / "curves.parquet")["kind"].to_pylist()
    assert kinds.count("pool") == 25
    assert pyarrow.parquet.read_table(tmp_path / "out" / "pooledfeature.parquet").num_rows == 64
    restore(tmp_path / "out", tmp_path / "there")
    for address in (f"{PAGE}.json", f"{PAGE}.json?first=50"):
        here, there = (client.get(address).json() for client in (made, browse(tmp_path / "there")))
        assert here.pop("folder") != there.pop("folder")
        assert here == there
    for file in ("pool.json", "sae/cfg.json", "sae/sae_weights.safetensors"):
        place = Path(STUDY) / "pool" / ENSEMBLE / file
        assert (root / place).read_bytes() == (tmp_path / "there" / place).read_bytes()
    before = (tmp_path / "there" / STUDY / "CURRENT").read_text()
    pool_study(tmp_path / "there" / STUDY, ENSEMBLE, ASKED, progress=QUIET)
    assert (tmp_path / "there" / STUDY / "CURRENT").read_text() == before
    (root / STUDY / "pool").rename(tmp_path / "gone")
    try:
        with pytest.raises(ValueError, match=r"is not the pool that was published .* seedscope pool made topk-64"):
            export(root, STUDY, tmp_path / "again")
    finally:
        (tmp_path / "gone").rename(root / STUDY / "pool")


# -- the verdict -------------------------------------------------------------------------------------------------

PAIRS = PairSpread(28, 0.4, 0.35, 0.45, 0.02)


def points(tokens: int = 100, **shared: tuple[float, float]) -> list[PoolPoint]:
    """{curve: (share, EV)}."""
    return [
        PoolPoint("e", curve, tokens, [ev, ev], [8.0, 8.0], [0.0, 0.0], [60, 60], [], [share, share], share, share)
        for curve, (share, ev) in shared.items()
    ]


@pytest.mark.parametrize(
    ("halves", "subset", "told", "more", "keeps"),
    [((0.55, 0.9), (0.45, 0.8), "more", True, True), ((0.55, 0.9), (0.5, 0.8), "equal", False, True),
     ((0.55, 0.891), (0.62, 0.8), "less", False, True), ((0.55, 0.88), (0.45, 0.8), "more", True, False)],
)  # fmt: skip
def test_more_stable_is_more_than_every_control_by_what_pairs_of_members_vary(halves, subset, told, more, keeps):
    found = judge_pool(points(halves=halves, members=(0.4, 0.9), fresh=(0.4, 0.91), subset=subset), PAIRS)
    assert [each.tokens for each in found] == [100]
    assert [each.compared for each in found[0].against] == ["more", "more", told]
    assert (found[0].is_more_stable, found[0].keeps_ev) == (more, keeps)
    assert least_difference(PAIRS) == pytest.approx(2 * np.hypot(0.02, 0.02))


def test_without_halves_or_enough_pairs_there_is_no_verdict():
    assert judge_pool(points(pool=(0.0, 0.9)), PAIRS) == []
    few = replace(PAIRS, n_pairs=1, spread=None)
    found = judge_pool(points(halves=(0.9, 0.9), members=(0.4, 0.9)), few)
    assert (found[0].is_more_stable, found[0].keeps_ev) == (None, True)
    assert least_difference(few) is None


# -- what is not there -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(client) -> tuple[Study, Ensemble]:
    found = client.get("/s/small/pool.json").json()
    return Study(**found["study"]), Ensemble(**found["ensemble"])


@pytest.mark.parametrize(
    ("changes", "commands", "jobs", "reason"),
    [
        ({}, [" "], 1, "not computed yet"),
        ({"variant": "relaxed-archetypal"}, [None, "--tokens 0"], 1, "centroids"),
        ({"variant": "groupmax"}, [None], 0, "groupmax"),
        ({"n_members": 1}, [None], 0, "nothing to pool"),
        ({"origin": "imported", "recipe": None}, ["--text FILES", "--tokens 0"], 1, "only you know text"),
        ({"origin": "imported", "recipe": None, "variant": "jumprelu"}, [None, "--tokens 0"], 1, "not known"),
    ],
)
def test_what_is_missing_says_which_command_adds_it_or_why_none_does(rows, changes, commands, jobs, reason):
    study, ensemble = rows
    found = pool_missing(study, replace(ensemble, **changes))
    assert len(found) == len(commands)
    for each, command in zip(found, commands, strict=True):
        assert each.command is None if command is None else each.command.endswith(command.strip())
    assert sum(each.job is not None for each in found) == jobs
    assert reason in found[0].reason


def test_a_study_without_a_pool_says_how_to_make_one(client):
    page = client.get("/s/small/pool")
    assert page.status_code == 200
    assert "seedscope pool small topk-96" in text_of(page.text)
    assert "Compute now" in page.text
    assert "Compute now" not in client.get("/s/small/pool?embed=true").text
    assert client.get("/s/small/pool.csv").status_code == 422
