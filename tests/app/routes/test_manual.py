"""The manual on the site: every page renders, links lead where they do in the files, nothing in the text becomes markup."""

import json
import re
from dataclasses import fields

import pytest
from bs4 import BeautifulSoup

from seedscope.app.routes import manual
from seedscope.app.routes.manual import MANUAL, ManualPage, address_of, heading_id
from seedscope.engine.contract.names import PAGE_NAMES, name_problem
from seedscope.engine.store import catalogue
from support.reading import browse, links, text_of, twin

NOTEBOOKS = sorted(path.stem for path in MANUAL.glob("*.ipynb"))
PAGES = sorted([*(path.stem for path in MANUAL.glob("*.md")), *NOTEBOOKS])


@pytest.mark.parametrize("page", PAGES)
def test_every_page_renders_with_its_twin_and_without_a_placeholder(client, page):
    answer, data = client.get(address_of(page)), client.get(twin(address_of(page)))
    assert (answer.status_code, data.status_code) == (200, 200)
    assert set(data.json()) == {f.name for f in fields(ManualPage) if not f.name.startswith("nav_")}
    if page not in NOTEBOOKS:
        assert data.json()["markdown"] == (MANUAL / f"{page}.md").read_text()
    assert f"<h1 id={json.dumps(heading_id(data.json()['title']))}>" in answer.text
    assert not re.findall(r"@@\w+|TODO|TBD|XXX|\{\{|\{%", answer.text)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_answers_and_its_anchor_is_there(client, page):
    text = client.get(address_of(page)).text
    for link in links(text, "[href], [src]"):
        address, _, anchor = link.partition("#")
        target = client.get(address) if address else None
        assert target is None or target.status_code == 200, link
        assert not anchor or f'id="{anchor}"' in (target.text if target else text), link
    assert ".md" not in " ".join(links(text))


def test_a_notebook_is_a_page_with_all_its_cells_and_a_file(client):
    (name,) = NOTEBOOKS
    notebook = json.loads((MANUAL / f"{name}.ipynb").read_text())
    text = BeautifulSoup(client.get(address_of(name)).text, "html.parser").select_one("article")
    code = [block.get_text().rstrip("\n") for block in text.select("pre code")]
    assert code == ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    titles = [
        line
        for cell in notebook["cells"]
        if cell["cell_type"] == "markdown"
        for line in cell["source"]
        if line[0] == "#"
    ]
    assert [each.get_text() for each in text.select("h1, h2")] == [line.strip("# \n") for line in titles]
    assert f"/manual/{name}.ipynb" in links(str(text))
    file = client.get(f"/manual/{name}.ipynb")
    assert file.json() == notebook
    assert file.headers["content-disposition"] == f'attachment; filename="{name}.ipynb"'
    assert client.get("/manual/nope.ipynb").status_code == 404


@pytest.mark.parametrize("page", PAGES)
def test_a_page_holds_no_inline_script_style_or_handler(client, page):
    text = client.get(address_of(page)).text
    assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|<[a-z][^>]*\son[a-z]+=", text)


@pytest.mark.parametrize("page", PAGES)
def test_every_table_scrolls_inside_itself(client, page):
    text = client.get(address_of(page)).text
    assert text.count("<table") == len(re.findall(r'<div class="scroll">\s*<table', text))


def test_the_list_of_pages_names_every_page_and_marks_the_one_shown(client):
    text = client.get("/manual/training").text
    listed = re.search(r"<nav class=\"manual-pages\".*?</nav>", text, re.DOTALL)[0]
    assert set(links(listed)) == {address_of(page) for page in [*PAGES, "glossary"]}
    assert re.findall(r'href="([^"]+)" aria-current="page"', listed) == ["/manual/training"]


def test_htmx_gets_the_part_and_a_browser_the_page(client):
    assert "<header" in client.get("/manual").text
    assert "<header" not in client.get("/manual", headers={"HX-Request": "true"}).text


@pytest.mark.parametrize("path", ["/", "/s/small", "/manual/importing"])
def test_every_page_leads_to_the_manual(client, path):
    assert "/manual" in links(client.get(path).text)


@pytest.mark.parametrize("path", ["/manual/nope", "/manual/importing.md", "/manual/nope.json", "/manual/..%5Cbase"])
def test_an_unknown_page_is_refused_with_the_names_there_are(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert all(page in answer.text for page in PAGES)


def test_an_unknown_parameter_is_shown_on_the_page_and_refused_as_data(client):
    assert "no such parameter: utm_source" in text_of(client.get("/manual?utm_source=x").text)
    assert client.get("/manual.json?utm_source=x").status_code == 422
    assert client.get("/manual/training?embed=true").status_code == 200


@pytest.fixture
def written(client, tmp_path, monkeypatch):
    """A manual of one page with this text, and what the site makes of it."""

    def render(text: str) -> str:
        (tmp_path / "index.md").write_text(text)
        monkeypatch.setattr(manual, "MANUAL", tmp_path)
        return client.get("/manual").text

    return render


def test_markup_in_the_text_is_shown_and_never_run(written):
    page = written("# A <b>title</b>\n\n<script>alert(1)</script>\n\n[x](javascript:alert(1)) `<img src=x>`\n")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<img" not in page
    assert 'href="javascript:' not in page


def test_equal_headings_get_different_anchors_as_on_github(written):
    page = written("# Same\n\n## Same\n\n## `--root` & more: *twice*\n")
    assert re.findall(r'<h\d id="([^"]+)"', page)[:3] == ["same", "same-1", "--root--more-twice"]


def test_alignment_becomes_a_class(written):
    page = written("# T\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n")
    assert '<td class="num">2</td>' in page
    assert "<td>1</td>" in page


def test_the_choices_of_an_option_are_shown_as_they_are_typed(client):
    """In a Markdown table a bar inside code is escaped; on the page it is not."""
    assert "auto|cpu|cuda" in client.get("/manual/commands").text
    assert "\\|" not in client.get("/manual/commands").text


def test_a_synopsis_breaks_between_options_and_loses_no_letter(client):
    text = client.get("/manual/commands").text
    source = (MANUAL / "commands.md").read_text().replace("\\|", "|")
    synopsis = re.search(r"`(seedscope serve [^`]*)`", source)[1]
    assert "<code>[--device auto|cpu|cuda]</code>" in text
    assert synopsis in text_of(text)
    assert all(text_of(text).count(each) for each in re.findall(r"`(seedscope \w+ \[?[^`]*)`", source))


# -- the name ----------------------------------------------------------------------------------------------------


def test_no_new_study_or_ensemble_can_be_called_manual():
    assert "manual" in PAGE_NAMES
    assert name_problem("manual")
    with pytest.raises(ValueError, match="this one is a page"):
        catalogue.require_name("study", "manual")


def test_a_study_that_has_the_name_already_opens(study_root, tmp_path):
    (tmp_path / "manual").symlink_to(study_root / "small", target_is_directory=True)
    client = browse(tmp_path)
    assert client.get("/s/manual").status_code == 200
    assert client.get("/s/manual/topk-96/features").status_code == 200
    assert "What the numbers mean" in text_of(client.get("/manual").text)


def test_its_catalogue_is_read_and_its_jobs_may_be_asked_for(tmp_path):
    catalogue.write(catalogue.StudyPlan("manual"), tmp_path)
    assert catalogue.read(tmp_path).name == "manual"
    assert name_problem("manual", exists=True) is None
    assert name_problem("features", exists=True)
