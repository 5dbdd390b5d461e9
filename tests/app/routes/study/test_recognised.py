"""What importing recognised of each member, on the page of its study."""

import json

import pytest

from seedscope.engine.store import catalogue
from support.reading import browse, parsed, text_of
from support.studies import members_that_agree, publish_study

EVIL = "<script>alert(1)</script>"
FACTS = {"k or l1": ("k 4", "cfg.json: k"), "processing of the model": ("none", "assumed"), "dataset": (EVIL, "x")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("recognised")
    ensembles = {"said": (members_that_agree(members=3), {})}
    publish_study(root, "mine", ensembles, origins=[{"facts": FACTS}, {"facts": FACTS | {"dataset": ("pile", "x")}}])
    publish_study(root, "old", {"said": (members_that_agree(members=3), {})})
    return root


def test_a_study_lists_the_facts_of_every_member_and_marks_what_was_assumed(root):
    with browse(root) as client:
        page, data = client.get("/s/mine").text, client.get("/s/mine.json").json()
    table = parsed(page).select_one("details.recognised")
    assert text_of(table.select_one("summary")) == "What was recognised"
    assert [text_of(cell) for cell in table.select("thead th")] == ["what", "seed 0", "seed 1"]
    assert [[text_of(cell) for cell in row.select("th, td")] for row in table.select("tbody tr")] == [
        ["k or l1", "k 4 cfg.json: k · all seeds"],
        ["processing of the model", "none ! assumed · all seeds"],
        ["dataset", f"{EVIL} x", "pile x"],
    ]
    assert [cell.get("colspan") for cell in table.select("tbody td")] == ["2", "2", None, None]
    assert EVIL not in page
    (summary,) = data["ensembles"]
    assert [member["seed"] for member in summary["recognised"]] == [0, 1]
    assert summary["recognised"][1]["facts"][1] == {
        "fact": "processing of the model", "value": "none", "source": "assumed", "assumed": True,
    }  # fmt: skip


def test_a_study_without_facts_or_with_others_shows_no_table(root):
    with browse(root) as client:
        assert 'class="recognised"' not in client.get("/s/old").text
        assert client.get("/s/old.json").json()["ensembles"][0]["recognised"] == []
        file = root / "mine" / catalogue.FILE
        content = json.loads(file.read_text())
        for member in content["ensembles"][0]["members"]:
            member["digest"] = "0" * 16  # imported since
        file.write_text(json.dumps(content))
        assert client.get("/s/mine.json").json()["ensembles"][0]["recognised"] == []
        file.write_text("{")
        assert client.get("/s/mine").status_code == 200
