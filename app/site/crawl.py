"""The pages of a study that need no engine: found by following the dashboard's own links."""

import re
from html import unescape
from http import HTTPStatus
from urllib.parse import urlencode, urlsplit

from fastapi import FastAPI
from fastapi.routing import APIRoute

from seedscope.app.routes.routers import LIVE
from seedscope.app.site.addresses import FORMS, SiteMap
from seedscope.app.site.asking import PageAnswer, ask

_LINK = re.compile(r'href="(/[^"]*)"')
_ONE_FEATURE = re.compile(r"/s/[^/]+/[^/]+/[0-9]+/[0-9]+(/.*)?")
_HERE = ("/features", "/list", "/random")  # the folder has its own table; the others need a server
MOST_BYTES = 1_000_000  # of another form of a page: larger ones are left to `seedscope export`


async def crawl(app: FastAPI, site: SiteMap) -> dict[str, PageAnswer]:
    """{address without its query: answer} of every page that the study's own pages link to, and of their JSON and CSV forms.

    `site.pages` names the file of each.
    """
    found: dict[str, PageAnswer] = {}
    waiting = [f"/s/{site.study}", "/methods", *(f"/s/{site.study}/{name}" for name in site.ensembles)]
    seen = set(waiting)
    while waiting:
        path = waiting.pop(0)
        is_lensed = any(path.startswith(f"/s/{site.study}/{name}") for name in site.ensembles)
        answer = await ask(app, path, urlencode(site.lens) if is_lensed else "")
        if answer.status != HTTPStatus.OK or (path.endswith(FORMS) and len(answer.body) > MOST_BYTES):
            continue
        found[path] = answer
        site.pages[path] = site.file_of(path)
        if answer.media_type == "text/html":
            linked = (unescape(link) for link in _LINK.findall(answer.text))
            for link in linked:
                if (target := urlsplit(link).path) not in seen and _belongs(target, site) and not _asks_engine(target):
                    seen.add(target)
                    waiting.append(target)
    return found


def _belongs(path: str, site: SiteMap) -> bool:
    """Whether a page is one of the study, and not one that the folder has another form of."""
    if not path.startswith(f"/s/{site.study}/") or _ONE_FEATURE.fullmatch(path):
        return False
    return not any(path.endswith(tail) or f"{tail}/" in path or f"{tail}." in path for tail in _HERE)


def _asks_engine(path: str) -> bool:
    return any(
        isinstance(route, APIRoute) and route.path_regex.match(path) for router in LIVE for route in router.routes
    )
