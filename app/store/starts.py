"""A study's grid of starts as stored: each ensemble's cell, its course from start to end, and its checkpoints."""

import json
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import pyarrow as pa

from seedscope.app.findings.start_grid import CONSTRAINTS, PREPROCESSING, STARTS, Cell, Course
from seedscope.app.store.database import Database
from seedscope.app.store.missing import Missing
from seedscope.engine.contract.tables.study import Ensemble
from seedscope.engine.contract.tables.training import AgreementPoint, Checkpoint, CosineGeometry

_CONSTRAINT = {"archetypal": "A", "relaxed-archetypal": "RA"}
_START = {"kmeans-shared": "shared", "kmeans-independent": "independent", "mixtures": "random"}
_FACTORS = ("variant", "start", "centroids", "delta", "preprocessing")


class Starts:
    """The grid of a study."""

    def __init__(self, store: Database) -> None:
        self._store = store
        rows = [row for row in store.ensembles.values() if row.recipe and row.control_of is None and _has_place(row)]
        groups = list(dict.fromkeys(map(_rest, rows)))
        own = [_cell(row, groups.index(_rest(row))) for row in rows]
        by_place = {(cell.constraint, cell.start, cell.preprocessing, cell.group): cell for cell in own}
        borrowed = []
        for cell in own:
            for start in STARTS if cell.constraint == "RA unprojected" else ():
                twin = by_place.get(("none", start, cell.preprocessing, cell.group))
                if start != cell.start and twin:
                    borrowed.append(replace(twin, constraint=cell.constraint, equals=True))
        self.cells = sorted(own + borrowed, key=_order)

    @property
    def is_grid(self) -> bool:
        """Whether any two ensembles differ in constraint, start or preprocessing."""
        return len({(cell.constraint, cell.start, cell.preprocessing) for cell in self.cells}) > 1

    def points(self, ensemble: str) -> dict[str, list[AgreementPoint]]:
        """{population: points in the order of steps}; empty without an analysis of the trajectory."""
        by_population: dict[str, list[AgreementPoint]] = {}
        for point in self._store.rows(AgreementPoint, "ensemble = ?", [ensemble]):
            by_population.setdefault(point.population, []).append(point)
        return by_population

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
            start_centred=before.centred_distance if before else None,
            end_centred=after.centred_distance if after else None,
            start_share=before.mean_share if before else None,
            end_share=after.mean_share if after else None,
            random_distance=after.random_distance if after else None,
            random_cosine=after.random_best_cosine if after else None,
            ev=fmean(evs[0]) if evs else _mean([member.ev for member in members]),
            dead=fmean(known) / row.d_sae if known else None,
        )

    def missing(self) -> dict[str, Missing]:
        """{ensemble of the grid without a trajectory: why, and what adds it}."""
        missing = {}
        for name in dict.fromkeys(cell.ensemble for cell in self.cells):
            if not self.points(name):
                command = f"seedscope analyze {self._store.study.study} --only trajectory"
                lack = Missing("agreement along training, from step 0", "not computed yet", command)
                missing[name] = self._store.missing(name).get("trajectory", lack)
        return missing

    def cells_table(self) -> pa.Table:
        """Every cell with its start and end, for downloads."""
        unknown: dict[str, Any] = dict.fromkeys(Course.__dataclass_fields__)
        courses = {cell.ensemble: self.course(cell.ensemble) for cell in self.cells}
        columns = {name: unknown if course is None else asdict(course) for name, course in courses.items()}
        return pa.Table.from_pylist([asdict(cell) | columns[cell.ensemble] for cell in self.cells])

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
    recipe = json.loads(row.recipe or "{}")
    variant = recipe.get("variant", "topk")
    start = recipe["centroids"] if "centroids" in recipe else _START.get(recipe.get("start", "random"), "random")
    constraint = "RA unprojected" if recipe.get("start") == "mixtures" else _CONSTRAINT.get(variant, "none")
    preprocessing = recipe.get("preprocessing", "raw")
    return Cell(constraint, start, preprocessing, row.ensemble, variant, group, False, row.shared_start)


def _has_place(row: Ensemble) -> bool:
    """Whether its members begin somewhere in paper B's grid, which knows no random start that all share."""
    return json.loads(row.recipe or "{}").get("start", "random") in (*_START, "random")


def _rest(row: Ensemble) -> str:
    """All that makes an ensemble beside the factors of the grid; archetypal ones are TopK with a constraint."""
    settings = json.loads(row.recipe or "{}")
    recipe = {name: value for name, value in settings.items() if name not in _FACTORS}
    variant = settings.get("variant", "topk")
    return json.dumps([recipe, "topk" if variant in _CONSTRAINT else variant, row.hookpoint], sort_keys=True)


def _order(cell: Cell) -> tuple[int, int, int, str]:
    constraint, start = CONSTRAINTS.index(cell.constraint), STARTS.index(cell.start)
    return constraint, start, PREPROCESSING.index(cell.preprocessing), cell.ensemble


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
