"""Scores of explanations against stability."""

from typing import Any, NamedTuple

from seedscope.app.figures.drawing import MOST_LINES, Figure, Heading, layout, member_range

CHANCE = 0.5  # balanced accuracy of knowing nothing


class ScoreCurve(NamedTuple):
    """Mean scores of one ensemble by stability; entries without features are None."""

    name: str
    p: list[float]
    n: list[int]
    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]
    members: list[list[float | None]]  # per entry, one value per member


def score_by_stability(
    curve: ScoreCurve, control: ScoreCurve | None, title: str, kind: str, shuffled: float | None
) -> Figure:
    """Mean score by p with a band over seeds and every member as a thin line, beside the control."""
    data: list[dict[str, Any]] = []
    for held in filter(None, (control, curve)):
        data += _drawn(held, held.name if control else "", is_control=held is control)
    shapes = [_level(CHANCE, "dot")] + ([_level(shuffled, "dash")] if shuffled is not None else [])
    n_members = len(curve.members[0]) if curve.members else 0
    level = (
        f", dashed: {shuffled:.2f}, the median chance level (95 % of shuffled labels)" if shuffled is not None else ""
    )
    band = "Band: 95 %, bootstrap over seeds. " if n_members > 2 else ""
    alone = (
        f"Thin lines: {n_members} seeds."
        if n_members <= MOST_LINES
        else f"Grey band: from the lowest to the highest of {n_members} seeds, and their median."
    )
    beside = f" Grey: {control.name}, the same recipe on the model with random weights." if control else ""
    return Figure(
        "scores",
        title,
        f"Mean {kind} score (balanced accuracy) of n = {sum(curve.n):,} features by the share of seeds in which they match. "
        f"{band}{alone} Dotted: {CHANCE}, knowing nothing{level}.{beside}",
        {
            "data": data,
            "layout": layout(
                "stability p",
                f"mean {kind} score",
                xaxis={"range": [-0.04, 1.04]},
                yaxis={"tickformat": ".2f"},
                shapes=shapes,
            ),
        },
        (
            Heading("p", "p_axis"),
            Heading("features", "n_features"),
            Heading("mean score", "mean_score"),
            Heading("95 % over seeds", "band_seeds"),
            *(
                (Heading(f"{control.name}: features", "n_features"), Heading("mean score", "mean_score"))
                if control
                else ()
            ),
        ),
        tuple(_row(curve, i, control) for i in range(len(curve.p))),
    )


def _drawn(curve: ScoreCurve, label: str, *, is_control: bool) -> list[dict[str, Any]]:
    at = [i for i, mean in enumerate(curve.mean) if mean is not None]
    colour = "@null" if is_control else "@accent"
    line = {"type": "scatter", "mode": "lines", "hoverinfo": "skip"}
    traces: list[dict[str, Any]] = []
    many = bool(curve.members) and len(curve.members[0]) > MOST_LINES
    if many and not is_control:  # behind the band
        traces += member_range(curve.p, curve.members)
    banded = [i for i in at if curve.low[i] is not None and curve.high[i] is not None]
    if banded and not is_control:
        x = [curve.p[i] for i in banded]
        edge = line | {"x": x, "line": {"width": 0}, "name": "band"}
        traces.append(edge | {"y": [curve.low[i] for i in banded]})
        traces.append(edge | {"y": [curve.high[i] for i in banded], "fill": "tonexty", "fillcolor": "@band"})
    if not many and not is_control:  # members as one trace with gaps
        xs: list[float | None] = []
        ys: list[float | None] = []
        for m in range(len(curve.members[0]) if curve.members else 0):
            xs, ys = [*xs, *curve.p, None], [*ys, *(row[m] for row in curve.members), None]
        member = {
            "x": xs,
            "y": ys,
            "connectgaps": False,
            "name": "one seed",
            "line": {"color": "@member", "width": 0.8},
        }
        traces.append(line | member)
    named = at[0 if is_control else -1] if at else None  # each where the other's line and the levels are far
    traces.append(
        {
            "type": "scatter", "mode": "lines+markers+text", "x": [curve.p[i] for i in at], "y": [curve.mean[i] for i in at],
            "name": curve.name, "customdata": [curve.n[i] for i in at],
            "line": {"color": colour, "width": 2 if is_control else 2.5, "dash": "dash" if is_control else "solid"},
            "marker": {"color": colour, "size": 6}, "text": [label if i == named else "" for i in at],
            "textposition": "top right" if is_control else "bottom left", "textfont": {"color": colour}, "cliponaxis": False,
            "hovertemplate": "p = %{x:.2f}: mean score %{y:.3f} of %{customdata:,} features<extra></extra>",
        }
    )  # fmt: skip
    return traces


def _level(y: float, dash: str) -> dict[str, Any]:
    return {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": y, "y1": y,
            "line": {"color": "@null", "dash": dash, "width": 1}}  # fmt: skip


def _row(curve: ScoreCurve, i: int, control: ScoreCurve | None) -> tuple[Any, ...]:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    beside: tuple[Any, ...] = ()
    if control:
        at = control.p.index(curve.p[i]) if curve.p[i] in control.p else None
        beside = ("–", "–") if at is None else (control.n[at], shown(control.mean[at]))
    interval = "–" if curve.low[i] is None else f"{shown(curve.low[i])} – {shown(curve.high[i])}"
    return (f"{curve.p[i]:.2f}", curve.n[i], shown(curve.mean[i]), interval, *beside)
