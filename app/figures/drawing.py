"""The `Figure` record and the layout that all figures share. Colours are role names, which figures.js fills in per theme."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

# Roles, not colours: the browser knows whether it is day or night.
BUCKET_ROLE = {"stable": "@stable", "middle": "@middle", "unstable": "@unstable", "dead": "@dead"}
NULL_NAME = {"haar": "random directions", "second_moment": "this SAE’s spread"}
NULL_DASH = {"haar": "dot", "second_moment": "dash"}


# A sequential scale whose every colour can stand behind the ink of its number.
SEQUENTIAL = [[0, "@heat0"], [1, "@heat1"]]


class Heading(str):
    """The header of a column of numbers, with the entry of the glossary that says what they are."""

    key: str

    def __new__(cls, text: str, key: str = "") -> "Heading":  # without a key: a copy, which gets it with its state
        header = super().__new__(cls, text)
        header.key = key
        return header


class Figure(NamedTuple):
    """A figure with the words and the table that go with it."""

    id: str
    title: str  # the finding or the question
    reading: str  # how to read it, one line, with n
    plot: dict[str, Any]  # {"data": .., "layout": ..} for Plotly
    header: tuple[str, ...]  # the same data as a table
    table: tuple[tuple[Any, ...], ...]


BUCKET_COLUMNS = tuple(Heading(bucket, bucket) for bucket in ("stable", "middle", "unstable"))


def null_columns(kinds: Iterable[str]) -> tuple[Heading, ...]:
    """Headers of what chance gives, one per null."""
    keys = {"haar": "chance_haar", "second_moment": "chance_spread"}
    return tuple(Heading(f"chance, {NULL_NAME[kind]}", keys[kind]) for kind in kinds)


MOST_LINES = 12  # of members, each for itself; more are drawn as the range that they fill and their median


def member_range(x: Sequence[float], columns: Sequence[Sequence[float | None]], **line: Any) -> list[dict[str, Any]]:
    """Traces of many members: a band from the lowest to the highest and a thin line along the median.

    `columns` hold the members' values at every x; None is no value. `line` is Plotly's, such as its shape.
    """
    known = [(at, sorted(v for v in column if v is not None)) for at, column in zip(x, columns, strict=True)]
    known = [(at, values) for at, values in known if values]
    step = {"type": "scatter", "mode": "lines", "x": [at for at, _ in known], "hoverinfo": "skip"}
    edge = step | {"name": "range of seeds", "line": line | {"width": 0}}
    return [
        edge | {"y": [values[0] for _, values in known]},
        edge | {"y": [values[-1] for _, values in known], "fill": "tonexty", "fillcolor": "@track"},
        step
        | {
            "y": [median(values) for _, values in known], "name": "median seed",
            "line": line | {"color": "@member", "width": 0.8},
        },
    ]  # fmt: skip


class CellLinks(NamedTuple):
    """Addresses of a heatmap's cells: `base`, then what belongs to the row, then to the column; figures.js joins them."""

    base: str
    rows: list[str]
    columns: list[str]
    has_diagonal: bool = True  # whether cells whose row and column are the same open anything

    def meta(self) -> dict[str, Any]:
        """As a trace of Plotly carries them."""
        return {"base": self.base, "rows": self.rows, "columns": self.columns, "diagonal": self.has_diagonal}


def pair_links(address: str, seeds: Iterable[int]) -> CellLinks:
    """Cells of a seed x seed matrix, which open the page of their pair."""
    seeds, more = list(seeds), "&" if "?" in address else "?"
    return CellLinks(
        f"{address}{more}", [f"a={seed}&" for seed in seeds], [f"b={seed}" for seed in seeds], has_diagonal=False
    )


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    """Axis titles and what differs from the common layout that figures.js holds."""
    return {
        "xaxis": {"title": {"text": x}} | more.pop("xaxis", {}),
        "yaxis": {"title": {"text": y}} | more.pop("yaxis", {}),
        "showlegend": False,
    } | more
