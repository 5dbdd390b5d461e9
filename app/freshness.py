"""Whether a browser's copy of a page still holds: an ETag over the published stores, the address and this code.

What a page shows of published studies cannot change while its store, the list of studies, the jobs and the code are the same:
that is known without reading the store, so that a reload costs an empty 304. Pages that the live engine answers, and those that
show files beside the stores, have no ETag (`render.page(.., kept=False)`).

Small answers that other sites and programs ask for again and again are kept by their content instead (`kept_answer`).
"""

import hashlib
from functools import cache

from fastapi import Request
from fastapi.responses import Response

from seedscope.app.settings import SHIPPED, STATIC, TEMPLATES

KEPT_S = 300  # that an answer may be used again without asking: a study is published anew by hand
CODE = (SHIPPED / "app", TEMPLATES, STATIC)


class NotModified(Exception):
    """The browser holds the page that would be sent."""

    def __init__(self, etag: str) -> None:
        super().__init__(etag)
        self.etag = etag


def check_kept(request: Request) -> None:
    """Raise NotModified where the request names the page's present ETag; else leave the ETag for the answer."""
    request.state.etag = etag = etag_of(request)
    if etag and etag in [known.strip() for known in request.headers.get("if-none-match", "").split(",")]:
        raise NotModified(etag)


def kept_answer(request: Request, content: bytes, media_type: str) -> Response:
    """An answer with a strong ETag over its content, for KEPT_S seconds; an empty 304 where the request names that ETag.

    Shared caches may keep it unless somebody had to say who asks: by this server's token, or to whatever stands in front.
    """
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    is_private = request.app.state.needs_token or "authorization" in request.headers
    headers = {"ETag": etag, "Cache-Control": f"{'private' if is_private else 'public'}, max-age={KEPT_S}"}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    # Said to be as it is, so that nothing packs it on its way: an ETag is strong for the same bytes alone.
    return Response(content, headers=headers | {"Content-Encoding": "identity"}, media_type=media_type)


def etag_of(request: Request) -> str | None:
    """The ETag of the page that a request asks for; None while a job runs, for pages show its progress."""
    state = request.app.state
    if state.jobs.n_active:
        return None
    study, names = request.path_params.get("study"), state.studies.names()
    parts = (
        code_digest(),
        [state.studies.version(name) for name in ([study] if study else names)],
        names,
        [(job.id, job.state) for job in state.jobs.all()],
        str(request.url.path),
        request.url.query,
        request.headers.get("hx-request", ""),
        request.headers.get("hx-history-restore-request", ""),
    )
    return f'W/"{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}"'


@cache
def code_digest() -> str:
    """Digest of everything that pages are made by; read once, for a process serves the code it began with."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in CODE for path in folder.rglob("*") if path.is_file()):
        if "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(SHIPPED)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
