"""Where the variance between seeds comes from: ensembles whose members differ in their start, data order, sample, or model."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel

from seedscope.app import render
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.sources import (
    CauseBuckets,
    CauseDot,
    PatternBar,
    cause_buckets,
    cause_dots,
    pattern_bars,
)
from seedscope.app.findings.sources_claim import SAYS, LossPattern, loss_patterns, sources_sentence
from seedscope.app.routes.address import RULE_SAYS, EnsembleJudgement, StudyName, address_reader
from seedscope.app.routes.study.variant_lines import VariantLine, read_line
from seedscope.app.store.errors import BadValue
from seedscope.app.store.sources import Cause, Interval, ReferenceFeatures, Sources, shares_start
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract import schema
from seedscope.engine.contract.sources import PARTS
from seedscope.engine.contract.tables.study import Study

router = APIRouter()
COMMAND = "seedscope sources"
EXAMPLE = """[[sources]]
name = "by"
train = { variant = "topk", d_sae = 512, k = 10, seeds = 8, tokens = 300_000 }"""


@dataclass(frozen=True)
class CauseLine:
    """One cause: what its members agree on."""

    cause: str
    says: str
    shares_start: bool  # then what members agree on is partly where they began
    p: Interval | None  # mean over living features; None where activity is not known
    p_all: Interval | None  # mean over all features
    mcc: Interval | None
    remarks: list[str]
    line: VariantLine  # buckets, EV, dead share, chance


@dataclass(frozen=True)
class SourcesPage:
    """`/s/{study}/sources`: how much each cause changes features, and which features lose their counterpart to which."""

    study: Study
    theta: float
    epsilon: float
    rule: str
    dead: str | None
    is_comparison: bool  # whether ensembles differ in what differs between their members alone
    sentence: str
    causes: list[CauseLine]
    reference_seed: int | None  # of the SAE that is a member of every such ensemble; None where there is none
    n_reference: int
    patterns: list[LossPattern]
    figure_list: list[Figure]
    nav_rules: dict[str, str]
    nav_judgement: dict[str, Any]
    nav_says: dict[str, str]
    nav_command: str
    nav_example: str
    nav_reference: str  # address of the ensemble that the reference's features are shown in


class OpenedSources(NamedTuple):
    """A study, and how its ensembles are judged: by the first one's theta and epsilon where the address names none."""

    store: StudyStore
    sources: Sources
    judgement: EnsembleJudgement


def read_sources(
    request: Request, study: StudyName, address: Annotated[BaseModel, Depends(address_reader(EnsembleJudgement))]
) -> OpenedSources:
    """The study of an address and its query; raises NotFound."""
    store: StudyStore = request.app.state.studies.get(study)
    return OpenedSources(
        store, Sources(store), EnsembleJudgement.resolved(next(iter(store.ensembles.values())), address)
    )


@render.page(router, "/s/{study}/sources", "study/sources.html", "sources")
def sources(study: StudyName, opened: Annotated[OpenedSources, Depends(read_sources)]) -> SourcesPage:
    """Start, data order, data sample, model: what each leaves of p, buckets and MCC, and which features it takes."""
    store, found, judgement = opened
    lines = [_line(opened, cause) for cause in found.causes]
    reference = found.reference(judgement.rule, judgement.theta, living=judgement.dead != "count")
    patterns = _patterns(found, reference) if reference else []
    return SourcesPage(
        study=store.study,
        theta=judgement.theta,
        epsilon=judgement.epsilon,
        rule=judgement.rule,
        dead=judgement.dead,
        is_comparison=bool(found.causes),
        sentence=sources_sentence(
            {line.cause: p.value for line in lines if (p := line.p or line.p_all)},
            {line.cause: line.p_all.value for line in lines if line.p_all},
        ),
        causes=lines,
        reference_seed=reference.seed if reference else None,
        n_reference=len(reference.feature) if reference else 0,
        patterns=patterns,
        figure_list=_figures(lines, patterns, reference, judgement) if lines else [],
        nav_rules={rule: RULE_SAYS[rule] for rule in _rules(store, found)},
        nav_judgement=judgement.judgement(),
        nav_says=SAYS,
        nav_command=COMMAND,
        nav_example=EXAMPLE,
        nav_reference=f"/s/{study}/{found.causes[0].ensemble.ensemble}/{reference.seed}" if reference else "",
    )


@router.get("/s/{study}/sources.csv", name="sources.csv")
@router.get("/s/{study}/sources.parquet", name="sources.parquet")
def sources_download(
    request: Request, study: StudyName, opened: Annotated[OpenedSources, Depends(read_sources)]
) -> Response:
    """The reference SAE's features and their matches under every cause, as CSV or Parquet."""
    _, found, judgement = opened
    reference = found.reference(judgement.rule, judgement.theta, living=judgement.dead != "count")
    if reference is None:
        raise BadValue("study", repr(study), f"one with an SAE that several causes share; make one with: {COMMAND}")
    columns: dict[str, Any] = {"seed": [reference.seed] * len(reference.feature), "feature": reference.feature}
    for cause, matched in reference.matched.items():
        columns |= {f"matched_{cause}": matched, f"comparisons_{cause}": [reference.comparisons[cause]] * len(matched)}
    return render.download(request, pa.table(columns), f"{study}-sources")


def _rules(store: StudyStore, found: Sources) -> list[str]:
    names = [cause.ensemble.ensemble for cause in found.causes] or list(store.ensembles)
    return [rule for rule in schema.RULES if all(rule in store.rules(name) for name in names)]


def _line(opened: OpenedSources, cause: Cause) -> CauseLine:
    store, found, judgement = opened
    row = cause.ensemble
    own = judgement
    if judgement.rule not in store.rules(row.ensemble):
        own = judgement.model_copy(update={"rule": "argmax"})
    p, p_all = found.stability(cause, own.rule, own.theta)
    return CauseLine(
        cause=cause.name,
        says=SAYS.get(cause.name, " and ".join(cause.name.split("+"))),
        shares_start=shares_start(cause),
        p=p,
        p_all=p_all,
        mcc=found.mcc(cause),
        remarks=list(row.remarks),
        line=read_line(store, row, own),
    )


def _patterns(found: Sources, reference: ReferenceFeatures) -> list[LossPattern]:
    holding = next(cause for cause in found.causes if cause.name in reference.matched)
    firings = found.firings(holding, reference.seed, reference.feature)
    single = [part for part in PARTS if part in reference.matched]
    return loss_patterns(reference.matched, reference.comparisons, reference.feature, firings, single)


def _name(pattern: LossPattern) -> str:
    return "lost to " + ", ".join(pattern.lost_to) if pattern.lost_to else "kept under each"


def _figures(
    lines: list[CauseLine],
    patterns: list[LossPattern],
    reference: ReferenceFeatures | None,
    judgement: EnsembleJudgement,
) -> list[Figure]:
    members = f"{lines[0].line.n_members} SAEs each"
    hollow = "; hollow: members share their start" if any(line.shares_start for line in lines) else ""
    shown = [(line, p) for line in lines if (p := line.p or line.p_all)]
    figures = [
        cause_dots(
            "cause_p",
            "What does each cause leave of p?",
            f"Mean p of living features (of all where activity is unknown), θ = {judgement.theta:.2f}, {members}. Bars: 95 % "
            f"intervals from a bootstrap over seeds{hollow}.",
            [CauseDot(line.says, p.value, p.low, p.high, line.shares_start) for line, p in shown],
            axis="mean p",
            key="mean_p",
        )
    ]
    if assigned := [(line, line.mcc) for line in lines if line.mcc]:
        figures.append(
            cause_dots(
                "cause_mcc",
                "And of the best one-to-one matching?",
                f"MCC: mean cosine of the one-to-one matching, over pairs of SAEs. Bars: 95 % intervals{hollow}.",
                [CauseDot(line.says, mcc.value, mcc.low, mcc.high, line.shares_start) for line, mcc in assigned],
                axis="MCC",
                key="mcc",
            )
        )
    shares = [
        CauseBuckets(
            line.says,
            {"stable": of.stable.mean, "middle": of.middle.mean if of.middle else 0, "unstable": of.unstable.mean},
        )
        for line in lines
        if (of := line.line).stable and of.unstable
    ]
    figures.append(
        cause_buckets(
            "Which buckets?", f"Shares of features, mean over {members}, at ε = {judgement.epsilon:g}.", shares
        )
    )
    if patterns and reference:
        counts = ", ".join(f"{n} under {cause}" for cause, n in reference.comparisons.items())
        figures.append(
            pattern_bars(
                "Which features lose their counterpart to which cause?",
                f"{len(reference.feature):,} features of seed {reference.seed}, one SAE that every cause shares. Lost: matched in "
                f"fewer than half of the comparisons ({counts}).",
                [PatternBar(_name(pattern), pattern.n, pattern.share) for pattern in patterns],
            )
        )
    return figures
