"""Query parameters: how addresses are written with them, which a route takes, and which an address holds beyond those."""

import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote_plus, urlencode

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel

_PLACE = "\ue000"  # a character that no value has


def url(path: str, /, **parameters: Any) -> str:
    """A path with those query parameters that are set."""
    kept = {key: value for key, value in parameters.items() if value not in (None, "")}
    return path + ("?" + urlencode(kept) if kept else "")


def url_by(path: str, name: str, /, **parameters: Any) -> Callable[[object], str]:
    """The address of each value of one of the parameters: a table links to a hundred seeds, and writes the rest once."""
    before, after = url(path, **parameters | {name: _PLACE}).split(quote_plus(_PLACE))
    return lambda value: before + quote_plus(str(value)) + after


def is_number(text: str) -> bool:
    """Whether a text is a number of at most nine digits; only those that `int` reads as what they look like: not `²` or `٣`."""
    return re.fullmatch("[0-9]{1,9}", text) is not None


def parameters_of(request: Request) -> list[str]:
    """Every query parameter that the request's route takes, sorted; a `.json` twin takes what its page does.

    Empty where no route fits the address.
    """
    route = request.scope.get("route")
    return sorted(_names(route.dependant)) if isinstance(route, APIRoute) else []


def unknown_parameters(request: Request) -> list[str]:
    """Names in the address that its route does not take, in the order in which they stand there."""
    known = set(parameters_of(request))
    return [name for name in dict.fromkeys(request.query_params) if name not in known]


def refuse_unknown(request: Request) -> None:
    """Refuse what data addresses do not take: in a script a misspelt `thetta=0.8` would pass for an answer at 0.8.

    Pages show what they ignore instead (`app.shell`): links gather parameters on their way, such as `utm_source`.
    """
    route = request.scope.get("route")
    is_data = isinstance(route, APIRoute) and route.response_class is not HTMLResponse and parameters_of(request)
    if is_data and (errors := [_unknown(name) for name in unknown_parameters(request)]):
        raise RequestValidationError(errors)


def _unknown(name: str) -> dict[str, object]:
    return {"type": "extra_forbidden", "loc": ("query", name), "msg": "unknown", "input": None}


def _names(dependant: Dependant) -> set[str]:
    own: Iterable[list[str]] = (
        _fields_of(field.field_info.annotation) or [field.alias] for field in dependant.query_params
    )
    below: Iterable[set[str]] = map(_names, dependant.dependencies)
    return {name for names in (*own, *below) for name in names}


def _fields_of(annotation: object) -> list[str]:
    """The fields of a model that holds all query parameters; empty for a parameter of its own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    return []
