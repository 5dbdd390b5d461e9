"""Links to Neuronpedia: from an import that names model and source, or a file that does, to features and lists."""

import json
import shutil
from urllib.parse import parse_qs, urlsplit

import pytest

from seedscope.app.store.neuronpedia import quick_list
from support.commands import assert_one_line, run
from support.reading import browse, links
from support.studies import members_that_agree


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A root with a study of three SAEs, two of which have pages there, and what a wrong number of sources gave."""
    root, files = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("saes")
    members_that_agree(members=3).save(files / "saes")
    paths = [files / "saes"]
    few = run("import", "few", "topk", *paths, "--neuronpedia", "gpt2-small/7-res-jb", "--root", root)
    sources = [word for seed in range(3) for word in ("--neuronpedia", f"gpt2-small/7-res-jb-{seed}")]
    done = run("import", "mine", "topk", *paths, *sources, "--root", root)
    assert done.returncode == 0, done.stderr
    done = run("analyze", "mine", "--root", root)
    assert done.returncode == 0, done.stderr
    return root, few


def test_sources_are_one_for_each_sae(imported):
    assert_one_line(imported[1], "1 of --neuronpedia for 3 SAEs")


def test_features_and_lists_lead_there(imported):
    with browse(imported[0]) as pages:
        page = links(pages.get("/s/mine/topk/1/7").text)
        assert "https://www.neuronpedia.org/gpt2-small/7-res-jb-1/7" in page
        (address,) = [a for a in links(pages.get("/s/mine/topk/list?id=2/5,0/3").text) if "quick-list" in a]
        entries = json.loads(parse_qs(urlsplit(address).query)["features"][0])
        assert [(e["modelId"], e["layer"], e["index"]) for e in entries] == [
            ("gpt2-small", "7-res-jb-2", "5"), ("gpt2-small", "7-res-jb-0", "3")
        ]  # fmt: skip


def test_without_a_source_nothing_leads_there(client, address):
    assert "neuronpedia.org" not in client.get(f"{address}/0/5").text
    assert "neuronpedia.org" not in client.get(f"{address}/list?id=0/5").text


def test_a_quick_list_is_an_address_that_holds_its_features():
    address = quick_list("my list & more", [("m/s", 3, "a “note”")])
    query = parse_qs(urlsplit(address).query)
    assert query["name"] == ["my list & more"]
    assert json.loads(query["features"][0]) == [{"modelId": "m", "layer": "s", "index": "3", "description": "a “note”"}]


def test_a_page_is_read_again_when_the_catalogue_names_other_pages(imported, tmp_path):
    root = shutil.copytree(imported[0], tmp_path / "root")
    with browse(root) as pages:
        before = pages.get("/s/mine/topk/1/7").headers["etag"]
        catalogue = root / "mine" / "study.json"
        catalogue.write_text(catalogue.read_text().replace("7-res-jb-1", "8-res-jb"))
        again = pages.get("/s/mine/topk/1/7", headers={"If-None-Match": before})
        assert again.status_code == 200
        assert "https://www.neuronpedia.org/gpt2-small/8-res-jb/7" in links(again.text)
