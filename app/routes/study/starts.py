"""A study's grid of constraint, start and preprocessing: agreement of members from step 0 on, and paper B's signatures."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from seedscope.app import render
from seedscope.app.figures.drawing import Figure, Heading
from seedscope.app.figures.trajectory import Along, Scale, along_training
from seedscope.app.findings.signatures import REFERENCE, REFERENCE_RANDOM, Reference, Signature, signatures
from seedscope.app.findings.start_grid import CONSTRAINTS, PREPROCESSING, Cell, Course, MeasuredCell
from seedscope.app.routes.address import Plain, StudyName
from seedscope.app.store.errors import BadValue
from seedscope.app.store.missing import Missing
from seedscope.app.store.starts import Starts
from seedscope.engine.contract.tables.study import Study

router = APIRouter()
COMMAND = "seedscope demo --full"
DRAWN = {
    "shared": ("shared k-means", "@accent", "solid", "circle"),
    "independent": ("independent k-means", "@ink", "dash", "square"),
    "random": ("random", "@soft", "dot", "diamond"),
}
SAYS = {
    "none": "No constraint",
    "A": "Archetypal",
    "RA": "Relaxed archetypal (RA)",
    "RA unprojected": "RA unprojected: begins as RA, no constraint",
}


class StartsTableQuery(Plain):
    """Which table is downloaded."""

    table: Literal["cells", "points"] = "cells"


@dataclass(frozen=True)
class CellLine:
    """A place of the grid and how its members fare; without an analysis of the trajectory, no course."""

    cell: Cell
    course: Course | None


@dataclass(frozen=True)
class StartsPage:
    """`/s/{study}/starts`: the grid, its trajectories and what they say of paper B's signatures."""

    study: Study
    is_grid: bool  # whether any two ensembles differ in constraint, start or preprocessing
    sentence: str | None
    lines: list[CellLine]
    signatures: list[Signature]
    reference: list[Reference]
    reference_random: float
    missing: dict[str, Missing]  # {ensemble: what it lacks}
    command: str
    figure_panels: dict[str, list[Figure]]  # {constraint: one for each preprocessing}
    nav_says: dict[str, str]
    nav_starts: dict[str, str]
    nav_lacking: list[Missing]  # each command once


@render.page(router, "/s/{study}/starts", "study/starts.html", "starts")
def starts(request: Request, study: StudyName, address: Annotated[Plain, Query()]) -> StartsPage:
    """Constraint x start x preprocessing: agreement from step 0 on, and which of paper B's signatures hold."""
    store = request.app.state.studies.get(study)
    grid = Starts(store)
    cells = grid.cells if grid.is_grid else []
    lines = [CellLine(cell, grid.course(cell.ensemble)) for cell in cells]
    own = [(line.cell, line.course) for line in lines if line.course and not line.cell.equals]
    measured = [each for cell, course in own if (each := MeasuredCell.of(cell, course)) is not None]
    missing = grid.missing() if cells else {}
    return StartsPage(
        study=store.study,
        is_grid=grid.is_grid,
        sentence=_sentence(measured) if measured else None,
        lines=lines,
        signatures=signatures(measured) if measured else [],
        reference=list(REFERENCE),
        reference_random=REFERENCE_RANDOM,
        missing=missing,
        command=COMMAND,
        figure_panels=_panels(grid, lines),
        nav_says=SAYS,
        nav_starts={start: drawn[0] for start, drawn in DRAWN.items()},
        nav_lacking=list({lack.command or lack.reason: lack for lack in missing.values()}.values()),
    )


@router.get("/s/{study}/starts.csv", name="starts.csv")
@router.get("/s/{study}/starts.parquet", name="starts.parquet")
def starts_download(request: Request, study: StudyName, asked: Annotated[StartsTableQuery, Query()]) -> Response:
    """The grid with starts and ends, or agreement at every checkpoint, as CSV or Parquet."""
    grid = Starts(request.app.state.studies.get(study))
    if not grid.is_grid:
        raise BadValue(
            "study", repr(study), f"one whose ensembles differ in start or constraint; make one with: {COMMAND}"
        )
    table = grid.cells_table() if asked.table == "cells" else grid.points_table()
    return render.download(request, table, f"{study}-starts-{asked.table}")


def _sentence(measured: list[MeasuredCell]) -> str:
    """The page in one sentence, made from its numbers."""

    def first(start: str) -> MeasuredCell | None:
        order = ("centred", "raw", "standardised")
        candidates = [each for each in measured if each.cell.start == start and each.cell.constraint == "none"]
        candidates = candidates or [each for each in measured if each.cell.start == start]
        return min(candidates, key=lambda each: order.index(each.cell.preprocessing), default=None)

    shared, free, own = first("shared"), first("random"), first("independent")
    parts = []
    if shared:
        parts.append(
            f"seeds that begin at one k-means go from {shared.start:.3f} to {shared.end:.3f}, which says "
            "nothing of convergence"
        )
    if free:
        fell = free.end_high < free.start_low
        random = free.course.random_distance
        level = "" if random is None else f" (random dictionaries: {random:.3f})"
        parts.append(
            f"seeds that begin at random {'fall' if fell else 'go'} from {free.start:.3f}{level} to "
            f"{free.end:.3f}{': that much training brought about' if fell else ', no further than pairs differ'}"
        )
    if own:
        parts.append(f"seeds that each begin at a k-means of their own go from {own.start:.3f} to {own.end:.3f}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _panels(grid: Starts, lines: list[CellLine]) -> dict[str, list[Figure]]:
    """Small multiples: a row for every constraint, a column for every preprocessing."""
    panels: dict[str, list[Figure]] = {}
    shown = [(line.cell, line.course) for line in lines if line.course]
    values = [
        point.distance_high
        for cell, _ in shown
        for point in grid.points(cell.ensemble)["all"]
        if point.distance_high is not None
    ]
    values += [course.random_distance or 0.0 for _, course in shown]
    top = max(values, default=1.0) * 1.05
    for constraint in CONSTRAINTS:
        for preprocessing in PREPROCESSING:
            here = [
                (cell, course)
                for cell, course in shown
                if (cell.constraint, cell.preprocessing) == (constraint, preprocessing)
            ]
            if here and values:
                panels.setdefault(constraint, []).append(_panel(grid, here, constraint, preprocessing, top))
    return panels


def _panel(grid: Starts, here: list[tuple[Cell, Course]], constraint: str, preprocessing: str, top: float) -> Figure:
    drawn, table = [], []
    for cell, _ in here:
        words, colour, dash, symbol = DRAWN[cell.start]
        twins = sum(other.start == cell.start for other, _ in here)
        name = f"{words} ({cell.ensemble})" if twins > 1 else words
        points, tokens = grid.points(cell.ensemble), grid.tokens(cell.ensemble)
        live = {point.step: point.distance for point in points.get("live", ())}
        known = [point for point in points["all"] if point.distance is not None]
        at = [tokens[point.step] for point in known]
        drawn.append(
            Along(
                name, at, [p.distance for p in known], [p.distance_low for p in known], [p.distance_high for p in known],
                colour, dash, 2, symbol,
            )
        )  # fmt: skip
        table += [
            (
                name, f"{tokens[p.step]:,}", f"{p.distance:.3f}", f"{p.distance_low:.3f} to {p.distance_high:.3f}",
                "–" if live.get(p.step) is None else f"{live[p.step]:.3f}", f"{p.best_cosine:.3f}",
            )
            for p in known
        ]  # fmt: skip
    course = here[0][1]
    if course.random_distance is not None:
        ends = sorted({at for line in drawn for at in line.tokens})
        level: list[float | None] = [course.random_distance] * len(ends)
        drawn.append(Along("random dictionaries", ends, level, colour="@null", dash="dash", marker=None))
    agreed = any(cell.shared_start != "no" for cell, _ in here)
    return along_training(
        f"{constraint}_{preprocessing}".lower().replace(" ", "_"),
        preprocessing.capitalize(),
        f"{SAYS[constraint].split(':')[0]}. Hungarian distance, mean of {course.n_pairs} pairs of {course.n_members} "
        f"seeds; bands: smallest and largest pair{'; of the shared start: agreement' if agreed else ''}.",
        drawn,
        Scale("Hungarian distance", range=(-0.03 * top, top)),
        header=(
            "start",
            Heading("tokens", "token_position"),
            Heading("distance", "hungarian_distance"),
            Heading("pairs", "pair_range"),
            Heading("living alone", "live_distance"),
            Heading("mean best cosine", "best_cosine"),
        ),
        table=table,
    )
