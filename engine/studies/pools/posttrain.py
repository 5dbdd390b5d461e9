"""Post-training of a pool beside its controls: the recipe, the SAEs that are trained further, and how much pairs agree.

Controls read the same extra tokens: single members, fresh seeds, and random features of the members that a pool was made from.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.contract.stability import THETA, is_match
from seedscope.engine.executors.local import HERE
from seedscope.engine.executors.unit import Executor
from seedscope.engine.matching.match import dictionaries, match_pair
from seedscope.engine.saes.encode import HeldOutMeasures
from seedscope.engine.saes.sae import SAE, assemble
from seedscope.engine.studies.pools.pool import Pool, pool, taken_from
from seedscope.engine.training.batches import Rows
from seedscope.engine.training.ensemble import UNIT, train_ensemble
from seedscope.engine.training.variants import RECIPES

# Settings of where members begin and in which space: training on begins at weights for raw activations.
DATA_SAMPLES = ("data_sample", "data_samples")  # pools, and seeds beside them, train on all rows
BEGINNING = ("start", "preprocessing", "centroids")
FRACTIONS = (0.25, 0.5, 1.0, 2.0)  # of the length that is asked for; 0 is always there
Report = Callable[[int, int], None]


class PairAgreement(NamedTuple):
    """Two SAEs compared, both ways: every living feature of one with all rows of the other."""

    shared: float  # share of features with a partner at theta in the other
    mmcs: float  # mean of the largest cosines
    forward: float  # share of the first one's alone
    backward: float


def halves(n_members: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Members of two disjoint pools, every other one, equally many; of an odd number the last belongs to none."""
    half = n_members // 2
    return tuple(range(0, 2 * half, 2)), tuple(range(1, 2 * half, 2))


def lengths(n_tokens: int, batch: int) -> list[int]:
    """Training lengths that a curve is measured at, in tokens, whole batches, from 0 on."""
    return sorted({0, *(int(n_tokens * fraction) // batch * batch for fraction in FRACTIONS)})


def starts(sae: SAE, whole: Pool, two: tuple[Pool, Pool] | None, *, seed: int = 0) -> dict[str, list[SAE]]:
    """What is trained further, by kind: the pool; and the two pools, a member and random features of each half."""
    groups = {"pool": [whole.sae]}
    if two is None:
        return groups
    sets, rng = halves(sae.n_members), np.random.default_rng(seed)
    groups["halves"] = [half.sae for half in two]
    groups["members"] = [sae.only(members[0]) for members in sets]
    groups["subset"] = [_random(sae, members, half.sae.d_sae, rng) for members, half in zip(sets, two, strict=True)]
    return groups


def _random(sae: SAE, members: tuple[int, ...], n: int, rng: np.random.Generator) -> SAE:
    """Any n features of the members, each at most once; rows without a direction are left out."""
    valid = [each.valid.numpy() for each in dictionaries(sae)]
    union = np.concatenate([np.stack([np.full(len(valid[m]), m), valid[m]]) for m in members], 1)
    chosen = union[:, rng.permutation(union.shape[1])[:n]]
    return taken_from(sae, chosen[0], chosen[1], members=members)


def two_pools(
    sae: SAE,
    *,
    density: Float[np.ndarray, "members d_sae"] | None = None,
    theta: float = THETA,
    device: torch.device | str = "cpu",
) -> tuple[Pool, Pool] | None:
    """Pools of the two halves of the members; None for fewer than four, where a half would be no pool."""
    if sae.n_members < 4:
        return None
    first, second = (
        pool(sae, members=members, density=density, theta=theta, device=device) for members in halves(sae.n_members)
    )
    return first, second


def recipe_of(
    members: SAE, kept: Mapping[str, Any] | None, n_tokens: int, *, variant: str | None = None, **settings: Any
) -> TrainConfig:
    """The members' own recipe for `n_tokens` more, as far as it was `kept` (fields of TrainConfig); the rest has its default.

    Where none was kept, `variant` is the ensemble's and `settings` are the fields that the study names nevertheless. The data
    order is the default, one stream for all SAEs. Raises ValueError, with the reason alone, where the recipe here would train
    SAEs of another convention.
    """
    convention = replace(members.convention, rescale_by_decoder_norm=False)
    named = (kept or {}).get("variant") or variant or convention.architecture
    if named.endswith("archetypal"):
        raise ValueError(
            f"it is {named}: rows are made of their own member's centroids, and a pool has rows of several"
        )
    if kept is None and named != "topk":
        raise ValueError(
            f"it is {named} and how it was trained is not known, and what its sparsity weighs decides what training does"
        )
    taken = {field.name for field in fields(TrainConfig)} - {
        "d_sae",
        "seeds",
        "n_tokens",
        "data_order",
        *DATA_SAMPLES,
        *BEGINNING,
    }
    own = {name: value for name, value in (settings if kept is None else kept).items() if name in taken}
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    own |= {"k": members.k} if convention.architecture == "topk" else {}
    config = TrainConfig(d_sae=members.d_sae, seeds=(0,), n_tokens=n_tokens, **own)
    if convention != (trained := RECIPES[config.variant].convention(config)):
        raise ValueError(f"it is used as {members.convention}, and training makes {trained}")
    norms = members.W_dec.detach().norm(dim=-1)
    if not members.convention.rescale_by_decoder_norm and not bool((norms - 1).abs().max() < UNIT):
        raise ValueError(
            f"its decoder rows have norms from {norms.min():.4g} to {norms.max():.4g}, and training keeps 1"
        )
    return config


def with_unit_rows(sae: SAE) -> SAE:
    """The same function with decoder rows of norm 1, as training keeps them.

    Exact where activations count by the norm of their row, or it is 1 already; training refuses what is left.
    """
    if not sae.convention.rescale_by_decoder_norm:
        return sae
    tensors = {name: getattr(sae, name).detach() for name in sae.convention.tensors}
    norms = tensors["W_dec"].norm(dim=-1)
    tensors["W_enc"] = tensors["W_enc"] * norms[:, None]
    tensors["b_enc"] = tensors["b_enc"] * norms
    tensors["W_dec"] = torch.nn.functional.normalize(tensors["W_dec"], dim=-1)
    convention = replace(sae.convention, rescale_by_decoder_norm=False)
    return assemble(tensors, convention, sae.seeds).requires_grad_(False)


def train_on(
    members: list[SAE],
    rows: Rows,
    config: TrainConfig,
    *,
    device: torch.device | str = "cpu",
    checkpoints: Path | None = None,
    report: Report = lambda done, total: None,
    executor: Executor = HERE,
    rows_at: Path | None = None,
) -> list[SAE]:
    """Train SAEs of one member each further on the same rows by the recipe; equally wide ones in lockstep.

    `config` says how long and how; its seeds and d_sae are the members'. The given SAEs stay as they are.
    `executor` and `rows_at` are those of `train_ensemble`.
    """
    begun = [with_unit_rows(each) for each in members]
    trained: dict[int, SAE] = {}  # by index into the given SAEs
    done_before, total = 0, len(begun) * config.n_tokens
    for width in sorted({each.d_sae for each in begun}):
        indices = [i for i, each in enumerate(begun) if each.d_sae == width]
        chosen = [begun[i] for i in indices]
        names = chosen[0].convention.tensors
        tensors = {name: torch.cat([getattr(each, name).detach() for each in chosen]) for name in names}
        start = assemble(tensors, chosen[0].convention, tuple(range(len(indices))))

        def report_all(done: int, of: int, before: int = done_before, n: int = len(indices)) -> None:
            report(before + n * done, total)

        ensemble = train_ensemble(
            rows, replace(config, d_sae=width, seeds=start.seeds), device=device, start=start, report=report_all,
            checkpoints=checkpoints and checkpoints / f"width-{width}", executor=executor, rows_at=rows_at,
        )  # fmt: skip
        trained |= {index: ensemble.only(member) for member, index in enumerate(indices)}
        done_before += len(indices) * config.n_tokens
    return [trained[i] for i in range(len(begun))]


def agreement(
    a: SAE, b: SAE, live: tuple[Bool[np.ndarray, " d_a"], Bool[np.ndarray, " d_b"]], *, theta: float = THETA
) -> PairAgreement:
    """How much two SAEs of one member each agree; NaN where neither has a living feature."""
    mine, theirs = dictionaries(a)[0], dictionaries(b)[0]
    forward, backward, _ = match_pair(mine, theirs, assign=False)
    cosines = np.concatenate([forward.cosine[live[0]], backward.cosine[live[1]]])
    shared = [_mean(is_match(each, theta)) for each in (cosines, *np.split(cosines, [int(live[0].sum())]))]
    return PairAgreement(shared[0], _mean(cosines), *shared[1:])


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")


def agreement_of(members: list[SAE], measures: list[HeldOutMeasures], *, theta: float = THETA) -> PairAgreement | None:
    """The mean over all pairs of members; None where there is no pair."""
    pairs = [
        agreement(members[i], members[j], (measures[i].n_active[0] > 0, measures[j].n_active[0] > 0), theta=theta)
        for i, j in combinations(range(len(members)), 2)
    ]
    return PairAgreement(*np.mean(pairs, 0).tolist()) if pairs else None
