"""What is left of a feature after matching pursuit with k features of another seed, against k."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from seedscope.app.figures.drawing import BUCKET_ROLE, NULL_DASH, NULL_NAME, Figure, Heading, layout, null_columns
from seedscope.app.formats import percent

_MARKER = {"stable": "circle", "unstable": "diamond"}


class Residual(NamedTuple):
    """Mean length of what is left of a bucket's rows after k features."""

    bucket: str
    k: int
    mean: float
    spread: float
    null: dict[str, float]  # {null kind: mean with random dictionaries in the other seed's place}
    n_pairs: int
    n_rows: int


def pursuit_residual(rows: Sequence[Residual]) -> Figure:
    """Residual against k for either bucket with a band over pairs, and both nulls of the bucket that is shown last."""
    by_bucket = {
        bucket: held for bucket in ("stable", "unstable") if (held := [row for row in rows if row.bucket == bucket])
    }
    data: list[dict[str, Any]] = []
    for bucket, held in by_bucket.items():
        colour, ks = BUCKET_ROLE[bucket], [row.k for row in held]
        high, low = ([row.mean + sign * row.spread for row in held] for sign in (1, -1))
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": [*ks, *reversed(ks)], "y": [*high, *reversed(low)], "fill": "toself",
                "fillcolor": colour, "opacity": 0.16, "line": {"width": 0, "color": colour}, "hoverinfo": "skip",
                "name": bucket, "showlegend": False,
            }
        )  # fmt: skip
        for kind in NULL_NAME:
            data.append(
                {
                    "type": "scatter", "mode": "lines", "x": ks, "y": [row.null[kind] for row in held],
                    "line": {"color": "@null", "dash": NULL_DASH[kind], "width": 1.5}, "name": NULL_NAME[kind],
                    "showlegend": bucket == next(reversed(by_bucket)), "legendgroup": kind,
                    "hovertemplate": f"{bucket}, %{{x}} features of {NULL_NAME[kind]}: %{{y:.0%}} is left<extra></extra>",
                }
            )  # fmt: skip
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": ks, "y": [row.mean for row in held], "name": bucket,
                "line": {"color": colour, "width": 2}, "marker": {"color": colour, "symbol": _MARKER[bucket], "size": 7},
                "hovertemplate": f"{bucket}, %{{x}} features of another seed: %{{y:.0%}} is left<extra></extra>",
            }
        )  # fmt: skip
    subject, held = next(reversed(by_bucket.items()))
    last = held[-1]
    counted = ", ".join(f"{row[0].n_rows:,} {bucket}" for bucket, row in by_bucket.items())
    return Figure(
        "pursuit",
        f"{last.k} features of another seed leave {percent(last.mean, 0)} of a{'n' * (subject[0] in 'aeiou')} {subject} feature’s "
        f"length, {last.k} of an unrelated dictionary {percent(last.null['second_moment'], 0)}",
        f"Length of the residual of n = {counted} rows written with at most k features of another seed (orthogonal matching "
        f"pursuit); mean over {last.n_pairs} ordered pairs, bands: ± one standard deviation over pairs. How to read: lower is "
        "better written; only what lies below the dashed line is more than random directions with this SAE’s spread do.",
        {
            "data": data,
            "layout": layout(
                "features k of another seed", "residual length", showlegend=True,
                legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
                xaxis={"dtick": 1}, yaxis={"tickformat": ".0%", "range": [0, 1.02]},
            ),
        },
        (
            "rows", Heading("k", "pursuit_k"), Heading("residual, mean", "residual"), Heading("SD over pairs", "sd"),
            *null_columns(NULL_NAME), Heading("pairs", "n_pairs"),
        ),
        tuple(
            (row.bucket, row.k, percent(row.mean), percent(row.spread), *(percent(row.null[kind]) for kind in NULL_NAME),
             row.n_pairs)
            for held in by_bucket.values() for row in held
        ),
    )  # fmt: skip
