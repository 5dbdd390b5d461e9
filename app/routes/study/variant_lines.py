"""One ensemble of a study as the variants page compares it: bucket shares, reconstruction, L0 and loss, mean over members."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev

from seedscope.app.findings.loss_recovered import loss_recovered
from seedscope.app.formats import architecture
from seedscope.app.routes.address import EnsembleJudgement
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.places import place
from seedscope.engine.contract.sweeps import value_of
from seedscope.engine.contract.tables.study import Ensemble, Member

NEAR = 0.1  # ensembles whose L0 differ by less than this share are compared at matched L0


@dataclass(frozen=True)
class Spread:
    """A mean over members, and their standard deviation where there are two."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class VariantLine:
    """One ensemble; shares are of living features where activity is known, but `dead`, which is of all. None: not computed."""

    ensemble: str
    variant: str
    says: str  # the variant and what it is known by, in words
    shared_start: str
    control_of: str | None
    hookpoint: str | None
    d_sae: int
    n_members: int
    n_comparisons: int
    n_features: int  # that were judged
    stable: Spread | None  # None, as the next two and p_hat, for one SAE alone
    middle: Spread | None
    unstable: Spread | None
    dead: Spread | None
    p_hat: Spread | None
    chance: dict[str, float]  # {null: share of chance comparisons that match}
    ev: Spread | None
    l0: Spread | None
    l0_asked: float | None
    l0_matched: bool | None  # None: it is not among those that are compared at one L0, or its L0 is not known
    loss: Spread | None  # next-token loss with reconstructions in place, nats per token
    loss_own: float | None  # the model's own
    loss_recovered: Spread | None
    train_tokens: int | None


def read_line(store: StudyStore, row: Ensemble, judgement: EnsembleJudgement) -> VariantLine:
    """An ensemble's line under a judgement; whether its L0 is matched is not known yet."""
    by_seed: dict[int, dict[str, int]] = {}
    matched: dict[int, int] = {}
    for seed, bucket, x, n in store.features(judgement.query(row.ensemble)).matched_counts():
        in_bucket = by_seed.setdefault(seed, {})
        in_bucket[bucket] = in_bucket.get(bucket, 0) + n
        matched[seed] = matched.get(seed, 0) + (x * n if bucket != "dead" else 0)
    judged = {
        seed: sum(n for bucket, n in in_bucket.items() if bucket != "dead") for seed, in_bucket in by_seed.items()
    }
    members = store.members(row.ensemble)
    activity = store.has(row.ensemble, "activity")

    def share(bucket: str) -> Spread | None:
        return (
            None
            if not row.n_comparisons
            else _spread([in_bucket.get(bucket, 0) / max(judged[seed], 1) for seed, in_bucket in by_seed.items()])
        )

    own = [m.loss_own for m in members if m.loss_own is not None]
    return VariantLine(
        ensemble=row.ensemble,
        variant=row.variant,
        says=", ".join(filter(None, (architecture(row.variant, row.k), row.directions))),
        shared_start=row.shared_start,
        control_of=row.control_of,
        hookpoint=row.place,  # transcoders are compared with others that read and predict the same
        d_sae=row.d_sae,
        n_members=row.n_members,
        n_comparisons=row.n_comparisons,
        n_features=sum(judged.values()),
        stable=share("stable"),
        middle=share("middle"),
        unstable=share("unstable"),
        dead=_known(members, lambda m: None if m.n_dead is None else m.n_dead / row.d_sae) if activity else None,
        p_hat=None
        if not row.n_comparisons
        else _spread([matched[s] / max(judged[s] * row.n_comparisons, 1) for s in by_seed]),
        chance=store.null_rates(row.ensemble, judgement.theta, judgement.rule) if row.n_comparisons else {},
        ev=_known(members, lambda m: m.ev),
        l0=_known(members, lambda m: m.l0),
        l0_asked=_number(row, "l0") or _number(row, "k"),
        l0_matched=None,
        loss=_known(members, lambda m: m.loss_spliced),
        loss_own=fmean(own) if own else None,
        loss_recovered=_known(members, loss_recovered),
        train_tokens=row.train_tokens,
    )


def of_compared(spread: Spread | None) -> Spread:
    """A spread of an ensemble whose members were compared; raises ValueError for one SAE alone, which has none."""
    if spread is None:
        raise ValueError("the stability of one SAE is undefined")
    return spread


def _spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def _known(members: list[Member], of: Callable[[Member], float | None]) -> Spread | None:
    """None where any member's is not known."""
    values = [value for member in members if (value := of(member)) is not None]
    return _spread(values) if values and len(values) == len(members) else None


def _number(row: Ensemble, setting: str) -> float | None:
    """A setting of an ensemble that is a number; None where it has none."""
    value = value_of(row, setting)
    return None if isinstance(value, str) else value


def match_l0(lines: list[VariantLine]) -> tuple[list[VariantLine], float | None]:
    """The lines, told whether they are at the L0 of those that they are compared with; and that L0.

    Compared are the ensembles of one hook point, width and number of training tokens that have the most variants; their L0
    is the median.
    """
    groups: dict[tuple, dict[str, tuple[VariantLine, float]]] = {}  # {ensemble: (its line, its mean L0)} each
    for line in lines:
        if line.control_of is None and line.l0 is not None:
            group = groups.setdefault(
                (place(line.hookpoint or "") or line.hookpoint, line.d_sae, line.train_tokens), {}
            )
            group[line.ensemble] = line, line.l0.mean
    if not groups:
        return lines, None

    def n_variants(group: dict[str, tuple[VariantLine, float]]) -> int:
        return len({line.variant for line, _ in group.values()})

    most = max(groups.values(), key=lambda group: (n_variants(group), len(group)))
    if n_variants(most) < 2:
        return lines, None
    l0 = median(mean for _, mean in most.values())
    matched = {name: replace(line, l0_matched=abs(mean / l0 - 1) <= NEAR) for name, (line, mean) in most.items()}
    return [matched.get(line.ensemble, line) for line in lines], l0
