"""A page of the dashboard as one of the folder: links lead to files, and what needs a server is left out.

The page's own text is cut and kept as it stands; nothing is written anew, so that numbers, figures and words cannot change.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from html.parser import HTMLParser
from typing import NamedTuple

from seedscope.app.site.addresses import SiteMap, relative

_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
)
_SCRIPTS = ("keys.js", "controls.js", "glossary.js", "panels.js", "rows.js", "figures.js")  # those that ask no server
_BUTTONS = {"popovertarget", "data-keys", "data-close"}  # what buttons do that no server is needed for
_DROPPED = frozenset({"noscript", "select", "input", "textarea"})
_DROPPED_CLASSES = frozenset({"star", "my-list", "lazy", "download", "jobs-link", "rules"})
_CARDS = frozenset({"try-box"})  # forms whose whole card is nothing without them
_BUNDLES = {"data-plain": "data-figure", "data-gl": "scattergl"}  # of Plotly, and what a page holds that needs it
Attributes = dict[str, str | None]


class Cut(NamedTuple):
    """A part of a page that is replaced."""

    begin: int
    end: int
    text: str


@dataclass
class _Open:
    """An element whose end was not met yet."""

    tag: str
    classes: frozenset[str]
    begin: int
    inside: int  # where its content begins
    is_dropped: bool = False
    replaced: str | None = None  # what its content becomes


@dataclass
class PageRewriter:
    """Rewrites pages of one site; `assets` gathers the static files that they need."""

    site: SiteMap
    head: Callable[[list[str]], str]  # what a page begins with, given the addresses of its scripts
    note: str  # what stands at the foot of every page
    assets: set[str] = field(default_factory=set)

    def rewrite(self, page: str, file: str, *, main: str | None = None, scripts: tuple[str, ...] = ()) -> str:
        """The page as the content of a file; `main` takes the place of its own content, `scripts` are loaded besides."""
        reader = _Reader(page, file, self, main)
        reader.feed(page)
        reader.close()
        names = ("site.js", *scripts)
        self.assets |= set(names)
        head, begin = page.index("<head>") + len("<head>"), page.index("<html") + len("<html")
        loaded = self.head([relative(f"static/{name}", file) for name in names])
        root = Cut(begin, begin, f' data-site="{escape(relative(".", file))}"')
        return applied(page, [*reader.cuts, Cut(head, head, loaded), root])

    def rewrite_part(self, part: str, file: str) -> str:
        """A part of a page that was written for the folder: its links alone change."""
        reader = _Reader(part, file, self, None, is_own=True)
        reader.feed(part)
        reader.close()
        return applied(part, reader.cuts)


class _Reader(HTMLParser):
    """Finds what is cut from a page."""

    def __init__(self, page: str, file: str, rewriter: PageRewriter, main: str | None, *, is_own: bool = False) -> None:
        super().__init__(convert_charrefs=False)
        self.cuts: list[Cut] = []
        self._page, self._file, self._rewriter, self._main = page, file, rewriter, main
        self._is_own = is_own  # written for the folder: nothing in it needs a server
        self._open: list[_Open] = []
        self._lines = [0]
        for line in page.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def _at(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        begin, raw = self._at(), self.get_starttag_text() or ""
        end, own = begin + len(raw), dict(attrs)
        classes = frozenset((own.get("class") or "").split())
        element = _Open(tag, classes, begin, end, is_dropped=not self._is_own and self._is_dropped(tag, own, classes))
        if (tag == "form" and classes & _CARDS) or own.get("id") == "neighbours":
            card = next((each for each in reversed(self._open) if "card" in each.classes), None)
            if card is not None:
                card.is_dropped = True
        if tag == "summary" and own.get("aria-label") == "other studies" and self._open:
            self._open[-1].is_dropped = True
        if tag == "main" and self._main is not None:
            element.replaced = self._main
        if not element.is_dropped:
            self._change_links(tag, own, begin, raw)
        if tag in _VOID or raw.endswith("/>"):
            if element.is_dropped:
                self.cuts.append(Cut(begin, end, ""))
        else:
            self._open.append(element)

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag: str) -> None:
        if not any(each.tag == tag for each in self._open):
            return
        begin = self._at()
        end = self._page.index(">", begin) + 1
        while True:
            element = self._open.pop()
            if element.is_dropped:
                self.cuts.append(Cut(element.begin, end if element.tag == tag else begin, ""))
            if element.replaced is not None:
                self.cuts.append(Cut(element.inside, begin, element.replaced))
            if element.tag == tag:
                break
        if tag == "footer" or (tag == "main" and 'class="foot"' not in self._page):
            self.cuts.append(Cut(begin, begin, self._rewriter.note))

    def _is_dropped(self, tag: str, own: Attributes, classes: frozenset[str]) -> bool:
        if tag == "form":
            return own.get("method") != "dialog" and "search-form" not in classes
        if tag == "button":
            inside_dialog = any(each.tag == "dialog" for each in self._open)
            return not (_BUTTONS & own.keys() or inside_dialog)
        if tag == "input":
            return "search" not in classes
        if tag == "script":
            return not any(name in (own.get("src") or "") for name in _SCRIPTS)
        if tag == "meta":
            return own.get("name") == "htmx-config" or (own.get("property") or "").startswith("og:image")
        if tag == "a":
            path = (own.get("href") or "").partition("?")[0]
            if (
                any("tabs" in each.classes for each in self._open)
                and self._rewriter.site.link(own.get("href") or "", self._file) is None
            ):
                return True
            return path in ("/jobs", "/docs", "/list", "/manual") or "my-list" in classes
        return tag in _DROPPED or bool(classes & _DROPPED_CLASSES)

    def _change_links(self, tag: str, own: Attributes, begin: int, raw: str) -> None:
        changed = raw
        for name in ("href", "src", "action", "data-plain", "data-gl"):
            address = own.get(name)
            if address is None or not address.startswith("/"):
                continue
            if address.startswith("/static/"):
                if _BUNDLES.get(name, "") in self._page:  # empty for all others
                    self._rewriter.assets.add(address.removeprefix("/static/").partition("?")[0])
                address = address.partition("?")[0]
            target = self._rewriter.site.link(address, self._file)
            written = f'{name}="{escape(own[name] or "", quote=True)}"'
            if written not in changed:  # as a template wrote it, quotes inside unescaped or another entity
                written = next((each for each in _spellings(name, own[name] or "") if each in changed), written)
            new = "data-unlinked" if target is None else f'{name}="{escape(target)}"'
            changed = changed.replace(written, new, 1)
        if tag == "input":
            changed = _without(
                changed,
                'role="combobox"',
                'aria-expanded="false"',
                'aria-autocomplete="list"',
                'aria-controls="suggestions"',
            )
        if changed != raw:
            self.cuts.append(Cut(begin, begin + len(raw), changed))


def _spellings(name: str, value: str) -> list[str]:
    return [
        f'{name}="{value}"',
        f'{name}="{value.replace("&", "&amp;")}"',
        f'{name}="{escape(value).replace("&#x27;", "&#39;")}"',
    ]


def _without(text: str, *parts: str) -> str:
    for part in parts:
        text = text.replace(f" {part}", "")
    return text


def applied(text: str, cuts: list[Cut]) -> str:
    """A text with its cuts; one inside another is left out, for it is gone."""
    parts, at = [], 0
    for cut in sorted(cuts, key=lambda each: (each.begin, -each.end)):
        if cut.begin < at:
            continue
        parts += [text[at : cut.begin], cut.text]
        at = cut.end
    return "".join([*parts, text[at:]])
