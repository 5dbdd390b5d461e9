"""create_app: the dashboard over every study under a root."""

from dataclasses import asdict, dataclass
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from app import render
from app.routes import features, studies
from app.security import Guard
from app.settings import STATIC, Settings
from app.store import BadValue, NotFound, Studies


@dataclass(frozen=True)
class ErrorPage:
    """Any refusal: what was found, what was expected, the way out."""

    status: int
    title: str
    problems: list[dict[str, str]]  # name, found, expected


@dataclass(frozen=True)
class DocsPage:
    """`/docs`: every address the dashboard answers."""

    routes: list[dict[str, str]]  # path, says


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application; opens stores at the first request that needs them."""
    app = FastAPI(title="SeedScope", docs_url=None, redoc_url=None)
    app.state.studies = Studies(settings.root)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.get("/healthz")
    def healthz() -> dict[str, object]:
        """Alive, and which studies are published."""
        return {"status": "ok", "studies": app.state.studies.names()}

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> Response:
        routes = [{"path": path, "says": next(iter(verbs.values())).get("description", "")}
                  for path, verbs in app.openapi()["paths"].items()]  # fmt: skip
        return render.respond(request, "docs.html", DocsPage(routes))

    app.include_router(studies.router)
    app.include_router(features.router)
    app.add_exception_handler(NotFound, _not_found)
    app.add_exception_handler(BadValue, _bad_value)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Guard, settings=settings)
    return app


def _refuse(request: Request, status: int, title: str, problems: list[dict[str, str]]) -> Response:
    """The same refusal as a page or, for `.json` addresses and clients that ask for JSON, as JSON."""
    context = ErrorPage(status, title, problems)
    accept = request.headers.get("accept", "")
    if request.url.path.endswith(".json") or ("application/json" in accept and "text/html" not in accept):
        return JSONResponse(asdict(context), status)
    response = render.respond(request, "error.html", context, status=status)
    if render.wants_fragment(request):
        render.retarget_to_page(response)
    return response


def _not_found(request: Request, error: NotFound) -> Response:
    problem = {"name": error.what, "found": error.found, "expected": error.expected}
    return _refuse(request, 404, f"No {error.what} {error.found!r} here", [problem])


def _bad_value(request: Request, error: BadValue) -> Response:
    return _refuse(request, 422, "A value in the address is not usable", [asdict(error)])


def _bad_request(request: Request, error: RequestValidationError) -> Response:
    takes = features.TableFilter if request.url.path.removesuffix(".json").endswith("/features") else features.Filter
    problems = [
        {"name": str(e["loc"][-1]), "found": _found(e), "expected": _expected(e, takes)} for e in error.errors()
    ]
    return _refuse(request, 422, "A value in the address is not usable", problems)


def _found(error: dict) -> str:
    return "an unknown parameter" if error["type"] == "extra_forbidden" else repr(error["input"])


def _expected(error: dict, takes: type[features.Filter]) -> str:
    """pydantic's own words, which name the allowed values and bounds."""
    if error["type"] == "extra_forbidden":
        return "one of " + ", ".join(sorted(takes.model_fields))
    return error["msg"].removeprefix("Input should be ")


def _http_error(request: Request, error: HTTPException) -> Response:
    phrase = HTTPStatus(error.status_code).phrase
    problem = {"name": "address", "found": request.url.path, "expected": "a page that the studies link to"}
    return _refuse(request, error.status_code, phrase, [problem])
