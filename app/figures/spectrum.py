"""How many directions sets of rows spread over: singular values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seedscope.app.figures.drawing import BUCKET_ROLE, Figure, Heading, layout

MOST_DRAWN = 200  # directions; beyond the first ones a line is smooth
_ALL_OF = 40
_DRAWN = {
    "random": ("random rows", "@null", "dash", "circle-open"),
    "stable": ("stable", BUCKET_ROLE["stable"], "solid", "circle"),
    "unstable": ("unstable", BUCKET_ROLE["unstable"], "dot", "diamond"),
}


def span_spectrum(
    values: Mapping[str, Sequence[Sequence[float]]], ranks: dict[str, float], n_equal: Sequence[int], d: int
) -> Figure:
    """Singular values of as many stable, unstable and random unit rows each, mean and spread over members.

    `values` holds each member's, descending, `ranks` the mean effective ranks of such rows, `n_equal` their numbers.
    """
    data: list[dict[str, Any]] = []
    means: dict[str, list[float]] = {}
    n = min(map(len, values["random"]))
    drawn = _drawn_places(n)
    xs = (drawn + 1).tolist()
    for name, members in values.items():
        says, colour, dash, _ = _DRAWN[name]
        total = np.array([np.sum(member) for member in members])
        shares = np.array([member[:n] for member in members], np.float64)[:, drawn] / total[:, None]
        mean, spread = shares.mean(0), shares.std(0)
        means[name] = mean.tolist()
        if len(members) > 1 and name != "random":
            high, low = (mean + spread).tolist(), (mean - spread).tolist()
            data.append(
                {
                    "type": "scatter", "mode": "lines", "x": [*xs, *reversed(xs)], "y": [*high, *reversed(low)],
                    "fill": "toself", "fillcolor": colour, "opacity": 0.16, "line": {"width": 0, "color": colour},
                    "hoverinfo": "skip", "name": says, "showlegend": False,
                }
            )  # fmt: skip
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": xs, "y": means[name], "name": f"{says}, effective rank {ranks[name]:.0f}",
                "line": {"color": colour, "dash": dash, "width": 1.5 if name == "random" else 2},
                "hovertemplate": f"{says}, direction %{{x}}: %{{y:.2%}} of the sum of singular values<extra></extra>",
            }
        )  # fmt: skip
    ticks = ".1%" if max(map(max, means.values())) > 0.01 else ".2%"
    fewer, more = sorted(("stable", "unstable"), key=lambda name: ranks[name])
    rows = f"{min(n_equal)}" if min(n_equal) == max(n_equal) else f"{min(n_equal)} to {max(n_equal)}"
    return Figure(
        "spectrum",
        f"As many {fewer} rows spread over {ranks[fewer]:.0f} directions, {more} ones over {ranks[more]:.0f}, "
        f"random ones over {ranks['random']:.0f}",
        f"Each singular value’s share of their sum, largest first; n = {rows} unit rows of each kind per seed, mean over "
        f"{len(n_equal)} seeds{', bands: ± one standard deviation over seeds' if len(n_equal) > 1 else ''}; d = {d:,}. "
        f"{f'Of {n:,} directions {len(xs)} are drawn; the downloads hold all. ' if len(xs) < n else ''}"
        "How to read: a line that falls early spreads over few directions. Null: random unit rows.",
        {
            "data": data,
            "layout": layout(
                "direction, strongest first", "share of the sum of singular values", showlegend=True,
                legend={"x": 1, "xanchor": "right", "y": 1}, yaxis={"tickformat": ticks, "rangemode": "tozero"},
                xaxis={"range": [0.5, n + 0.5]},
            ),
        },
        (Heading("direction", "singular_index"), *(Heading(_DRAWN[name][0], "singular_share") for name in means)),
        tuple((x, *(f"{100 * share:.3f} %" for share in row)) for x, *row in zip(xs, *means.values(), strict=True)),
    )  # fmt: skip


def _drawn_places(n: int) -> np.ndarray:
    """The places among n singular values that are drawn: all, or the first ones and an even choice of the others."""
    if n <= MOST_DRAWN:
        return np.arange(n)
    return np.concatenate(
        (np.arange(_ALL_OF), np.linspace(_ALL_OF, n - 1, MOST_DRAWN - _ALL_OF).round().astype(np.int64))
    )
