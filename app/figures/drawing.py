"""The `Figure` record and the layout that all figures share. Colours are role names, which figures.js fills in per theme."""

from typing import Any, NamedTuple

# Roles, not colours: the browser knows whether it is day or night.
BUCKET_ROLE = {"stable": "@stable", "middle": "@middle", "unstable": "@unstable", "dead": "@dead"}
NULL_NAME = {"haar": "rotated dictionaries (Haar)", "second_moment": "same second moment"}
NULL_DASH = {"haar": "dot", "second_moment": "dash"}


# A sequential scale whose every colour can stand behind the ink of its number.
SEQUENTIAL = [[0, "@heat0"], [1, "@heat1"]]


class Figure(NamedTuple):
    """A figure with the words and the table that go with it."""

    id: str
    title: str  # the finding or the question
    reading: str  # how to read it, one line, with n
    plot: dict[str, Any]  # {"data": .., "layout": ..} for Plotly
    header: tuple[str, ...]  # the same data as a table
    table: tuple[tuple[Any, ...], ...]


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    """Axis titles and what differs from the common layout that figures.js holds."""
    return {
        "xaxis": {"title": {"text": x}} | more.pop("xaxis", {}),
        "yaxis": {"title": {"text": y}} | more.pop("yaxis", {}),
        "showlegend": False,
    } | more
