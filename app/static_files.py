"""Files of `static/`, compressed once, addressed by their digest and then cached for ever."""

import gzip
import hashlib
import mimetypes
from functools import cache
from typing import NamedTuple

from fastapi import Request
from fastapi.responses import Response

from seedscope.app.settings import STATIC

FOR_EVER = "public, max-age=31536000, immutable"
COMPRESSED = (".css", ".js", ".svg")


class StaticFile(NamedTuple):
    """A file as it is sent."""

    digest: str  # 12 hex digits, the parameter of its address
    media_type: str
    content: bytes
    packed: bytes | None  # by gzip; None for what is compressed already


@cache
def read_static(name: str) -> StaticFile | None:
    """A file of `static/` by its path below that; None where there is none. Read and compressed once per process."""
    path = (STATIC / name).resolve()
    if not path.is_relative_to(STATIC.resolve()) or not path.is_file():
        return None
    content = path.read_bytes()
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    packed = gzip.compress(content, 9, mtime=0) if path.suffix in COMPRESSED else None
    return StaticFile(hashlib.sha256(content).hexdigest()[:12], media_type, content, packed)


def asset(name: str) -> str:
    """Address of a static file; changes when its content does."""
    file = read_static(name)
    if file is None:
        raise FileNotFoundError(f"{STATIC / name}")
    return f"/static/{name}?{file.digest}"


def respond_static(request: Request, name: str) -> Response:
    """Answer `/static/{name}`: for ever under the digest, to be asked for again under any other address."""
    file = read_static(name)
    if file is None:
        return Response("no such file\n", 404, media_type="text/plain")
    etag = f'"{file.digest}"'
    headers = {"ETag": etag, "Cache-Control": FOR_EVER if request.url.query == file.digest else "no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    if file.packed is None:
        return Response(file.content, headers=headers, media_type=file.media_type)
    headers["Vary"] = "Accept-Encoding"
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.packed, headers=headers | {"Content-Encoding": "gzip"}, media_type=file.media_type)
    return Response(file.content, headers=headers | {"Content-Encoding": "identity"}, media_type=file.media_type)
