"""Where in the folder a page of the dashboard stands, and how pages there link to each other."""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

# What the table of the folder understands (static/site-table.js).
TABLE_PARAMETERS = frozenset(
    {"bucket", "seed", "trigger", "q", "score_min", "stability_min", "stability_max", "density_min", "density_max", "sort", "dir",
     "at"}
)  # fmt: skip
FORMS = (".json", ".csv", ".parquet")  # of a page, written beside it
_FEATURE = re.compile(r"/s/[^/]+/([^/]+)/([0-9]+)/([0-9]+)")
_TABLE = re.compile(r"/s/[^/]+/([^/]+)/features")
_WEIGHTS = re.compile(r"/f/([0-9a-f]+)/([0-9]+)")


@dataclass
class SiteMap:
    """The addresses of one study, and the files that answer them."""

    study: str
    ensembles: tuple[str, ...]
    lens: Mapping[str, str]  # parameters that every page was asked with
    places: Mapping[str, frozenset[tuple[int, int]]]  # {ensemble: (seed, feature) of those that have a page}
    pages: dict[str, str] = field(default_factory=dict)  # {address: file} of what was asked

    def file_of(self, path: str) -> str:
        """The file of a page, whether or not it is in the folder; other forms of pages keep their ending."""
        home = f"/s/{self.study}"
        if path in ("/", home):
            return "index.html"
        whole, ending = posixpath.splitext(path)
        whole, ending = (whole, ending) if ending in FORMS else (path, ".html")
        inside = whole.removeprefix(f"{home}/") if whole.startswith(f"{home}/") else whole.removeprefix("/")
        name, _, rest = inside.partition("/")
        if whole.startswith(f"{home}/") and name in self.ensembles:
            inside = f"s/{name}/{rest or 'index'}"
        return inside + ending

    def link(self, address: str, file: str) -> str | None:
        """An address of the dashboard as a link from a file of the folder; None for what is not in it."""
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or not parts.path:
            return address
        query = {name: value for name, value in parse_qsl(parts.query) if self.lens.get(name) != value}
        end = f"#{parts.fragment}" if parts.fragment else ""
        if found := _FEATURE.fullmatch(parts.path):
            ensemble, seed, feature = found[1], int(found[2]), int(found[3])
            if (seed, feature) not in self.places.get(ensemble, ()) or not self._is_own(parts.path):
                return None
            kept = {name: value for name, value in query.items() if name in TABLE_PARAMETERS | {"v"}}
            target, end = f"s/{ensemble}/feature.html", f"#{seed}/{feature}{_asking(kept)}"
        elif (found := _TABLE.fullmatch(parts.path)) and found[1] in self.ensembles and self._is_own(parts.path):
            if not query.keys() <= TABLE_PARAMETERS:
                return None
            target, end = f"s/{found[1]}/features.html", f"#{urlencode(query)}" if query else ""
        elif found := _WEIGHTS.fullmatch(parts.path):
            target, end = "weights.html", f"#{found[1]}/{found[2]}"
        elif parts.path == "/" or (parts.path in self.pages and not query):
            target = self.pages.get(parts.path, "index.html")
        elif parts.path.startswith("/static/"):
            target, end = parts.path.removeprefix("/"), ""
        else:
            return None
        return relative(target, file) + end

    def _is_own(self, path: str) -> bool:
        return path.startswith(f"/s/{self.study}/")


def relative(target: str, file: str) -> str:
    """A file of the folder as seen from another one."""
    return posixpath.relpath(target, posixpath.dirname(file) or ".")


def _asking(query: Mapping[str, str]) -> str:
    return "?" + urlencode(query) if query else ""
