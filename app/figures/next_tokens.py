"""A feature's direct logit effects on all tokens of the vocabulary."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

from seedscope.app.figures.drawing import Figure, Heading, layout
from seedscope.app.formats import shown_token


def _name(token: str) -> str:
    return shown_token(token).replace("\n", "")


def logit_histogram(
    name: str,
    edges: Sequence[float],
    counts: Sequence[int],
    raised: Sequence[tuple[str, float]],
    lowered: Sequence[tuple[str, float]],
    mean: float,
    sd: float,
) -> Figure:
    """Tokens by the effect on their logit, in equal bins, and the strongest of either sign, (token, effect), marked.

    `mean` and `sd` are over the vocabulary; `name` tells figures on one page apart.
    """
    total = sum(counts)
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    data: list[dict[str, Any]] = [
        {
            "type": "bar", "x": middles, "y": list(counts), "width": edges[1] - edges[0], "marker": {"color": "@member"},
            "customdata": [f"{low:+.2f} to {high:+.2f}" for low, high in pairwise(edges)],
            "hovertemplate": "%{customdata}: %{y:,} tokens<extra></extra>", "name": "tokens",
        }
    ]  # fmt: skip
    height = 0.03 * max(counts)  # strokes stand on the axis and leave its numbers free
    for tokens, says, colour, place in ((lowered, "lowered", "@ink", "right"), (raised, "raised", "@accent", "left")):
        # Plotly reads tags in its texts.
        shown = [escape(_name(token), quote=False) for token, _ in tokens]
        data.append(
            {
                "type": "scatter", "mode": "markers+text", "x": [logit for _, logit in tokens], "y": [height] * len(tokens),
                "marker": {"symbol": "line-ns-open", "size": 9, "color": colour, "line": {"width": 2, "color": colour}},
                "text": [token if i == 0 else "" for i, token in enumerate(shown)],
                "textposition": f"top {place}", "textfont": {"color": "@ink"}, "cliponaxis": False, "customdata": shown,
                "hovertemplate": f"{says}: “%{{customdata}}” %{{x:+.2f}}<extra></extra>", "name": says,
            }
        )  # fmt: skip
    title = "Direct logit effect on every next token"
    if sd > 0 and raised and lowered:
        (high, most), (low, least) = raised[0], lowered[0]
        title = (
            f"“{_name(high)}” is raised by {(most - mean) / sd:.1f} standard deviations, "
            f"“{_name(low)}” lowered by {(mean - least) / sd:.1f}"
        )
    return Figure(
        f"logits-{name}",
        title,
        f"Tokens by the direct effect on their logit, n = {total:,}, the whole vocabulary. Strokes: the {len(raised)} highest "
        f"and the {len(lowered)} lowest. How to read: strokes far from the rest are tokens that the feature singles out.",
        {
            "data": data,
            "layout": layout("direct logit effect (unscaled)", "tokens", bargap=0, yaxis={"rangemode": "tozero"}),
        },
        (
            Heading("from", "logit"),
            Heading("to", "logit"),
            Heading("tokens", "logit_count"),
            Heading("share", "logit_count"),
        ),
        tuple(
            (f"{low:+.3f}", f"{high:+.3f}", count, f"{100 * count / total:.2f} %")
            for (low, high), count in zip(pairwise(edges), counts, strict=True)
        ),
    )
