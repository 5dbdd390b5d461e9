"""What every address may answer, in the OpenAPI description: each status with its content types and the shape of its JSON.

FastAPI knows the routes and their parameters. What refuses a request, and how, is decided around them: by `app.security` in
plain text, by `app.turns` and by `app.error_pages` as a page, or as JSON at addresses that end in `.json` and for clients that
ask for it. This is the description of those rules; tests ask every address and compare.
"""

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from seedscope.app.cross_origin import STABILITY
from seedscope.app.error_pages import EnginePage, ErrorPage
from seedscope.app.freshness import check_kept
from seedscope.app.security import COOKIE

OPEN = "/healthz"  # answers without a token
_FILES = {
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "json": "application/json",
    "png": "image/png",
    "svg": "image/svg+xml",
}
_HTML, _JSON, _PLAIN = "text/html", "application/json", "text/plain"
_TEXT: dict[str, Any] = {"schema": {"type": "string"}}
_RETRY = {"Retry-After": {"description": "seconds until it is worth asking again", "schema": {"type": "integer"}}}
_TOKEN = {
    "token": {"type": "http", "scheme": "bearer"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
}


class DescribedApp(FastAPI):
    """An application whose OpenAPI description names every status and content type of every address."""

    def __init__(self, *, needs_token: bool, **options: Any) -> None:
        super().__init__(**options)
        self._needs_token = needs_token
        self._kept: set[str] = set()
        self._live: set[str] = set()

    def describe(self, routers: Iterable[APIRouter], live: Iterable[APIRouter]) -> None:
        """Note which addresses browsers keep, and which ask the live engine; before the description is read first."""
        routes = [(router, route) for router in routers for route in router.routes if isinstance(route, APIRoute)]
        asking = tuple(live)
        self._kept = {
            route.path for _, route in routes if any(each.dependency is check_kept for each in route.dependencies)
        }
        self._live = {route.path for router, route in routes if router in asking}

    def openapi(self) -> dict[str, Any]:
        """The description, made once."""
        if self.openapi_schema:
            return self.openapi_schema
        schema = super().openapi()
        shapes = schema.setdefault("components", {}).setdefault("schemas", {})
        for name in (
            "HTTPValidationError",
            "ValidationError",
        ):  # `app.error_pages` answers a bad request in FastAPI's place
            shapes.pop(name, None)
        for shape in (ErrorPage, EnginePage):
            described = TypeAdapter(shape).json_schema(ref_template="#/components/schemas/{model}")
            shapes |= described.pop("$defs", {}) | {shape.__name__: described}
        for path, verbs in schema["paths"].items():
            for operation in verbs.values():
                operation["responses"] = self._answers(path, operation["responses"])
                if self._needs_token and path != OPEN:
                    operation["security"] = [{name: []} for name in _TOKEN]
        if self._needs_token:
            schema["components"]["securitySchemes"] = _TOKEN
        return schema

    def _answers(self, path: str, known: dict[str, Any]) -> dict[str, Any]:
        """Every status of an operation with its content; `known`: what its route says."""
        answers = {status: dict(answer) for status, answer in known.items()}
        kind = path.rpartition("/")[2].rpartition(".")[2]
        if kind in _FILES and "200" in answers:
            answers["200"]["content"] = {_FILES[kind]: answers["200"].get("content", {}).get(_FILES[kind], {})}
        answers |= {status: {"description": says} for status, says in self._refusals(path).items()}
        for status, answer in answers.items():
            if status >= "400":
                shapes = ("ErrorPage", "EnginePage") if path in self._live and status in "422 503" else ("ErrorPage",)
                answer["content"] = _refusal(path, *shapes)
            if status in ("429", "503"):
                answer["headers"] = _RETRY
        if path in self._live and kind not in _FILES:
            answers["202"] = {"description": "The engine starts", "content": {_HTML: _TEXT}, "headers": _RETRY}
        if path in self._kept:
            answers["304"] = {"description": "The copy that the request names by If-None-Match still holds"}
        if "413" in answers:  # beyond LONGEST_FORM it is refused before a route is found
            answers["413"]["content"][_PLAIN] = _TEXT
        for status, says in self._in_plain_text(path).items():
            content = answers.get(status, {}).get("content", {}) | {_PLAIN: _TEXT}
            answers[status] = {"description": says, "content": content}
        return dict(sorted(answers.items()))

    def _refusals(self, path: str) -> dict[str, str]:
        """{status: what it means} of what `app.error_pages` answers, beside what a route says itself."""
        if path in (OPEN, "/metrics"):
            return {}
        found = {"422": "A value in the address is not usable", "503": "Too busy, or the engine does not answer"}
        if "{" in path or path.startswith("/compare"):
            found["404"] = "Nothing of that name here"
        if path in self._live:
            found |= {"403": "", "429": "Too many questions from one address"}
        return found

    def _in_plain_text(self, path: str) -> dict[str, str]:
        """{status: what it means} of what is answered before a route is found."""
        found = {"400": "No HTTP, or an address beyond 64 KiB", "403": "A host or a site that is not served here"}
        return found | ({"401": "A token is needed"} if self._needs_token and path != OPEN else {})


def _refusal(path: str, *shapes: str) -> dict[str, Any]:
    """The content of a refusal: JSON alone at addresses of data in any form, else whichever the client asks for."""
    found = [{"$ref": f"#/components/schemas/{shape}"} for shape in shapes]
    content: dict[str, Any] = {_JSON: {"schema": found[0] if len(found) == 1 else {"anyOf": found}}}
    return content if path.endswith(".json") or path.startswith(STABILITY) else {_HTML: _TEXT} | content
