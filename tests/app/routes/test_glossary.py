"""Every number explains itself: columns and statistics of all pages have an entry, and every entry is used."""

import re
from collections import deque
from urllib.parse import parse_qsl, urlsplit

import bs4
import pytest

from seedscope.app.glossary.entries import GLOSSARY
from seedscope.app.glossary.mathml import mathml
from seedscope.app.settings import SHIPPED, TEMPLATES
from support.reading import answered, links, parsed, text_of

NUMBER = re.compile(r"[±+−–-]?\s*[\d.,]*\d(?!\w)")  # what a cell of numbers begins with
DATA = re.compile(r"\.(csv|json|parquet)$")


def kind_of(link: str) -> str:
    path = re.sub(r"/\d+(?=/|$)", "/N", urlsplit(link).path)
    return f"{path}?{','.join(sorted({k for k, _ in parse_qsl(urlsplit(link).query)}))}"


@pytest.fixture(scope="module")
def pages(client, address) -> dict[str, bs4.BeautifulSoup]:
    """One page of each kind that links and parts loaded later lead to, from the home page and an ensemble's."""
    waiting = deque(
        ["/", address, f"{address}/0/5", f"{address}/try?text=def+f(x):&seed=0", f"{address}/members?a=0&b=2"]
    )
    opened: dict[str, bs4.BeautifulSoup] = {}
    while waiting and len(opened) < 70:
        address_of_page = waiting.popleft()
        kind = kind_of(address_of_page)
        path = urlsplit(address_of_page).path
        if kind in opened or DATA.search(path) or path.startswith(("/static", "/docs", "/manual", "/jobs")):
            continue
        answer = answered(client, address_of_page)
        assert answer.status_code == 200, address_of_page
        opened[kind] = parsed(answer.text)
        waiting.extend(e["hx-get"] for e in opened[kind].select("[hx-get]") if e["hx-get"].startswith("/"))
        waiting.extend(link.partition("#")[0] for link in links(answer.text, "a[href]") if link.startswith("/"))
    return opened


def columns_of(table: bs4.Tag) -> list[tuple[bs4.Tag, list[str]]]:
    """(header, texts of the cells below it) of every column, by the lowest header above it."""
    grid: dict[tuple[int, int], bs4.Tag] = {}
    for y, row in enumerate(table.select("thead tr")):
        x = 0
        for th in row.select("th"):
            while (y, x) in grid:
                x += 1
            wide, high = int(th.get("colspan", 1)), int(th.get("rowspan", 1))
            grid |= {(y + i, x + j): th for i in range(high) for j in range(wide)}
            x += wide
    below: dict[int, bs4.Tag] = {x: grid[y, x] for y, x in sorted(grid)}
    cells: dict[int, list[str]] = {x: [] for x in below}
    for row in table.select("tbody tr"):
        x = 0
        for cell in row.find_all(["td", "th"], recursive=False):
            if x in cells and "colspan" not in cell.attrs:
                cells[x].append("" if cell.select_one("code:not(.tok)") else text_of(cell))  # digests are names
            x += int(cell.get("colspan", 1))
    return [(below[x], cells[x]) for x in below]


def is_explained(element: bs4.Tag) -> bool:
    return element.select_one(".term[popovertarget]") is not None


def test_no_column_of_numbers_and_no_statistic_is_without_an_entry(pages):
    bare = set()
    for kind, page in pages.items():
        for table in page.select("table"):
            for header, cells in columns_of(table):
                if 2 * sum(bool(NUMBER.match(cell)) for cell in cells) > len(cells) and not is_explained(header):
                    bare.add((kind, "column", text_of(header)))
            for th in table.select("th[scope=row]"):
                if any(NUMBER.match(text_of(td)) for td in th.find_next_siblings("td")) and not is_explained(th):
                    bare.add((kind, "row", text_of(th)))
        for dt in page.select("main dt:not(.entries dt)"):
            dd = dt.find_next_sibling("dd")
            if NUMBER.match(text_of(dd)) and not is_explained(dt):
                bare.add((kind, "statistic", text_of(dt)))
    assert not bare, "\n".join(map(str, sorted(bare)))
    assert len(pages) > 25


def test_entries_of_a_page_have_ids_of_their_own_and_lead_to_their_definition(client, pages):
    methods = parsed(client.get("/methods").text)
    places = {element["id"] for element in methods.select("[id]")}
    for page in pages.values():
        ids = [element["id"] for element in page.select("[id]")]
        assert len(ids) == len(set(ids))
        for word in page.select(".term"):
            note = page.find(id=word["popovertarget"])
            assert note.has_attr("popover")
            assert note["data-term"] in GLOSSARY
            assert page.find(id=word["aria-describedby"]).text == GLOSSARY[note["data-term"]].meaning
            assert text_of(word) or word["aria-label"]
    assert {entry.section for entry in GLOSSARY.values()} <= places


def test_every_entry_is_used_and_every_name_that_is_used_exists():
    """In templates and in the headers of figures."""
    texts = [path.read_text() for path in TEMPLATES.rglob("*.html")]
    texts += [path.read_text() for path in (SHIPPED / "app").rglob("*.py") if "glossary" not in path.parts]
    everything = "\n".join(texts)
    unused = {key for key in GLOSSARY if f"'{key}'" not in everything and f'"{key}"' not in everything}
    unused -= {"feature_others", "feature_own", "feature_difference"}  # by the name of the column
    assert not unused, sorted(unused)
    named = set(re.findall(r"\bterm\('(\w+)'", everything)) | set(
        re.findall(r'\bColumn\([^()]*?, "(\w+)"\)', everything)
    )
    assert named - {"feature_"} <= set(GLOSSARY)


def test_an_entry_is_one_sentence_or_two_and_says_where_it_is_from():
    for entry in GLOSSARY.values():
        assert entry.meaning.endswith(".")
        assert 15 < len(entry.meaning) < 260, entry.key
        assert entry.source_title
        assert "<math>" in (entry.drawn or "<math>")


@pytest.mark.parametrize("wrong", [r"\frac{1}", "{a", "a}", r"\unknown", "a_"])
def test_a_formula_that_cannot_be_read_is_refused(wrong):
    with pytest.raises(ValueError, match=re.escape(wrong)):
        mathml(wrong)


def test_a_formula_becomes_mathml():
    assert str(mathml(r"\frac{X}{N} ≥ θ")) == (
        "<math><mrow><mfrac><mrow><mi>X</mi></mrow><mrow><mi>N</mi></mrow></mfrac><mo>≥</mo><mi>θ</mi></mrow></math>"
    )
    assert "<msubsup>" in mathml("V_r^T")
