"""The manual: Markdown files under templates/manual, rendered as pages of the site.

The same files are read on GitHub, so links are relative to the file there and are rewritten here: `importing.md#formats` leads
to `/manual/importing#formats`, `../../static/x.png` to the static file. Markup inside the Markdown is shown as text.
A notebook (`study.ipynb`) is a page too: its texts and its code; the file itself is served beside it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from seedscope.app import render
from seedscope.app.glossary.entries import GLOSSARY
from seedscope.app.routes.address import Plain
from seedscope.app.settings import TEMPLATES
from seedscope.app.store.errors import NotFound

router = APIRouter()
MANUAL = TEMPLATES / "manual"
INDEX = "index"
GLOSSARY_PAGE = "glossary"  # made of app.glossary, not of a file
STATIC_LINK = "../../static/"  # from a file of the manual, as GitHub resolves it
NOTEBOOK: dict[int | str, dict[str, Any]] = {
    200: {"description": "A notebook", "content": {"application/x-ipynb+json": {"schema": {"type": "object"}}}}
}
_PAGE_LINK = re.compile(r"([a-z-]+)\.(?:md|ipynb)(#[\w-]+)?")
_OPTION = re.compile(r"\[[^\]]*\]|[^\[]*[^\[\s]")  # `[--port P]`, or what stands in front of the options
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


@dataclass(frozen=True)
class ManualEntry:
    """A page of the manual as the list of pages shows it."""

    page: str
    title: str
    address: str


@dataclass(frozen=True)
class ManualPage:
    """`/manual/{page}`: one page of the manual."""

    page: str
    title: str
    markdown: str
    pages: list[ManualEntry]  # all of them, in the order of the contents
    nav_html: Markup  # `markdown` rendered


@dataclass(frozen=True)
class ListedEntry:
    """An entry of the glossary as the list shows it."""

    key: str
    term: str
    meaning: str
    formula: str | None  # MathML
    n: str | None  # what it is counted or averaged over
    source: str
    source_address: str | None
    section: str  # of /methods
    address: str  # of that section


@dataclass(frozen=True)
class GlossaryPage:
    """`/manual/glossary`: what every number on the pages means."""

    page: str
    title: str
    entries: list[ListedEntry]
    pages: list[ManualEntry]  # of the manual, in the order of the contents


@render.page(router, "/manual", "manual.html", "manual")
def contents(address: Annotated[Plain, Query()]) -> ManualPage:
    """The manual's contents."""
    return _open(INDEX)


@render.page(router, "/manual/glossary", "manual_glossary.html", "manual_glossary")
def glossary(address: Annotated[Plain, Query()]) -> GlossaryPage:
    """Every entry of the glossary, section by section as /methods defines them."""
    entries = [
        ListedEntry(e.key, e.term, e.meaning, e.drawn, e.n, e.source_title, e.source_address, e.section, e.address)
        for e in GLOSSARY.values()
    ]
    return GlossaryPage(GLOSSARY_PAGE, "Glossary", entries, _entries())


@router.get("/manual/{notebook}.ipynb", name="notebook", response_class=Response, responses=NOTEBOOK)
def notebook(notebook: str) -> Response:
    """A notebook of the manual as its file."""
    names = sorted(path.stem for path in MANUAL.glob("*.ipynb"))
    if notebook not in names:
        raise NotFound("notebook of the manual", notebook, ", ".join(names))
    headers = {"Content-Disposition": f'attachment; filename="{notebook}.ipynb"'}
    return Response((MANUAL / f"{notebook}.ipynb").read_bytes(), media_type="application/x-ipynb+json", headers=headers)


@render.page(router, "/manual/{page}", "manual.html", "manual_page")
def manual_page(page: str, address: Annotated[Plain, Query()]) -> ManualPage:
    """One page of the manual."""
    return _open(page)


def _open(name: str) -> ManualPage:
    """A page by the name of its file without suffix; raises NotFound naming those that the contents list."""
    entries = _entries()
    names = [entry.page for entry in entries]
    if name not in names:
        raise NotFound("page of the manual", name, ", ".join(names))
    markdown = _read(name)
    tokens = _MARKDOWN.parse(markdown)
    title = next(inline.content for start, inline in _headings(tokens) if start.tag == "h1")
    return ManualPage(name, title, markdown, entries, Markup(_render(tokens)))  # html is off: what it holds was escaped


def _entries() -> list[ManualEntry]:
    """The contents, and every page that they link to, in their order."""
    entries = [ManualEntry(INDEX, "Contents", address_of(INDEX))]
    for token in _MARKDOWN.parse(_read(INDEX)):
        children = token.children or []
        for link, text in pairwise(children):
            target = _PAGE_LINK.fullmatch(str(link.attrGet("href") or "")) if link.type == "link_open" else None
            if target:
                entries.append(ManualEntry(target[1], text.content, address_of(target[1])))
                if target[1] == "numbers":
                    entries.append(ManualEntry(GLOSSARY_PAGE, "Glossary", address_of(GLOSSARY_PAGE)))
    return entries


def _read(name: str) -> str:
    """A page's Markdown; of a notebook its cells, with a link to the file."""
    page = MANUAL / f"{name}.md"
    if page.is_file():
        return page.read_text(encoding="utf-8")
    cells = json.loads((MANUAL / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    first, *others = ("".join(cell["source"]) if cell["cell_type"] == "markdown" else _fenced(cell) for cell in cells)
    return "\n\n".join([first, f"[The notebook as a file](/manual/{name}.ipynb)", *others]) + "\n"


def _fenced(cell: dict[str, list[str]]) -> str:
    return "```python\n" + "".join(cell["source"]) + "\n```"


def address_of(name: str) -> str:
    """Where the site serves a page of the manual."""
    return "/manual" if name == INDEX else f"/manual/{name}"


def _render(tokens: list[Token]) -> str:
    _number_headings(tokens)
    for token in tokens:
        if token.children:
            token.children = [part for child in token.children for part in _options_apart(child)]
        for each in [token, *(token.children or [])]:
            _rewrite_links(each)
            _align_by_class(each)
    return _MARKDOWN.renderer.render(list(_scrolling_tables(tokens)), _MARKDOWN.options, {})


def _headings(tokens: list[Token]) -> Iterator[tuple[Token, Token]]:
    """(opening token, text) of every heading."""
    for start, inline in pairwise(tokens):
        if start.type == "heading_open":
            yield start, inline


def heading_id(text: str) -> str:
    """The anchor that GitHub gives a heading: lower case, no punctuation, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def _number_headings(tokens: list[Token]) -> None:
    """Give headings their anchors; of equal ones the second has `-1` behind it, as on GitHub."""
    n_before: dict[str, int] = {}
    for start, inline in _headings(tokens):
        text = "".join(child.content for child in inline.children or [])
        anchor = heading_id(text)
        n = n_before.get(anchor, 0)
        n_before[anchor] = n + 1
        start.attrSet("id", f"{anchor}-{n}" if n else anchor)


def _rewrite_links(token: Token) -> None:
    """Turn links that hold between files into those that hold on the site."""
    for attribute in ("href", "src"):
        target = str(token.attrGet(attribute) or "")
        if match := _PAGE_LINK.fullmatch(target):
            token.attrSet(attribute, address_of(match[1]) + (match[2] or ""))
        elif target.startswith(STATIC_LINK):
            token.attrSet(attribute, render.asset(target.removeprefix(STATIC_LINK)))


def _align_by_class(token: Token) -> None:
    """Say a table cell's alignment by a class: the site has no style attributes in its texts."""
    if token.type in ("th_open", "td_open") and "right" in str(token.attrs.pop("style", "")):
        token.attrSet("class", "num")


def _options_apart(token: Token) -> Iterator[Token]:
    """The synopsis of a command as one piece of code per option, so that lines break between options; others as they are."""
    if token.type != "code_inline" or "[--" not in token.content:
        yield token
        return
    for n, piece in enumerate(_OPTION.findall(token.content)):
        if n:
            yield Token("text", "", 0, content=" ")
        yield token.copy(content=piece)


def _scrolling_tables(tokens: list[Token]) -> Iterator[Token]:
    """The same tokens with every table inside an element that scrolls sideways by itself."""
    for token in tokens:
        if token.type == "table_open":
            token.attrSet("class", "data")
            yield Token("scroll_open", "div", 1, attrs={"class": "scroll"}, block=True)
        yield token
        if token.type == "table_close":
            yield Token("scroll_close", "div", -1, block=True)
