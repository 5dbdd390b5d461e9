"""create_app: the dashboard over every study under a root."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from anyio import CapacityLimiter, create_task_group, move_on_after
from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI, Request
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from seedscope.app import render
from seedscope.app.cross_origin import checked_origins
from seedscope.app.error_pages import add_error_pages
from seedscope.app.jobs.queue import Jobs
from seedscope.app.leaving import EndWithClient
from seedscope.app.live.asking import take_live_turn
from seedscope.app.live.client import LiveEngine
from seedscope.app.live.process import EngineProcess
from seedscope.app.live.remote import RemoteEngine
from seedscope.app.live.shares import Shares
from seedscope.app.metrics import add_metrics
from seedscope.app.openapi import DescribedApp
from seedscope.app.parameters import refuse_unknown
from seedscope.app.routes.routers import AT_ONCE, LIVE, ROUTERS
from seedscope.app.security import Guard
from seedscope.app.settings import Settings
from seedscope.app.static_files import read_static, respond_static
from seedscope.app.store.studies import Studies
from seedscope.app.turns import AllTurns, take_turn
from seedscope.engine.contract.engine_address import engine_url

PACKED = ("application/vnd.apache.parquet", "image/png")  # compressed in themselves
LONGEST_LOOK_S = 1.0
LONGEST_FORM = 2**16  # bytes that a request may bring


@dataclass(frozen=True)
class DocsPage:
    """`/docs`: every address the dashboard answers."""

    routes: list[dict[str, str]]  # path, says


def _is_static(name: str) -> bool:
    """Whether there is a static file of that name, which is read for all later requests."""
    return read_static(name) is not None


def _engine(settings: Settings) -> EngineProcess | RemoteEngine:
    """The live engine that pages ask: a process of this machine, or the one at the address that was given."""
    if settings.engine_url is None:
        return EngineProcess(settings.root, settings.device)
    return RemoteEngine(settings.root, engine_url(settings.engine_url), settings.engine_token)


def create_app(settings: Settings, jobs: Jobs | None = None) -> FastAPI:
    """The ASGI application; opens stores at the first request that needs them. Without `jobs` it runs those of the root itself."""
    checked_origins(
        settings.allowed_origins, needs_token=settings.token is not None
    )  # the guard is made at the first request
    live = LiveEngine(_engine(settings))

    @asynccontextmanager
    async def until_stopped(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(metrics.watch_loop())
        app.state.jobs.resume()
        yield
        watching.cancel()
        async with create_task_group() as ending:  # side by side: the server has a few seconds for all of it
            for close in (app.state.jobs.close, live.close):
                ending.start_soon(partial(run_sync, close, limiter=CapacityLimiter(1)))

    app = DescribedApp(
        title="SeedScope",
        docs_url=None,
        redoc_url=None,
        lifespan=until_stopped,
        max_body_size=LONGEST_FORM,
        needs_token=settings.token is not None,
    )
    app.state.studies = Studies(settings.root)
    app.state.needs_token = settings.token is not None
    app.state.live = live
    app.state.live_shares = Shares()
    app.state.turns = AllTurns(settings.workers)
    app.state.jobs = jobs or Jobs(settings.root, settings.device)

    read_before: set[str] = set()

    @app.get("/static/{name:path}", include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        # The first request reads and compresses it; later answers take no time, and no thread.
        if name not in read_before and await run_in_threadpool(_is_static, name):
            read_before.add(name)
        return respond_static(request, name)

    looks = CapacityLimiter(
        4
    )  # at the disk, by threads of their own: pages that take all others hold this up no longer

    @app.get("/healthz")
    async def healthz(request: Request) -> dict[str, object]:
        """Alive; and, for who may see them, which studies are published, where the disk says so within a second."""
        says: dict[str, object] = {"status": "ok"}
        if request.state.is_known:
            with move_on_after(LONGEST_LOOK_S):
                says["studies"] = await run_sync(app.state.studies.names, limiter=looks, abandon_on_cancel=True)
        return says

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> Response:
        routes = [{"path": path, "says": next(iter(verbs.values())).get("description", "")}
                  for path, verbs in app.openapi()["paths"].items()]  # fmt: skip
        return render.respond(request, "docs.html", DocsPage(routes))

    for router in ROUTERS:
        turn = [] if router in AT_ONCE else [Depends(take_live_turn if router in LIVE else take_turn, scope="function")]
        app.include_router(router, dependencies=[Depends(refuse_unknown), *turn])
    app.describe(ROUTERS, LIVE)
    add_error_pages(app)
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=6, exclude_content_types=PACKED)
    app.add_middleware(Guard, settings=settings)
    metrics = add_metrics(app)
    app.add_middleware(EndWithClient)
    return app
