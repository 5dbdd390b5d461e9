"""What the server writes to its standard error: a line per request, and faults, of each kind once a second at most.

Lines hold the route and never the address: texts and tokens stand there. The id of a request is on its answer, in the header
`X-Request-ID` and on error pages, and in every line that it caused.
"""

import json
import logging
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from seedscope.app.settings import LogFormat

REQUESTS, FAULTS = "seedscope.requests", "seedscope.faults"
SPEAKERS = ("seedscope", "uvicorn", "asyncio", "py.warnings")
AT_MOST_S = 1.0  # a line of one kind
MOST_KINDS = 1000  # remembered
_request_id: ContextVar[str] = ContextVar("request_id", default="")


def begin_request() -> str:
    """A new id, which every line from here on carries; 12 hex digits."""
    id = secrets.token_hex(6)
    _request_id.set(id)
    return id


def request_id() -> str:
    """The id of the request that is being answered; empty outside of one."""
    return _request_id.get()


def log_request(method: str, route: str, status: int, seconds: float) -> None:
    """One line; a fault of this server is an error."""
    level = logging.ERROR if status >= 500 and status != 503 else logging.INFO
    facts = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
    logging.getLogger(REQUESTS).log(level, "%s %s %d in %.3f s", method, route, status, seconds, extra={"facts": facts})


def configure_logs(format: LogFormat) -> None:
    """Let everything that speaks in this process write to standard error: `brief` faults alone, else every request too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if format == "json" else _Text())
    handler.addFilter(OncePerSecond())
    for name in SPEAKERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING)
    logging.getLogger(REQUESTS).setLevel(logging.ERROR if format == "brief" else logging.INFO)


class OncePerSecond(logging.Filter):
    """Drops warnings and errors of a kind that came less than a second before; the next line says how many there were."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[object, ...], tuple[float, int]] = {}  # {kind: (when a line was written, dropped since)}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.levelno < logging.WARNING:
            return True
        kind = _kind(record)
        now = self._clock()
        written, dropped = self._seen.get(kind, (-AT_MOST_S, 0))
        if now - written < AT_MOST_S:
            self._seen[kind] = written, dropped + 1
            return False
        if len(self._seen) >= MOST_KINDS:
            self._seen.clear()
        self._seen[kind] = now, 0
        record.dropped = dropped
        return True


def _kind(record: logging.LogRecord) -> tuple[object, ...]:
    """What makes lines the same: the text without its values, and where an exception came from."""
    text = str(record.msg) if record.args else str(record.msg)[:40]
    error = record.exc_info[1] if record.exc_info else None
    frames = traceback.extract_tb(error.__traceback__)[-1:] if error else []
    return record.name, text, type(error), *((frame.filename, frame.lineno) for frame in frames)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    """What a line holds beside its text."""
    facts: dict[str, Any] = {"request": id} if (id := request_id()) else {}
    facts |= getattr(record, "facts", {})
    if dropped := getattr(record, "dropped", 0):
        facts["dropped"] = dropped
    return facts


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Json(logging.Formatter):
    """A line is an object."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _moment(record), "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage()} | _facts(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _Text(logging.Formatter):
    """A line begins with the time and the id of the request."""

    def format(self, record: logging.LogRecord) -> str:
        facts = _facts(record)
        more = f" ({facts['dropped']} more like it before)" if "dropped" in facts else ""
        says = record.getMessage().strip()
        if "facts" not in record.__dict__:
            says = f"{record.levelname.lower()}: {says}"
        text = f"{_moment(record)} {facts.get('request', '-')} {says}{more}"
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")
