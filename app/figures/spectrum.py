"""How many directions sets of rows spread over: singular values."""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from seedscope.app.figures.drawing import BUCKET_ROLE, Figure, Heading, layout

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
    xs = list(range(1, n + 1))
    for name, members in values.items():
        says, colour, dash, _ = _DRAWN[name]
        shares = [[value / sum(member) for value in member] for member in members]
        columns = list(zip(*(share[:n] for share in shares), strict=True))
        mean, spread = [fmean(column) for column in columns], [pstdev(column) for column in columns]
        means[name] = mean
        if len(members) > 1 and name != "random":
            high, low = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (1, -1))
            data.append(
                {
                    "type": "scatter", "mode": "lines", "x": [*xs, *reversed(xs)], "y": [*high, *reversed(low)],
                    "fill": "toself", "fillcolor": colour, "opacity": 0.16, "line": {"width": 0, "color": colour},
                    "hoverinfo": "skip", "name": says, "showlegend": False,
                }
            )  # fmt: skip
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": xs, "y": mean, "name": f"{says}, effective rank {ranks[name]:.0f}",
                "line": {"color": colour, "dash": dash, "width": 1.5 if name == "random" else 2},
                "hovertemplate": f"{says}, direction %{{x}}: %{{y:.2%}} of the sum of singular values<extra></extra>",
            }
        )  # fmt: skip
    fewer, more = sorted(("stable", "unstable"), key=lambda name: ranks[name])
    rows = f"{min(n_equal)}" if min(n_equal) == max(n_equal) else f"{min(n_equal)} to {max(n_equal)}"
    return Figure(
        "spectrum",
        f"As many {fewer} rows spread over {ranks[fewer]:.0f} directions, {more} ones over {ranks[more]:.0f}, "
        f"random ones over {ranks['random']:.0f}",
        f"Each singular value’s share of their sum, largest first; n = {rows} unit rows of each kind per seed, mean over "
        f"{len(n_equal)} seeds{', bands: ± one standard deviation over seeds' if len(n_equal) > 1 else ''}; d = {d:,}. "
        "How to read: a line that falls early spreads over few directions. Null: random unit rows.",
        {
            "data": data,
            "layout": layout(
                "direction, strongest first", "share of the sum of singular values", showlegend=True,
                legend={"x": 1, "xanchor": "right", "y": 1}, yaxis={"tickformat": ".1%", "rangemode": "tozero"},
                xaxis={"range": [0.5, n + 0.5]},
            ),
        },
        (Heading("direction", "singular_index"), *(Heading(_DRAWN[name][0], "singular_share") for name in means)),
        tuple((x, *(f"{100 * mean[x - 1]:.3f} %" for mean in means.values())) for x in xs),
    )  # fmt: skip
