"""What each cause leaves: a dot with its interval per cause, and features by the causes that they lose their counterparts to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from seedscope.app.figures.drawing import BUCKET_ROLE, Figure, Heading, layout
from seedscope.app.formats import percent


class CauseDot(NamedTuple):
    """One cause's value."""

    name: str
    value: float
    low: float | None
    high: float | None
    is_agreement: bool  # members share their start


class CauseBuckets(NamedTuple):
    """One cause's shares of features, by bucket."""

    name: str
    shares: dict[str, float]


class PatternBar(NamedTuple):
    """Features that lose their counterparts to the same causes."""

    name: str
    n: int
    share: float


def cause_dots(id: str, title: str, reading: str, dots: Sequence[CauseDot], *, axis: str, key: str) -> Figure:
    """A dot per cause, hollow where members share their start; bars are 95 % intervals."""
    names = [dot.name for dot in dots]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "markers", "x": [dot.value for dot in dots], "y": names,
            "marker": {"color": "@accent", "size": 10, "line": {"color": "@accent", "width": 1.5},
                       "symbol": ["circle-open" if dot.is_agreement else "circle" for dot in dots]},
            "error_x": {
                "type": "data", "symmetric": False, "color": "@accent", "thickness": 1.2, "width": 4,
                "array": [dot.high - dot.value if dot.high is not None else 0 for dot in dots],
                "arrayminus": [dot.value - dot.low if dot.low is not None else 0 for dot in dots],
            },
            "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
        }
    ]  # fmt: skip
    return Figure(
        id,
        title,
        reading,
        {
            "data": data,
            "layout": layout(
                axis, "", xaxis={"range": [0, 1.02]}, yaxis={"autorange": "reversed", "automargin": True, "title": {"text": ""}}
            ),
        },
        ("what differs", Heading(axis, key), Heading("from", "seed_interval"), Heading("to", "seed_interval")),
        tuple(
            (dot.name, f"{dot.value:.3f}", *("–" if edge is None else f"{edge:.3f}" for edge in (dot.low, dot.high)))
            for dot in dots
        ),
    )  # fmt: skip


def cause_buckets(title: str, reading: str, rows: Sequence[CauseBuckets]) -> Figure:
    """A stacked bar per cause."""
    data = [
        {
            "type": "bar", "orientation": "h", "name": bucket, "y": [row.name for row in rows],
            "x": [row.shares[bucket] for row in rows], "marker": {"color": BUCKET_ROLE[bucket]},
            "hovertemplate": f"%{{y}}: %{{x:.1%}} {bucket}<extra></extra>",
        }
        for bucket in ("stable", "middle", "unstable")
    ]  # fmt: skip
    return Figure(
        "cause_buckets",
        title,
        reading,
        {
            "data": data,
            "layout": layout(
                "share of features", "", barmode="stack", showlegend=True,
                legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
                xaxis={"range": [0, 1], "tickformat": ".0%"},
                yaxis={"autorange": "reversed", "automargin": True, "title": {"text": ""}},
            ),
        },
        ("what differs", *(Heading(bucket, bucket) for bucket in ("stable", "middle", "unstable"))),
        tuple(
            (row.name, *(percent(row.shares[bucket]) for bucket in ("stable", "middle", "unstable"))) for row in rows
        ),
    )  # fmt: skip


def pattern_bars(title: str, reading: str, bars: Sequence[PatternBar]) -> Figure:
    """How many features are lost to which causes."""
    data: list[dict[str, Any]] = [
        {
            "type": "bar", "orientation": "h", "y": [bar.name for bar in bars], "x": [bar.n for bar in bars],
            "marker": {"color": "@accent"}, "text": [f"{bar.n:,}" for bar in bars],
            "hovertemplate": "%{y}: %{x:,} features<extra></extra>",
        }
    ]  # fmt: skip
    return Figure(
        "loss_patterns",
        title,
        reading,
        {
            "data": data,
            "layout": layout(
                "features", "", yaxis={"autorange": "reversed", "automargin": True, "title": {"text": ""}},
                xaxis={"rangemode": "tozero"},
            ),
        },
        ("lost to", Heading("features", "n_features"), Heading("share", "lost_share")),
        tuple((bar.name, f"{bar.n:,}", percent(bar.share)) for bar in bars),
    )  # fmt: skip
