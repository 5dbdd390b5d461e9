"""Buckets of one ensemble as figures: density histograms, and explained variance with features masked."""

from typing import Any

from seedscope.app.figures.drawing import BUCKET_COLUMNS, BUCKET_ROLE, Figure, Heading, layout
from seedscope.app.formats import percent
from seedscope.engine.contract.tables.features import Ablation

MASK_LABEL = {
    "none": "nothing removed",
    "N stable": "N stable",
    "N matched to stable": "N of the same density",
    "N random": "N random",
    "4N unstable": "4N unstable",
    "4N matched to unstable": "4N of the same density",
    "4N random": "4N random",
}
_MASK_ROLE = {"N stable": "@stable", "4N unstable": "@unstable"}


def density_by_bucket(
    rows: list[tuple[str, int, int]], medians: dict[str, tuple[int, float | None]], per_decade: int
) -> Figure:
    """Log-density histograms of the living buckets, each normalised to its own size."""
    data: list[dict[str, Any]] = []
    bins = range(min((b for _, b, _ in rows), default=0), max((b for _, b, _ in rows), default=0) + 1)
    centres = [10 ** ((b + 0.5) / per_decade) for b in bins]
    for bucket, dash in (("unstable", "dot"), ("middle", "dash"), ("stable", "solid")):
        held = {b: n for name, b, n in rows if name == bucket}
        total = sum(held.values())
        if not total:
            continue
        share = [held.get(b, 0) / total for b in bins]
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": centres, "y": share, "name": bucket,
                "line": {"color": BUCKET_ROLE[bucket], "dash": dash, "shape": "hvh", "width": 2},
                "hovertemplate": f"density %{{x:.3%}}: %{{y:.1%}} of {total:,} {bucket} features<extra></extra>",
            }
        )  # fmt: skip
    table = tuple(
        (f"{100 * c:.4f} %", *(next((n for name, k, n in rows if name == bucket and k == b), 0)
                               for bucket in ("stable", "middle", "unstable")))
        for b, c in zip(bins, centres, strict=True)
    )  # fmt: skip
    title = "How often do the features of each bucket fire?"
    (_, stable), (_, unstable) = (medians.get(bucket, (0, None)) for bucket in ("stable", "unstable"))
    if stable is not None and unstable is not None:
        more = "rarely" if unstable < stable else "often"
        title = (
            f"Unstable features fire more {more}: median {percent(unstable, 2)} of tokens, stable {percent(stable, 2)}"
        )
    low, high = bins.start // per_decade, bins.stop // per_decade + 1
    return Figure(
        "density",
        title,
        "Share of each bucket's living features by the share of evaluation tokens on which they fire.",
        {
            "data": data,
            "layout": layout(
                "density, log scale", "share of the bucket",
                xaxis={"type": "log", "tickvals": [10.0**p for p in range(low, high + 1)],
                       "ticktext": [f"{100 * 10.0**p:g} %" for p in range(low, high + 1)]},
                yaxis={"tickformat": ".0%", "rangemode": "tozero"},
                showlegend=True, legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            ),
        },
        (Heading("density (bin centre)", "density_bin"), *BUCKET_COLUMNS),
        table,
    )  # fmt: skip


def ablation(rows: list[Ablation], headline: str) -> Figure:
    """Explained variance under each mask: a thin dot per member, a large one for their mean."""
    names = [name for name in reversed(MASK_LABEL) if any(r.mask == name for r in rows)]
    data: list[dict[str, Any]] = []
    table = []
    for name in names:
        held = [r for r in rows if r.mask == name]
        mean = sum(r.ev for r in held) / len(held)
        role = _MASK_ROLE.get(name, "@null" if name != "none" else "@ink")
        label = MASK_LABEL[name]
        seeds = [r.seed for r in held]
        data += [
            {
                "type": "scatter", "mode": "markers", "x": [r.ev for r in held], "y": [label] * len(held), "name": label,
                "marker": {"color": role, "size": 5, "opacity": 0.45}, "customdata": seeds,
                "hovertemplate": f"seed %{{customdata}}, {label}: EV %{{x:.3f}}<extra></extra>",
            },
            {
                "type": "scatter", "mode": "markers+text", "x": [mean], "y": [label], "name": label,
                "marker": {"color": role, "size": 11, "symbol": "diamond" if role == "@null" else "circle"},
                "text": [f"{mean:.3f}"], "textposition": "top center", "cliponaxis": False,
                "hovertemplate": f"{label}: mean EV %{{x:.3f}} over {len(held)} seeds<extra></extra>",
            },
        ]  # fmt: skip
        spread = sum(r.ev_sd for r in held) / len(held)
        table.append(
            (
                label,
                round(sum(r.n_masked for r in held) / len(held), 1),
                held[0].n_draws,
                f"{mean:.4f}",
                f"{spread:.4f}",
            )
        )
    return Figure(
        "ablation",
        headline,
        "Explained variance (EV) on the evaluation tokens when features are removed. Small dots: seeds, mean of 20 draws; large: "
        "their mean. Diamonds: controls drawn at random or with the same densities.",
        {
            "data": data,
            "layout": layout("explained variance", "", yaxis={"automargin": True, "showgrid": False}, height=380),
        },
        (
            "removed",
            Heading("features removed, mean", "n_masked"),
            Heading("draws", "draws"),
            Heading("EV, mean over seeds", "ev_masked"),
            Heading("spread over draws (SD)", "sd"),
        ),
        tuple(reversed(table)),
    )
