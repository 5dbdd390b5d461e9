"""Ensembles of a study beside each other: what is stable against what is reconstructed."""

from typing import NamedTuple

from app.figures.drawing import Figure, layout
from app.formats import percent


class TradeOff(NamedTuple):
    """One ensemble."""

    name: str
    stable: float  # share of living features
    ev: float  # mean over members
    link: str
    is_control: bool = False  # of another one: trained on the model with random weights


def trade_off(ensembles: list[TradeOff]) -> Figure:
    """Stable share against explained variance, one labelled dot per ensemble, hollow for controls; a click opens it."""
    own = [e for e in ensembles if not e.is_control] or ensembles
    most_stable, best = max(own, key=lambda e: e.stable), max(own, key=lambda e: e.ev)
    title = f"{best.name} reconstructs best, {most_stable.name} comes back most"
    if len(own) == 1:
        control = max((e for e in ensembles if e.is_control), key=lambda e: e.stable)
        title = f"{percent(best.stable)} of {best.name} is stable, {percent(control.stable)} of its control on random weights"
    elif best.name == most_stable.name:
        title = f"{best.name} both reconstructs best and comes back most"
    low, high = min(e.ev for e in ensembles), max(e.ev for e in ensembles)
    room = max(high - low, 0.02) * 0.35  # for the labels beside the outermost dots
    return Figure(
        "tradeoff",
        title,
        f"Share of living features that are stable against explained variance (EV), mean over members; n = {len(ensembles)} "
        "ensembles, each at its own θ and ε. Click a dot for its ensemble.",
        {
            "data": [
                {
                    "type": "scatter", "mode": "markers+text", "x": [e.ev for e in ensembles], "y": [e.stable for e in ensembles],
                    "text": [e.name for e in ensembles], "textposition": "top center", "cliponaxis": False,
                    "marker": {"color": "@accent", "size": 11,
                               "symbol": ["circle-open" if e.is_control else "circle" for e in ensembles]},
                    "textfont": {"color": "@ink"},
                    "customdata": [e.link for e in ensembles],
                    "hovertemplate": "%{text}: %{y:.1%} stable, EV %{x:.3f}<extra></extra>",
                }
            ],
            "layout": layout(
                "explained variance", "stable share", xaxis={"range": [low - room, high + room]},
                yaxis={"tickformat": ".0%", "rangemode": "tozero"},
            ),
        },
        ("ensemble", "stable", "explained variance"),
        tuple((e.name, percent(e.stable), f"{e.ev:.4f}") for e in ensembles),
    )  # fmt: skip
