"""Rows -> Plotly figure dictionaries; pure functions. Colours are role names that figures.js fills in per theme."""

from typing import Any, NamedTuple

from app.formats import percent
from engine import schema

# Roles, not colours: the browser knows whether it is day or night.
BUCKET_ROLE = {"stable": "@stable", "middle": "@middle", "unstable": "@unstable", "dead": "@dead"}
NULL_NAME = {"haar": "rotated dictionaries (Haar)", "second_moment": "same second moment"}
NULL_DASH = {"haar": "dot", "second_moment": "dash"}
MASK_LABEL = {
    "none": "nothing masked",
    "N stable": "N stable",
    "N matched to stable": "N of the same density",
    "N random": "N random",
    "4N unstable": "4N unstable",
    "4N matched to unstable": "4N of the same density",
    "4N random": "4N random",
}
_MASK_ROLE = {"N stable": "@stable", "4N unstable": "@unstable"}


class Figure(NamedTuple):
    """A figure with the words and the table that go with it."""

    id: str
    title: str  # the finding or the question
    reading: str  # how to read it, one line, with n
    plot: dict[str, Any]  # {"data": .., "layout": ..} for Plotly
    header: tuple[str, ...]  # the same data as a table
    table: tuple[tuple[Any, ...], ...]


def _layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    return {
        "xaxis": {"title": {"text": x}} | more.pop("xaxis", {}),
        "yaxis": {"title": {"text": y}} | more.pop("yaxis", {}),
        "showlegend": False,
    } | more


def stability_distribution(
    counts: list[tuple[int, str, int, int]], null: dict[str, list[int]], n_comparisons: int, links: dict[str, str]
) -> Figure:
    """Living features by the number of seeds they come back in, beside what chance gives."""
    per_x: dict[int, dict[str, int]] = {}
    for _, bucket, x, n in counts:
        if bucket != "dead":
            held = per_x.setdefault(x, {})
            held[bucket] = held.get(bucket, 0) + n
    total = sum(sum(row.values()) for row in per_x.values()) or 1
    xs = list(range(n_comparisons + 1))
    data: list[dict[str, Any]] = []
    for bucket in ("unstable", "middle", "stable"):
        share = [per_x.get(x, {}).get(bucket, 0) / total for x in xs]
        n_bucket = sum(row.get(bucket, 0) for row in per_x.values())
        data.append(
            {
                "type": "bar", "x": xs, "y": share, "name": bucket, "marker": {"color": BUCKET_ROLE[bucket]},
                "customdata": [links[bucket]] * len(xs),
                "hovertemplate": f"%{{x}} of {n_comparisons} seeds: %{{y:.1%}} of living features ({bucket})<extra></extra>",
                "text": [f"{bucket} {percent(n_bucket / total, 0)}" if s and s == max(share) else "" for s in share],
                "textposition": "outside", "cliponaxis": False, "textangle": 0, "constraintext": "none",
            }
        )  # fmt: skip
    for kind, row in null.items():
        share = [n / sum(row) for n in row]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": xs, "y": share, "name": NULL_NAME[kind],
                "line": {"color": "@null", "dash": NULL_DASH[kind], "width": 1.5}, "marker": {"color": "@null", "size": 4},
                "hovertemplate": f"chance, {NULL_NAME[kind]}: %{{y:.1%}} match in %{{x}} seeds<extra></extra>",
            }
        )  # fmt: skip
    table = tuple(
        (x, *(per_x.get(x, {}).get(b, 0) for b in ("stable", "middle", "unstable")), *(row[x] for row in null.values()))
        for x in xs
    )
    stable = sum(row.get("stable", 0) for row in per_x.values()) / total
    return Figure(
        "stability",
        f"{percent(stable, 0)} of living features come back in every other seed"
        if max((x for x, r in per_x.items() if r.get("stable")), default=0) == n_comparisons
        and all(x == n_comparisons for x, r in per_x.items() if r.get("stable"))
        else f"{percent(stable, 0)} of living features are stable",
        f"n = {total:,} living features of {len({c[0] for c in counts})} members. Bars: share of features that match in "
        f"so many of {n_comparisons} other seeds. Dashed lines: the same for random dictionaries.",
        {
            "data": data,
            "layout": _layout(
                f"seeds with a match, of {n_comparisons}", "share of features", barmode="stack",
                xaxis={"dtick": 1 if n_comparisons < 20 else None, "range": [-0.8, n_comparisons + 0.8]},
                yaxis={"tickformat": ".0%", "rangemode": "tozero"},
            ),
        },
        ("seeds with a match", "stable", "middle", "unstable", *(f"chance, {NULL_NAME[k]}" for k in null)),
        table,
    )  # fmt: skip


def theta_sweep(thetas: list[float], shares: dict[str, list[float]], null: list[float], theta: float, n: int) -> Figure:
    """Bucket shares as the match threshold moves, beside the rate of chance matches."""
    data: list[dict[str, Any]] = []
    for bucket, dash in (("stable", "solid"), ("middle", "dash"), ("unstable", "dot")):
        at = {"stable": 2, "middle": len(thetas) // 2, "unstable": len(thetas) - 3}[bucket]
        data.append(
            {
                "type": "scatter", "mode": "lines+text", "x": thetas, "y": shares[bucket], "name": bucket,
                "line": {"color": BUCKET_ROLE[bucket], "dash": dash, "width": 2},
                "text": [bucket if i == at else "" for i in range(len(thetas))], "textposition": "top center",
                "textfont": {"color": BUCKET_ROLE[bucket]}, "cliponaxis": False,
                "hovertemplate": f"θ = %{{x:.2f}}: %{{y:.1%}} {bucket}<extra></extra>",
            }
        )  # fmt: skip
    data.append(
        {
            "type": "scatter", "mode": "lines", "x": thetas, "y": null, "name": "chance",
            "line": {"color": "@null", "dash": "dash", "width": 1.5},
            "hovertemplate": "θ = %{x:.2f}: %{y:.2%} of comparisons match by chance (same second moment)<extra></extra>",
        }
    )  # fmt: skip
    line = {"type": "line", "x0": theta, "x1": theta, "y0": 0, "y1": 1, "yref": "paper"}
    return Figure(
        "sweep",
        "How much do the buckets depend on θ?",
        f"Shares of n = {n:,} living features at every threshold; the thin line is θ = {theta:.2f}. Grey: comparisons that match "
        "by chance in dictionaries with the same second moment.",
        {
            "data": data,
            "layout": _layout(
                "match threshold θ", "share of living features", yaxis={"tickformat": ".0%", "rangemode": "tozero"},
                shapes=[line | {"line": {"color": "@soft", "width": 1}}],
            ),
        },
        ("θ", "stable", "middle", "unstable", "matches by chance"),
        tuple(
            (f"{t:.2f}", *(percent(shares[b][i]) for b in ("stable", "middle", "unstable")), percent(null[i], 2))
            for i, t in enumerate(thetas)
        ),
    )  # fmt: skip


def convergence(n: list[int], same_bucket: list[float], error: list[float], n_features: int) -> Figure:
    """What fewer seeds would have said."""
    total = n[-1]
    settled = same_bucket[-2] if total > 1 else 1.0
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "x": n, "y": same_bucket, "name": "same bucket",
            "line": {"color": "@accent", "width": 2}, "marker": {"color": "@accent", "size": 6}, "customdata": error,
            "hovertemplate": "%{x} comparisons: %{y:.1%} in their final bucket, p off by %{customdata:.3f}<extra></extra>",
        }
    ]  # fmt: skip
    return Figure(
        "convergence",
        f"Would one seed fewer have said the same? For {percent(settled, 0)} of features, yes",
        f"Share of n = {n_features:,} living features that the first comparisons put into the bucket that all {total} give; mean "
        "over 10 random orders of the seeds.",
        {
            "data": data,
            "layout": _layout(
                "comparisons used", "already in the final bucket", xaxis={"dtick": 1 if total < 20 else None},
                yaxis={"tickformat": ".0%", "range": [0, 1.04]},
            ),
        },
        ("comparisons", "in the final bucket", "mean |p − final p|"),
        tuple((k, percent(s), f"{e:.3f}") for k, s, e in zip(n, same_bucket, error, strict=True)),
    )  # fmt: skip


def density_by_bucket(
    rows: list[tuple[str, int, int]], medians: dict[str, tuple[int, float, float]], per_decade: int
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
        peak = share.index(max(share))
        data.append(
            {
                "type": "scatter", "mode": "lines+text", "x": centres, "y": share, "name": bucket,
                "line": {"color": BUCKET_ROLE[bucket], "dash": dash, "shape": "spline", "smoothing": 0.6, "width": 2},
                "text": [bucket if i == peak else "" for i in range(len(share))], "textposition": "top center",
                "textfont": {"color": BUCKET_ROLE[bucket]}, "cliponaxis": False,
                "hovertemplate": f"density %{{x:.3%}}: %{{y:.1%}} of {total:,} {bucket} features<extra></extra>",
            }
        )  # fmt: skip
    table = tuple(
        (f"{100 * c:.4f} %", *(next((n for name, k, n in rows if name == bucket and k == b), 0)
                               for bucket in ("stable", "middle", "unstable")))
        for b, c in zip(bins, centres, strict=True)
    )  # fmt: skip
    title = "How often do the features of each bucket fire?"
    if {"stable", "unstable"} <= set(medians):
        stable, unstable = medians["stable"][1], medians["unstable"][1]
        more = "rarely" if unstable < stable else "often"
        title = (
            f"Unstable features fire more {more}: median {percent(unstable, 2)} of tokens, stable {percent(stable, 2)}"
        )
    low, high = bins.start // per_decade, bins.stop // per_decade + 1
    return Figure(
        "density",
        title,
        "Share of each bucket's living features by the share of held-out tokens on which they fire.",
        {
            "data": data,
            "layout": _layout(
                "density, log scale", "share of the bucket",
                xaxis={"type": "log", "tickvals": [10.0**p for p in range(low, high + 1)],
                       "ticktext": [f"{100 * 10.0**p:g} %" for p in range(low, high + 1)]},
                yaxis={"tickformat": ".0%", "rangemode": "tozero"},
            ),
        },
        ("density (bin centre)", "stable", "middle", "unstable"),
        table,
    )  # fmt: skip


def ablation(rows: list[schema.Ablation], headline: str) -> Figure:
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
                "hovertemplate": f"{label}: mean EV %{{x:.3f}} over {len(held)} members<extra></extra>",
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
        "Explained variance (EV) on held-out tokens when features are masked. Small dots: members, mean of 20 draws; large: "
        "their mean. Diamonds: controls drawn at random or with the same densities.",
        {
            "data": data,
            "layout": _layout("explained variance", "", yaxis={"automargin": True, "showgrid": False}, height=380),
        },
        ("masked", "features masked, mean", "draws", "EV, mean over members", "spread over draws (SD)"),
        tuple(reversed(table)),
    )
