"""What pages of other sites may read (CORS), where the owner named them: what is known of an SAE's features, and nothing else.

Shared are `/stability/..`, `/f/..json` and a permalink's `.json`, for GET and HEAD; and one POST, the batch question to
`/stability/{sae_digest}`, which changes nothing. Never with credentials: a browser sends no cookie along and hands no answer over
that came with one, so a page of another site reads what its own visitor could ask for without being known here. A server with a
token takes it from such a page as a bearer header alone, which a page can send only if its owner knows the token.
"""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

ANY = "*"
STABILITY = "/stability/"  # what begins so is data, whatever form was asked for
_SHARED = re.compile(
    r"/stability/[^/]+(/[^/]+)?"  # of an SAE, of one of its features
    r"|/f/[^/]+/[^/]+\.json"
    r"|/s/[^/]+/[^/]+/[0-9]+/[0-9]+\.json"  # a permalink's twin
)
_BATCH = re.compile(r"/stability/[^/.]+")  # of an SAE itself, not of its .svg
_PREFLIGHT_S = 600  # that a browser remembers what it may send
_JSON = "application/json"


def origin_of(text: str) -> str:
    """An origin as browsers write it; `*` as it is. Raises ValueError for what no browser sends as one."""
    expected = "expected SCHEME://HOST or SCHEME://HOST:PORT with nothing behind it, such as https://example.org, or *"
    if text == ANY:
        return ANY
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"origin is {text!r:.200}, {expected}") from None
    is_bare = parts.path in ("", "/") and not ({*text} & {*"?#@*, "}) and text.isascii() and text.isprintable()
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_bare:
        raise ValueError(f"origin is {text!r:.200}, {expected}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    is_usual = port is None or port == {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + ("" if is_usual else f":{port}")


def checked_origins(origins: Iterable[str], *, needs_token: bool) -> tuple[str, ...]:
    """Origins as browsers write them; raises ValueError for what is none, and for `*` with a token."""
    found = tuple(dict.fromkeys(map(origin_of, origins)))
    if needs_token and ANY in found:
        raise ValueError(
            "found allowed origin * on a server that needs a token, expected the origins that may read: name each"
        )
    return found


class CrossOrigin:
    """The answers to browsers that ask for pages of other sites; without origins it shares nothing and adds nothing."""

    def __init__(self, origins: tuple[str, ...], *, needs_token: bool) -> None:
        """Raises ValueError as `checked_origins` does."""
        self._origins = frozenset(checked_origins(origins, needs_token=needs_token))
        self._sent = "Content-Type, If-None-Match" + (", Authorization" if needs_token else "")

    def add_headers(self, path: str, asked: Headers, answer: MutableHeaders) -> None:
        """Let the page that asked read the answer, where its origin may; caches keep the answers to different origins apart."""
        if not self._shares(path):
            return
        if ANY not in self._origins:
            answer.add_vary_header("Origin")
        if allowed := self._allowed(asked):
            answer["Access-Control-Allow-Origin"] = allowed
            answer["Access-Control-Expose-Headers"] = "ETag, Retry-After, X-Request-ID"

    def preflight(self, method: str, path: str, asked: Headers) -> Response | None:
        """The answer to a browser that asks what it may send; None where this is no such question, or not to be answered."""
        is_one = method == "OPTIONS" and "access-control-request-method" in asked
        if not (is_one and self._shares(path) and self._allowed(asked)):
            return None
        methods = "GET, HEAD, POST" if _BATCH.fullmatch(path) else "GET, HEAD"
        headers = {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": self._sent,
            "Access-Control-Max-Age": str(_PREFLIGHT_S),
            "Vary": "Access-Control-Request-Method, Access-Control-Request-Headers",
        }
        return Response(status_code=204, headers=headers)

    def may_ask(self, method: str, path: str, asked: Headers) -> bool:
        """Whether a POST is the batch question of a site that may ask it, or of a program.

        It changes nothing, so that nothing is lost by asking; a page of a site that was not named is refused all the same.
        Programs send no Origin, browsers do with every POST. As JSON alone: what a form can send needs no preflight.
        """
        kind = asked.get("content-type", "").partition(";")[0].strip().lower()
        if method != "POST" or not _BATCH.fullmatch(path) or kind != _JSON:
            return False
        is_program = "origin" not in asked and "sec-fetch-site" not in asked
        return is_program or self._allowed(asked) is not None

    def _shares(self, path: str) -> bool:
        return bool(self._origins) and _SHARED.fullmatch(path) is not None

    def _allowed(self, asked: Headers) -> str | None:
        """The value that allows the asking page to read; None where it may not."""
        if ANY in self._origins:
            return ANY
        origin = asked.get("origin", "")
        return origin if origin in self._origins else None
