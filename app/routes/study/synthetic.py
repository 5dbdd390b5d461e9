"""A synthetic study: which true features members found, one by one or as a span, and the map of where that holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from seedscope.app import render
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.truth import MARKS, Axis, Spot, Square, found_by_members, latents_in_span, phase_map
from seedscope.app.formats import optional_percent as percent
from seedscope.app.routes.address import Plain, StudyName
from seedscope.app.store.errors import BadValue
from seedscope.app.store.truth import KnownTruth, TruthTable
from seedscope.engine.contract.stability import buckets, is_match
from seedscope.engine.contract.tables import synthetic as truth
from seedscope.engine.contract.tables.study import Ensemble, Study

router = APIRouter()
PER_PAGE = 50
COMMAND = "seedscope synthetic"


class SyntheticQuery(Plain):
    """Which true features are listed."""

    group: Literal["free", "low"] = "free"
    first: Annotated[int, Query(ge=0, le=10**9, description="the first of the group that is listed")] = 0


class SyntheticTableQuery(Plain):
    """Which table is downloaded."""

    table: TruthTable = "features"


@dataclass(frozen=True)
class Nearest:
    """The latent of one member that is nearest to a true feature."""

    seed: int
    feature: int
    cosine: float
    found: bool  # it reaches theta


@dataclass(frozen=True)
class TrueLine:
    """A true feature and its nearest latents."""

    name: str
    n_active: int  # of the evaluation samples
    n_found: int  # members
    nearest: list[Nearest]


@dataclass(frozen=True)
class MapCount:
    """How many cells of the map end in one way."""

    verdict: str
    says: str
    n: int


@dataclass(frozen=True)
class SyntheticPage:
    """`/s/{study}/synthetic`: known true features against what members found; without them, what the page is for."""

    study: Study
    ensemble: Ensemble | None  # None where the study is not synthetic, as are the next
    synthetic: truth.Synthetic | None
    active_free: float | None  # free true features active at once, on average
    active_low: float | None
    random_energy: float | None  # of a random direction inside the true span: r / d
    sentence: str | None
    theta: float | None
    epsilon: float | None
    seeds: list[int]
    groups: list[truth.TrueGroup]
    levels: list[truth.SpanLevel]
    group: str
    first: int
    n_true: int
    features: list[TrueLine]
    cells: list[truth.PhaseCell]
    verdicts: list[MapCount]
    command: str
    figure_first: Figure | None
    figure_list: list[Figure]
    figure_maps: list[Figure]
    nav_marks: dict[str, tuple[str, str]]
    nav_pages: dict[str, str]  # {what the link says: address}


@render.page(router, "/s/{study}/synthetic", "study/synthetic.html", "synthetic")
def synthetic(request: Request, study: StudyName, asked: Annotated[SyntheticQuery, Query()]) -> SyntheticPage:
    """Known true features: which members found them, one by one or as a span, and the map of where that holds."""
    store = request.app.state.studies.get(study)
    known = store.truth
    if known is None:
        return _without(store.study, asked)
    row = store.ensemble(known.row.ensemble)
    n_true = known.groups[asked.group].n_true
    if asked.first and asked.first >= n_true:
        raise BadValue(
            "first", str(asked.first), f"0 to {max(n_true - 1, 0)}: there are {n_true} {asked.group} features"
        )
    seeds = [member.seed for member in store.members(row.ensemble)]
    return SyntheticPage(
        study=store.study,
        ensemble=row,
        synthetic=known.row,
        active_free=known.row.n_free * known.row.rate_free,
        active_low=known.row.n_low * known.row.rate_low,
        random_energy=known.row.r / known.row.d_in,
        sentence=sentence(known),
        theta=row.theta,
        epsilon=row.epsilon,
        seeds=seeds,
        groups=[known.groups[group] for group in ("free", "low", "other")],
        levels=known.levels,
        group=asked.group,
        first=asked.first,
        n_true=n_true,
        features=_lines(known, asked, seeds, row.theta),
        cells=known.cells,
        verdicts=[
            MapCount(verdict, says, sum(cell.verdict == verdict for cell in known.cells))
            for verdict, (_, says) in MARKS.items()
        ],
        command=f"{COMMAND} --name {study}",
        figure_first=_latents(known, row, study),
        figure_list=[_found(known, row.theta, len(seeds))],
        figure_maps=_maps(known),
        nav_marks=MARKS,
        nav_pages=_pages(study, asked, n_true),
    )


def _without(study: Study, asked: SyntheticQuery) -> SyntheticPage:
    """The page of a study whose true features nobody knows."""
    return SyntheticPage(
        study=study, ensemble=None, synthetic=None, active_free=None, active_low=None, random_energy=None, sentence=None,
        theta=None, epsilon=None, seeds=[], groups=[], levels=[], group=asked.group, first=0, n_true=0, features=[], cells=[],
        verdicts=[], command=COMMAND, figure_first=None, figure_list=[], figure_maps=[], nav_marks={}, nav_pages={},
    )  # fmt: skip


@router.get("/s/{study}/synthetic.csv", name="synthetic.csv")
@router.get("/s/{study}/synthetic.parquet", name="synthetic.parquet")
def synthetic_download(request: Request, study: StudyName, asked: Annotated[SyntheticTableQuery, Query()]) -> Response:
    """True features, latents, groups, sets or the map, as CSV (lists as text) or Parquet."""
    store = request.app.state.studies.get(study)
    if store.truth is None:
        raise BadValue("study", repr(study), f"one whose true features are known; make one with: {COMMAND}")
    return render.download(request, store.truth.table(asked.table), f"{study}-{asked.table}")


# -- in words ----------------------------------------------------------------------------------------------------


def sentence(known: KnownTruth) -> str:
    """The page in one sentence, made from its numbers."""
    free, low = known.groups["free"], known.groups["low"]
    levels = {level.set: level for level in known.levels}
    row, parts = known.row, []
    if free.n_true:
        parts.append(f"A seed finds {percent(free.found)} of the {free.n_true:,} free true features")
    if low.n_true:
        by_chance = percent(low.found_chance)
        share_found = (
            f"{percent(low.found)} of the {low.n_true:,} that share {row.r} dimensions ({by_chance} by chance)"
        )
        parts.append(f"{'and' if parts else 'A seed finds'} {share_found}")
        if low.n_latents:
            parts.append(
                f"where the latents it has there come back in {percent(low.p_hat)} of comparisons ({percent(low.chance)} "
                "by chance)"
            )
    text = " ".join(parts[:2]) + "".join(f", {part}" for part in parts[2:])
    if "unstable" in levels:
        which = "that" if low.n_true else "the"
        text += (
            f"; {percent(levels['unstable'].energy)} of the unstable latents’ energy lies in {which} span, "
            f"against {percent(levels['living'].energy)} for as many living ones and {percent(levels['r / d'].energy)} for random "
            "directions"
        )
    else:
        text += "; too few latents are unstable to ask where they lie"
    return f"{text}. {VERDICTS[row.verdict]}"


VERDICTS = {
    "holds": "Here the claim holds: not the features come back, their span does.",
    "chance": "Here nothing can be claimed: in so small a span latents match by chance.",
    "free lost": "Here the claim cannot be tested: not even free features come back.",
    "one by one": "Here the claim fails: low-rank features come back one by one.",
    "no span": "Here the claim fails: the unstable latents do not lie in the span, or hardly more than random ones.",
}


def _lines(known: KnownTruth, asked: SyntheticQuery, seeds: list[int], theta: float) -> list[TrueLine]:
    lines = []
    for at, each in enumerate(known.features(asked.group, first=asked.first, n=PER_PAGE)):
        reached = is_match(each.cosines, theta).tolist()
        nearest = [Nearest(*values) for values in zip(seeds, each.latents, each.cosines, reached, strict=True)]
        lines.append(TrueLine(f"{each.group} {asked.first + at}", each.n_active, sum(reached), nearest))
    return lines


def _pages(study: str, asked: SyntheticQuery, n_true: int) -> dict[str, str]:
    """The places around the listed features."""
    base, pages = f"/s/{study}/synthetic", {}
    if asked.first:
        pages["before"] = render.url(base, group=asked.group, first=max(asked.first - PER_PAGE, 0)) + "#features"
    if asked.first + PER_PAGE < n_true:
        pages["further"] = render.url(base, group=asked.group, first=asked.first + PER_PAGE) + "#features"
    return pages


# -- figures -----------------------------------------------------------------------------------------------------


def _latents(known: KnownTruth, row: Ensemble, study: str) -> Figure:
    spots, latents = [], known.latents(row.theta)
    n_matched = np.array([each.n_matched for each in latents], int)
    named = buckets(n_matched, row.n_comparisons, np.zeros(len(latents), bool), row.epsilon).tolist()
    for bucket, each in zip(named, latents, strict=True):
        says = f"seed {each.seed} #{each.feature}, {each.group}, {each.n_matched} of {row.n_comparisons} seeds"
        link = f"/s/{study}/{row.ensemble}/{each.seed}/{each.feature}"
        spots.append(Spot(bucket, round(each.mean_cosine, 4), round(each.energy, 4), says, link))
    return latents_in_span(spots, row.theta, known.row.r, known.row.d_in, row.n_members)


def _found(known: KnownTruth, theta: float, n_members: int) -> Figure:
    counts = {group: known.groups[group].n_true for group in ("free", "low") if known.groups[group].n_true}
    shares = {group: [0.0] * (n_members + 1) for group in counts}
    for each in known.found(theta):
        shares[each.group][each.n_members] = each.n / counts[each.group]
    return found_by_members(shares, counts, theta)


def _maps(known: KnownTruth) -> list[Figure]:
    """Two quantities on two grids."""
    row, drawn = known.row, []
    marks = ", ".join(f"{mark} {verdict}" for verdict, (mark, _) in MARKS.items())
    shown: tuple[tuple[str, str, Callable[[truth.PhaseCell], float | None]], ...] = (
        ("low_p", "Do low-rank latents come back one by one?", lambda cell: cell.low_p),
        ("energy", "Do unstable latents lie in the true span?", lambda cell: cell.energy),
    )
    what = {"low_p": "p̂ of the latents in the true span", "energy": "Energy of unstable latents in the true span"}
    across: dict[str, tuple[str, Callable[[truth.PhaseCell], Any]]] = {
        "rate": ("low-rank features active at once", lambda cell: round(cell.n_low * cell.rate_low, 6)),
        "n_low": ("number of low-rank features (n_low)", lambda cell: cell.n_low),
    }
    for grid, (title, of) in across.items():
        cells = [cell for cell in known.cells if cell.grid == grid]
        if not cells:
            continue
        xs, ys = sorted({of(cell) for cell in cells}), sorted({cell.r for cell in cells})
        constant = f"n_low = {row.n_low:,}" if grid == "rate" else f"{row.n_low * row.rate_low:g} active at once"
        for name, asks, value in shown:
            squares = [Square(f"{of(c):g}", str(c.r), value(c), c.verdict, _cell_says(c)) for c in cells]
            drawn.append(
                phase_map(
                    f"{name}_{grid}",
                    asks,
                    f"{what[name]}, by r and {title}, at {constant}; each cell {row.n_map_members} seeds on "
                    f"{row.n_map_samples:,} samples. {marks}.",
                    squares,
                    Axis(title, tuple(f"{x:g}" for x in xs)),
                    Axis("dimensions shared (r)", tuple(map(str, ys))),
                )
            )
    return drawn


def _cell_says(cell: truth.PhaseCell) -> str:
    return (
        f"r = {cell.r}, n_low = {cell.n_low:,}, {cell.n_low * cell.rate_low:g} active at once: {MARKS[cell.verdict][1]}<br>"
        f"free p̂ {_number(cell.free_p)} (found {_number(cell.free_found)}), low p̂ {_number(cell.low_p)} of "
        f"{cell.n_low_latents} latents, by chance in the span {_number(cell.chance)}<br>"
        f"unstable {_number(cell.n_unstable)} per seed, energy in the span {_number(cell.energy)}, living "
        f"{_number(cell.living_energy)}, random {_number(cell.random_energy)}, EV {_number(cell.ev)}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
