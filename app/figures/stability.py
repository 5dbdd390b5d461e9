"""Stability as figures: its distribution and CDF, bucket shares against theta, and what fewer seeds would say."""

from typing import Any, NamedTuple

from seedscope.app.figures.drawing import (
    BUCKET_COLUMNS,
    BUCKET_ROLE,
    MOST_LINES,
    NULL_DASH,
    NULL_NAME,
    Figure,
    Heading,
    layout,
    member_range,
    null_columns,
)
from seedscope.app.formats import percent
from seedscope.engine.contract.stability import CdfBand


class _Bracket(NamedTuple):
    """A bucket's label, above the bars that it is the sum of."""

    bucket: str
    first: int  # bars that hold any of the bucket
    last: int
    highest: float  # of them
    share: float  # of all features


def _bracketed(brackets: list[_Bracket]) -> dict[str, Any]:
    """Shapes and annotations: over several bars a bracket says that the number is of all of them, not of the highest."""
    shapes, annotations = [], []
    above = 0.03 * max((each.highest for each in brackets), default=1)
    for each in brackets:
        colour, y = BUCKET_ROLE[each.bucket], each.highest + above
        if each.last > each.first:
            line = {
                "type": "line",
                "x0": each.first - 0.4,
                "x1": each.last + 0.4,
                "y0": y,
                "y1": y,
            }
            shapes.append(line | {"line": {"color": colour, "width": 2}})
        annotations.append(
            {
                "x": (each.first + each.last) / 2, "y": y, "yshift": 2, "yanchor": "bottom", "showarrow": False,
                "text": f"{each.bucket}<br>{percent(each.share, 0)}", "font": {"color": "@ink"},
            }
        )  # fmt: skip
    return {"shapes": shapes, "annotations": annotations}


CHANCE_UNKNOWN = "Chance is known of cosines alone; here θ cuts correlations."  # under the rule `active`


def stability_distribution(
    counts: list[tuple[int, str, int, int]],
    null: dict[str, list[int]],
    n_comparisons: int,
    links: dict[str, str],
    judged: str,
) -> Figure:
    """Features by the number of seeds they come back in, beside what chance gives; `judged` says which features."""
    per_x: dict[int, dict[str, int]] = {}
    for _, bucket, x, n in counts:
        if bucket != "dead":
            held = per_x.setdefault(x, {})
            held[bucket] = held.get(bucket, 0) + n
    total = sum(sum(row.values()) for row in per_x.values()) or 1
    xs = list(range(n_comparisons + 1))
    data: list[dict[str, Any]] = []
    brackets: list[_Bracket] = []
    for bucket in ("unstable", "middle", "stable"):
        share = [per_x.get(x, {}).get(bucket, 0) / total for x in xs]
        n_bucket = sum(row.get(bucket, 0) for row in per_x.values())
        data.append(
            {
                "type": "bar", "x": xs, "y": share, "name": bucket, "marker": {"color": BUCKET_ROLE[bucket]},
                "customdata": [links[bucket]] * len(xs),
                "hovertemplate": f"%{{x}} of {n_comparisons} seeds: %{{y:.1%}} of {judged} ({bucket})<extra></extra>",
            }
        )  # fmt: skip
        if n_bucket:
            bars = [x for x in xs if share[x]]
            brackets.append(_Bracket(bucket, bars[0], bars[-1], max(share), n_bucket / total))
    for i, (kind, row) in enumerate(null.items()):
        share = [n / sum(row) for n in row]
        data.append(
            {
                "type": "scatter", "mode": "markers", "x": xs, "y": share, "name": NULL_NAME[kind],
                # Dashes, not a line: a line falls through the labels of the bars.
                "marker": {"color": "@null", "size": 18 - 6 * i, "symbol": "line-ew-open", "line": {"width": 2}},
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
        f"{percent(stable, 0)} of {judged} come back in {'every' if n_comparisons > 1 else 'the'} other seed"
        if max((x for x, r in per_x.items() if r.get("stable")), default=0) == n_comparisons
        and all(x == n_comparisons for x, r in per_x.items() if r.get("stable"))
        else f"{percent(stable, 0)} of {judged} are stable",
        f"n = {total:,} {judged} of {len({c[0] for c in counts})} seeds. Bars: share of features that match in "
        f"so many of {n_comparisons} other seed{'s' * (n_comparisons > 1)}. "
        + ("Grey dashes: the same for random dictionaries." if null else CHANCE_UNKNOWN),
        {
            "data": data,
            "layout": layout(
                f"seeds with a match, of {n_comparisons}", "share of features", barmode="stack", **_bracketed(brackets),
                xaxis={"dtick": 1 if n_comparisons < 20 else None, "range": [-0.8, n_comparisons + 0.8]},
                yaxis={"tickformat": ".0%", "rangemode": "tozero"}, margin={"t": 40},
            ),
        },
        (Heading("seeds with a match", "x_matches"), *BUCKET_COLUMNS, *null_columns(null)),
        table,
    )  # fmt: skip


def stability_cdf(
    counts: list[tuple[int, str, int, int]],
    null: dict[str, list[int]],
    band: CdfBand,
    n_comparisons: int,
    one_anchor: float,
) -> Figure:
    """Cumulative share of features by p, with a band over seeds; every anchor for itself as a thin line.

    `one_anchor` is the DKW half-width for a single anchor's curve.
    """
    p = [x / n_comparisons for x in range(n_comparisons + 1)]
    per_seed: dict[int, list[int]] = {}
    for seed, bucket, x, n in counts:
        if bucket != "dead":
            per_seed.setdefault(seed, [0] * len(p))[x] += n
    curves = {seed: _cumulative(row) for seed, row in per_seed.items()}
    pooled = _cumulative([sum(column) for column in zip(*per_seed.values(), strict=True)])
    step = {"type": "scatter", "mode": "lines", "line": {"shape": "hv"}}
    edge = step | {"x": p, "line": {"shape": "hv", "width": 0}, "hoverinfo": "skip"}
    data: list[dict[str, Any]] = [
        edge | {"y": band.low.tolist(), "name": "band"},
        edge | {"y": band.high.tolist(), "name": "band", "fill": "tonexty", "fillcolor": "@band"},
    ]
    few = len(curves) <= MOST_LINES
    if few:
        data += _anchors(p, curves)
    else:  # behind the band
        data = member_range(p, list(zip(*curves.values(), strict=True)), shape="hv") + data
    data.append(
        step
        | {
            "x": p, "y": pooled, "name": "all seeds", "line": {"shape": "hv", "color": "@accent", "width": 2.5},
            "hovertemplate": "%{y:.1%} of features have p ≤ %{x:.2f}<extra></extra>",
        }
    )  # fmt: skip
    chance = {kind: _cumulative(row) for kind, row in null.items()}
    for kind, curve in chance.items():
        data.append(
            step
            | {
                "x": p, "y": curve, "name": NULL_NAME[kind],
                "line": {"shape": "hv", "color": "@null", "dash": NULL_DASH[kind], "width": 1.5},
                "hovertemplate": f"chance, {NULL_NAME[kind]}: %{{y:.1%}} have p ≤ %{{x:.2f}}<extra></extra>",
            }
        )  # fmt: skip
    half = n_comparisons // 2
    alone = (
        "Thin lines: one anchor each" if few else "Grey band: from the lowest to the highest anchor, and their median"
    )
    lowest, highest = ([end(column) for column in zip(*curves.values(), strict=True)] for end in (min, max))
    spread = [curve[half] for curve in curves.values()]
    n_features = sum(map(sum, per_seed.values()))
    return Figure(
        "cdf",
        f"{percent(pooled[half], 0)} of features come back in at most half of the seeds",
        f"Share of n = {n_features:,} features with stability up to p. Band: 95 %, bootstrap over the {len(curves)} seeds. "
        f"{alone} ({percent(min(spread), 0)} to {percent(max(spread), 0)} at p = {p[half]:.2f}); a single anchor, "
        f"given its comparisons, is known to ± {percent(one_anchor)} (DKW). {'Dashed: chance.' if null else CHANCE_UNKNOWN}",
        {
            "data": data,
            "layout": layout(
                "stability p", "share with stability up to p", xaxis={"range": [0, 1]},
                yaxis={"tickformat": ".0%", "range": [0, 1.02]},
            ),
        },
        (
            Heading("p", "p_axis"), Heading("share up to p", "share_up_to_p"), Heading("95 % band", "band_seeds"),
            Heading("lowest anchor", "one_anchor"), Heading("highest anchor", "one_anchor"), *null_columns(null),
        ),
        tuple(
            (
                f"{p[i]:.2f}", percent(pooled[i]), f"{percent(band.low[i])} – {percent(band.high[i])}",
                percent(lowest[i]), percent(highest[i]),
                *(percent(curve[i]) for curve in chance.values()),
            )
            for i in range(len(p))
        ),
    )  # fmt: skip


def _anchors(p: list[float], curves: dict[int, list[float]]) -> list[dict[str, Any]]:
    """Every anchor's curve, in one trace with gaps."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    seeds: list[int | None] = []
    for seed, curve in curves.items():
        xs, ys, seeds = [*xs, *p, None], [*ys, *curve, None], [*seeds, *[seed] * len(p), None]
    return [
        {
            "type": "scatter", "mode": "lines", "x": xs, "y": ys, "customdata": seeds, "name": "one anchor", "connectgaps": False,
            "line": {"shape": "hv", "color": "@member", "width": 0.8},
            "hovertemplate": "seed %{customdata} alone: %{y:.1%} have p ≤ %{x:.2f}<extra></extra>",
        }
    ]  # fmt: skip


def _cumulative(row: list[int]) -> list[float]:
    total, running, shares = sum(row) or 1, 0, []
    for n in row:
        running += n
        shares.append(round(running / total, 5))  # a page holds a curve per member
    return shares


def theta_sweep(
    thetas: list[float], shares: dict[str, list[float]], null: dict[str, list[float]], theta: float, n: int, judged: str
) -> Figure:
    """Bucket shares as the match threshold moves, beside the rates of chance matches."""
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
    for kind, rates in null.items():
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": thetas, "y": rates, "name": NULL_NAME[kind],
                "line": {"color": "@null", "dash": NULL_DASH[kind], "width": 1.5},
                "hovertemplate": f"θ = %{{x:.2f}}: %{{y:.2%}} of comparisons match by chance ({NULL_NAME[kind]})<extra></extra>",
            }
        )  # fmt: skip
    line = {"type": "line", "x0": theta, "x1": theta, "y0": 0, "y1": 1, "yref": "paper"}
    return Figure(
        "sweep",
        "How much do the buckets depend on θ?",
        f"Shares of n = {n:,} {judged} at every threshold; the thin line is θ = {theta:.2f}. "
        + (
            "Grey: comparisons that match by chance (dotted: random directions, dashed: random ones with this SAE’s spread)."
            if null
            else CHANCE_UNKNOWN
        ),
        {
            "data": data,
            "layout": layout(
                "match threshold θ", f"share of {judged}", yaxis={"tickformat": ".0%", "rangemode": "tozero"},
                shapes=[line | {"line": {"color": "@soft", "width": 1}}],
            ),
        },
        (Heading("θ", "theta"), *BUCKET_COLUMNS, *null_columns(null)),
        tuple(
            (
                f"{t:.2f}", *(percent(shares[b][i]) for b in ("stable", "middle", "unstable")),
                *(percent(rates[i], 2) for rates in null.values()),
            )
            for i, t in enumerate(thetas)
        ),
    )  # fmt: skip


def convergence(n: list[int], same_bucket: list[float], error: list[float], n_features: int, judged: str) -> Figure:
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
        f"Share of n = {n_features:,} {judged} that the first comparisons put into the bucket that all {total} give; mean "
        "over all choices of comparisons, exact.",
        {
            "data": data,
            "layout": layout(
                "comparisons used", "already in the final bucket", xaxis={"dtick": 1 if total < 20 else None},
                yaxis={"tickformat": ".0%", "range": [0, 1.04]},
            ),
        },
        (
            Heading("comparisons", "comparisons"), Heading("in the final bucket", "final_bucket"),
            Heading("mean |p − final p|", "p_error"),
        ),
        tuple((k, percent(s), f"{e:.3f}") for k, s, e in zip(n, same_bucket, error, strict=True)),
    )  # fmt: skip
