"""Routes that ask the live engine: generator functions that yield a question where they wait for its answer.

    def neighbours(request, ..) -> Asking[NeighboursPage]:
        ..what the question is made of..
        answer = yield Ask(query)
        ..what is made of the answer..
        return NeighboursPage(..)

They compute in threads, by turns of their own. While the engine computes they hold neither: the event loop waits. Errors of the
engine are raised where the question was yielded.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, NamedTuple, TypeAlias, TypeVar, get_args

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from seedscope.app.live.client import EngineRefusedError, LiveEngine
from seedscope.app.live.process import EngineBrokenError, EngineStartingError
from seedscope.app.live.shares import Shares
from seedscope.app.turns import AllTurns, Turn
from seedscope.engine.contract.queries import TIME_LIMIT_S, LiveAnswer, LiveQuery

T = TypeVar("T")


class Ask(NamedTuple):
    """A question to the live engine, and how long its answer may take."""

    query: LiveQuery
    time_limit_s: float = TIME_LIMIT_S


Asking: TypeAlias = Generator[Ask, LiveAnswer, T]  # what a route that asks is declared to return: a page, T


class ForeignError(Exception):
    """Another site's page asks the live engine by way of the reader's browser."""


class _Done(NamedTuple):
    value: Any


def asks_engine(handler: Callable[..., Asking[T]]) -> Callable[..., Awaitable[T]]:
    """The coroutine function that answers a request as `handler` does; FastAPI reads the handler's parameters from it.

    Its router depends on `take_live_turn`.
    """

    async def answered(**values: Any) -> T:
        request: Request = values["request"]
        turn: Turn = request.state.turn
        steps = handler(**values)
        step: Ask | _Done = await run_in_threadpool(_advance, steps, None)
        while not isinstance(step, _Done):
            async with turn.paused():
                given = await _given(request, step)
            step = await run_in_threadpool(_advance, steps, given)
        value: T = step.value
        return value

    # The parameters, and no way back to the generator: FastAPI would take it for a dependency with an exit.
    signature = inspect.signature(handler)
    returned = get_args(signature.return_annotation)[-1]
    answered.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
    answered.asks_engine = True  # type: ignore[attr-defined]  # a test looks for it
    answered.__name__, answered.__doc__, answered.__module__ = handler.__name__, handler.__doc__, handler.__module__
    return answered


async def take_live_turn(request: Request) -> AsyncIterator[None]:
    """Dependency of every route that asks: its share, its place in the line, and turns for what it computes itself.

    Raises ForeignError, GreedyError and BusyError.
    """
    check_site(request)
    turns: AllTurns = request.app.state.turns
    shares: Shares = request.app.state.live_shares
    with shares.one(request.client.host if request.client else ""):
        async with turns.live.one(), turns.live_steps.one(patient=True) as turn:
            request.state.turn = turn
            yield


async def _given(request: Request, ask: Ask) -> LiveAnswer | Exception:
    """The engine's answer, or what to raise instead of one."""
    engine: LiveEngine = request.app.state.live
    try:
        return await engine.answer(ask.query, time_limit_s=ask.time_limit_s)
    except (EngineStartingError, EngineBrokenError, EngineRefusedError) as error:
        return error


def _advance(steps: Asking[Any], given: LiveAnswer | Exception | None) -> Ask | _Done:
    """The next question, or what the handler returned."""
    try:
        if isinstance(given, Exception):
            return steps.throw(given)
        return next(steps) if given is None else steps.send(given)
    except StopIteration as end:
        return _Done(end.value)


def check_site(request: Request) -> None:
    """Raise ForeignError for what a page of another site fetches, embeds or frames; a link that somebody follows is welcome.

    Browsers say so and pages cannot change it; whoever is no browser says nothing.
    """
    headers = request.headers
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return
    if (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) != ("navigate", "document"):
        raise ForeignError
