"""Where a study's ensembles began, under which constraint and in which space, and how alike their members became from there."""

import json
from dataclasses import asdict, dataclass, replace
from statistics import fmean

import pyarrow as pa

from seedscope.app.store.database import Database
from seedscope.app.store.missing import Missing
from seedscope.engine.contract.tables.study import Ensemble
from seedscope.engine.contract.tables.training import AgreementPoint, Checkpoint, CosineGeometry

CONSTRAINTS = ("none", "A", "RA", "RA unprojected")
STARTS = ("shared", "independent", "random")
PREPROCESSING = ("raw", "centred", "standardised")
_CONSTRAINT = {"archetypal": "A", "relaxed-archetypal": "RA"}
_START = {"kmeans-shared": "shared", "kmeans-independent": "independent", "mixtures": "random"}
_FACTORS = ("variant", "start", "centroids", "delta", "preprocessing")


@dataclass(frozen=True)
class Cell:
    """One place of the grid: constraint, start, preprocessing; and the ensemble that stands there."""

    constraint: str  # one of CONSTRAINTS
    start: str  # one of STARTS
    preprocessing: str  # one of PREPROCESSING
    ensemble: str
    variant: str
    group: int  # ensembles of one group differ in these three alone
    equals: bool  # with W = 1 this place is that of no constraint: the ensemble is that one's
    shared_start: str


@dataclass(frozen=True)
class Course:
    """Where a cell's members stand at the start and at the end; distances and cosines are means over pairs of members.

    In the space of training. What was not computed is None.
    """

    n_members: int
    n_pairs: int
    steps: int  # of the end
    start_distance: float | None
    start_low: float | None  # smallest and largest of the pairs
    start_high: float | None
    end_distance: float | None
    end_low: float | None
    end_high: float | None
    start_live: float | None  # distances of features that are active on the evaluation tokens at that step
    end_live: float | None
    start_cosine: float  # mean best cosine
    end_cosine: float
    start_centred: float | None  # distance after the mean direction was taken out of every row
    end_centred: float | None
    start_share: float | None  # squared length of the mean of a dictionary's unit rows
    end_share: float | None
    random_distance: float | None  # of random unit dictionaries of that size
    random_cosine: float | None
    ev: float | None
    dead: float | None  # share of features


class Starts:
    """The grid of a study."""

    def __init__(self, store: Database) -> None:
        self._store = store
        rows = [row for row in store.ensembles.values() if row.recipe and row.control_of is None]
        groups = list(dict.fromkeys(map(_rest, rows)))
        held = [_cell(row, groups.index(_rest(row))) for row in rows]
        known = {(cell.constraint, cell.start, cell.preprocessing, cell.group): cell for cell in held}
        borrowed = []
        for cell in held:
            for start in STARTS if cell.constraint == "RA unprojected" else ():
                twin = known.get(("none", start, cell.preprocessing, cell.group))
                if start != cell.start and twin:
                    borrowed.append(replace(twin, constraint=cell.constraint, equals=True))
        self.cells = sorted(held + borrowed, key=_order)

    @property
    def is_grid(self) -> bool:
        """Whether any two ensembles differ in constraint, start or preprocessing."""
        return len({(cell.constraint, cell.start, cell.preprocessing) for cell in self.cells}) > 1

    def points(self, ensemble: str) -> dict[str, list[AgreementPoint]]:
        """{population: points in the order of steps}; empty without an analysis of the trajectory."""
        found: dict[str, list[AgreementPoint]] = {}
        for point in self._store.rows(AgreementPoint, "ensemble = ?", [ensemble]):
            found.setdefault(point.population, []).append(point)
        return found

    def tokens(self, ensemble: str) -> dict[int, int]:
        """{step: tokens that each member had seen}."""
        return {each.step: each.tokens for each in self._store.rows(Checkpoint, "ensemble = ?", [ensemble])}

    def geometry(self, ensemble: str) -> list[CosineGeometry]:
        """What cosines are worth, in the order of steps."""
        return self._store.rows(CosineGeometry, "ensemble = ?", [ensemble])

    def course(self, ensemble: str) -> Course | None:
        """Start and end of an ensemble; None where its trajectory was not analysed."""
        points = self.points(ensemble)
        if "all" not in points:
            return None
        first, last = points["all"][0], points["all"][-1]
        lives = {point.step: point.distance for point in points.get("live", ())}
        spaces = {each.step: each for each in self.geometry(ensemble)}
        before, after = spaces.get(first.step), spaces.get(last.step)
        row, members = self._store.ensemble(ensemble), self._store.members(ensemble)
        evs = [c.evs for c in self._store.rows(Checkpoint, "ensemble = ?", [ensemble]) if c.step == last.step and c.evs]
        known = [member.n_dead for member in members if member.n_dead is not None]
        return Course(
            n_members=row.n_members,
            n_pairs=last.n_pairs,
            steps=last.step,
            start_distance=first.distance,
            start_low=first.distance_low,
            start_high=first.distance_high,
            end_distance=last.distance,
            end_low=last.distance_low,
            end_high=last.distance_high,
            start_live=lives.get(first.step),
            end_live=lives.get(last.step),
            start_cosine=first.best_cosine,
            end_cosine=last.best_cosine,
            start_centred=before and before.centred_distance,
            end_centred=after and after.centred_distance,
            start_share=before and before.mean_share,
            end_share=after and after.mean_share,
            random_distance=after and after.random_distance,
            random_cosine=after and after.random_best_cosine,
            ev=fmean(evs[0]) if evs else _mean([member.ev for member in members]),
            dead=fmean(known) / row.d_sae if known else None,
        )

    def missing(self) -> dict[str, Missing]:
        """{ensemble of the grid without a trajectory: why, and what adds it}."""
        found = {}
        for name in dict.fromkeys(cell.ensemble for cell in self.cells):
            if not self.points(name):
                command = f"seedscope analyze {self._store.study.study} --only trajectory"
                lack = Missing("agreement along training, from step 0", "not computed yet", command)
                found[name] = self._store.missing(name).get("trajectory", lack)
        return found

    def cells_table(self) -> pa.Table:
        """Every cell with its start and end, for downloads."""
        empty = dict.fromkeys(Course.__dataclass_fields__)
        courses = {cell.ensemble: self.course(cell.ensemble) for cell in self.cells}
        lines = [asdict(c) | (asdict(courses[c.ensemble]) if courses[c.ensemble] else empty) for c in self.cells]
        return pa.Table.from_pylist(lines)

    def points_table(self) -> pa.Table:
        """Every checkpoint of every cell, for downloads."""
        lines = [
            asdict(cell) | asdict(point)
            for cell in self.cells
            for points in self.points(cell.ensemble).values()
            for point in points
        ]
        names = list(Cell.__dataclass_fields__) + [n for n in AgreementPoint.__dataclass_fields__ if n != "ensemble"]
        return pa.Table.from_pylist(lines) if lines else pa.table({name: pa.nulls(0) for name in names})


def _cell(row: Ensemble, group: int) -> Cell:
    """An ensemble's place; fields that a recipe does not name are at their defaults."""
    recipe = json.loads(row.recipe)
    variant = recipe.get("variant", "topk")
    start = recipe["centroids"] if "centroids" in recipe else _START.get(recipe.get("start", "random"), "random")
    constraint = "RA unprojected" if recipe.get("start") == "mixtures" else _CONSTRAINT.get(variant, "none")
    preprocessing = recipe.get("preprocessing", "raw")
    return Cell(constraint, start, preprocessing, row.ensemble, variant, group, False, row.shared_start)


def _rest(row: Ensemble) -> str:
    """All that makes an ensemble beside the factors of the grid; archetypal ones are TopK with a constraint."""
    told = json.loads(row.recipe)
    recipe = {name: value for name, value in told.items() if name not in _FACTORS}
    variant = told.get("variant", "topk")
    return json.dumps([recipe, "topk" if variant in _CONSTRAINT else variant, row.hookpoint], sort_keys=True)


def _order(cell: Cell) -> tuple[int, int, int, str]:
    places = (CONSTRAINTS, cell.constraint), (STARTS, cell.start), (PREPROCESSING, cell.preprocessing)
    return (*(names.index(name) for names, name in places), cell.ensemble)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
