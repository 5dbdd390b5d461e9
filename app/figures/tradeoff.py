"""Ensembles of a study: stable share against explained variance, and bucket shares along one varied setting."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from seedscope.app.figures.drawing import BUCKET_ROLE, Figure, Heading, layout
from seedscope.app.formats import architecture, percent

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "bowtie")
MOST_LABELS = 6  # ensembles whose names stand beside their dots; of more the legend and the hover say which is which
LINES = {"stable": "solid", "middle": "dash", "unstable": "dot", "dead": "dashdot"}


class TradeOff(NamedTuple):
    """One ensemble."""

    name: str
    stable: float  # share of living features, or whatever `measure` of the figure says; mean over members
    ev: float  # mean over members
    link: str
    is_control: bool = False  # of another one: trained on the model with random weights
    variant: str = ""
    stable_sd: float | None = None  # over members
    ev_sd: float | None = None
    agrees: bool = False  # members share their start, or nobody knows: what comes back may be the start itself


def trade_off(ensembles: list[TradeOff], *, measure: str = "stable", judged: str = "each at its own θ and ε") -> Figure:
    """Stability against explained variance, one dot per ensemble, hollow for controls; a click opens it.

    Colour and symbol are the variant's, bars one SD over members. `measure` is `stable`, the share, or `p_hat`, the mean. Only
    ensembles whose members began apart are said to come back.
    """
    labelled = len(ensembles) <= MOST_LABELS
    low, high = min(e.ev for e in ensembles), max(e.ev for e in ensembles)
    room = max(high - low, 0.02) * (0.35 if labelled else 0.08)  # for labels beside the outermost dots
    kinds = list(dict.fromkeys((e.variant, e.agrees) for e in ensembles))
    says, unit, key = ("stable", ".1%", "stable") if measure == "stable" else ("mean p", ".3f", "mean_p")
    what = "Share of living features that are stable" if measure == "stable" else "Mean p̂ of living features"
    bars = any(e.ev_sd is not None for e in ensembles)
    return Figure(
        "tradeoff",
        _finding(ensembles, measure),
        f"{what} against explained variance (EV), mean over seeds{', bars one SD over them' if bars else ''}; "
        f"n = {len(ensembles)} ensembles, {judged}. Click a dot for its ensemble.",
        {
            "data": [
                _dots([e for e in ensembles if (e.variant, e.agrees) == kind], i, labelled, says, unit)
                for i, kind in enumerate(kinds)
            ],
            "layout": layout(
                "explained variance", "stable share" if measure == "stable" else "mean p̂",
                xaxis={"range": [low - room, high + room]},
                yaxis={"tickformat": ".0%" if measure == "stable" else ".2f", "rangemode": "tozero"},
                showlegend=len(kinds) > 1,
                legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            ),
        },
        ("ensemble", Heading(says, key), Heading("SD", "sd"), Heading("explained variance", "ev"), Heading("SD", "sd")),
        tuple(
            (e.name, percent(e.stable) if measure == "stable" else f"{e.stable:.3f}", _sd(e.stable_sd), f"{e.ev:.4f}", _sd(e.ev_sd))
            for e in ensembles
        ),
    )  # fmt: skip


def _finding(ensembles: list[TradeOff], measure: str) -> str:
    own = [e for e in ensembles if not e.is_control] or ensembles
    best = max(own, key=lambda e: e.ev)
    if len(own) == 1:
        control = max((e for e in ensembles if e.is_control), key=lambda e: e.stable)
        if measure == "p_hat":
            return f"Mean p̂ of {best.name} is {best.stable:.2f}, of its control on random weights {control.stable:.2f}"
        says = "agrees in all seeds" if best.agrees else "is stable"
        return (
            f"{percent(best.stable)} of {best.name} {says}, {percent(control.stable)} of its control on random weights"
        )
    apart = [e for e in own if not e.agrees]
    if len(apart) == 1:  # nothing that it could be compared with
        return f"{best.name} reconstructs best"
    most, does = max(apart or own, key=lambda e: e.stable), "comes back" if apart else "agrees"
    if best.name == most.name:
        return f"{best.name} both reconstructs best and {does} most"
    return f"{best.name} reconstructs best, {most.name} {does} most"


def _dots(held: list[TradeOff], index: int, labelled: bool, says: str, unit: str) -> dict[str, Any]:
    """The ensembles of one variant, with starts of their own or without."""
    colour, symbol = f"@seed{index % 8}", SYMBOLS[index % len(SYMBOLS)]
    name = architecture(held[0].variant, None)
    if held[0].agrees:
        name, says = f"{name} (agreement)", f"{says} (agreement)"
    return {
        "type": "scatter", "mode": "markers+text" if labelled else "markers", "name": name,
        "x": [e.ev for e in held], "y": [e.stable for e in held], "text": [e.name for e in held],
        "textposition": "top center", "cliponaxis": False,
        "marker": {"color": colour, "size": 11, "symbol": [symbol + "-open" * e.is_control for e in held]},
        "error_x": _bar([e.ev_sd for e in held], colour), "error_y": _bar([e.stable_sd for e in held], colour),
        "textfont": {"color": "@ink"}, "customdata": [e.link for e in held],
        "hovertemplate": f"%{{text}}: %{{y:{unit}}} {says}, EV %{{x:.3f}}<extra></extra>",
    }  # fmt: skip


def _bar(spreads: Sequence[float | None], colour: str) -> dict[str, Any]:
    known = any(spread is not None for spread in spreads)
    return {
        "type": "data", "array": [spread or 0 for spread in spreads], "visible": known, "color": colour, "thickness": 1,
        "width": 3,
    }  # fmt: skip


def _sd(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


class SweepDot(NamedTuple):
    """One ensemble of a sweep."""

    ensemble: str
    link: str
    value: int | float | str  # of the factor
    shares: dict[
        str, tuple[float, float | None]
    ]  # {bucket: (mean, SD over members)}; without dead where it is not known
    ev: float | None


def sweep(index: int, factor: str, unit: str, rest: str, dots: list[SweepDot], *, agreement: bool) -> Figure:
    """Bucket shares along one factor, all else equal; `agreement` where members share their start or it is not known."""
    numbers = [dot.value for dot in dots if not isinstance(dot.value, str)]
    is_numeric = len(numbers) == len(dots)
    first, last = dots[0], dots[-1]
    change = last.shares["stable"][0] - first.shares["stable"][0]
    verb = "rises" if change > 0 else "falls"
    share = "share that agrees in all" if agreement else "stable share"
    title = (
        f"From {factor} {_shown(first.value)} to {_shown(last.value)} the {share} {verb} from "
        f"{percent(first.shares['stable'][0], 0)} to {percent(last.shares['stable'][0], 0)}"
    )
    data = []
    for bucket, dash in LINES.items():
        with_bucket = [dot for dot in dots if bucket in dot.shares]
        if with_bucket:
            data.append(
                {
                    "type": "scatter", "mode": "lines+markers", "name": bucket, "x": [dot.value for dot in with_bucket],
                    "y": [dot.shares[bucket][0] for dot in with_bucket], "customdata": [dot.link for dot in with_bucket],
                    "line": {"color": BUCKET_ROLE[bucket], "dash": dash}, "marker": {"color": BUCKET_ROLE[bucket], "size": 7},
                    "error_y": _bar([dot.shares[bucket][1] for dot in with_bucket], BUCKET_ROLE[bucket]),
                    "text": [dot.ensemble for dot in with_bucket],
                    "hovertemplate": f"%{{text}}: %{{y:.1%}} {bucket}<extra></extra>",
                }
            )  # fmt: skip
    is_wide = is_numeric and min(numbers) > 0 and max(numbers) >= 4 * min(numbers)
    axis: dict[str, Any] = {"type": "log"} if is_wide else {} if is_numeric else {"type": "category"}
    axis |= {"tickvals": numbers, "ticktext": [_shown(value) for value in numbers]} if is_numeric else {}
    return Figure(
        f"sweep_{index}",
        title,
        f"Shares of living features by bucket (dead: of all), mean over seeds, bars one SD over them; n = {len(dots)} "
        f"ensembles that differ in nothing else{f' ({rest})' if rest else ''}. Click a dot for its ensemble.",
        {
            "data": data,
            "layout": layout(
                f"{factor}{f', {unit}' if unit else ''}", "share of features", xaxis=axis,
                yaxis={"tickformat": ".0%", "rangemode": "tozero"}, showlegend=True,
                legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            ),
        },
        (
            Heading(factor, "factor"), "ensemble",
            *(Heading(b, "dead_share" if b == "dead" else b) for b in LINES if b in first.shares), Heading("EV", "ev"),
        ),
        tuple(
            (_shown(dot.value), dot.ensemble, *(percent(dot.shares[b][0]) for b in LINES if b in dot.shares and b in first.shares),
             "–" if dot.ev is None else f"{dot.ev:.4f}")
            for dot in dots
        ),
    )  # fmt: skip


def _shown(value: int | float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.6g}"
