"""Access control: Host allow-list, token, Origin check, and the headers of every answer."""

import hmac
import ipaddress
import re
import secrets
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seedscope.app.cross_origin import CrossOrigin
from seedscope.app.settings import Settings
from seedscope.engine.contract.engine_address import LOOPBACK_NAMES, host_name, is_served

COOKIE = "seedscope_token"
READING = ("GET", "HEAD", "OPTIONS", "TRACE")  # methods that change nothing; routes refuse those that they do not take
# The two style elements that the pinned Plotly bundle inserts (one of them empty); a browser test fails when they change.
PLOTLY_STYLES = (
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' 'sha256-ji27qzEtxXZW+7dun6UwjHXJ18e6WAin1VvNtkzIE/o='"
)
# Scripts and styles come from this server alone; style attributes carry bar widths and highlight strengths.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' {plotly}; style-src-attr 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors {ancestors}"
)


def is_loopback(host: str) -> bool:
    """Whether binding to `host` keeps the dashboard on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def token_problem(token: str) -> str | None:
    """Why a text cannot be a token, in words; None where it can: a header, a cookie and an address have to hold it."""
    if re.fullmatch(r"[A-Za-z0-9._~+/=-]{1,256}", token):
        return None
    return "expected 1 to 256 letters, digits and ._~+/=- for it is sent in headers, cookies and addresses"


def new_token() -> str:
    """A token for a bind beyond loopback when none was given."""
    return secrets.token_urlsafe(24)


class Guard:
    """ASGI middleware; refuses before any route runs."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._token = settings.token
        self._names = LOOPBACK_NAMES | {n.lower() for n in (settings.host, *settings.allowed_hosts)}
        self._beyond_loopback = not is_loopback(settings.host)
        self._cross_origin = CrossOrigin(settings.allowed_origins, needs_token=settings.token is not None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        embed = ("embed", "true") in parse_qsl(scope["query_string"].decode("latin-1"))
        # A page whose buttons do something is never framed: a click in the frame would count as this site's.
        ancestors = "*" if embed and not scope["path"].startswith("/jobs") else "'none'"

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                out["Content-Security-Policy"] = CSP.format(ancestors=ancestors, plotly=PLOTLY_STYLES)
                out["X-Content-Type-Options"] = "nosniff"
                out["Referrer-Policy"] = "same-origin"
                out["Cross-Origin-Opener-Policy"] = "same-origin"
                self._cross_origin.add_headers(scope["path"], headers, out)
            await send(message)

        scope.setdefault("state", {})["is_known"] = True  # may see what the root holds; else `_refusal` says so
        refusal = self._refusal(scope, headers)
        await (refusal or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if not self._host_allowed(host):
            return PlainTextResponse(
                f"Host {host!r} is not served here, expected one of {', '.join(sorted(self._names))}; "
                "start with --allow-host NAME to add one\n",
                403,
            )
        if preflight := self._cross_origin.preflight(scope["method"], scope["path"], headers):
            return preflight
        if scope["method"] not in READING and not self._cross_origin.may_ask(scope["method"], scope["path"], headers):
            origin = headers.get("origin", "")
            site = headers.get("sec-fetch-site", "same-origin")  # browsers say it, pages cannot change it
            if origin.partition("://")[2] != host or site != "same-origin":
                found = f"Origin {origin!r}" + (f" ({site})" if site != "same-origin" else "")
                return PlainTextResponse(
                    f"{found} may not write here, expected this site: use the buttons of its own pages, "
                    f"or send the header Origin: http://{host}\n",
                    403,
                )
        if self._token is None:
            return None
        refusal = _ask_for_token(self._token, scope, headers)
        if refusal is not None and scope["path"] == "/healthz":  # answers everybody, and says no more than that
            scope["state"]["is_known"] = False
            return None
        return refusal

    def _host_allowed(self, host: str) -> bool:
        return is_served(host_name(host), self._names, beyond_loopback=self._beyond_loopback)


def _ask_for_token(token: str, scope: Scope, headers: Headers) -> Response | None:
    """None where a header or cookie holds the token; a cookie and the address without it where the address does."""

    def is_token(text: str) -> bool:
        return hmac.compare_digest(text.encode(), token.encode())

    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    cookies = cookie_parser(headers.get("cookie", ""))
    bearer = headers.get("authorization", "").removeprefix("Bearer ")
    if is_token(bearer) or (COOKIE in cookies and is_token(cookies[COOKIE])):
        return None
    if is_token(dict(query).get("token", "")):
        rest = urlencode([pair for pair in query if pair[0] != "token"])
        response = RedirectResponse("/" + scope["path"].lstrip("/\\") + (f"?{rest}" if rest else ""), 303)
        is_secure = scope.get("scheme") == "https"  # as a proxy says that is trusted to
        response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=is_secure, max_age=30 * 86400)
        return response
    return PlainTextResponse("A token is needed: open the address that `seedscope serve` printed (?token=...)\n", 401)
