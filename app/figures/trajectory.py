"""Lines against tokens seen in training: loss and EV, agreement of members, features by final bucket."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from seedscope.app.figures.drawing import BUCKET_ROLE, Figure, Heading, layout
from seedscope.app.formats import percent
from seedscope.engine.contract.tables.training import AgreementPoint, Checkpoint, CosineGeometry, TracePoint

START = 4.0  # on a log axis the start stands this factor before the first point behind it
MARKERS = {"stable": "circle", "middle": "square", "unstable": "diamond", "dead": "x"}


class Along(NamedTuple):
    """One line against tokens; entries that are None are gaps."""

    name: str
    tokens: list[int]
    values: list[float | None]
    low: list[float | None] | None = None
    high: list[float | None] | None = None
    colour: str = "@accent"
    dash: str = "solid"
    width: float = 2
    marker: str | None = "circle"


class Scale(NamedTuple):
    """The vertical axis."""

    title: str
    form: str = ".3f"  # of a number, as in d3 and Python
    log: bool = False
    range: tuple[float, float] | None = None
    zero: bool = False  # whether a line stands at 0


def along_training(
    id: str,
    title: str,
    reading: str,
    lines: Sequence[Along],
    scale: Scale,
    *,
    header: tuple[str, ...],
    table: Sequence[tuple],
) -> Figure:
    """Lines and their bands against tokens seen, on a log axis on which the start stands apart."""
    axis = _tokens(lines)
    data: list[dict[str, Any]] = []
    for line in lines:
        if line.low is not None and line.high is not None:
            at = [
                i for i, (a, b) in enumerate(zip(line.low, line.high, strict=True)) if a is not None and b is not None
            ]
            x = [axis.place(line.tokens[i]) for i in at]
            data.append(
                {
                    "type": "scatter", "mode": "lines", "x": [*x, *reversed(x)],
                    "y": [*(line.high[i] for i in at), *(line.low[i] for i in reversed(at))], "fill": "toself",
                    "fillcolor": line.colour, "opacity": 0.16, "line": {"width": 0, "color": line.colour},
                    "hoverinfo": "skip", "showlegend": False, "legendgroup": line.name, "name": line.name,
                }
            )  # fmt: skip
    for line in lines:
        data.append(
            {
                "type": "scatter", "mode": "lines+markers" if line.marker else "lines", "name": line.name,
                "x": [axis.place(each) for each in line.tokens], "y": line.values, "legendgroup": line.name,
                "line": {"color": line.colour, "dash": line.dash, "width": line.width},
                "marker": {"color": line.colour, "symbol": line.marker or "circle", "size": 6},
                "customdata": line.tokens, "showlegend": bool(line.marker) or line.width > 1,
                "hovertemplate": f"{line.name}, %{{customdata:,}} tokens: %{{y:{scale.form}}}<extra></extra>",
            }
        )  # fmt: skip
    y: dict[str, Any] = {"type": "log", "dtick": "D2"} if scale.log else {}
    if scale.range:
        y["range"] = list(scale.range)
    if scale.form.endswith("%"):
        y["tickformat"] = ".0%"
    level = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "line": {"color": "@soft", "width": 1}}
    ]
    plot = layout(
        "tokens seen per seed, log scale", scale.title, xaxis=axis.drawn, yaxis=y, showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}, shapes=level if scale.zero else [],
    )  # fmt: skip
    return Figure(id, title, reading, {"data": data, "layout": plot}, header, tuple(table))


class _Axis(NamedTuple):
    start: float  # where 0 tokens stand
    drawn: dict[str, Any]

    def place(self, tokens: int) -> float:
        return tokens or self.start


def _tokens(lines: Sequence[Along]) -> _Axis:
    """A log axis with a place for the start, and a tick at every decade and at the end."""
    seen = sorted({tokens for line in lines for tokens in line.tokens if tokens})
    first, last = (seen[0], seen[-1]) if seen else (1, 1)
    start = first / START
    decades = [10**e for e in range(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1)]
    ticks = {start: "start"} | {each: short(each) for each in decades} | {last: short(last)}
    if decades and last / decades[-1] < 4:
        del ticks[decades[-1]]  # too near the end to be read
        ticks[last] = short(last)
    edges = [math.log10(start) - 0.1, math.log10(last) + 0.1]
    return _Axis(start, {"type": "log", "range": edges, "tickvals": list(ticks), "ticktext": list(ticks.values())})


def short(tokens: int) -> str:
    """12288 -> '12k', 1250304 -> '1.25M'."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit}"
    return str(tokens)


def by_bucket(
    id: str, title: str, reading: str, scale: Scale, values: dict[str, list[tuple[int, int, float, float | None]]]
) -> Figure:
    """One line per final bucket: (tokens, features, value, spread over members) at every checkpoint."""
    lines, table = [], []
    for bucket, points in values.items():
        tokens, _, mean, spread = (list(column) for column in zip(*points, strict=True))
        known = all(each is not None for each in spread)
        low = [m - s for m, s in zip(mean, spread, strict=True)] if known else None
        high = [m + s for m, s in zip(mean, spread, strict=True)] if known else None
        lines.append(
            Along(f"ends {bucket}", tokens, mean, low, high, colour=BUCKET_ROLE[bucket], marker=MARKERS[bucket])
        )
        table += [
            (bucket, f"{t:,}", f"{n:,}", f"{m:{scale.form}}", "–" if s is None else f"{s:{scale.form}}")
            for t, n, m, s in points
        ]
    header = (
        "ends", Heading("tokens", "token_position"), Heading("features", "n_features"), Heading(scale.title, "along"),
        Heading("SD over seeds", "sd"),
    )  # fmt: skip
    return along_training(id, title, reading, lines, scale, header=header, table=table)


def training_figures(trace: list[TracePoint]) -> list[Figure]:
    """Loss, EV, L0 and dead share, each member a thin line beside the mean."""
    seeds = sorted({row.seed for row in trace})
    if not seeds:
        return []
    ends = {
        name: fmean(getattr(row, name) for row in trace if row.step == trace[-1].step) for name in ("ev", "l0", "dead")
    }
    lowest = min(row.ev for row in trace)
    what = (
        ("loss", "Loss", Scale("loss of a batch", ".3g", log=True), "What each seed minimises, of one batch"),
        ("ev", f"Explained variance reaches {ends['ev']:.3f}", Scale("explained variance", range=(max(lowest, -0.25) - 0.05, 1)),
         "EV on the same training rows at every point"),
        ("l0", f"{ends['l0']:.1f} features active per token at the end", Scale("active features per token (L0)", ".3g", log=True),
         "L0 on the same training rows at every point"),
        ("dead", f"{percent(ends['dead'])} of features are dead at the end", Scale("dead share", ".1%"),
         "Share of features that have been silent for long"),
    )  # fmt: skip
    drawn = []
    for name, title, scale, reading in what:
        by_seed = {
            seed: [row for row in trace if row.seed == seed and getattr(row, name) is not None] for seed in seeds
        }
        lines = [
            Along(
                f"seed {seed}",
                [r.tokens for r in rows],
                [getattr(r, name) for r in rows],
                colour="@null",
                width=0.8,
                marker=None,
            )
            for seed, rows in by_seed.items()
        ]
        tokens = sorted({row.tokens for rows in by_seed.values() for row in rows})
        held = [[getattr(r, name) for rows in by_seed.values() for r in rows if r.tokens == each] for each in tokens]
        lines.append(Along("mean", tokens, [fmean(each) for each in held], marker=None))
        table = [
            (f"{at:,}", *(f"{value:.4g}" for value in (fmean(each), min(each), max(each))))
            for at, each in zip(tokens, held, strict=True)
        ]
        drawn.append(
            along_training(
                f"training_{name}", title, f"{reading}; {len(seeds)} seeds as thin lines, and their mean.", lines, scale,
                header=(
                    Heading("tokens", "token_position"), Heading("mean over seeds", "training_curve"),
                    Heading("lowest", "training_curve"), Heading("highest", "training_curve"),
                ), table=table,
            )
        )  # fmt: skip
    return drawn


def agreement_figures(
    checkpoints: list[Checkpoint],
    everyone: list[AgreementPoint],
    living: list[AgreementPoint],
    geometry: list[CosineGeometry],
) -> list[Figure]:
    """Hungarian distance, where it was found, and mean best cosine from step 0 on, beside random dictionaries."""
    tokens = {each.step: each.tokens for each in checkpoints}
    pairs = f"Mean over {everyone[0].n_pairs} pairs of seeds, band from the smallest to the largest"
    drawn = []
    for id, name, title, axis, key in (
        ("distance", "distance", "Hungarian distance", "Hungarian distance (mean 1 − cosine)", "hungarian_distance"),
        ("best_cosine", "best_cosine", "Mean best cosine", "mean best cosine", "best_cosine"),
    ):
        if everyone[0].distance is None and name == "distance":
            continue

        def line(rows: Sequence[AgreementPoint], label: str, *, name: str = name) -> Along:
            values, low, high = ([getattr(r, f"{name}{edge}") for r in rows] for edge in ("", "_low", "_high"))
            return Along(label, [tokens[r.step] for r in rows], values, low, high)

        lines = [line(everyone, "all features")]
        if living:
            living_line = line(living, "living ones")
            lines.append(living_line._replace(colour="@stable", dash="dash", marker="diamond"))
        at = [tokens[row.step] for row in geometry]
        lines.append(Along("mean direction taken out", at, [getattr(row, f"centred_{name}") for row in geometry],
                           colour="@middle", dash="dot", marker="square"))  # fmt: skip
        level = getattr(geometry[0], f"random_{name}")
        lines.append(
            Along(
                "random dictionaries",
                [at[0], at[-1]],
                [level, level],
                colour="@null",
                dash="dash",
                width=1.5,
                marker=None,
            )
        )
        start, end = getattr(everyone[0], name), getattr(everyone[-1], name)
        table = [
            (f"{tokens[row.step]:,}", row.population, f"{row.n_features:,.1f}", row.n_pairs,
             *(f"{getattr(row, name + edge):.4f}" for edge in ("", "_low", "_high")))
            for row in (*everyone, *living)
        ]  # fmt: skip
        drawn.append(
            along_training(
                id, f"{title}: {start:.3f} at the start, {end:.3f} at the end",
                f"{pairs}. Dashed grey: random unit dictionaries of the same size, {level:.3f}.", lines, Scale(axis),
                header=(
                    Heading("tokens", "token_position"), "features", Heading("of them per seed", "n_features"),
                    Heading("pairs", "n_pairs"),
                    Heading(title, key), Heading("smallest", "pair_range"), Heading("largest", "pair_range"),
                ), table=table,
            )
        )  # fmt: skip
    return drawn
