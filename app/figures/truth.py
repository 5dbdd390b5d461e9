"""Synthetic studies as figures: latents in the true span, true features by members that found them, and the phase map."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from seedscope.app.figures.drawing import BUCKET_ROLE, SEQUENTIAL, Figure, Heading, layout

# What stands in a cell of the map, and in words.
MARKS = {
    "holds": ("✓", "the claim holds"),
    "chance": ("c", "matches inside the span by chance reach 5 %"),
    "free lost": ("f", "free features do not come back"),
    "one by one": ("1", "low-rank features come back one by one"),
    "no span": (
        "s",
        "less than 90 % of the unstable latents’ energy lies in the span, or less than twice a random direction’s",
    ),
}
_SYMBOL = {"stable": "circle", "middle": "square-open", "unstable": "diamond"}


class Spot(NamedTuple):
    """A latent by its mean best cosine and its energy inside the true span."""

    bucket: str
    x: float
    y: float
    says: str  # which it is
    link: str


class Square(NamedTuple):
    """A cell of the map."""

    x: str
    y: str
    value: float | None
    verdict: str
    says: str  # everything else, for the hover


class Axis(NamedTuple):
    """What one side of the map is."""

    title: str
    values: tuple[str, ...]


def latents_in_span(spots: Sequence[Spot], theta: float, r: int, d: int, n_members: int) -> Figure:
    """Every living latent: does it come back, and does it lie in the span of the low-rank features?"""
    data: list[dict[str, Any]] = []
    for bucket, symbol in _SYMBOL.items():
        own = [spot for spot in spots if spot.bucket == bucket]
        if own:
            data.append(
                {
                    "type": "scattergl", "mode": "markers", "x": [s.x for s in own], "y": [s.y for s in own],
                    "name": f"{bucket} ({len(own):,})", "text": [s.says for s in own], "customdata": [s.link for s in own],
                    "marker": {"color": BUCKET_ROLE[bucket], "symbol": symbol, "size": 6, "opacity": 0.7},
                    "hovertemplate": "%{text}<br>mean best cosine %{x:.2f}, energy in the true span %{y:.2f}<extra></extra>",
                }
            )  # fmt: skip
    line = {"type": "line", "line": {"color": "@null", "width": 1, "dash": "dash"}}
    return Figure(
        "latents",
        "Do the latents that do not come back lie in the low-rank features’ span?",
        f"n = {len(spots):,} living latents of {n_members} seeds. Across: cosine to the best counterpart, mean over the other "
        f"seeds, with θ = {theta:.2f}. Up: share of its squared length inside the true span; a random direction has "
        f"r / d = {r / d:.2f}. Click for the latent.",
        {
            "data": data,
            "layout": layout(
                "mean best cosine in the other seeds", "energy inside the true span", showlegend=True,
                legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
                xaxis={"range": [min([s.x for s in spots] + [0.4]) - 0.03, 1.03]}, yaxis={"range": [-0.03, 1.05]},
                shapes=[
                    line | {"xref": "paper", "x0": 0, "x1": 1, "y0": r / d, "y1": r / d},
                    line | {"yref": "paper", "y0": 0, "y1": 1, "x0": theta, "x1": theta},
                ],
                annotations=[
                    {"x": 0.02, "xref": "paper", "y": r / d, "yanchor": "bottom", "showarrow": False, "font": {"size": 11},
                     "xanchor": "left", "text": f"random direction {r / d:.2f}"},
                ],
            ),
        },
        (
            "bucket", Heading("latents", "latents"), Heading("energy in the true span, mean", "true_energy"),
            Heading("mean best cosine", "best_cosine"),
        ),
        tuple(
            (bucket, len(own), f"{sum(s.y for s in own) / len(own):.3f}", f"{sum(s.x for s in own) / len(own):.3f}")
            for bucket in _SYMBOL
            if (own := [s for s in spots if s.bucket == bucket])
        ),
    )  # fmt: skip


def found_by_members(shares: dict[str, list[float]], counts: dict[str, int], theta: float) -> Figure:
    """Share of each group's true features by how many members found them."""
    styles = {"free": ("@accent", ""), "low": ("@null", "/")}
    data = [
        {
            "type": "bar", "x": list(range(len(held))), "y": held, "name": f"{group} (n = {counts[group]:,})",
            "marker": {"color": styles[group][0], "pattern": {"shape": styles[group][1]}},
            "hovertemplate": f"%{{y:.1%}} of {group} features: found by %{{x}} seeds<extra></extra>",
        }
        for group, held in shares.items()
    ]  # fmt: skip
    n_members = max(len(held) for held in shares.values()) - 1
    return Figure(
        "found",
        "How many seeds find a true feature?",
        f"Share of each group’s true features by the number of the {n_members} seeds with a latent at cosine ≥ θ = {theta:.2f}.",
        {
            "data": data,
            "layout": layout(
                "seeds that found it", "share of true features", showlegend=True, barmode="group",
                legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
                xaxis={"dtick": 1}, yaxis={"tickformat": ".0%", "rangemode": "tozero"},
            ),
        },
        (Heading("seeds", "found_by"), *(Heading(f"{group}, n = {counts[group]:,}", "found_by") for group in shares)),
        tuple((x, *(f"{held[x]:.1%}" for held in shares.values())) for x in range(n_members + 1)),
    )  # fmt: skip


def phase_map(id: str, title: str, reading: str, squares: Sequence[Square], x: Axis, y: Axis) -> Figure:
    """A heat map of one quantity from 0 to 1, with the mark of every cell's verdict."""
    held = {(square.x, square.y): square for square in squares}
    rows = [[held.get((across, up)) for across in x.values] for up in y.values]

    def text(square: Square | None) -> str:
        if square is None:
            return ""
        return f"{MARKS[square.verdict][0]} {'–' if square.value is None else f'{square.value:.2f}'}"

    return Figure(
        id,
        title,
        reading,
        {
            "data": [
                {
                    "type": "heatmap", "x": list(x.values), "y": list(y.values), "zmin": 0, "zmax": 1, "xgap": 2, "ygap": 2,
                    "z": [[square and square.value for square in row] for row in rows],
                    "colorscale": SEQUENTIAL, "showscale": True, "textfont": {"color": "@ink"}, "hoverongaps": False,
                    "text": [[text(square) for square in row] for row in rows], "texttemplate": "%{text}",
                    "customdata": [[square.says if square else "" for square in row] for row in rows],
                    "hovertemplate": "%{customdata}<extra></extra>",
                }
            ],
            "layout": layout(
                x.title, y.title, xaxis={"type": "category", "showgrid": False}, yaxis={"type": "category", "showgrid": False}
            ),
        },
        (Heading(y.title, "map_cell"), *(Heading(str(value), "map_cell") for value in x.values)),
        tuple((up, *map(text, row)) for up, row in zip(y.values, rows, strict=True)),
    )  # fmt: skip
