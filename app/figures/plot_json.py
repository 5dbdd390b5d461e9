"""A figure's Plotly dictionary as the JSON that stands in its page: no more digits than a picture shows, no spaces."""

import json
from typing import Any

from markupsafe import Markup

DIGITS = 6  # significant, of the numbers of long lists; a picture is 2,000 pixels wide
FEW = 64  # numbers that a list may hold with all their digits
_EXACT_FROM = 1e5  # larger numbers are counts, which hovers show whole
_AS_THEY_ARE = {int, str, bool, type(None)}  # most of what lists hold
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"}


def plot_json(plot: dict[str, Any]) -> Markup:
    """JSON that is safe in an attribute between single quotes, where its many double quotes stay as they are."""
    text = json.dumps(_rounded(plot), separators=(",", ":"), ensure_ascii=False)
    for sign, escape in _ESCAPES.items():
        text = text.replace(sign, escape)
    return Markup(text)


def _rounded(value: Any, *, many: bool = False) -> Any:
    """A value whose long lists have no more digits than can be seen."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if many and abs(value) < _EXACT_FROM else value
    if isinstance(value, (list, tuple)):
        many = many or len(value) > FEW
        return [each if type(each) in _AS_THEY_ARE else _rounded(each, many=many) for each in value]
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return value
