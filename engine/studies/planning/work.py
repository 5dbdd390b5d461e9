"""How much work every stage of a study is: multiply-adds, counted units, and bytes, from its sizes alone.

Products of matrices are counted as FLOPs, two per multiply-add. What else costs time is counted in units that the constants
give seconds for; a stage's units are the loops that its code runs. Where analyses are left out on a CPU they are left out here by
the same limits. Definitions are this project's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.features.ablation import PAIR_NUMBERS
from seedscope.engine.features.firings import HELD_FIRINGS
from seedscope.engine.features.loss import LONG as LONG_LOSS
from seedscope.engine.geometry.map import MOST as MAP_FEATURES
from seedscope.engine.geometry.predictability import MOST_NUMBERS
from seedscope.engine.geometry.pursuit import K_MAX as PURSUED
from seedscope.engine.geometry.pursuit import N_ROWS as PURSUED_ROWS
from seedscope.engine.machine import WORKING_SHARE
from seedscope.engine.matching.match import NULL_ANCHORS, NULL_KINDS, affordable
from seedscope.engine.studies.analyses.function import EXPONENTIAL, PASSES
from seedscope.engine.studies.analyses.function import LONG as LONG_FUNCTION
from seedscope.engine.studies.analyses.predictor import MOST_FEATURES as PREDICTED_FEATURES
from seedscope.engine.studies.analyses.shared_spans import K_MAX as EXPANDED
from seedscope.engine.studies.analyses.shared_spans import LONG as LONG_SPANS
from seedscope.engine.studies.ensemble_run import HELD_SHARE
from seedscope.engine.studies.planning.shape import EnsembleShape, ModelShape, StudyShape
from seedscope.engine.training import memory, trajectory
from seedscope.engine.training.members import SAMPLE_ROWS
from seedscope.engine.training.snapshots import MOST as MOST_SNAPSHOTS
from seedscope.engine.training.snapshots import MOST_BYTES as SNAPSHOT_BYTES

# Stages in their order: what of progress belongs to each (a part of its name; the first that fits).
STAGES: dict[str, tuple[str, ...]] = {
    "start": (),  # what lies outside all stages: libraries, the model, tokens to train on
    "harvest": ("training activations at", "activations of "),
    "train": ("SAEs in lockstep", "trying l1", "language model of seed"),
    "activations": ("tokenizing", "some activations at", "outliers at", "directions of activations", "activations at"),
    "activity, ablation": (": activity", ": contexts", ": worth", ": masks"),
    "match": (": matching", ": chance"),
    "explanations": (": token rules",),
    "subspaces": (": subspaces",),
    "map": (": map of directions",),
    "shared spans": (": shared spans",),
    "trajectory": (": trajectory",),
    "function": (": co-firing", ": small sets"),
    "loss": (": loss",),
    "predictor": (": predictor",),
    "publish": ("publishing",),
}
ON_HOST = ("start", "explanations", "map", "predictor", "publish")  # run on the CPU whatever device there is
# FLOPs of a training step per token and d_in * d_sae. On a CPU every variant's gradients are written out: one product, and sums
# over active entries. (In the first steps of relu, jumprelu and gated so many are active that products take their place.)
DENSE = 2
OTHER_DENSE = 6  # where autograd differentiates: on a GPU, codes of free width
FREE_WIDTH = ("matryoshka", "relu", "jumprelu", "gated")
MASKS = 46  # sets of features whose loss is measured per member: `fewer_masks` where all buckets hold features
AROUND = 5  # further passes per member, in forward passes: the reconstruction's own, and gradients for the attribution
LIVING_SPANS = 0.35  # share of features that are unstable, assumed of what is searched for shared spans
FREE = 24 * 2**30  # bytes of memory, assumed where as much is used as a share of what is free allows
LIBRARIES = 2**29  # bytes of a process that has loaded torch and computed nothing, about


@dataclass(frozen=True)
class StageWork:
    """One stage's work."""

    stage: str
    flops: float = 0.0
    units: dict[str, float] = field(default_factory=dict)
    read: float = 0.0  # bytes from the disk
    written: float = 0.0
    stored: float = 0.0  # bytes that stay when the study is done
    kept: dict[str, float] = field(default_factory=dict)  # amounts that the constants give stored bytes for
    memory: float = 0.0  # bytes above what the libraries take
    remark: str = ""

    def beside(self, other: "StageWork") -> "StageWork":
        """The work of two ensembles in the same stage, one after the other."""
        units, kept = (_added(*two) for two in ((self.units, other.units), (self.kept, other.kept)))
        remarks = [each for each in dict.fromkeys((self.remark, other.remark)) if each]
        return replace(
            self, flops=self.flops + other.flops, units=units, read=self.read + other.read,
            written=self.written + other.written, stored=self.stored + other.stored, kept=kept,
            memory=max(self.memory, other.memory), remark="; ".join(remarks),
        )  # fmt: skip


def _added(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}


def study_work(study: StudyShape, *, on_gpu: bool) -> list[StageWork]:
    """The stages that a study would run, in their order; those that are left out stand there with a remark and no work."""
    total: dict[str, StageWork] = {"start": StageWork("start", units={"characters": study.characters, "runs": 1})}
    seen: set[tuple[str, int, bool]] = set()
    for ensemble in study.ensembles:
        for work in _ensemble_work(study, ensemble, on_gpu=on_gpu, seen=seen):
            before = total.get(work.stage)
            total[work.stage] = work if before is None else before.beside(work)
    return [total[stage] for stage in STAGES if stage in total]


def _ensemble_work(
    study: StudyShape, ensemble: EnsembleShape, *, on_gpu: bool, seen: set[tuple[str, int, bool]]
) -> list[StageWork]:
    wanted, model = set(study.analyses), study.model
    works: list[StageWork] = []
    if ensemble.config:
        is_control = ensemble.name.endswith("-control")
        place = (ensemble.hook, ensemble.config.n_tokens * ensemble.config.data_samples, is_control)
        if model and place not in seen:  # ensembles at one hook point, on the same tokens, share their harvest
            seen.add(place)
            works.append(_harvest(study, ensemble, ensemble.config, model))
        works.append(_train(ensemble, ensemble.config, on_gpu=on_gpu))
    works.append(_match(study, ensemble))
    if model:
        works.append(_activations(study, ensemble, model))
        makers: dict[str, Callable[[StudyShape, EnsembleShape, ModelShape, bool], StageWork]] = {
            "activity": _activity, "explain": _explanations, "function": _function, "loss": _loss, "predictor": _predictor,
        }  # fmt: skip
        needs = (
            wanted | {"activity"}
            if wanted & {"ablate", "loss", "explain", "predictor", "function", "activity"}
            else wanted
        )
        works += [make(study, ensemble, model, on_gpu) for name, make in makers.items() if name in needs]
    if ensemble.n_members > 1:
        if "subspaces" in wanted:
            works += [_subspaces(ensemble), _map(ensemble)]
        if "shared_spans" in wanted:
            works.append(_shared_spans(ensemble, on_gpu))
        if "trajectory" in wanted and ensemble.config:
            works.append(_trajectory(ensemble, ensemble.config))
    works.append(_publish(study, ensemble))
    return works


def forward_flops(model: ModelShape, blocks: float, n_ctx: int, *, with_logits: bool = False) -> float:
    """FLOPs of one token through some blocks: two per weight that multiplies, and attention over half a window on average."""
    embedding = model.vocabulary * model.d_model
    weights = max(model.n_parameters - embedding, 0) / model.n_layers
    logits = 2.0 * embedding if with_logits else 0.0
    return blocks * (2.0 * weights + 2.0 * n_ctx * model.d_model) + logits


def _forward(model: ModelShape, blocks: float, n_ctx: int, tokens: float) -> tuple[float, dict[str, float]]:
    """FLOPs of tokens through blocks, and the numbers that their element-wise operations touch."""
    return tokens * forward_flops(model, blocks, n_ctx), {"block numbers": tokens * blocks * model.d_model}


def _harvest(study: StudyShape, ensemble: EnsembleShape, config: TrainConfig, model: ModelShape) -> StageWork:
    tokens = 1.02 * config.n_tokens * config.data_samples * ensemble.n_models
    flops, units = _forward(model, ensemble.blocks_below, study.n_ctx, tokens)
    size = 2.0 * tokens * ensemble.d_in
    return StageWork(
        "harvest", flops, units, read=4.0 * model.n_parameters, written=size, memory=_model_bytes(study, model)
    )


def _model_bytes(study: StudyShape, model: ModelShape) -> float:
    """The model in float32, and a harvest's batch of 16,384 tokens through one block."""
    return 4.0 * model.n_parameters + 16_384 * 4.0 * (4 * model.d_model + 2 * (model.d_mlp or 4 * model.d_model))


def _train(ensemble: EnsembleShape, config: TrainConfig, *, on_gpu: bool) -> StageWork:
    d_in, d_sae, n = ensemble.d_in, ensemble.d_sae, ensemble.n_members
    tokens = float(config.n_tokens) * n * (2 if ensemble.calibrated else 1)
    weights = float(n) * memory.n_weights(config, d_in)
    dense = OTHER_DENSE if on_gpu and config.variant in FREE_WIDTH else DENSE
    prefixes = 2 * len(config.group_fracs) if config.variant == "matryoshka" else 0  # sums of prefixes, there and back
    flops = tokens * (2.0 * d_in * d_sae * dense / 2 + 12.0 * d_in * ensemble.k)
    if "archetypal" in config.variant:  # decoder rows from archetypes: forward twice, and the gradient of the weights
        flops += tokens / config.batch * 6.0 * d_sae**2 * d_in
    units = {
        "entries": tokens * d_sae,
        "weights": config.n_tokens / config.batch * weights,
        "active": tokens * (ensemble.k + prefixes) * d_in,
    }
    snapshots = min(MOST_SNAPSHOTS * 4.0 * weights, max(float(SNAPSHOT_BYTES), 8.0 * weights))
    need = memory.predicted(config, d_in, dtype=torch.float32, sample_rows=SAMPLE_ROWS, keeps=True)
    return StageWork(
        "train", flops, units, read=2.0 * config.n_tokens * d_in * config.data_samples,
        written=4.0 * weights + snapshots + 12.0 * weights, stored=4.0 * weights + snapshots, memory=float(need.of(n)),
        remark=f"{need.of(1) / 2**30:.2f} GiB for one member at once" if n > 1 else "",
    )  # fmt: skip


def _activations(study: StudyShape, ensemble: EnsembleShape, model: ModelShape) -> StageWork:
    flops, units = _forward(model, ensemble.blocks_below, study.n_ctx, study.n_eval)
    size = 2.0 * study.n_eval * ensemble.d_in
    units |= {"activation numbers": float(study.n_eval) * ensemble.d_in}
    return StageWork(
        "activations", flops + 2.0 * study.n_eval * ensemble.d_in**2, units, read=2 * size, written=size,
        memory=_model_bytes(study, model),
    )  # fmt: skip


def _activity(study: StudyShape, ensemble: EnsembleShape, model: ModelShape, on_gpu: bool) -> StageWork:
    n, d_sae, tokens = ensemble.n_members, ensemble.d_sae, float(study.n_eval)
    pairwise = n * d_sae**2 <= PAIR_NUMBERS
    passes = 1 if pairwise or "ablate" not in study.analyses else 2
    flops = passes * n * tokens * 2.0 * ensemble.d_in * d_sae
    flops += 2.0 * ensemble.n_features * model.d_model * model.vocabulary
    units = {
        "entries": passes * n * tokens * d_sae,
        "firings": n * tokens * ensemble.k,
        "features": float(ensemble.n_features),
    }
    if _has_function(study, ensemble, on_gpu):  # every active row with every member's residual
        flops += 2.0 * n * n * tokens * ensemble.k * ensemble.d_in
        units["across"] = n * n * tokens * ensemble.k
        weights = 8.0 * n * d_sae * ensemble.d_in
    else:
        weights = min(8.0 * n * d_sae * ensemble.d_in, 8.0 * d_sae * ensemble.d_in + HELD_SHARE * FREE)
    sums = 8.0 * n * d_sae**2 if pairwise else 0.0
    held = weights + sums + 12.0 * min(n * tokens * ensemble.k, HELD_FIRINGS)
    return StageWork(
        "activity, ablation", flops, units, read=2.0 * passes * tokens * ensemble.d_in,
        kept={"parts: features": float(ensemble.n_features)}, memory=held,
    )  # fmt: skip


def _match(study: StudyShape, ensemble: EnsembleShape) -> StageWork:
    n, d_sae, d = ensemble.n_members, float(ensemble.d_sae), ensemble.d_in
    pairs = ensemble.n_pairs
    anchors = n * min(d_sae, NULL_ANCHORS)
    nulls = len(NULL_KINDS) * anchors * (n - 1) * d_sae * 2.0 * d
    flops = pairs * 2.0 * d_sae**2 * d * 2 + nulls  # nearest of both sides, and of the living
    units = {"cosines": pairs * d_sae**2, "rows": ensemble.n_features * (n - 1.0)}
    remark = ""
    if affordable(n, ensemble.d_sae, d):
        units["assigned"] = pairs * d_sae**2
        flops += pairs * 2.0 * d_sae**2 * d
    elif n > 1:
        remark = "without one-to-one matching"
    memory_ = 4.0 * 2 * ensemble.n_features * d
    return StageWork(
        "match", flops, units, read=8.0 * n * d_sae * d, 
        written=(MATCH_BYTES if remark else ASSIGNED_BYTES) * units["rows"], kept={"parts: matches": units["rows"]},
        memory=min(memory_, 8.0 * 4 * d_sae * d + memory_ / 4), remark=remark,
    )  # fmt: skip


# Of a feature's matches in one other member while they are made, without and with one-to-one matching.
MATCH_BYTES, ASSIGNED_BYTES = 25.0, 38.0


def _explanations(study: StudyShape, ensemble: EnsembleShape, model: ModelShape, on_gpu: bool) -> StageWork:
    return StageWork(
        "explanations", 0.0, {"features": float(ensemble.n_features), "members": float(ensemble.n_members)}
    )


def _subspaces(ensemble: EnsembleShape) -> StageWork:
    n, d_sae, d = ensemble.n_members, float(ensemble.d_sae), ensemble.d_in
    pursued = min(PURSUED_ROWS, d_sae)
    flops = n * (n - 1) * pursued * d_sae * 2.0 * d * PURSUED + 8.0 * n * d_sae * d**2
    units = {
        "pairs": float(n * (n - 1)),
        "cubes": n * n * float(d) ** 3,
        "pursued": n * (n - 1) * pursued * d_sae,
        "runs": 1.0,
    }
    held = min(8.0 * n * d_sae * d, 3 * WORKING_SHARE * FREE)  # three kinds of rows; the others are read again
    predicted = 6 * 8.0 * min(n * d_sae * d, MOST_NUMBERS)
    matrices = 4 * 4.0 * n * d**2
    return StageWork("subspaces", flops, units, memory=held + predicted + matrices + 20.0 * d_sae * d)


def _map(ensemble: EnsembleShape) -> StageWork:
    points = float(min(ensemble.n_features, MAP_FEATURES))
    return StageWork(
        "map",
        2.0 * points**2 * ensemble.d_in,
        {"points": points, "pairs of points": points**2, "runs": 1.0},
        memory=2_000.0 * points,
    )


def _shared_spans(ensemble: EnsembleShape, on_gpu: bool) -> StageWork:
    n, d_sae, d = ensemble.n_members, float(ensemble.d_sae), ensemble.d_in
    work = n * (n - 1) * d_sae**2 * d * EXPANDED
    if not on_gpu and work > LONG_SPANS:
        return StageWork("shared spans", remark="left out on a CPU at this size; --only shared_spans computes it")
    unstable = LIVING_SPANS * d_sae
    held = min(4.0 * n * (unstable + d_sae) * d, 2 * WORKING_SHARE * FREE)  # beyond that in files
    units = {"expanded": n * (n - 1) * unstable * d_sae, "features": n * unstable, "runs": 1.0}
    return StageWork("shared spans", 2.0 * work * LIVING_SPANS, units, memory=held + 20.0 * d_sae * d)


def _trajectory(ensemble: EnsembleShape, config: TrainConfig) -> StageWork:
    n, d_sae, d = ensemble.n_members, float(ensemble.d_sae), ensemble.d_in
    weights = 4.0 * n * memory.n_weights(config, d)
    taken = int(max(2, min(MOST_SNAPSHOTS, SNAPSHOT_BYTES / weights)))
    compared = float(len(trajectory.compared(n)))
    flops = taken * (compared * 2.0 * d_sae**2 * d + n * trajectory.N_TOKENS * 2.0 * d * d_sae)
    units = {"entries": taken * n * float(trajectory.N_TOKENS) * d_sae, "pairs": taken * compared}
    if trajectory.affordable(taken, n, ensemble.d_sae, d):  # assignments are cubic at worst, random ones nearly so
        units["cubes"] = (taken * compared + trajectory.N_RANDOM) * d_sae**3
    return StageWork("trajectory", flops, units, read=taken * weights, memory=2 * weights)


def _has_function(study: StudyShape, ensemble: EnsembleShape, on_gpu: bool) -> bool:
    if "function" not in study.analyses or ensemble.n_members < 2 or study.model is None:
        return False
    n, d_sae, d = ensemble.n_members, ensemble.d_sae, ensemble.d_in
    work = n * study.n_eval * (d * d_sae + n * ensemble.k * d) + n * n / 2 * d_sae**2 * d
    return on_gpu or work <= LONG_FUNCTION


def _function(study: StudyShape, ensemble: EnsembleShape, model: ModelShape, on_gpu: bool) -> StageWork:
    if ensemble.n_members < 2:
        return StageWork("function", remark="left out: there is one member")
    if not _has_function(study, ensemble, on_gpu):
        return StageWork("function", remark="left out on a CPU at this size; --only function computes it")
    pairs, d_sae, d = ensemble.n_pairs, float(ensemble.d_sae), ensemble.d_in
    flops = pairs * 2.0 * d_sae**2 * d
    units = {
        "pairs": pairs,
        "pair firings": pairs * study.n_eval * ensemble.k,
        "pair features": pairs * d_sae,
        "cosines": pairs * d_sae**2,
    }
    if on_gpu or pairs * PASSES * d_sae**2 * (d + EXPONENTIAL) <= LONG_FUNCTION:
        flops += pairs * PASSES * 2.0 * d_sae**2 * d
        units["transported"] = pairs * PASSES * d_sae**2
    rows = float(ensemble.n_features) * (ensemble.n_members - 1)
    held = 28.0 * 7 * rows
    return StageWork(
        "function", flops, units, kept={"parts: counterparts": rows},
        memory=held + 16.0 * ensemble.n_members * study.n_eval * ensemble.k + 8.0 * d_sae * d,
    )  # fmt: skip


def _loss(study: StudyShape, ensemble: EnsembleShape, model: ModelShape, on_gpu: bool) -> StageWork:
    passes = ensemble.n_members * MASKS
    if not on_gpu and float(passes) * study.loss_tokens * model.n_parameters > LONG_LOSS:
        return StageWork("loss", remark="left out on a CPU at this size; --only loss computes it")
    above = model.n_layers - ensemble.blocks_below
    tokens = float(ensemble.n_members) * (MASKS + AROUND) * study.loss_tokens
    each = forward_flops(model, above, study.n_ctx, with_logits=True) + 2.0 * ensemble.d_in * ensemble.d_sae
    units = {
        "block numbers": tokens * (above + 1) * model.d_model,
        "logits": tokens * model.vocabulary,
        "codes": tokens * ensemble.d_sae,
    }
    return StageWork(
        "loss", tokens * each, units, memory=_model_bytes(study, model) + 8.0 * study.n_ctx * 8 * model.vocabulary,
        remark=f"{MASKS} masks per member assumed",
    )  # fmt: skip


def _predictor(study: StudyShape, ensemble: EnsembleShape, model: ModelShape, on_gpu: bool) -> StageWork:
    if ensemble.n_members < 2:
        return StageWork("predictor", remark="left out: there is one member")
    rows = float(min(ensemble.n_features, PREDICTED_FEATURES))
    flops = ensemble.n_members * 2.0 * float(ensemble.d_sae) ** 2 * ensemble.d_in
    units = {"rows": rows, "runs": 1.0, "cosines": ensemble.n_members * float(ensemble.d_sae) ** 2}
    return StageWork("predictor", flops, units, memory=4.0 * 40 * rows)


def _publish(study: StudyShape, ensemble: EnsembleShape) -> StageWork:
    rows, n = float(ensemble.n_features) * max(ensemble.n_members - 1, 0), float(ensemble.n_members)
    kept = {
        "store: studies": 1.0,
        "store: features": float(ensemble.n_features),
        "store: members": n,
        "store: rows": rows,
    }
    units = {"runs": 1.0, "members": n, "features": float(ensemble.n_features), "rows": rows}
    return StageWork("publish", 0.0, units, kept=kept, memory=4.0 * ensemble.d_sae * 400)
