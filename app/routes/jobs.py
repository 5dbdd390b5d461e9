"""Jobs: long work started, watched and cancelled from the pages; the only addresses at which a POST changes anything."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from seedscope.app import render
from seedscope.app.jobs.kinds import Job, JobRefusedError
from seedscope.app.jobs.queue import Jobs
from seedscope.app.jobs.records import ID_PATTERN
from seedscope.app.routes.address import Plain
from seedscope.app.store.errors import NotFound
from seedscope.app.store.predictions import prediction_sources
from seedscope.app.store.studies import Studies
from seedscope.engine.contract.progress_files import Curves
from seedscope.engine.contract.tables.study import Ensemble

router = APIRouter()
FORM, JSON = "application/x-www-form-urlencoded", "application/json"
LONGEST = 4096  # bytes of a request
SHORT_LOG = 5  # lines that a job that failed shows at once
MOST_TRAINED = 24  # trainings that a job's page shows

JobId = Annotated[str, Path(pattern=f"^{ID_PATTERN}$", description="job id")]
# For the OpenAPI description; what is refused is described by `app.openapi`.
TAKEN: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The job as a part of a page, for htmx",
        "content": {"text/html": {"schema": {"type": "string"}}},
    },
    202: {
        "description": "The job, for clients that send or ask for JSON",
        "content": {JSON: {"schema": {"type": "object"}}},
    },
    303: {"description": "To the page of all jobs"},
}
REFUSED: dict[int | str, dict[str, Any]] = {
    409: {"description": "Another job of the study is under way"},
    413: {"description": "A request too long"},
    415: {"description": "Neither a form nor JSON"},
    429: {"description": "Too many jobs wait"},
}
FIELDS = {
    "type": "object",
    "required": ["kind", "study"],
    "properties": {"kind": {"type": "string"}, "study": {"type": "string"}},
    "additionalProperties": {"type": "string"},
}
SENT = {"requestBody": {"required": True, "content": {kind: {"schema": FIELDS} for kind in (FORM, JSON)}}}


@dataclass(frozen=True)
class JobsPage:
    """`/jobs`: what runs, waits and has ended, newest first."""

    jobs: list[Job]
    training: dict[str, Curves]  # {id: what it trains at the moment} of those that do
    nav_last_words: dict[str, list[str]]  # {id: the end of its log} of those that failed
    nav_first: str | None  # a study to begin with


@dataclass(frozen=True)
class JobPage:
    """`/jobs/{id}`: one job and the end of its log."""

    job: Job
    log: list[str]
    trained: list[Curves]  # how its trainings went or go, newest first; at most MOST_TRAINED
    n_trained: int
    nav_last_words: dict[str, list[str]]
    nav_is_part: bool  # of a page that is there already


def _jobs(request: Request) -> Jobs:
    return request.app.state.jobs


def _studies(request: Request) -> list[str]:
    """Names of those that a job can be about: published or imported."""
    studies: Studies = request.app.state.studies
    return sorted({*studies.names(), *studies.waiting()})


@render.page(router, "/jobs", "jobs.html", "jobs", kept=False)
def jobs(request: Request, address: Annotated[Plain, Query()]) -> JobsPage:
    """Long work that was started from the pages: state, stage, rate, time left."""
    queue, studies = _jobs(request), _studies(request)
    every_job = queue.all()
    training = {job.id: curves[-1] for job in every_job if job.state == "running" and (curves := queue.trained(job.id))}
    return JobsPage(every_job, training, _last_words(queue, every_job), studies[0] if studies else None)


@render.page(router, "/jobs/{id}", "job.html", "job", kept=False)
def job(request: Request, id: JobId, address: Annotated[Plain, Query()]) -> JobPage:
    """One job: how far it is, and the last lines of its log."""
    return _page(request, id)


async def _sent(request: Request) -> dict[str, str]:
    """The fields of a form, or of a flat JSON object; raises JobRefusedError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (FORM, JSON):
        raise JobRefusedError("content type", repr(kind), f"{FORM} or {JSON}", 415)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST:
            raise JobRefusedError("request", f"more than {LONGEST:,} bytes", "a few short fields", 413)
    try:
        pairs = list(json.loads(body).items()) if kind == JSON else parse_qsl(body.decode(), keep_blank_values=True)
    except (ValueError, AttributeError, RecursionError):
        raise JobRefusedError("request", "what cannot be read", f"fields as {kind}") from None
    fields = {name: str(value) for name, value in pairs if isinstance(value, str) or type(value) is int}
    if len(fields) < len(pairs):
        raise JobRefusedError("request", "a field twice, or a list", "every field once, a text or a number")
    return fields


@router.post("/jobs", name="start", response_class=Response, responses=TAKEN | REFUSED, openapi_extra=SENT)
def start(request: Request, sent: Annotated[dict[str, str], Depends(_sent)]) -> Response:
    """Start a job: fields `kind` and `study`, and the kind's own; answers with the one that is already under way, if any."""
    fields, known = dict(sent), _studies(request)
    kind, study = fields.pop("kind", ""), fields.pop("study", "")
    if study not in known:
        raise JobRefusedError("study", repr(study), f"one of {', '.join(known) or 'none yet'}")
    if fields.get("ensemble") and study in request.app.state.studies.names():
        ensembles = request.app.state.studies.get(study).ensembles
        if fields["ensemble"] not in ensembles:
            raise JobRefusedError("ensemble", repr(fields["ensemble"]), f"one of {', '.join(ensembles)}")
        if kind == "predict":
            _check_prediction(request.app.state.studies, ensembles[fields["ensemble"]], fields.get("from", ""))
    return _answer(request, _jobs(request).start(kind, study, fields))


def _check_prediction(studies: Studies, ensemble: Ensemble, source: str) -> None:
    """Raise JobRefusedError where an ensemble is not one SAE, or `source` none that a predictor of it can be trained on."""
    if ensemble.n_comparisons:
        found = f"{ensemble.ensemble!r} of {ensemble.n_members} seeds, whose stability is measured"
        raise JobRefusedError("ensemble", found, "one SAE")
    sources = prediction_sources(studies.all(), ensemble)
    if source not in sources:
        raise JobRefusedError(
            "from", repr(source), f"one of {', '.join(sources) or 'none yet: no ensemble of such SAEs'}"
        )


@router.post("/jobs/{id}/cancel", name="cancel", response_class=Response, responses=TAKEN)
def cancel(request: Request, id: JobId) -> Response:
    """Cancel a job; one that has ended stays as it is."""
    try:
        return _answer(request, _jobs(request).cancel(id))
    except LookupError:
        raise _unknown(id) from None


def _answer(request: Request, job: Job) -> Response:
    """The job as what asked can use it: JSON, the part of a page, or the page of all jobs."""
    accept = request.headers.get("accept", "")
    sent = request.headers.get("content-type", "")
    if sent.startswith(JSON) or (JSON in accept and "text/html" not in accept):
        return JSONResponse(asdict(job), 202, headers={"Location": f"/jobs/{job.id}"})
    if render.wants_fragment(request):
        return render.respond(request, "job.html", _page(request, job.id))
    return RedirectResponse(f"/jobs#job-{job.id}", 303)


def _page(request: Request, id: str) -> JobPage:
    queue = _jobs(request)
    job = queue.get(id)
    if job is None:
        raise _unknown(id)
    trained = queue.trained(id)
    return JobPage(
        job, queue.log(id), trained[: -MOST_TRAINED - 1 : -1], len(trained), _last_words(queue, [job]),
        render.wants_fragment(request),
    )  # fmt: skip


def _last_words(queue: Jobs, jobs: list[Job]) -> dict[str, list[str]]:
    return {job.id: queue.log(job.id)[-SHORT_LOG:] for job in jobs if job.state == "failed"}


def _unknown(id: str) -> NotFound:
    return NotFound("job", id, "what /jobs lists; old ones are forgotten")
