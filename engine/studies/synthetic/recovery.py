"""Recovery of known true features by the SAEs of an ensemble: one by one, and as the span that the low-rank ones share.

Definitions of this project. A true feature is *found* by a member whose best decoder row has a cosine of at least theta
with it. A latent is *free* when its best cosine with a free true feature reaches theta and its square is no less than its
energy in the true span, *low* when that energy reaches theta^2 and is the larger one, else *other*. Energy of latents that
the truth chose would prove itself; so captured energy is of the unstable ones, which matching alone chose.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seedscope.engine.contract.stability import EPSILON, THETA, buckets, count_matches, is_match
from seedscope.engine.geometry.subspaces import Basis, Curve, basis, captured, moment, overlaps, transfer
from seedscope.engine.matching.match import random_dictionary
from seedscope.engine.saes.sae import unit_rows
from seedscope.engine.studies.synthetic.generator import FREE, LOW, TrueFeatures

OTHER = "other"
GROUPS = (FREE, LOW, OTHER)
SETS = ("unstable", "stable", "living", "random", "r / d")
N_DRAWS = 4  # rotations and random sets behind a level of chance
# When the paper's claim holds: both kinds of features as it says, the span found, and chance too small to explain it.
RECOVERED = 0.9  # of free true features found, and free latents' p_hat: at least
ARBITRARY = 0.1  # low-rank latents' p_hat: at most
BY_CHANCE = 0.05  # of low-rank latents that match when turned at random inside the true span: below
CAPTURED = 0.9  # of the unstable latents' energy inside the true span: at least
TIMES_RANDOM = 2.0  # that of a random subspace, r / d: at least


class Latents(NamedTuple):
    """Every decoder row against the truth, (members, d_sae)."""

    group: Int[np.ndarray, "members d_sae"]  # index into GROUPS, -1 where dead
    energy: Float[np.ndarray, "members d_sae"]  # inside the true span
    true: Int[np.ndarray, "members d_sae"]  # true feature with the largest cosine
    cosine: Float[np.ndarray, "members d_sae"]
    free_cosine: Float[np.ndarray, "members d_sae"]  # the largest with a free one; 0 where there are none


class FoundFeatures(NamedTuple):
    """Every true feature in every member."""

    latent: Int[np.ndarray, "features members"]  # the decoder row with the largest cosine
    cosine: Float[np.ndarray, "features members"]


class Group(NamedTuple):
    """Recovery of one group: of true features, then of the latents assigned to it. None where there are none."""

    group: str
    n_true: int
    found: float | None  # share of (true feature, member) pairs with a latent at theta
    found_by_all: float | None  # share of true features that every member has
    found_by_none: float | None
    found_chance: float | None  # `found` by members turned at random: inside the true span for low, anywhere for free
    mean_cosine: float | None  # best cosine of a true feature
    n_latents: int  # living, of all members
    p_hat: float | None  # mean
    stable: float | None  # share
    unstable: float | None
    chance: float | None  # match rate with every comparison turned at random, as for `found_chance`


class ComparedSet(NamedTuple):
    """Unstable rows, or a set of as many rows that they are compared with, or a random subspace (`r / d`)."""

    set: str  # of SETS
    n_rows: float | None  # per member, mean
    energy: float | None  # mean squared cosine of the rows with the true span
    span_overlap: float | None  # of their top-r span with the true one
    cross_overlap: float | None  # of their top-r spans with each other, mean over pairs of members
    cross_energy: float | None  # of other members' unstable rows in the top-r span of half as many rows


class Recovery(NamedTuple):
    """Everything about one ensemble at one theta and epsilon."""

    latents: Latents
    found: FoundFeatures
    groups: dict[str, Group]
    levels: dict[str, ComparedSet]  # empty where fewer than two members have two unstable rows


def measure(
    truth: TrueFeatures,
    decoders: Sequence[Tensor],
    cosine: Float[np.ndarray, "members d_sae comparisons"],
    dead: np.ndarray,
    *,
    theta: float = THETA,
    epsilon: float = EPSILON,
    seed: int = 0,
) -> Recovery:
    """Recovery of the true features by all members' decoder rows (d_sae, d_in).

    `cosine` are best cosines that matching found; `dead` (members, d_sae) latents count in no group or set. `seed` is of
    random turns and sets. Raises ValueError for fewer than two members.
    """
    if len(decoders) < 2:
        raise ValueError(f"found {len(decoders)} member, expected at least 2: recovery compares members")
    generator = torch.Generator().manual_seed(seed)
    rows = [unit_rows(d.detach().float()) for d in decoders]
    n_comparisons = cosine.shape[-1]
    p_hat = count_matches(cosine, theta) / n_comparisons
    named = buckets(count_matches(cosine, theta), n_comparisons, dead, epsilon)
    latents, features = compare(truth, rows, dead, theta), find(truth.features, rows)
    anywhere = [[random_dictionary(each, "haar", generator) for each in rows] for _ in range(N_DRAWS)]
    inside = [[turned_inside(each, truth.span, generator) for each in rows] for _ in range(N_DRAWS)]
    groups = {}
    for index, group in enumerate(GROUPS):
        which = {FREE: slice(0, truth.n_free), LOW: slice(truth.n_free, None), OTHER: slice(0, 0)}[group]
        turned, mine = inside if group == LOW else anywhere, latents.group == index
        hits = is_match(features.cosine[which], theta)
        by_chance = [is_match(find(truth.features[which], each).cosine, theta) for each in turned] if hits.size else []
        groups[group] = Group(
            group=group,
            n_true=len(hits),
            found=_mean(hits),
            found_by_all=_mean(hits.all(1)),
            found_by_none=_mean(~hits.any(1)),
            found_chance=_mean(by_chance),
            mean_cosine=_mean(features.cosine[which]),
            n_latents=int(mine.sum()),
            p_hat=_mean(p_hat[mine]),
            stable=_mean(named[mine] == "stable"),
            unstable=_mean(named[mine] == "unstable"),
            chance=_match_rate(rows, mine, turned, theta),
        )
    return Recovery(latents, features, groups, _levels(truth, rows, named, generator))


def verdict(recovery: Recovery, truth: TrueFeatures) -> str:
    """`holds` where low-rank features do not come back one by one and their span does, else what stands against it.

    `chance`: matches inside the span say nothing; `free lost`: not even free features come back; `one by one`: low-rank
    features do come back; `no span`: what is unstable does not lie in it, or no more than in a random one.
    """
    free, low = recovery.groups[FREE], recovery.groups[LOW]
    unstable = recovery.levels.get("unstable")
    d, r = truth.span.shape
    if low.chance is not None and low.chance >= BY_CHANCE:
        return "chance"
    if truth.n_free and min(free.found or 0, free.p_hat or 0) < RECOVERED:
        return "free lost"
    if low.p_hat is not None and low.p_hat > ARBITRARY:
        return "one by one"
    energy = unstable.energy if unstable else None
    if low.p_hat is None or energy is None or energy < max(CAPTURED, TIMES_RANDOM * r / d):
        return "no span"
    return "holds"


def find(features: Float[np.ndarray, "n d"], rows: Sequence[Tensor]) -> FoundFeatures:
    """The best latent of every member for every true feature, both as unit rows."""
    best = [(torch.from_numpy(features) @ each.T).max(1) for each in rows]
    latent, cosine = (torch.stack([each[i] for each in best], 1) for i in (1, 0))
    return FoundFeatures(latent.int().numpy(), cosine.clamp(-1, 1).numpy())


def compare(truth: TrueFeatures, rows: Sequence[Tensor], dead: np.ndarray, theta: float = THETA) -> Latents:
    """Every unit decoder row against the truth, and the group it is assigned to."""
    span, features = torch.from_numpy(truth.span), torch.from_numpy(truth.features)
    energy = np.stack([(each @ span).pow(2).sum(1).numpy() for each in rows])
    cosines = [each @ features.T for each in rows]
    best = [each.max(1) for each in cosines]
    free = np.zeros(dead.shape, np.float32)
    if truth.n_free:
        free = np.stack([each[:, : truth.n_free].max(1).values.numpy() for each in cosines])
    explained = np.maximum(free, 0) ** 2
    is_free = is_match(free, theta) & (explained >= energy)
    is_low = (energy >= theta**2) & ~is_free & (explained < energy) & (len(truth.low) > 0)
    group = np.select([dead, is_free, is_low], [-1, 0, 1], default=2).astype(np.int8)
    true, cosine = (np.stack([each[i].numpy() for each in best]) for i in (1, 0))
    return Latents(group, energy.clip(0, 1), true.astype(np.int32), cosine.clip(-1, 1), free)


def turned_inside(rows: Tensor, span: Float[np.ndarray, "d r"], generator: torch.Generator) -> Tensor:
    """Rows whose part inside a span is rotated at random there; what lies outside stays."""
    basis_of_span = torch.from_numpy(span)
    inside = rows @ basis_of_span
    turn = random_dictionary(torch.eye(basis_of_span.shape[1]), "haar", generator)
    return rows + (inside @ turn - inside) @ basis_of_span.T


def _match_rate(rows: list[Tensor], mine: np.ndarray, turned: list[list[Tensor]], theta: float) -> float | None:
    """Share of comparisons that a group's latents match in turned dictionaries of the other members."""
    hits = []
    for dictionaries in turned:
        for anchor, mask in enumerate(mine):
            for other, dictionary in enumerate(dictionaries):
                if other != anchor and mask.any():
                    best = (rows[anchor][torch.from_numpy(mask)] @ dictionary.T).max(1).values
                    hits.append(is_match(best.numpy(), theta))
    return _mean(np.concatenate(hits)) if hits else None


def _levels(
    truth: TrueFeatures, rows: list[Tensor], named: np.ndarray, generator: torch.Generator
) -> dict[str, ComparedSet]:
    d, r = truth.span.shape
    kept = [m for m, each in enumerate(named) if (each == "unstable").sum() >= 2]
    if len(kept) < 2:
        return {}

    def those(bucket: np.ndarray) -> list[Tensor]:
        return [rows[m][torch.from_numpy(bucket[m])] for m in kept]

    unstable, stable, living = those(named == "unstable"), those(named == "stable"), those(named != "dead")
    n = [len(each) for each in unstable]

    def some(sets: list[Tensor]) -> list[Tensor]:
        return [each[torch.randperm(len(each), generator=generator)[:size]] for each, size in zip(sets, n, strict=True)]

    def random() -> list[Tensor]:
        return [torch.nn.functional.normalize(torch.randn(size, d, generator=generator), dim=1) for size in n]

    has_stable = all(map(len, stable))
    draws = {
        "unstable": [unstable],
        "stable": [some(stable) for _ in range(N_DRAWS)] if has_stable else [],
        "living": [some(living) for _ in range(N_DRAWS)],
        "random": [random() for _ in range(N_DRAWS)],
    }
    moved = transfer(unstable, [r], living=living, stable=stable if has_stable else None)
    curves = {"unstable": moved.cross, "stable": moved.stable, "living": moved.random_set}
    levels = {name: _level(name, sets, truth.span, curves.get(name)) for name, sets in draws.items()}
    return levels | {"r / d": ComparedSet("r / d", None, r / d, r / d, r / d, r / d)}


def _level(name: str, draws: list[list[Tensor]], span: np.ndarray, curve: Curve | None) -> ComparedSet:
    """Means over draws and members; overlaps of members with at least r rows."""
    r = span.shape[1]
    true = Basis(torch.from_numpy(span), r)
    energy, to_true, between = [], [], []
    for members in draws:
        energy.append(captured([true], torch.stack([moment(each) for each in members]), [r]).mean())
        bases = [span_basis for each in members if (span_basis := basis(each, r)).rank >= r]
        if bases:
            pairs = overlaps([*bases, true], [r])[..., 0]
            to_true.append(pairs[-1, :-1].mean())
            between += [pairs[np.triu_indices(len(bases), 1)].mean()] if len(bases) > 1 else []
    n_rows = _mean([len(each) for each in draws[0]]) if draws else None
    crossed = float(curve.mean[0]) if curve is not None and np.isfinite(curve.mean[0]) else None
    return ComparedSet(name, n_rows, _mean(energy), _mean(to_true), _mean(between), crossed)


def _mean(values: Sequence[int | float | np.generic | np.ndarray] | np.ndarray | np.generic) -> float | None:
    array = np.asarray(values)
    return float(array.mean()) if array.size else None
