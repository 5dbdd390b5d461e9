"""What counterparts do, as figures: shares that substitute beside every control, and score against cosine."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from seedscope.app.figures.drawing import BUCKET_ROLE, Figure, Heading, layout
from seedscope.engine.contract.tables.function import SUBSTITUTES

# {kind: (name, whether it is a control)}, from the match rules down to the controls.
KINDS = {
    "argmax": ("nearest", False),
    "live": ("nearest active", False),
    "hungarian": ("one-to-one", False),
    "transport": ("optimal transport", False),
    "active": ("fires alike", False),
    "runner_up": ("second nearest", False),
    "small_set": ("small set of features", False),
    "small_set_control": ("small set for another feature", True),
    "hard_negative": ("nearest that is no match", True),
    "random_density": ("random, same density", True),
}
_LOWEST = -1.0  # scores below are drawn here


class SubstitutingShare(NamedTuple):
    """Share of one bucket's pairs of one kind that substitute, with its interval."""

    kind: str  # of KINDS
    bucket: str
    share: float
    low: float | None
    high: float | None
    n: int  # pairs


class PairScore(NamedTuple):
    """One feature and its counterpart in another seed."""

    name: str
    bucket: str
    cosine: float
    score: float


def substituting_dots(rows: Sequence[SubstitutingShare], title: str) -> Figure:
    """A dot per kind and bucket with its interval; controls hollow."""
    names = [name for kind, (name, _) in KINDS.items() if any(row.kind == kind for row in rows)]
    data: list[dict[str, Any]] = []
    for at, bucket in enumerate(("stable", "unstable")):
        for is_control in (False, True):
            some = [row for row in rows if row.bucket == bucket and KINDS[row.kind][1] == is_control]
            colour = BUCKET_ROLE[bucket]
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": bucket, "legendgroup": bucket, "showlegend": not is_control,
                    "x": [row.share for row in some],
                    "y": [names.index(KINDS[row.kind][0]) + (0.15 if at else -0.15) for row in some],
                    "marker": {"color": colour, "symbol": "circle-open" if is_control else "circle", "size": 9,
                               "line": {"color": colour, "width": 1.5}},
                    "error_x": {
                        "type": "data", "symmetric": False, "color": colour, "thickness": 1.2, "width": 3,
                        "array": [row.high - row.share if row.high is not None else 0 for row in some],
                        "arrayminus": [row.share - row.low if row.low is not None else 0 for row in some],
                    },
                    "text": [f"{KINDS[row.kind][0]}, {bucket}: n = {row.n:,} pairs" for row in some],
                    "hovertemplate": "%{text}<br>%{x:.1%} substitute<extra></extra>",
                }
            )  # fmt: skip
    ordered = sorted(rows, key=lambda row: (list(KINDS).index(row.kind), row.bucket))
    return Figure(
        "substituting",
        title,
        "Share of pairs (feature, other seed) whose counterpart, in the feature’s place, keeps at least "
        f"{SUBSTITUTES:.0%} of what it explains, scale fitted. Bars: 95 % intervals from a bootstrap over seeds. Hollow: controls.",
        {
            "data": data,
            "layout": layout(
                "share that substitutes", "", showlegend=True, legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
                xaxis={"range": [-0.02, 1.02], "tickformat": ".0%"},
                yaxis={"tickvals": list(range(len(names))), "ticktext": names, "range": [len(names) - 0.5, -0.5],
                       "title": {"text": ""}, "zeroline": False, "automargin": True},
                height=120 + 34 * len(names),
            ),
        },
        ("counterpart", "bucket", Heading("substitute", "scaled_share"), Heading("from", "seed_interval"),
         Heading("to", "seed_interval"), Heading("pairs", "function_pairs")),
        tuple(
            (KINDS[row.kind][0], row.bucket, f"{row.share:.4f}",
             *("–" if v is None else f"{v:.4f}" for v in (row.low, row.high)), row.n)
            for row in ordered
        ),
    )  # fmt: skip


def score_against_cosine(points: Sequence[PairScore], seed: int, theta: float, title: str) -> Figure:
    """A point per feature of one seed: its counterpart's cosine and raw score."""
    data: list[dict[str, Any]] = []
    for bucket in ("middle", "unstable", "stable"):
        some = [point for point in points if point.bucket == bucket]
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": bucket, "x": [point.cosine for point in some],
                "y": [max(point.score, _LOWEST) for point in some],
                "marker": {"color": BUCKET_ROLE[bucket], "size": 5, "opacity": 0.6},
                "text": [f"{point.name}: score {point.score:.3f}" for point in some],
                "hovertemplate": "%{text}<br>cosine %{x:.3f}<extra></extra>",
            }
        )  # fmt: skip
    n_below = sum(point.score < _LOWEST for point in points)
    below = f" {n_below:,} scores below {_LOWEST:g} are drawn there." if n_below else ""
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": SUBSTITUTES, "y1": SUBSTITUTES}
    up = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": theta, "x1": theta}
    dashed = {"line": {"color": "@soft", "width": 1, "dash": "dash"}}
    table = tuple(
        (bucket, f"{low:.1f} to {low + 0.1:.1f}", len(scores), f"{sum(s >= SUBSTITUTES for s in scores) / len(scores):.3f}",
         f"{sorted(scores)[len(scores) // 2]:.3f}")
        for bucket in ("stable", "middle", "unstable") for low in (tenth / 10 for tenth in range(-10, 10))
        if (scores := [p.score for p in points if p.bucket == bucket and low <= min(p.cosine, 0.9999) < low + 0.1])
    )  # fmt: skip
    return Figure(
        "score-cosine",
        title,
        f"n = {len(points):,} features of seed {seed}, each with its nearest counterpart in one other seed, the others in turn. "
        f"Lines: θ, and the score from which a counterpart substitutes, no scale fitted.{below}",
        {
            "data": data,
            "layout": layout(
                "cosine of the decoder rows", "substitution score", showlegend=True,
                legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
                shapes=[across | dashed, up | dashed], yaxis={"range": [_LOWEST - 0.05, 1.1]}, height=400,
            ),
        },
        ("bucket", Heading("cosine", "cosine"), Heading("features", "function_features"), Heading("substitute", "raw_share"),
         Heading("median score", "substitution")),
        table,
    )  # fmt: skip
