"""Predicted stability as figures: its distribution, and whether what is predicted is what is observed."""

from collections.abc import Sequence

from seedscope.app.figures.drawing import Figure, Heading, layout
from seedscope.engine.contract.tables.predictions import ReliabilityBin


def predicted_distribution(counts: Sequence[int], trained_on: str) -> Figure:
    """Features by predicted p, as outlines: what is solid was measured."""
    n, total, width = len(counts), sum(counts) or 1, 1 / len(counts)
    middles = [(bar + 0.5) * width for bar in range(n)]
    return Figure(
        "predicted-distribution",
        "Predicted stability",
        f"n = {sum(counts):,} living features by their predicted p, from a predictor trained on {trained_on}. Outlines say that "
        "nothing of it was measured. How to read: features at the right would come back in most seeds, if the predictor is right.",
        {
            "data": [
                {
                    "type": "bar", "x": middles, "y": [count / total for count in counts], "width": width * 0.9,
                    "marker": {"color": "rgba(0,0,0,0)", "line": {"color": "@accent", "width": 1.5}},
                    "hovertemplate": "p %{x:.3f}: %{y:.1%} of features<extra></extra>",
                }
            ],
            "layout": layout("predicted p", "share of features", xaxis={"range": [0, 1]}, yaxis={"tickformat": ".0%"}),
        },
        (Heading("predicted p", "predicted_p"), Heading("features", "predicted_features")),
        tuple((f"{bar * width:.2f} to {(bar + 1) * width:.2f}", f"{count:,}") for bar, count in enumerate(counts)),
    )  # fmt: skip


def reliability(bins: Sequence[ReliabilityBin], trained_on: str) -> Figure:
    """Observed against predicted p of held-out features; on the diagonal what is predicted is right on average."""
    diagonal = {
        "type": "line",
        "x0": 0,
        "x1": 1,
        "y0": 0,
        "y1": 1,
        "line": {"color": "@soft", "width": 1, "dash": "dash"},
    }
    n = sum(row.n_rows for row in bins)
    return Figure(
        "reliability",
        "Is what is predicted what is observed?",
        f"n = {n:,} features of {trained_on} in about ten bins of equal size, each predicted by a model that saw none of its "
        "cluster of matches. Bars: 95 %, bootstrap over seeds. How to read: points on the dashed line are right on average.",
        {
            "data": [
                {
                    "type": "scatter", "mode": "lines+markers", "x": [row.predicted for row in bins],
                    "y": [row.observed for row in bins], "line": {"color": "@accent", "width": 1},
                    "marker": {"color": "@accent", "size": 8},
                    "error_y": {"type": "data", "symmetric": False, "array": [row.observed_high - row.observed for row in bins],
                                "arrayminus": [row.observed - row.observed_low for row in bins], "color": "@accent",
                                "thickness": 1.2, "width": 3},
                    "text": [f"{row.n_rows:,} features" for row in bins],
                    "hovertemplate": "predicted %{x:.3f}, observed %{y:.3f}, %{text}<extra></extra>",
                }
            ],
            "layout": layout(
                "predicted p", "observed p", xaxis={"range": [-0.02, 1.02]}, yaxis={"range": [-0.02, 1.02]}, shapes=[diagonal]
            ),
        },
        (
            Heading("predicted p", "predicted_p"), Heading("observed p", "observed_p"), Heading("95 %", "observed_p"),
            Heading("features", "predicted_features"),
        ),
        tuple(
            (f"{row.predicted:.3f}", f"{row.observed:.3f}", f"{row.observed_low:.3f} – {row.observed_high:.3f}",
             f"{row.n_rows:,}")
            for row in bins
        ),
    )  # fmt: skip
