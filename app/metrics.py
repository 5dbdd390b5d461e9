"""What a scraper reads at `/metrics`: requests by route and how long they took, jobs, studies, this process."""

import asyncio
import os
import time
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import body_limit
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seedscope.app.jobs.queue import Jobs
from seedscope.app.live.client import LiveEngine
from seedscope.app.live.figures import LiveFigures
from seedscope.app.logs import begin_request, log_request
from seedscope.app.store.studies import Studies
from seedscope.app.turns import AllTurns
from seedscope.engine.contract.environment import METRICS_FOLDER

LEFT = 499  # the status of a request that ended with who sent it, before an answer
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OTHER = "other"
UNMATCHED = "(no route)"  # refused before one was found; addresses themselves would be labels without end
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # seconds; pages aim at a tenth of one


LAGS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)  # seconds; a tenth is the most that is meant to come about
LOOK_S = 0.05


class Metrics:
    """The figures of one application: counted as requests end, the rest read when somebody asks.

    Of several web processes any one answers: requests are those of all of them, `process_*` are its own.
    """

    def __init__(self, studies: Studies, jobs: Jobs, turns: AllTurns) -> None:
        self._studies, self._jobs, self._turns, self._registry = studies, jobs, turns, CollectorRegistry()
        self._engine: dict[str, Any] = {}  # its last status
        shared = os.environ.get(METRICS_FOLDER)
        self.requests = Histogram(
            "seedscope_request_seconds", "Time from a request to the end of its answer, by route.",
            ("method", "route", "status"), buckets=BUCKETS, registry=None if shared else self._registry,
        )  # fmt: skip
        self._lag = Histogram(
            "seedscope_event_loop_lag_seconds", "How late the event loop came to what was due.",
            buckets=LAGS, registry=None if shared else self._registry,
        )  # fmt: skip
        self.live = LiveFigures(None if shared else self._registry)
        if shared:
            MultiProcessCollector(self._registry, shared)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """What is read at the moment; the registry asks."""
        yield GaugeMetricFamily("seedscope_studies", "Published studies under the root.", len(self._studies.names()))
        yield GaugeMetricFamily("seedscope_process_id", "The web process that answers.", os.getpid())
        yield GaugeMetricFamily("seedscope_jobs_active", "Jobs that wait or run.", self._jobs.n_active)
        pages = self._turns.pages
        yield GaugeMetricFamily("seedscope_pages_line", "Requests in this process's line for pages.", pages.n_waiting)
        yield GaugeMetricFamily("seedscope_pages_running", "Pages that this process computes now.", pages.n_running)
        yield from self.live.collect(self._engine, self._turns.live)

    async def watch_loop(self) -> None:
        """Measure until cancelled how late the event loop comes."""
        while True:
            due = time.monotonic() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self._lag.observe(max(time.monotonic() - due, 0))

    def respond(self, engine: dict[str, Any]) -> Response:
        """Everything in Prometheus' text format; `engine` is the status of the live engine, empty where it is not up."""
        self._engine = engine
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


class Observed:
    """ASGI middleware around all others: every request gets an id, is measured, and is written down."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._requests = app, metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, id = time.perf_counter(), LEFT, begin_request()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = id
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            # Starlette ends a request whose body is too long by exceptions of its own, and answers 413 outside of this.
            status = 413 if type(error).__module__ == body_limit.__name__ else 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", UNMATCHED)
            method = scope["method"] if scope["method"] in METHODS else OTHER
            seconds = time.perf_counter() - begin
            self._requests.labels(method, route, status).observe(seconds)
            log_request(method, route, status, seconds)


def add_metrics(app: FastAPI) -> Metrics:
    """Measure an application's requests, and answer `/metrics`; call it when all other middleware was added."""
    metrics = Metrics(app.state.studies, app.state.jobs, app.state.turns)
    app.state.live.figures = metrics.live

    @app.get("/metrics", response_class=PlainTextResponse)
    async def scraped(request: Request) -> Response:
        """Requests, their times, jobs, studies and the live engine in Prometheus' text format."""
        live: LiveEngine = request.app.state.live
        return await run_in_threadpool(metrics.respond, await live.status())

    app.add_middleware(Observed, metrics=metrics)
    return metrics
