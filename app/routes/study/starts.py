"""A study's grid of constraint, start and preprocessing: does training bring members together, or did they begin so?"""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from seedscope.app import render
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.trajectory import Along, Scale, along_training
from seedscope.app.findings.signatures import REFERENCE, REFERENCE_RANDOM, Reference, Signature, signatures
from seedscope.app.findings.start_grid import CONSTRAINTS, PREPROCESSING, Cell, Course
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
    held = [(line.cell, line.course) for line in lines if _whole(line.course) and not line.cell.equals]
    missing = grid.missing() if cells else {}
    return StartsPage(
        study=store.study,
        is_grid=grid.is_grid,
        sentence=_sentence(held) if held else None,
        lines=lines,
        signatures=signatures(held) if held else [],
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


def _whole(course: Course | None) -> bool:
    """Whether one-to-one distances are known at both ends."""
    return course is not None and course.start_distance is not None and course.end_distance is not None


def _sentence(held: list[tuple[Cell, Course]]) -> str:
    """The page in one sentence, made from its numbers."""

    def first(start: str) -> Course | None:
        order = ("centred", "raw", "standardised")
        found = [each for each in held if each[0].start == start and each[0].constraint == "none"]
        found = found or [each for each in held if each[0].start == start]
        found.sort(key=lambda each: order.index(each[0].preprocessing))
        return found[0][1] if found else None

    shared, free, own = first("shared"), first("random"), first("independent")
    parts = []
    if shared:
        parts.append(
            f"members that begin at one k-means go from {shared.start_distance:.3f} to {shared.end_distance:.3f}, which says "
            "nothing of convergence"
        )
    if free:
        fell = free.end_high < free.start_low
        level = "" if free.random_distance is None else f" (random dictionaries: {free.random_distance:.3f})"
        parts.append(
            f"members that begin at random {'fall' if fell else 'go'} from {free.start_distance:.3f}{level} to "
            f"{free.end_distance:.3f}{': that much training brought about' if fell else ', no further than pairs differ'}"
        )
    if own:
        parts.append(
            f"members that each begin at a k-means of their own go from {own.start_distance:.3f} to {own.end_distance:.3f}"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _panels(grid: Starts, lines: list[CellLine]) -> dict[str, list[Figure]]:
    """Small multiples: a row for every constraint, a column for every preprocessing."""
    found: dict[str, list[Figure]] = {}
    shown = [line for line in lines if line.course]
    values = [
        point.distance_high
        for line in shown
        for point in grid.points(line.cell.ensemble)["all"]
        if point.distance_high is not None
    ]
    values += [line.course.random_distance or 0.0 for line in shown]
    top = max(values, default=1.0) * 1.05
    for constraint in CONSTRAINTS:
        for preprocessing in PREPROCESSING:
            here = [
                line for line in shown if (line.cell.constraint, line.cell.preprocessing) == (constraint, preprocessing)
            ]
            if here and values:
                found.setdefault(constraint, []).append(_panel(grid, here, constraint, preprocessing, top))
    return found


def _panel(grid: Starts, here: list[CellLine], constraint: str, preprocessing: str, top: float) -> Figure:
    drawn, table = [], []
    for line in here:
        words, colour, dash, symbol = DRAWN[line.cell.start]
        twins = sum(other.cell.start == line.cell.start for other in here)
        name = f"{words} ({line.cell.ensemble})" if twins > 1 else words
        points, tokens = grid.points(line.cell.ensemble), grid.tokens(line.cell.ensemble)
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
    course = here[0].course
    if course.random_distance is not None:
        ends = sorted({at for line in drawn for at in line.tokens})
        level = [course.random_distance] * len(ends)
        drawn.append(Along("random dictionaries", ends, level, colour="@null", dash="dash", marker=None))
    agreed = any(line.cell.shared_start != "no" for line in here)
    return along_training(
        f"{constraint}_{preprocessing}".lower().replace(" ", "_"),
        preprocessing.capitalize(),
        f"{SAYS[constraint].split(':')[0]}. Hungarian distance, mean of {course.n_pairs} pairs of {course.n_members} "
        f"members; bands: smallest and largest pair{'; of the shared start: agreement' if agreed else ''}.",
        drawn,
        Scale("Hungarian distance", range=(-0.03 * top, top)),
        header=("start", "tokens", "distance", "pairs", "living alone", "mean best cosine"),
        table=table,
    )
