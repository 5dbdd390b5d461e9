"""Bits that flip on the disk: found by checksum, named on the page of the one study, and mended by the command that it names."""

import json
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.engine.contract.index.layout import index_folder
from support.commands import run

LOCAL = "http://127.0.0.1"
PAGES = (
    "/s/small", "/s/small/topk-96", "/s/small/topk-96/features", "/s/small/topk-96/features.csv", "/s/small/topk-96/0/3",
    "/s/small/topk-96/members", "/s/small/topk-96/members?a=0&b=1&rule=argmax", "/s/small/topk-96/buckets",
    "/s/small/topk-96/ablation", "/s/small/topk-96/subspaces", "/s/small/topk-96/explanations", "/s/small/topk-96/trajectory",
    "/compare", "/",
)  # fmt: skip


@pytest.fixture
def root(study_root: Path, tmp_path: Path) -> Path:
    """The small study with all its files, and a second one that stays whole."""
    for name in ("small", "whole"):
        shutil.copytree(study_root / "small", tmp_path / "root" / name)
    return tmp_path / "root"


def browse(root: Path) -> TestClient:
    return TestClient(create_app(Settings(root)), base_url=LOCAL)


def store_of(root: Path) -> Path:
    (path,) = (root / "small").glob("study-*.duckdb")
    return path


def flip(path: Path, at: int) -> None:
    """Change one bit in place: who holds the file open reads it as well."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


def in_every_block(path: Path) -> list[int]:
    """A place in every block of a DuckDB file but its headers."""
    return list(range(3 * 4096 + 1000, path.stat().st_size, 2**18))


def test_a_bit_that_flips_in_a_store_that_is_open_is_named_and_the_other_studies_go_on(root):
    client = browse(root)
    assert client.get("/s/small").status_code == 200
    for at in in_every_block(store_of(root)):
        flip(store_of(root), at)
    damaged = 0
    for page in PAGES:
        for form in (page, page.replace("?", ".json?") if "?" in page else f"{page}.json"):
            if form in ("/.json", "/s/small/topk-96/features.csv.json"):
                continue
            answer = client.get(form)
            assert answer.status_code in (200, 503), form
            if answer.status_code == 503:
                damaged += 1
                assert "seedscope analyze small" in answer.text
                assert "content-security-policy" in answer.headers
                if form.endswith(".json"):
                    assert answer.json()["problems"][0]["name"] == "store of small"
        assert client.get(page.replace("/small", "/whole")).status_code == 200
    assert damaged > 10
    home = client.get("/index.json").json()
    assert [each["study"] for each in home["broken"]] == ["small"]
    assert home["broken"][0]["command"] == "seedscope analyze small"
    assert "checksum" in home["broken"][0]["says"]
    assert "whole" in [card["study"]["study"] for card in home["studies"]]


@pytest.mark.slow
def test_the_command_that_the_page_names_mends_it_under_a_server_that_has_it_open(root):
    client = browse(root)
    assert client.get("/s/small/topk-96/0/3").status_code == 200
    for at in in_every_block(store_of(root)):
        flip(store_of(root), at)
    assert client.get("/s/small/topk-96/0/3").status_code == 503
    done = run("analyze", "small", "--root", root, "--quiet")
    assert done.returncode == 0, done.stderr
    assert client.get("/s/small/topk-96/0/3").status_code == 200
    assert client.get("/index.json").json()["broken"] == []


@pytest.mark.parametrize("cut", [1, 4096, 2**18])
def test_a_store_that_is_cut_by_any_number_of_bytes_is_noticed_when_it_is_opened(root, cut):
    path = store_of(root)
    path.write_bytes(path.read_bytes()[:-cut])
    client = browse(root)
    for page in ("/s/small", "/s/small/topk-96/features.json"):
        answer = client.get(page)
        assert answer.status_code == 503
        assert "expected" in answer.text
    assert [each["study"] for each in client.get("/index.json").json()["broken"]] == ["small"]
    assert [card["study"]["study"] for card in client.get("/index.json").json()["studies"]] == ["whole"]


@pytest.mark.parametrize(
    ("current", "says"),
    [(b"study-gone.duckdb\nx\n", "gone"), (b"\xff\xfe\n", "gone"), (b"../whole/CURRENT\nx\n", "gone")],
    ids=["gone", "bytes", "elsewhere"],
)
def test_a_study_whose_store_is_gone_stays_on_the_home_page_with_the_command_that_mends_it(root, current, says):
    (root / "small" / "CURRENT").write_bytes(current)
    client = browse(root)
    (broken,) = client.get("/index.json").json()["broken"]
    assert (broken["study"], broken["command"]) == ("small", "seedscope analyze small")
    assert says in broken["says"]
    assert "seedscope analyze small" in client.get("/").text


# -- the index beside a store --------------------------------------------------------------------------------------


def index_of(root: Path) -> Path:
    return index_folder(store_of(root))


def shown(root: Path) -> list[bytes]:
    with browse(root) as client:
        return [
            client.get(f"/s/small/topk-96/{page}").content for page in ("features.json", "buckets.json", "0/3.json")
        ]


@pytest.mark.parametrize("name", ["order-random.npy", "texts.arrow", "about.json", "words.json", "counts-argmax.npy"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_an_index_that_is_damaged_is_made_again_when_it_is_opened(root, name, damage):
    before = shown(root)
    path = index_of(root) / "ensemble-topk-96" / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "gone":
        path.unlink()
    else:
        flip(path, path.stat().st_size // 2)
    assert shown(root) == before


def test_an_index_that_breaks_under_a_server_is_made_again(root):
    client = browse(root)
    before = client.get("/s/small/topk-96/features.json?sort=worth").content
    for path in (index_of(root) / "ensemble-topk-96").glob("order-*.npy"):
        path.unlink()
    first = client.get("/s/small/topk-96/features.json?sort=density")
    assert first.status_code in (200, 503)
    assert client.get("/s/small/topk-96/features.json?sort=density").status_code == 200
    assert client.get("/s/small/topk-96/features.json?sort=worth").content == before


def test_sums_that_are_damaged_themselves_are_no_reason_to_trust_an_index(root):
    before = shown(root)
    (index_of(root) / "sums.json").write_text("{")
    assert shown(root) == before
    assert json.loads((index_of(root) / "sums.json").read_text())
