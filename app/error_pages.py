"""Refusals as pages or as JSON: what was found, what was expected and the way out, for every error that a route raises."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seedscope.app import render
from seedscope.app.cross_origin import STABILITY
from seedscope.app.freshness import NotModified
from seedscope.app.jobs.kinds import JobRefusedError
from seedscope.app.live.asking import ForeignError
from seedscope.app.live.client import EngineRefusedError
from seedscope.app.live.process import EngineBrokenError, EngineStartingError
from seedscope.app.live.shares import GreedyError
from seedscope.app.logs import FAULTS, request_id
from seedscope.app.parameters import parameters_of
from seedscope.app.store.errors import BadValue, DamagedIndexError, NotFound, OneMember
from seedscope.app.store.missing import Missing
from seedscope.app.turns import BusyError
from seedscope.engine.contract.index.opening import IndexNotMadeError
from seedscope.engine.contract.names import PAGE_SUFFIXES
from seedscope.engine.contract.stability import ALONE_SENTENCE
from seedscope.engine.contract.store_file import DamagedStoreError, mending_command

E = TypeVar("E", bound=Exception)


@dataclass(frozen=True)
class ErrorPage:
    """Any refusal: what was found, what was expected, the way out."""

    status: int
    title: str
    problems: list[dict[str, str]]  # name, found, expected
    id: str  # of the request, as the server's log has it
    without: str | None = (
        None  # the address without the parameters that are not usable; None where they are not the fault
    )


@dataclass(frozen=True)
class EnginePage:
    """Instead of an answer of the live engine: it starts, restarts or refuses."""

    says: str
    again: bool  # whether the page asks again by itself
    address: str


@dataclass(frozen=True)
class AlonePage:
    """Instead of a page that compares members, where an ensemble has one: why nothing is compared, and what adds others."""

    study: str
    ensemble: str
    says: str
    missing: list[Missing]


class Faults:
    """ASGI middleware inside all others: what no handler answers is written down, and answered with a page that says so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except ClientDisconnect:  # in the middle of a form
            return
        except Exception:
            if begun:  # the server ends the connection, so that nobody takes it for the whole answer
                raise
            logging.getLogger(FAULTS).exception("a fault of this server")
            response = await run_in_threadpool(_fault, Request(scope, receive))
            await response(scope, receive, send)


def add_error_pages(app: FastAPI) -> None:
    """Answer every refusal of the routes, every HTTP error and every fault with a page or its JSON.

    Call it before other middleware is added: they see the answer.
    """
    app.add_middleware(Faults)

    def answer(kind: type[E], handler: Callable[[Request, E], Response]) -> None:
        def handle(request: Request, error: Exception) -> Response:
            if not isinstance(error, kind):  # Starlette looks handlers up by class
                raise error
            return handler(request, error)

        app.add_exception_handler(kind, handle)

    answer(NotModified, _not_modified)
    answer(BusyError, _busy)
    answer(GreedyError, _greedy)
    answer(ForeignError, _foreign)
    answer(NotFound, _not_found)
    answer(BadValue, _bad_value)
    answer(OneMember, _one_member)
    answer(DamagedStoreError, _damaged)
    answer(DamagedIndexError, _damaged)
    answer(IndexNotMadeError, _damaged)
    answer(JobRefusedError, _job_refused)
    answer(EngineStartingError, _engine_starting)
    answer(EngineBrokenError, _engine_silent)
    answer(EngineRefusedError, _engine_silent)
    answer(RequestValidationError, _bad_request)
    answer(HTTPException, _http_error)


def _is_data(request: Request) -> bool:
    """Whether a program reads what comes; a refusal is JSON then, whatever form was asked for, and never a page."""
    return request.url.path.endswith(PAGE_SUFFIXES) or request.url.path.startswith(STABILITY)


def _refuse(request: Request, status: int, title: str, problems: list[dict[str, str]]) -> Response:
    """The same refusal as a page or, for `.json` addresses and clients that ask for JSON, as JSON."""
    faulty = {problem["name"] for problem in problems} & set(request.query_params)
    rest = {name: value for name, value in request.query_params.items() if name not in faulty}
    without = render.url(request.url.path, **rest) if faulty else None
    context = ErrorPage(status, title, problems, request_id(), without)
    accept = request.headers.get("accept", "")
    if _is_data(request) or ("application/json" in accept and "text/html" not in accept):
        return JSONResponse(asdict(context), status)
    response = render.respond(request, "error.html", context, status=status)
    if render.wants_fragment(request):
        render.retarget_to_page(response)
    return response


def _fault(request: Request) -> Response:
    problem = {"name": "server", "found": "a fault of its own", "expected": "none: its log says more under this id"}
    try:
        return _refuse(request, 500, "This server made a mistake", [problem])
    except Exception:  # what is broken is needed for every page
        return PlainTextResponse(f"This server made a mistake; its log says more under the id {request_id()}\n", 500)


def _not_modified(request: Request, error: NotModified) -> Response:
    headers = {"ETag": error.etag, "Cache-Control": "no-cache", "Vary": "HX-Request, HX-History-Restore-Request"}
    return Response(status_code=304, headers=headers)


def _busy(request: Request, error: BusyError) -> Response:
    expected = f"a shorter line: ask again in {error.retry_s} s, or serve with more --workers"
    problem = {"name": "server", "found": f"{error.n_waiting} requests waiting", "expected": expected}
    response = _refuse(request, 503, "Too many requests at once", [problem])
    response.headers["Retry-After"] = str(error.retry_s)
    return response


def _greedy(request: Request, error: GreedyError) -> Response:
    problem = {"name": "live engine", "found": str(error), "expected": f"fewer: ask again in {error.retry_s} s"}
    response = _refuse(request, 429, "Too many questions from one address", [problem])
    response.headers["Retry-After"] = str(error.retry_s)
    return response


def _foreign(request: Request, error: ForeignError) -> Response:
    expected = (
        "a page of this site, or a link that is followed: what the live engine computes is not embedded elsewhere"
    )
    problem = {"name": "address", "found": "a request that another site's page makes", "expected": expected}
    return _refuse(request, 403, "Not for other sites' pages", [problem])


def _not_found(request: Request, error: NotFound) -> Response:
    problem = {"name": error.what, "found": error.found, "expected": error.expected}
    return _refuse(request, 404, f"No {error.what} {error.found!r} here", [problem])


def _bad_value(request: Request, error: BadValue) -> Response:
    place = "body" if request.method == "POST" and error.name not in request.query_params else "address"
    return _refuse(request, 422, f"A value in the {place} is not usable", [asdict(error)])


def _one_member(request: Request, error: OneMember) -> Response:
    context = AlonePage(error.study, error.ensemble, ALONE_SENTENCE, error.missing)
    if _is_data(request):
        return JSONResponse(asdict(context), 200 if request.url.path.endswith(".json") else 404)
    return render.respond(request, "ensemble/alone.html", context)


def _damaged(request: Request, error: DamagedStoreError | DamagedIndexError | IndexNotMadeError) -> Response:
    """One study cannot be read; all others can."""
    study = error.path.parent
    request.app.state.studies.note_damage(study.name, error.reason)
    command = mending_command(study)
    mends = f"run `{command}`, which publishes it again" if command else "build the study again"
    problem = {"name": f"store of {study.name}", "found": error.reason, "expected": f"what was published: {mends}"}
    return _refuse(request, 503, f"Study {study.name} cannot be read", [problem])


def _job_refused(request: Request, error: JobRefusedError) -> Response:
    problem = {"name": error.name, "found": error.found, "expected": error.expected}
    return _refuse(request, error.status, "This job is refused", [problem])


def _bad_request(request: Request, error: RequestValidationError) -> Response:
    allowed = parameters_of(request)
    problems = [{"name": _name(e), "found": _found(e), "expected": _expected(e, allowed)} for e in error.errors()]
    is_sent = any(e["loc"][0] == "body" for e in error.errors())
    return _refuse(request, 422, f"A value in the {'body' if is_sent else 'address'} is not usable", problems)


def _name(error: dict) -> str:
    return "body" if error["type"] == "json_invalid" else str(error["loc"][-1])


def _found(error: dict) -> str:
    if error["type"] == "json_invalid":
        return "what is no JSON"
    return "an unknown parameter" if error["type"] == "extra_forbidden" else repr(error["input"])


def _expected(error: dict, allowed: list[str]) -> str:
    """pydantic's own words, which name the allowed values and bounds."""
    if error["type"] == "extra_forbidden":
        return "one of " + ", ".join(allowed)
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
    if _is_data(request):
        response: Response = JSONResponse(asdict(context), status)
    else:
        response = render.respond(request, "engine.html", context, status=202 if again else status)
    if status == 503:
        response.headers["Retry-After"] = "1"
    return response


def _http_error(request: Request, error: HTTPException) -> Response:
    phrase = HTTPStatus(error.status_code).phrase
    problem = {"name": "address", "found": request.url.path, "expected": "a page that the studies link to"}
    if error.status_code == HTTPStatus.BAD_REQUEST:  # FastAPI's word for a body that it cannot even decode
        problem = {"name": "body", "found": "what cannot be read", "expected": "JSON, not nested deeply"}
    response = _refuse(request, error.status_code, phrase, [problem])
    response.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ", ".join(_methods_of(request))
    return response


def _methods_of(request: Request) -> list[str]:
    """What an address takes; by itself Starlette names those of the first of several routes that share an address."""

    def takes(method: str) -> bool:
        scope = dict(request.scope) | {"method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return list(filter(takes, ("GET", "HEAD", "POST")))
