"""A study's ensembles beside each other: stability, reconstruction and loss by variant, and along what was varied."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import pyarrow as pa
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from seedscope.app import render
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.tradeoff import SweepDot, TradeOff, sweep, trade_off
from seedscope.app.routes.address import RULE_SAYS, EnsembleJudgement, StudyName, address_reader
from seedscope.app.routes.study.variant_lines import VariantLine, match_l0, of_compared, read_line
from seedscope.app.routes.study.variant_sentence import sentence
from seedscope.app.store.missing import Missing
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract import schema
from seedscope.engine.contract.sweeps import Factor, factors, value_of
from seedscope.engine.contract.tables.study import Ensemble, Study

router = APIRouter()
MOST_FIGURES = 12  # of sweeps; all of them stand in the JSON
UNITS = {"d_sae": "features", "k": "active features per token", "l0": "asked for, active features per token",
         "tokens": "training tokens per seed", "layer": "block of the model"}  # fmt: skip
EXAMPLE = """[[ensemble]]
name = "width"
train = { variant = "topk", k = 10, seeds = 8, tokens = 1_000_000 }
sweep = { d_sae = [256, 512, 1024] }"""


class VariantsQuery(EnsembleJudgement):
    """The judgement, and what the trade-off shows."""

    measure: Annotated[Literal["stable", "p_hat"], Field(description="stable share, or mean p̂")] = "stable"


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
    sentence: str | None  # None with fewer than two ensembles, or none whose members were compared
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
    lines, l0 = match_l0([read_line(store, row, judgement) for row in rows])
    compared = [line for line in lines if line.n_comparisons]
    sweeps, drawn = _sweeps([row for row in rows if row.n_comparisons], compared, study, judgement)
    has_trade_off = sum(line.ev is not None for line in compared) > 1
    rules = [rule for rule in schema.RULES if all(rule in store.rules(row.ensemble) for row in rows)]
    return VariantsPage(
        study=store.study,
        theta=judgement.theta,
        epsilon=judgement.epsilon,
        rule=judgement.rule,
        dead=judgement.dead,
        measure=judgement.measure,
        sentence=sentence(compared, l0) if len(rows) > 1 and compared else None,
        l0=l0,
        lines=lines,
        sweeps=sweeps,
        missing=_lacks(store, rows),
        figure_tradeoff=_trade_off(compared, study, judgement) if has_trade_off else None,
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
    lines, _ = match_l0([read_line(store, row, judgement) for row in rows])
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
        y = of_compared(line.stable if judgement.measure == "stable" else line.p_hat)
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
