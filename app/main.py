"""create_app: the dashboard over every study under a root."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from seedscope.app import render
from seedscope.app.jobs.kinds import JobRefusedError
from seedscope.app.jobs.queue import Jobs
from seedscope.app.live import EngineBrokenError, EngineRefusedError, EngineStartingError, LiveEngine
from seedscope.app.metrics import add_metrics
from seedscope.app.routes import home, jobs, manual
from seedscope.app.routes.ensemble import (
    ablation,
    buckets,
    explanations,
    map,
    members,
    overview,
    project_set,
    subspaces,
    table,
    trajectory,
    try_text,
)
from seedscope.app.routes.feature import by_weights, exact_loss, neighbours, permalink, project_feature, scored_contexts
from seedscope.app.routes.study import pool, starts, synthetic, variants
from seedscope.app.security import Guard
from seedscope.app.settings import STATIC, Settings
from seedscope.app.store.errors import BadValue, NotFound
from seedscope.app.store.studies import Studies


@dataclass(frozen=True)
class ErrorPage:
    """Any refusal: what was found, what was expected, the way out."""

    status: int
    title: str
    problems: list[dict[str, str]]  # name, found, expected


@dataclass(frozen=True)
class EnginePage:
    """Instead of an answer of the live engine: it starts, restarts or refuses."""

    says: str
    again: bool  # whether the page asks again by itself
    address: str


@dataclass(frozen=True)
class DocsPage:
    """`/docs`: every address the dashboard answers."""

    routes: list[dict[str, str]]  # path, says


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application; opens stores at the first request that needs them."""
    live = LiveEngine(settings.root, settings.device)

    @asynccontextmanager
    async def until_stopped(app: FastAPI) -> AsyncIterator[None]:
        app.state.jobs.resume()
        yield
        app.state.jobs.close()
        live.close()

    app = FastAPI(title="SeedScope", docs_url=None, redoc_url=None, lifespan=until_stopped)
    app.state.studies = Studies(settings.root)
    app.state.live = live
    app.state.jobs = Jobs(settings.root, settings.device)
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

    app.include_router(home.router)
    app.include_router(manual.router)
    app.include_router(jobs.router)
    app.include_router(starts.router)  # these before an ensemble's page, whose address would swallow them
    app.include_router(variants.router)
    app.include_router(synthetic.router)
    app.include_router(pool.router)
    app.include_router(overview.router)
    app.include_router(ablation.router)
    app.include_router(buckets.router)
    app.include_router(explanations.router)
    app.include_router(members.router)  # before the permalink, whose address would swallow members/match
    app.include_router(map.router)  # this and the next likewise
    app.include_router(subspaces.router)
    app.include_router(trajectory.router)
    app.include_router(neighbours.router)
    app.include_router(exact_loss.router)
    app.include_router(project_set.router)
    app.include_router(project_feature.router)
    app.include_router(scored_contexts.router)
    app.include_router(try_text.router)
    app.include_router(table.router)
    app.include_router(permalink.router)
    app.include_router(by_weights.router)
    app.add_exception_handler(NotFound, _not_found)
    app.add_exception_handler(BadValue, _bad_value)
    app.add_exception_handler(JobRefusedError, _job_refused)
    app.add_exception_handler(EngineStartingError, _engine_starting)
    app.add_exception_handler(EngineBrokenError, _engine_silent)
    app.add_exception_handler(EngineRefusedError, _engine_silent)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Guard, settings=settings)
    add_metrics(app)
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


def _job_refused(request: Request, error: JobRefusedError) -> Response:
    problem = {"name": error.name, "found": error.found, "expected": error.expected}
    return _refuse(request, error.status, "This job is refused", [problem])


def _bad_request(request: Request, error: RequestValidationError) -> Response:
    takes = _parameters_of(request.scope["route"].dependant)
    problems = [
        {"name": str(e["loc"][-1]), "found": _found(e), "expected": _expected(e, takes)} for e in error.errors()
    ]
    return _refuse(request, 422, "A value in the address is not usable", problems)


def _parameters_of(dependant: Dependant) -> list[str]:
    """Every query parameter that a route takes, sorted; a `.json` twin takes what its page does."""
    names = [_parameters_of(dependency) for dependency in dependant.dependencies]
    for field in dependant.query_params:
        takes = field.field_info.annotation
        names.append(list(takes.model_fields) if hasattr(takes, "model_fields") else [field.alias])
    return sorted({name for held in names for name in held})


def _found(error: dict) -> str:
    return "an unknown parameter" if error["type"] == "extra_forbidden" else repr(error["input"])


def _expected(error: dict, takes: list[str]) -> str:
    """pydantic's own words, which name the allowed values and bounds."""
    if error["type"] == "extra_forbidden":
        return "one of " + ", ".join(takes)
    return error["msg"].removeprefix("Input should be ")


def _engine_starting(request: Request, error: EngineStartingError) -> Response:
    return _without_answer(request, str(error), again=True)


def _engine_silent(request: Request, error: Exception) -> Response:
    refused = isinstance(error, EngineRefusedError) and error.cause == "query"
    return _without_answer(request, str(error), again=False, status=422 if refused else 503)


def _without_answer(request: Request, says: str, *, again: bool, status: int = 503) -> Response:
    """A word in the place where the answer was due; the rest of the site does not need the engine."""
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    context = EnginePage(says, again, path)
    if request.url.path.endswith(".json"):
        response: Response = JSONResponse(asdict(context), status)
    else:
        response = render.respond(request, "engine.html", context, status=202 if again else status)
    if status == 503:
        response.headers["Retry-After"] = "1"
    return response


def _http_error(request: Request, error: HTTPException) -> Response:
    phrase = HTTPStatus(error.status_code).phrase
    problem = {"name": "address", "found": request.url.path, "expected": "a page that the studies link to"}
    return _refuse(request, error.status_code, phrase, [problem])
