"""Train an ensemble: all members in lockstep on one stream of activations, in groups where memory is short.

Recipe (dictionary_learning's, as Song et al. use it): inputs preprocessed as configured and scaled to unit mean square norm,
unit decoder rows with the parallel part of their gradient removed, AuxK for silent features, Adam, warm-up, decay over
the last fifth.
Differences between variants are in engine.training.variants.
"""

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seedscope.engine.activations.shards import reopened
from seedscope.engine.contract.files import write_whole
from seedscope.engine.contract.recipe import TrainConfig, as_parameters
from seedscope.engine.executors.local import HERE
from seedscope.engine.executors.unit import Executor, Unit, run_units
from seedscope.engine.machine import GIB, available_memory
from seedscope.engine.saes import sae as saes
from seedscope.engine.saes.sae import SAE
from seedscope.engine.training import memory
from seedscope.engine.training.batches import Rows, batches, require_finite
from seedscope.engine.training.checkpoints import EVERY_S, Checkpoints, digest
from seedscope.engine.training.members import SAMPLE_ROWS, DivergedError, Training, centroids_of
from seedscope.engine.training.preprocessing import Space, space_of
from seedscope.engine.training.snapshots import Snapshots
from seedscope.engine.training.trace import EVALUATED_ROWS, Point, Trace, measured, points_of
from seedscope.engine.training.trace import read as read_trace
from seedscope.engine.training.variants import RECIPES, Step

ROWS_PER_CENTROID = 16
UNIT = 1e-3  # how far the norm of a start's decoder row may be from 1
Report = Callable[[int, int], None]


def learning_rate_factor(step: int, n_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, plateau, linear decay to zero at the end; in (0, 1]."""
    warmup = max(config.warmup_frac * n_steps, 1)
    decay = max(config.decay_frac * n_steps, 1)
    return min((step + 1) / warmup, 1.0, (n_steps - step) / decay)


def train_ensemble(
    activations: Rows,
    config: TrainConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    report: Report = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
    checkpoints: Path | None = None,
    every_s: float = EVERY_S,
    trace: Trace | None = None,
    snapshots: Snapshots | None = None,
    available: int | None = None,
    start: SAE | None = None,
    executor: Executor = HERE,
    rows_at: Path | None = None,
) -> SAE:
    """Train one SAE of the config's variant per seed on `activations` (rows, d_in), all members in each step.

    Members never exchange anything: training them one by one gives the same weights up to rounding. The returned SAE
    lies on the CPU and takes raw activations; what is done to them before training is folded into it, exactly. With one
    standard deviation per dimension its decoder rows then are no unit vectors.

    With `checkpoints`, a folder, the state is kept there every `every_s` seconds, and a training of the same recipe and
    rows goes on from it: to the same weights, bit for bit, on the same machine. The folder is the caller's to remove when
    the members are safe. `trace` gets a point at each of its steps, `snapshots` keeps whole members at its steps, `say` gets
    a line on the memory and disk that will be taken. Members that do not fit into `available` bytes together (what is free, if not
    given) are trained in groups, one after another; their agreement in the trace is then that inside groups.
    `start` takes the place of random weights: SAEs for raw activations with the config's seeds and the variant's convention,
    whose decoder rows are unit vectors in the space of training, which keeps them so.

    With an `executor` that works elsewhere, each group is a unit there; it needs `checkpoints`, and `rows_at`, the folder in which
    a harvest left these very activations. The executor's `members` bound the groups wherever they are trained.

    Cost per member and token: 4 d_in d_sae FLOPs for the encoder, 4 d_in per active feature for the decoder. Raises
    ValueError for too few rows or rows that are not finite, and for a start that does not fit; DivergedError; and
    OutOfMemoryError where a single member does not fit or memory runs out against expectation.
    """
    device, sample = torch.device(device), _sample(activations, config, dtype)
    space = space_of(sample, config.preprocessing)
    d_in = activations.shape[1]
    if start is not None:
        _require_start(start, config, space)
    from_start = {} if start is None else {"start": [start.digest(member) for member in range(start.n_members)]}
    identity = digest(as_parameters(config) | from_start, sample, len(activations)) if checkpoints else ""
    need = memory.predicted(config, d_in, dtype=dtype, sample_rows=len(sample), keeps=checkpoints is not None)
    available = _available_bytes(device) if available is None else available
    groups = _groups(checkpoints, identity)
    if groups is None:
        # By itself, so that ensembles whose members see other samples, or none of their own, end with the same first member, bit
        # for bit: in lockstep its rounding would depend on how many features of the others are silent.
        first = [config.seeds[:1]] if config.data_samples > 1 and len(config.seeds) > 1 else []
        others = replace(config, seeds=config.seeds[len(first) :])
        groups = [*first, *memory.in_groups(others, d_in, need, available, at_most=executor.members)]
    most = max(map(len, groups))
    at_once = "all seeds at once" if len(groups) == 1 else f"{len(groups)} groups of at most {most} seeds, one by one"
    say(f"{at_once}, about {need.of(most) / GIB:.2f} of the {available / GIB:.1f} GiB of memory that are free")
    if checkpoints:
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_whole(checkpoints / "groups.json", json.dumps({"made_from": identity, "groups": groups}))
    if snapshots is not None:
        n_bytes = len(config.seeds) * memory.n_weights(config, d_in) * dtype.itemsize
        n = len(snapshots.begin(config.n_tokens // config.batch, n_bytes))
        say(f"seeds are kept at {n} steps along training, which takes {n * n_bytes / GIB:.2f} GiB of disk")
    in_units = not executor.is_here and checkpoints is not None and rows_at is not None
    if checkpoints is not None and rows_at is not None and not executor.is_here:
        task = _task(config, dtype, executor.device or device.type, identity, checkpoints, rows_at, snapshots, start)
        _run_in_units(task, groups, executor, report, say)
    done: list[SAE] = []
    for seeds in groups:
        part = replace(config, seeds=seeds)
        place = checkpoints and checkpoints / f"from-seed-{seeds[0]}"
        kept = Checkpoints(place, identity, every_s=every_s) if place else None
        made, total = sum(len(each.seeds) for each in done), len(config.seeds)

        def report_group(
            tokens: int, all_tokens: int, behind: int = made, n: int = len(seeds), of: int = total
        ) -> None:
            report((behind * all_tokens + n * tokens) // of, all_tokens)

        if place and (in_units or len(groups) > 1) and (place / identity).exists():
            done.append(saes.load(place / identity, seeds))
            if trace is not None:
                trace.points += read_trace(place / identity)
                if in_units and trace.points:
                    trace.on_point(trace.points[-1])
            continue
        try:
            done.append(_train(activations, part, sample, space, device, report_group, kept, trace, snapshots, start))
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise _out_of_memory(need, len(seeds), _available_bytes(device)) from None
        if place and len(groups) > 1:
            points = None if trace is None else [point for point in trace.points if point.seeds == seeds]
            _keep_group(place / identity, done[-1], points)
    return done[0] if len(done) == 1 else _as_one_ensemble(done)


class GroupTask(NamedTuple):
    """A training of which groups of members are units, in plain values and paths that another process can read."""

    config: TrainConfig
    """With the seeds of all groups."""
    dtype: torch.dtype
    device: str
    identity: str
    checkpoints: str
    rows_at: str
    snapshots: str | None
    """Folder beside which members are kept at steps."""
    start: str | None
    """Folder of the SAEs that training begins with."""


def _task(
    config: TrainConfig,
    dtype: torch.dtype,
    device: str,
    identity: str,
    checkpoints: Path,
    rows_at: Path,
    snapshots: Snapshots | None,
    start: SAE | None,
) -> GroupTask:
    """The same training for other processes; a start is written beside the checkpoints."""
    begun = checkpoints.absolute() / f"start-{identity}"
    if start is not None and not begun.exists():
        _keep_group(begun, start, None)
    return GroupTask(
        config, dtype, device, identity, str(checkpoints.absolute()), str(rows_at.absolute()),
        None if snapshots is None else str(snapshots.folder.parent.absolute()), None if start is None else str(begun),
    )  # fmt: skip


def _run_in_units(
    task: GroupTask, groups: list[tuple[int, ...]], executor: Executor, report: Report, say: Callable[[str], None]
) -> None:
    n_members, n_tokens = len(task.config.seeds), task.config.n_tokens
    units = [
        Unit(train_group, (task, seeds), _group_folder(task, seeds) / task.identity, len(seeds) * n_tokens)
        for seeds in groups
    ]
    run_units(executor, units, report=lambda done, total: report(done // n_members, total // n_members), say=say)


def _group_folder(task: GroupTask, seeds: tuple[int, ...]) -> Path:
    return Path(task.checkpoints) / f"from-seed-{seeds[0]}"


def train_group(task: GroupTask, seeds: tuple[int, ...]) -> str:
    """Train one group of members to its end, from its checkpoint where there is one; returns the folder. A unit of work."""
    rows, config, place = reopened(Path(task.rows_at)), task.config, _group_folder(task, seeds)
    sample = _sample(rows, config, task.dtype)
    trace, snapshots = Trace(), None if task.snapshots is None else Snapshots(Path(task.snapshots))
    if snapshots is not None:
        n_bytes = len(config.seeds) * memory.n_weights(config, rows.shape[1]) * task.dtype.itemsize
        snapshots.begin(config.n_tokens // config.batch, n_bytes)
    start = None if task.start is None else saes.load(Path(task.start), config.seeds)
    made = _train(
        rows, replace(config, seeds=seeds), sample, space_of(sample, config.preprocessing), torch.device(task.device),
        lambda tokens, of: None, Checkpoints(place, task.identity), trace, snapshots, start,
    )  # fmt: skip
    _keep_group(place / task.identity, made, trace.points)
    return str(place / task.identity)


def _keep_group(folder: Path, made: SAE, points: list[Point] | None) -> None:
    """Write members, and their trace, into a folder that is there when all of it is."""
    unfinished = folder.with_name(f"unfinished-{uuid.uuid4().hex[:8]}")
    made.save(unfinished)
    if points is not None:
        Trace(points=points).save(unfinished)
    try:
        unfinished.replace(folder)
    except OSError:  # somebody was given up for lost and was not: the same members are there
        if not folder.is_dir():
            raise
        shutil.rmtree(unfinished, ignore_errors=True)


def _train(
    activations: Rows,
    config: TrainConfig,
    sample: Tensor,
    space: Space,
    device: torch.device,
    report: Report,
    checkpoints: Checkpoints | None,
    trace: Trace | None,
    snapshots: Snapshots | None,
    start: SAE | None,
) -> SAE:
    """One group of members from their start, or their checkpoint, to their end."""
    own_start = None if start is None else _in_training_space(start, config.seeds, space)
    training = Training(config, space.enter(sample), device, own_start)
    state = checkpoints.newest() if checkpoints else None
    if state is not None:
        training.restore(state)
        if trace is not None:
            trace.points += [point for point in points_of(state.points) if point not in trace.points]
    n_steps = config.n_tokens // config.batch
    traced = trace.steps(n_steps) if trace is not None else set()
    fixed = sample[:: max(len(sample) // EVALUATED_ROWS, 1)][:EVALUATED_ROWS]
    fixed, space = space.enter(fixed).to(device), space.to(device)

    def point(step: Step | None) -> None:
        if trace is not None and training.step in traced:
            dead, loss = training.silent_tokens >= config.silent_after, None if step is None else step.loss.detach()
            tokens = training.step * config.batch
            trace.add(measured(training.sae, fixed, step=training.step, tokens=tokens, loss=loss, dead=dead))
        if snapshots is not None and training.step in snapshots.steps:
            snapshots.keep(training.standing(space), training.step, training.step * config.batch)

    dtype = sample.dtype
    try:
        for rows in batches(activations, config, dtype=dtype, first_step=training.step):
            if checkpoints and training.step and checkpoints.due() and training.is_finite():
                own = [each for each in trace.as_json() if each["seeds"] == config.seeds] if trace is not None else []
                checkpoints.keep(training.state(own))
            rate = config.lr * learning_rate_factor(training.step, n_steps, config)
            training.advance(space.enter(rows.to(device)), rate, n_steps, before=point)
            report(training.step * config.batch, n_steps * config.batch)
        training.require_convergence()
    except DivergedError as error:
        remark = ""
        if checkpoints and (good := checkpoints.newest()):
            remark = f"; the last good checkpoint, of step {good.step}, is kept in {checkpoints.folder}"
        raise DivergedError(f"{error}{remark}") from None
    point(None)
    return training.finished(space)


def training_space(activations: Rows, config: TrainConfig, *, dtype: torch.dtype = torch.float32) -> Space:
    """The space that `train_ensemble` trains in, from the same rows."""
    return space_of(_sample(activations, config, dtype), config.preprocessing)


def _sample(activations: Rows, config: TrainConfig, dtype: torch.dtype) -> Tensor:
    """Evenly spaced rows; enough of them for centroids where those are needed."""
    most = max(SAMPLE_ROWS, ROWS_PER_CENTROID * config.d_sae) if centroids_of(config) else SAMPLE_ROWS
    stride = max(len(activations) // most, 1)
    sample = torch.from_numpy(np.array(activations[::stride][:most])).to(dtype)
    require_finite(activations, np.arange(len(sample)) * stride, sample)
    return sample


def _require_start(start: SAE, config: TrainConfig, space: Space) -> None:
    """Raise ValueError where training cannot go on from these weights."""
    recipe, d_in = RECIPES[config.variant], len(space.std)
    if recipe.archetypal:
        raise ValueError(
            f"variant is {config.variant}, expected one with free decoder rows to begin with given weights"
        )
    actual = (start.seeds, start.d_sae, start.d_in, start.convention)
    wanted = (config.seeds, config.d_sae, d_in, recipe.convention(config))
    for name, has, expected in zip(("seeds", "d_sae", "d_in", "the convention"), actual, wanted, strict=True):
        if has != expected:
            raise ValueError(f"of the start {name} is {has}, expected {expected} as training has it")
    norms = (start.W_dec.detach() / space.std.to(start.W_dec)).norm(dim=-1)
    if not bool((norms - 1).abs().max() < UNIT):
        where = " once standardised" if config.preprocessing == "standardised" else ""
        raise ValueError(
            f"decoder rows of the start have norms from {norms.min():.4g} to {norms.max():.4g}{where}, expected 1: training "
            "keeps them there"
        )


def _in_training_space(start: SAE, seeds: tuple[int, ...], space: Space) -> SAE:
    """These members of a start in the units of training: what `Training.finished` undoes."""
    at = [start.seeds.index(seed) for seed in seeds]
    tensors = {name: getattr(start, name).detach()[at].to(space.scale.dtype) for name in start.convention.tensors}
    return space.come_back(saes.assemble(tensors, start.convention, seeds))


def _groups(checkpoints: Path | None, identity: str) -> list[tuple[int, ...]] | None:
    """How members were grouped when this training began: rounding depends on it."""
    try:
        content = json.loads((checkpoints / "groups.json").read_text()) if checkpoints else {}
    except (FileNotFoundError, ValueError):
        return None
    return [tuple(seeds) for seeds in content["groups"]] if content.get("made_from") == identity else None


def _available_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _out_of_memory(need: memory.Need, members: int, free: int) -> memory.OutOfMemoryError:
    """Memory ran out against expectation: what was expected, and the largest group that fits."""
    most = min(need.fits(free), members - 1)
    return memory.OutOfMemoryError(
        f"memory ran out while {members} seeds were trained at once, which should take {need.of(members) / GIB:.2f} GiB; "
        f"{free / GIB:.2f} GiB are free now: the largest group that fits is {most} seeds of {need.member / GIB:.2f} GiB "
        "each; train fewer seeds at a time, lower batch or d_sae, or stop what else needs memory"
    )


def _as_one_ensemble(parts: list[SAE]) -> SAE:
    """Groups of members as one ensemble."""
    convention = parts[0].convention
    tensors = {name: torch.cat([getattr(part, name).detach() for part in parts]) for name in convention.tensors}
    return saes.assemble(tensors, convention, tuple(seed for part in parts for seed in part.seeds))
