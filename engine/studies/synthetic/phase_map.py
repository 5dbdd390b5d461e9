"""The phase map of a synthetic study: where low-rank features are recovered as a span and not one by one.

One small ensemble is trained and measured for every cell of two grids: subspace dimension against how often, or how many,
low-rank features are active.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from seedscope.engine.contract.files import write_whole
from seedscope.engine.contract.recipe import TrainConfig, as_parameters
from seedscope.engine.contract.stability import EPSILON, THETA
from seedscope.engine.contract.tables.synthetic import PhaseCell
from seedscope.engine.executors.local import LocalProcesses
from seedscope.engine.executors.unit import Unit, run_units
from seedscope.engine.matching.match import match_ensemble
from seedscope.engine.saes.encode import measure as evaluate
from seedscope.engine.studies.synthetic.generator import EVALUATION, FREE, LOW, TRAINING, SyntheticConfig, draw_truth
from seedscope.engine.studies.synthetic.recovery import Recovery, measure, verdict
from seedscope.engine.studies.synthetic.samples import draw_rows
from seedscope.engine.training.ensemble import train_ensemble

VERSION = 1  # of what a cell holds; older ones are computed again
MOST_WORKERS = 8  # processes that cells are computed in: half a gigabyte each
EVALUATED = 16_384  # samples that say which latents of a cell live, and how much is explained
AT_ONCE = (0.5, 1.0, 2.0, 3.0, 4.0, 8.0)  # low-rank features active at once: n_low * rate_low
RANKS = (4, 8, 16, 24, 32, 48, 64)
COUNTS = (24, 48, 96, 200, 600)  # low-rank features, by how many of which the span is filled
COUNTED_RANKS = (8, 16, 24, 32, 48)
Number = int | float
GRIDS = ("rate", "n_low")
# r against the rate at the study's n_low; r against n_low at the study's number active at once


@dataclass(frozen=True)
class CellSettings:
    """What a cell is computed from."""

    grid: str
    samples: SyntheticConfig
    recipe: TrainConfig
    theta: float = THETA
    epsilon: float = EPSILON

    @property
    def key(self) -> str:
        """16 hex digits over everything that a cell depends on."""
        content = [VERSION, asdict(self.samples), as_parameters(self.recipe), self.theta, self.epsilon, EVALUATED]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def map_cells(
    samples: SyntheticConfig, recipe: TrainConfig, *, theta: float = THETA, epsilon: float = EPSILON
) -> list[CellSettings]:
    """Every cell of both grids that a study's settings allow, its own among them; all else is as in the study."""
    cells, active, n_low = [], samples.active_low, samples.n_low
    if not n_low:
        return []
    for r in _with(RANKS, samples.r, most=samples.d_in):
        for at_once in _with(AT_ONCE, active, most=n_low):
            cells.append(("rate", replace(samples, r=int(r), rate_low=at_once / n_low)))
    for r in _with(COUNTED_RANKS, samples.r, most=samples.d_in):
        for n in _with(COUNTS, n_low, least=active):
            cells.append(("n_low", replace(samples, r=int(r), n_low=int(n), rate_low=active / n)))
    return [CellSettings(grid, each, recipe, theta, epsilon) for grid, each in cells]


def _with(values: Sequence[Number], own: Number, *, least: Number = 0, most: Number = np.inf) -> list[Number]:
    return sorted({each for each in (*values, own) if least <= each <= most})


def draw_map(
    folder: Path,
    wanted: Sequence[CellSettings],
    *,
    workers: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[PhaseCell]:
    """All cells, computed where the folder does not hold them; each is there as soon as it is done. Seconds a cell.

    Cells are computed side by side in `workers` processes, one per core unless said, with a thread each: steps of such
    small SAEs gain little from a second one, and wait for it where others use the machine. With 1 in this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lacking = list({cell.key: cell for cell in wanted if _read(folder, cell) is None}.values())
    workers = min(os.cpu_count() or 1, MOST_WORKERS, len(lacking)) if workers is None else workers
    n_held = len({cell.key for cell in wanted}) - len(lacking)
    report(n_held, n_held + len(lacking))
    if workers <= 1:
        for done, cell in enumerate(lacking):
            _compute_into(folder, cell)
            report(n_held + done + 1, n_held + len(lacking))
        return read_map(folder, wanted)
    pool = LocalProcesses(workers, 1)
    try:
        units = [Unit(_compute_into, (folder, cell), _path(folder, cell)) for cell in lacking]
        run_units(pool, units, report=lambda done, total: report(n_held + done, n_held + total))
    except BaseException:
        pool.shutdown(cancel=True)
        raise
    pool.shutdown()
    return read_map(folder, wanted)


def _compute_into(folder: Path, cell: CellSettings) -> None:
    write_whole(_path(folder, cell), json.dumps(asdict(compute(cell)), indent=1), durable=False)


def _path(folder: Path, cell: CellSettings) -> Path:
    return folder / f"{cell.key}.json"


def read_map(folder: Path, wanted: Sequence[CellSettings]) -> list[PhaseCell]:
    """The cells that were computed."""
    return [computed for cell in wanted if (computed := _read(folder, cell))]


def _read(folder: Path, cell: CellSettings) -> PhaseCell | None:
    """A cell that was computed, on the grid that is asked for: both grids hold the cell of the study's own settings."""
    try:
        content = json.loads(_path(folder, cell).read_text())
        return PhaseCell(**content | {"ensemble": "", "grid": cell.grid})
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def compute(cell: CellSettings) -> PhaseCell:
    """Train one cell's ensemble and say what it recovered."""
    samples, recipe = cell.samples, cell.recipe
    members = train_ensemble(draw_rows(samples, recipe.n_tokens, stream=TRAINING), recipe)
    measures = evaluate(members, draw_rows(samples, EVALUATED, stream=EVALUATION))
    live = measures.n_active > 0
    matches = match_ensemble(members, live, assign=False)
    truth = draw_truth(samples)
    recovery = measure(
        truth, list(members.W_dec), matches.cosine, ~live, theta=cell.theta, epsilon=cell.epsilon, seed=samples.seed
    )
    return summarise(cell, recovery, float(measures.ev.mean()), verdict(recovery, truth))


def summarise(cell: CellSettings, recovery: Recovery, ev: float, says: str) -> PhaseCell:
    """A cell of what was recovered there."""
    samples, free, low = cell.samples, recovery.groups[FREE], recovery.groups[LOW]
    unstable, living = recovery.levels.get("unstable"), recovery.levels.get("living")
    return PhaseCell(
        ensemble="",
        grid=cell.grid,
        r=samples.r,
        n_low=samples.n_low,
        rate_low=samples.rate_low,
        n_members=len(cell.recipe.seeds),
        n_samples=cell.recipe.n_tokens,
        ev=ev,
        free_found=free.found,
        free_p=free.p_hat,
        n_free_latents=free.n_latents,
        low_found=low.found,
        low_p=low.p_hat,
        n_low_latents=low.n_latents,
        chance=low.chance,
        n_unstable=unstable and unstable.n_rows,
        energy=unstable and unstable.energy,
        living_energy=living and living.energy,
        random_energy=samples.r / samples.d_in,
        span_overlap=unstable and unstable.span_overlap,
        cross_overlap=unstable and unstable.cross_overlap,
        verdict=says,
    )
