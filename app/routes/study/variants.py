"""A study's ensembles beside each other: stability, reconstruction and loss by variant, and along what was varied."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev
from typing import Annotated, Any, Literal, NamedTuple

import pyarrow as pa
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from seedscope.app import render
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.tradeoff import SweepDot, TradeOff, sweep, trade_off
from seedscope.app.findings.loss_recovered import loss_recovered
from seedscope.app.formats import architecture, percent
from seedscope.app.routes.address import RULE_SAYS, EnsembleJudgement, StudyName, address_reader
from seedscope.app.store.missing import Missing
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract import schema
from seedscope.engine.contract.sweeps import Factor, factors, value_of
from seedscope.engine.contract.tables.study import Ensemble, Member, Study

router = APIRouter()
NEAR = 0.1  # ensembles whose L0 differ by less than this share are compared at matched L0
CLEAR = 2.0  # standard deviations between members from which on two means are called different
MOST_FIGURES = 12  # of sweeps; all of them stand in the JSON
TOPK_KINDS = ("topk", "batchtopk", "matryoshka")
UNITS = {"d_sae": "features", "k": "active features per token", "l0": "asked for, active features per token",
         "tokens": "training tokens per member", "layer": "block of the model"}  # fmt: skip
EXAMPLE = """[[ensemble]]
name = "width"
train = { variant = "topk", k = 10, seeds = 8, tokens = 1_000_000 }
sweep = { d_sae = [256, 512, 1024] }"""


class VariantsQuery(EnsembleJudgement):
    """The judgement, and what the trade-off shows."""

    measure: Annotated[Literal["stable", "p_hat"], Field(description="stable share, or mean p̂")] = "stable"


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
    stable: Spread
    middle: Spread
    unstable: Spread
    dead: Spread | None
    p_hat: Spread
    chance: dict[str, float]  # {null: share of chance comparisons that match}
    ev: Spread | None
    l0: Spread | None
    l0_asked: float | None
    l0_matched: bool | None  # None: it is not among those that are compared at one L0, or its L0 is not known
    loss: Spread | None  # next-token loss with reconstructions in place, nats per token
    loss_own: float | None  # the model's own
    loss_recovered: Spread | None
    train_tokens: int | None


@dataclass(frozen=True)
class SweepLine:
    """Ensembles that differ in one factor alone."""

    factor: str
    rest: dict[str, Any]  # settings that other sweeps of the factor have otherwise
    values: list[int | float | str]
    ensembles: list[str]


@dataclass(frozen=True)
class VariantsPage:
    """`/s/{study}/variants`: what is stable, reconstructed and lost, ensemble by ensemble, and along sweeps."""

    study: Study
    theta: float
    epsilon: float
    rule: str
    dead: str | None
    measure: str
    sentence: str | None  # None with fewer than two ensembles
    l0: float | None  # that ensembles are compared at
    lines: list[VariantLine]
    sweeps: list[SweepLine]
    missing: list[Missing]  # with the ensembles that lack it in its words
    figure_tradeoff: Figure | None
    figure_sweeps: list[Figure]
    nav_rules: dict[str, str]
    nav_judgement: dict[str, Any]
    nav_push: str
    nav_agreement: list[str]  # ensembles whose members share their start, or nobody knows
    nav_example: str


class OpenedVariants(NamedTuple):
    """A study's ensembles, and how all are judged: by the first one's theta and epsilon where the address names none."""

    store: StudyStore
    rows: list[Ensemble]
    judgement: VariantsQuery


def read_variants(
    request: Request, study: StudyName, address: Annotated[BaseModel, Depends(address_reader(VariantsQuery))]
) -> OpenedVariants:
    """The study of an address and its query; raises NotFound."""
    store: StudyStore = request.app.state.studies.get(study)
    rows = list(store.ensembles.values())
    return OpenedVariants(store, rows, VariantsQuery.resolved(rows[0], address))


@render.page(router, "/s/{study}/variants", "study/variants.html", "variants")
def variants(study: StudyName, opened: Annotated[OpenedVariants, Depends(read_variants)]) -> VariantsPage:
    """Ensembles of a study beside each other: bucket shares, EV, L0, next-token loss, and shares along sweeps."""
    store, rows, judgement = opened
    lines, l0 = _compared([_line(store, row, judgement) for row in rows])
    sweeps, drawn = _sweeps(rows, lines, study, judgement)
    has_trade_off = sum(line.ev is not None for line in lines) > 1
    rules = [rule for rule in schema.RULES if all(rule in store.rules(row.ensemble) for row in rows)]
    return VariantsPage(
        study=store.study,
        theta=judgement.theta,
        epsilon=judgement.epsilon,
        rule=judgement.rule,
        dead=judgement.dead,
        measure=judgement.measure,
        sentence=sentence(lines, l0) if len(rows) > 1 else None,
        l0=l0,
        lines=lines,
        sweeps=sweeps,
        missing=_lacks(store, rows),
        figure_tradeoff=_trade_off(lines, study, judgement) if has_trade_off else None,
        figure_sweeps=drawn,
        nav_rules={rule: RULE_SAYS[rule] for rule in rules},
        nav_judgement=judgement.judgement(),
        nav_push=render.url(f"/s/{study}/variants", **judgement.parameters()),
        nav_agreement=[row.ensemble for row in rows if row.shared_start != "no"],
        nav_example=EXAMPLE,
    )


@router.get("/s/{study}/variants.csv", name="variants.csv")
@router.get("/s/{study}/variants.parquet", name="variants.parquet")
def variants_download(
    request: Request, study: StudyName, opened: Annotated[OpenedVariants, Depends(read_variants)]
) -> Response:
    """Every ensemble's line, a column per mean and per standard deviation, as CSV or Parquet."""
    store, rows, judgement = opened
    lines, _ = _compared([_line(store, row, judgement) for row in rows])
    settings = factors(rows)
    columns: dict[str, list[Any]] = {}
    for line, row in zip(lines, rows, strict=True):
        flat = _flat(line) | {"theta": judgement.theta, "epsilon": judgement.epsilon, "rule": judgement.rule}
        flat |= {f"factor_{name}": value_of(row, name) for name in settings}
        for name, value in flat.items():
            columns.setdefault(name, []).append(value)
    return render.download(
        request, pa.table({n: _column(values) for n, values in columns.items()}), f"{study}-variants"
    )


# -- one ensemble ------------------------------------------------------------------------------------------------


def _line(store: StudyStore, row: Ensemble, judgement: VariantsQuery) -> VariantLine:
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

    def share(bucket: str) -> Spread:
        return _spread([in_bucket.get(bucket, 0) / max(judged[seed], 1) for seed, in_bucket in by_seed.items()])

    own = [m.loss_own for m in members if m.loss_own is not None]
    return VariantLine(
        ensemble=row.ensemble,
        variant=row.variant,
        says=architecture(row.variant, row.k),
        shared_start=row.shared_start,
        control_of=row.control_of,
        hookpoint=row.hookpoint,
        d_sae=row.d_sae,
        n_members=row.n_members,
        n_comparisons=row.n_comparisons,
        n_features=sum(judged.values()),
        stable=share("stable"),
        middle=share("middle"),
        unstable=share("unstable"),
        dead=_known(members, lambda m: None if m.n_dead is None else m.n_dead / row.d_sae) if activity else None,
        p_hat=_spread([matched[s] / max(judged[s] * row.n_comparisons, 1) for s in by_seed]),
        chance=store.null_rates(row.ensemble, judgement.theta) if row.n_comparisons else {},
        ev=_known(members, lambda m: m.ev),
        l0=_known(members, lambda m: m.l0),
        l0_asked=_number(row, "l0") or _number(row, "k"),
        l0_matched=None,
        loss=_known(members, lambda m: m.loss_spliced),
        loss_own=fmean(own) if own else None,
        loss_recovered=_known(members, loss_recovered),
        train_tokens=row.train_tokens,
    )


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


def _compared(lines: list[VariantLine]) -> tuple[list[VariantLine], float | None]:
    """The lines, told whether they are at the L0 of those that they are compared with; and that L0.

    Compared are the ensembles of one hook point, width and number of training tokens that have the most variants; their L0
    is the median.
    """
    groups: dict[tuple, dict[str, tuple[VariantLine, float]]] = {}  # {ensemble: (its line, its mean L0)} each
    for line in lines:
        if line.control_of is None and line.l0 is not None:
            group = groups.setdefault((line.hookpoint, line.d_sae, line.train_tokens), {})
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


def _flat(line: VariantLine) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in vars(line).items():
        if name == "chance":
            flat |= {f"chance_{kind}": value.get(kind) for kind in ("haar", "second_moment")}
        elif name in SPREADS:
            flat |= {name: value and value.mean, f"{name}_sd": value and value.sd}
        else:
            flat[name] = value
    return flat


SPREADS = ("stable", "middle", "unstable", "dead", "p_hat", "ev", "l0", "loss", "loss_recovered")


def _column(values: list[Any]) -> pa.Array:
    """A column of one type: what is text in one row is text in all."""
    if any(isinstance(value, str) for value in values):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    if all(value is None for value in values):
        return pa.array(values, pa.float64())
    return pa.array(values)


def _lacks(store: StudyStore, rows: list[Ensemble]) -> list[Missing]:
    """What the page's columns lack, once, with the ensembles that lack it."""
    lacking: dict[str, tuple[Missing, list[str]]] = {}  # {result: (what is missing, ensembles that lack it)}
    for row in rows:
        for result, lack in store.missing(row.ensemble).items():
            if result in ("activity", "ablate", "loss"):
                lacking.setdefault(result, (lack, []))[1].append(row.ensemble)
    some = {
        result: f" ({', '.join(names)})" if len(names) < len(rows) else "" for result, (_, names) in lacking.items()
    }
    return [
        Missing(lack.result + some[result], lack.reason, lack.command, lack.job)
        for result, (lack, _) in lacking.items()
    ]


# -- figures -----------------------------------------------------------------------------------------------------


def _trade_off(lines: list[VariantLine], study: str, judgement: VariantsQuery) -> Figure:
    dots = []
    for line in lines:
        if line.ev is None:
            continue
        y: Spread = line.stable if judgement.measure == "stable" else line.p_hat
        link = render.url(f"/s/{study}/{line.ensemble}", **judgement.judgement())
        dots.append(
            TradeOff(
                line.ensemble,
                y.mean,
                line.ev.mean,
                link,
                is_control=line.control_of is not None,
                variant=line.variant,
                stable_sd=y.sd,
                ev_sd=line.ev.sd,
                agrees=line.shared_start != "no",
            )
        )
    judged = f"at θ = {judgement.theta:.2f} and ε = {judgement.epsilon:g}"
    return trade_off(dots, measure=judgement.measure, judged=judged)


def _sweeps(
    rows: list[Ensemble], lines: list[VariantLine], study: str, judgement: VariantsQuery
) -> tuple[list[SweepLine], list[Figure]]:
    """Every factor that varies while all else is equal, and its figure."""
    by_name = {line.ensemble: line for line in lines}
    varied: list[Factor] = [each for values in factors(rows).values() for each in values]
    described: list[SweepLine] = []
    drawn: list[Figure] = []
    for each in varied:
        described.append(SweepLine(each.name, each.rest, [v for v, _ in each.points], [n for _, n in each.points]))
        if len(drawn) == MOST_FIGURES:
            continue
        dots = []
        for value, name in each.points:
            line = by_name[name]
            shares = {b: (getattr(line, b).mean, getattr(line, b).sd) for b in ("stable", "middle", "unstable")}
            shares |= {"dead": (line.dead.mean, line.dead.sd)} if line.dead else {}
            link = render.url(f"/s/{study}/{name}", **judgement.judgement())
            dots.append(SweepDot(name, link, value, shares, line.ev.mean if line.ev else None))
        rest = ", ".join(f"{name} {value}" for name, value in each.rest.items())
        agreement = any(by_name[name].shared_start != "no" for _, name in each.points)
        drawn.append(sweep(len(drawn), each.name, UNITS.get(each.name, ""), rest, dots, agreement=agreement))
    return described, drawn


# -- in words ----------------------------------------------------------------------------------------------------


def sentence(lines: list[VariantLine], l0: float | None) -> str:
    """The page in one or two sentences, made from its numbers."""
    own = [line for line in lines if line.control_of is None]
    at = [line for line in own if line.l0_matched] or own
    measured = [(line, line.ev) for line in at if line.ev is not None]
    where = f"At L0 = {l0:.1f} within {percent(NEAR, 0)}" if l0 is not None and at[0].l0_matched else "Of its ensembles"
    if not measured:
        most = max(at, key=lambda line: line.stable.mean)
        return f"{where}, {most.ensemble} {_comes_back(most)} ({_share(most)}); EV is not known, so nothing is said of a trade-off."
    apart = [each for each in measured if each[0].shared_start == "no"] or measured  # agreement is no stability
    most, ev_of_most = max(apart, key=lambda each: each[0].stable.mean)
    best, best_ev = max(measured, key=lambda each: each[1].mean)
    if most is best:
        said = f"{where}, {most.ensemble} {_comes_back(most)} ({_share(most)}) and reconstructs best (EV {best_ev.mean:.3f})."
    else:
        said = (
            f"{where}, {most.ensemble} {_comes_back(most)} ({_share(most)}, EV {ev_of_most.mean:.3f}) and {best.ensemble} "
            f"reconstructs best (EV {best_ev.mean:.3f}, {_share(best)})."
        )
    return f"{said} {_paper(measured)}".strip()


def _comes_back(line: VariantLine) -> str:
    return "comes back most" if line.shared_start == "no" else "agrees most"


def _share(line: VariantLine) -> str:
    word = {"no": "stable", "yes": "agree, start shared"}.get(line.shared_start, "agree, start unknown")
    return f"{percent(line.stable.mean)} {word}"


def _paper(measured: list[tuple[VariantLine, Spread]]) -> str:
    """Whether ReLU + l1 is more stable and reconstructs less than the TopK kinds, as paper A reports; empty without both."""
    relu = [each for each in measured if each[0].variant == "relu"]
    kinds = [each for each in measured if each[0].variant in TOPK_KINDS]
    if not relu or not kinds:
        return ""
    one, one_ev = relu[0]
    more = [_differs(one.stable, line.stable) for line, _ in kinds]
    less = [_differs(ev, one_ev) for _, ev in kinds]
    verdict = {
        (True, True): "That ReLU + l1 is more stable and reconstructs less than the TopK kinds (paper A) holds here",
        (
            True,
            False,
        ): "Of paper A's finding the first half holds here: ReLU + l1 is more stable than the TopK kinds, but it does "
        "not reconstruct less",
        (
            False,
            True,
        ): "Of paper A's finding the second half holds here: ReLU + l1 reconstructs less than the TopK kinds, but "
        "it is not more stable",
        (
            False,
            False,
        ): "That ReLU + l1 is more stable and reconstructs less than the TopK kinds (paper A) does not hold here",
    }[all(each > 0 for each in more), all(each > 0 for each in less)]
    stable = f"{percent(one.stable.mean)} against {_range([line.stable.mean for line, _ in kinds], percent)}"
    ev = f"EV {one_ev.mean:.3f} against {_range([ev.mean for _, ev in kinds], '{:.3f}'.format)}"
    return f"{verdict}: {stable} stable, {ev} ({', '.join(line.ensemble for line, _ in kinds)})."


def _range(values: list[float], shown: Callable[[float], str]) -> str:
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


def _differs(a: Spread, b: Spread) -> int:
    """1 where a is larger by more than CLEAR standard deviations of both, -1 where smaller, else 0."""
    spread = ((a.sd or 0) ** 2 + (b.sd or 0) ** 2) ** 0.5
    return 0 if abs(a.mean - b.mean) <= CLEAR * spread else 1 if a.mean > b.mean else -1
