"""Spans of unstable features: what they capture of another seed's features, beside every control; angles, pursuit, map."""

from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from seedscope.app import render
from seedscope.app.figures.drawing import Figure, pair_links
from seedscope.app.figures.predictability import PredictionScore, prediction_dots
from seedscope.app.figures.prediction import reliability
from seedscope.app.figures.pursuit import Residual, pursuit_residual
from seedscope.app.figures.seedspans import angle_matrix, energy_matrix, overlap_matrix
from seedscope.app.figures.spans import CapturedCurve, captured_figure
from seedscope.app.figures.spectrum import span_spectrum
from seedscope.app.findings.prediction_verdict import prediction_sentence
from seedscope.app.findings.random_subspaces import unrelated_angle
from seedscope.app.findings.span_claim import Claim, Compared, EnergyAtRank, compare, judge_claim
from seedscope.app.formats import optional_percent, percent
from seedscope.app.routes.address import EnsembleName, JudgedEnsemble, StudyName, judged
from seedscope.app.routes.ensemble.span_filter import SpanFilter, choices
from seedscope.app.store.missing import Missing
from seedscope.app.store.predictions import StoredPredictor, read_predictor
from seedscope.app.store.spans import (
    TABLES,
    EnsembleSpans,
    PairSpan,
    map_remark,
    nearest_rank,
    other_remarks,
    pairs_at,
    read_spans,
    span_table,
)
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.tables.spans import (
    SPAN_CURVES,
    SpanCurve,
    SpanMember,
    SpanPrediction,
    SpanResidual,
)
from seedscope.engine.contract.tables.study import Ensemble, Study

router = APIRouter()
N_SHOWN = 3  # ranks of the table
CHAINED = 0.5  # share of all rows in one cluster, from which on keeping clusters apart says little
CURVE_SAYS = {
    "within": "own seed, held-out half", "cross": "another seed", "random_set": "as many random living features of another seed",
    "stable": "as many stable features of another seed", "activations": "top PCA of the activations",
    "random_subspace": "random subspace, r/d",
}  # fmt: skip


@dataclass(frozen=True)
class CapturedLine:
    """One curve at the ranks of the table; None where it stops before a rank."""

    curve: str
    says: str
    levels: list[EnergyAtRank | None]
    n_fitted: int  # the fewest rows that a span was fitted on; 0: none were


@dataclass(frozen=True)
class SpanSide:
    """The ensemble or its control at one rank, each judged by its own buckets; None: its spans do not reach the rank."""

    ensemble: str
    is_control: bool
    n_unstable: int
    levels: dict[str, EnergyAtRank]
    claim: Claim | None


@dataclass(frozen=True)
class SubspacesPage:
    """`/s/{study}/{ensemble}/subspaces`: spans of unstable features across seeds, with every control."""

    study: Study
    ensemble: Ensemble
    theta: float  # that the stored buckets were judged by
    epsilon: float
    asked_theta: float
    asked_epsilon: float
    rank: int | None  # shown: one of `ranks`; None where no spans are compared
    asked_rank: int | None
    ranks: list[int]
    sentence: str
    claim: Claim | None
    shown_ranks: list[int]
    lines: list[CapturedLine]
    sides: list[SpanSide]  # empty without a control
    curves: list[SpanCurve]
    pairs: list[PairSpan]  # at the rank
    members: list[SpanMember]
    residuals: list[SpanResidual]
    predictions: list[SpanPrediction]
    predicted: str | None  # what predictability leaves, in one sentence
    predictor: StoredPredictor | None  # that tells stability from one SAE, trained on this ensemble
    predicted_says: str | None  # how well it does, in one sentence
    remarks: list[str]
    map_remark: str | None
    missing: list[Missing]
    figure_captured: Figure | None
    figure_spectrum: Figure | None
    figure_matrix: Figure | None
    figure_pursuit: Figure | None
    figure_predictability: Figure | None
    figure_reliability: Figure | None
    nav_query: SpanFilter
    nav_choices: dict[str, Any]
    nav_tables: list[str]
    nav_push: str


@render.page(router, "/s/{study}/{ensemble}/subspaces", "ensemble/subspaces.html", "subspaces")
def subspaces(
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[SpanFilter], Depends(judged(SpanFilter))],
) -> SubspacesPage:
    """Whether spans of unstable features carry over from seed to seed, beside every control; angles, pursuit, map."""
    store, row, asked = opened
    lacking = store.missing(ensemble)
    spans = read_spans(store, ensemble)
    rank = None
    if row.span_rank is not None:
        rank = _first_rank(row.span_rank, spans) if asked.rank is None else nearest_rank(spans.ranks, asked.rank)
    levels = spans.levels(rank) if rank else {}
    claim = judge_claim(levels)
    shown = _around(spans.ranks, rank) if rank else []
    pairs = pairs_at(store, ensemble, rank) if rank else []
    predictor = read_predictor(store, ensemble) if row.n_comparisons else None
    return SubspacesPage(
        study=store.study,
        ensemble=row,
        theta=row.theta,
        epsilon=row.epsilon,
        asked_theta=asked.theta,
        asked_epsilon=asked.epsilon,
        rank=rank,
        asked_rank=asked.rank,
        ranks=spans.ranks,
        sentence=_sentence(row, spans, rank, levels, claim, lacking),
        claim=claim,
        shown_ranks=shown,
        lines=_lines(spans, shown),
        sides=_sides(store, row, rank) if rank else [],
        curves=spans.curves,
        pairs=pairs,
        members=spans.members,
        residuals=spans.residuals,
        predictions=spans.predictions,
        predicted=_predicted(spans.predictions, row),
        predictor=predictor,
        predicted_says=prediction_sentence(predictor.scores) if predictor else None,
        remarks=other_remarks(row),
        map_remark=map_remark(row),
        missing=[lacking[name] for name in ("subspaces", "predictor") if name in lacking],
        figure_captured=_captured(row, spans, rank) if rank else None,
        figure_spectrum=_spectrum(row, spans),
        figure_matrix=_matrix(store, row, asked, rank, pairs) if rank and pairs else None,
        figure_pursuit=_pursuit(spans),
        figure_predictability=_predictability(spans),
        figure_reliability=reliability(predictor.bins, predictor.predictor.trained_on)
        if predictor and predictor.bins
        else None,
        nav_query=asked,
        nav_choices=choices(store, ensemble),
        nav_tables=list(TABLES),
        nav_push=render.url(f"/s/{study}/{ensemble}/subspaces", **asked.parameters()),
    )


def _download(name: str, table: str) -> None:
    """Register one table's downloads."""

    def span_download(
        request: Request,
        study: StudyName,
        ensemble: EnsembleName,
        opened: Annotated[JudgedEnsemble[SpanFilter], Depends(judged(SpanFilter))],
    ) -> Response:
        return render.download(request, span_table(opened.store, ensemble, table), f"{study}-{ensemble}-spans-{table}")

    for kind in ("csv", "parquet"):
        path = f"/s/{{study}}/{{ensemble}}/{name}.{kind}"
        router.get(path, name=f"{name}.{kind}", description=f"Spans: the table of {table}, as CSV or Parquet.")(
            span_download
        )


_download("subspaces", "curves")
for _table in TABLES:
    _download(f"subspaces/{_table}", _table)


# -- in words ----------------------------------------------------------------------------------------------------


def _sentence(
    row: Ensemble, spans: EnsembleSpans, rank: int | None, levels: dict[str, EnergyAtRank], claim: Claim | None,
    lacking: dict[str, Missing],
) -> str:  # fmt: skip
    """What holds here and what does not, made from the numbers."""
    if "subspaces" in lacking:
        return f"What spans of unstable features share was not computed: {lacking['subspaces'].reason}."
    if rank is None:
        return "Too few seeds have unstable features whose spans could be compared, so nothing is said of the claim."
    if claim is None:
        reached = _reached(spans)
        way_out = f"the largest rank that all needed curves reach is {reached:,}" if reached else "no rank is reached"
        return f"At rank {rank:,} no span has that many directions: fitted rows are too few, {way_out}."
    return f"At rank {rank:,} of {row.d_out:,}, {_measured(levels)}: {_verdict(claim)}{_beside(claim, levels)}."


def _measured(levels: dict[str, EnergyAtRank]) -> str:
    within, cross, chance = (percent(levels[name].mean) for name in ("within", "cross", "random_subspace"))
    return (
        f"one seed’s span of unstable features captures {cross} of another seed’s and {within} of its own (held-out half), where "
        f"chance gives {chance}"
    )


def _verdict(claim: Claim) -> str:
    """Whether the paper's claim holds."""
    kept = "" if claim.kept is None else f"{percent(claim.kept, 0)} of what lies above chance"
    return {
        "nearly": f"it carries over {'whole' if (claim.kept or 0) >= 1 else f'nearly whole ({kept})'}, as the paper claims",
        "partly": f"only {kept} carries over, so that the paper’s claim holds in part",
        "no": "nothing carries over, so that the paper’s claim does not hold here",
        "nothing": "not even its own lie in it more than by chance, so that there is nothing to share",
    }[claim.carries]


def _beside(claim: Claim, levels: dict[str, EnergyAtRank]) -> str:
    """What random and stable features of the same number capture."""
    if any(compared is None for compared in claim.against.values()):
        return f", though {levels['cross'].n_pairs} ordered pairs are too few to set it against the controls"
    if claim.carries in ("no", "nothing"):
        return ""
    parts = []
    if "random_set" in levels:
        value = percent(levels["random_set"].mean)
        parts.append(
            f", and as many random living features capture less, {value}"
            if claim.is_particular
            else f"; but as many random living features capture {_as_much(claim, 'random_set')}, {value}, so that this says little "
            "about unstable features in particular"
        )
    if "stable" in levels:
        parts.append(f"; as many stable ones {_as_much(claim, 'stable')}, {percent(levels['stable'].mean)}")
    return "".join(parts)


def _as_much(claim: Claim, name: str) -> str:
    words: dict[Compared | None, str] = {"more": "less", "equal": "as much within the spread", "less": "more"}
    return words[claim.against[name]]


def _predicted(rows: list[SpanPrediction], row: Ensemble) -> str | None:
    """What is left of predictability after the controls."""
    by_setting = {each.setting: each for each in rows}
    if not {"plain", "isotropic", "always_stable"} <= by_setting.keys():
        return None
    plain, copies, always = (by_setting[name] for name in ("plain", "isotropic", "always_stable"))
    text = (
        f"From seed to seed the decoder row tells stable from unstable at F1 {plain.f1:.2f} (AUROC {plain.auroc:.2f}); random "
        f"directions that are copied as closely reach {copies.f1:.2f} ({copies.auroc:.2f}), always saying “stable” {always.f1:.2f}"
    )
    left = _without_copies(rows)
    if left is None:
        return f"{text}; too few rows are left without shared copies to say more."
    apart, chance = left
    text += f"; without shared copies AUROC is {apart.mean:.2f} where random directions give {chance.mean:.2f}: "
    text += (
        f"{apart.mean - chance.mean:+.2f} AUROC beyond chance"
        if compare(apart, chance) == "more"
        else "nothing beyond chance and spread"
    )
    if (row.largest_cluster or 0) > CHAINED:
        text += f", but one cluster of matches holds {optional_percent(row.largest_cluster, 0)} of the rows: that says little"
    return f"{text}."


def _without_copies(rows: list[SpanPrediction]) -> tuple[EnergyAtRank, EnergyAtRank] | None:
    """AUROC without shared copies: of decoder rows, and of random directions; None where too few rows are left."""
    levels = {
        each.setting: EnergyAtRank(each.auroc, each.auroc_spread, each.n_pairs)
        for each in rows
        if each.auroc is not None
    }
    if not {"disjoint", "isotropic_disjoint"} <= levels.keys():
        return None
    return levels["disjoint"], levels["isotropic_disjoint"]


# -- ranks -------------------------------------------------------------------------------------------------------


def _first_rank(usual: int, spans: EnsembleSpans) -> int:
    """The usual rank, or the largest one that curves reach where that is smaller."""
    return min(usual, _reached(spans) or usual)


def _reached(spans: EnsembleSpans) -> int | None:
    """The largest rank at which there is a verdict; None without any."""
    return max((rank for rank in spans.ranks if judge_claim(spans.levels(rank))), default=None)


# -- the table ---------------------------------------------------------------------------------------------------


def _around(ranks: list[int], rank: int) -> list[int]:
    """A rank and its neighbours, as many as the table holds."""
    first = min(max(ranks.index(rank) - N_SHOWN // 2, 0), max(len(ranks) - N_SHOWN, 0))
    return ranks[first : first + N_SHOWN]


def _lines(spans: EnsembleSpans, shown: list[int]) -> list[CapturedLine]:
    at = {rank: spans.levels(rank) for rank in shown}
    fitted = {row.curve: row.n_fitted for row in spans.curves}
    return [
        CapturedLine(curve, CURVE_SAYS[curve], [at[rank].get(curve) for rank in shown], fitted[curve])
        for curve in CURVE_SAYS
        if curve in fitted and shown
    ]


def _sides(store: StudyStore, row: Ensemble, rank: int) -> list[SpanSide]:
    """The ensemble that was trained on the model and its controls; empty where this one has neither."""
    original = row.control_of if row.control_of in store.ensembles else row.ensemble
    controls = [each.ensemble for each in store.ensembles.values() if each.control_of == original]
    sides = []
    for name in (original, *controls) if controls else ():
        spans = read_spans(store, name)
        levels, n_unstable = spans.levels(rank), sum(member.n_unstable for member in spans.members)
        sides.append(SpanSide(name, name != original, n_unstable, levels, judge_claim(levels)))
    return sides


# -- figures -----------------------------------------------------------------------------------------------------


def _captured(row: Ensemble, spans: EnsembleSpans, rank: int) -> Figure:
    curves = []
    for name in SPAN_CURVES:
        rows = [each for each in spans.curves if each.curve == name]
        if name != "overlap" and rows:
            columns = zip(*((c.rank, c.mean, c.spread, c.n_pairs) for c in rows), strict=True)
            curves.append(CapturedCurve(name, *columns))
    n = sum(member.n_unstable for member in spans.members)
    return captured_figure(
        curves, d=row.d_out, rank=rank, n=f"{n:,} unstable features of {len(spans.members)} seeds",
        fitted="half of a seed’s unstable rows",
    )  # fmt: skip


def _spectrum(row: Ensemble, spans: EnsembleSpans) -> Figure | None:
    members = [member for member in spans.members if member.n_equal]
    if not members:
        return None
    names = ("random", "stable", "unstable")
    values = {name: [getattr(member, f"{name}_values") for member in members] for name in names}
    ranks = {name: fmean(getattr(member, f"{name}_equal") for member in members) for name in names}
    return span_spectrum(values, ranks, [member.n_equal for member in members], row.d_out)


def _matrix(store: StudyStore, row: Ensemble, asked: SpanFilter, rank: int, pairs: list[PairSpan]) -> Figure:
    seeds = sorted({pair.seed for pair in pairs})
    links = pair_links(f"/s/{store.study.study}/{row.ensemble}/members", seeds)
    own = asked.matrix == "energy"  # a span is itself, but does not hold all that it was not fitted on
    cells = {(p.seed, p.other): getattr(p, asked.matrix) for p in pairs if own or p.seed != p.other}
    if asked.matrix == "angle":
        return angle_matrix(seeds, cells, links, rank, unrelated_angle(rank, row.d_out))
    draw = energy_matrix if own else overlap_matrix
    return draw(seeds, cells, links, rank, row.d_out)


def _pursuit(spans: EnsembleSpans) -> Figure | None:
    rows = [
        Residual(
            r.bucket, r.k, r.mean, r.spread, {"haar": r.haar, "second_moment": r.second_moment}, r.n_pairs, r.n_rows
        )
        for r in spans.residuals
    ]
    return pursuit_residual(rows) if rows else None


def _predictability(spans: EnsembleSpans) -> Figure | None:
    if not spans.predictions:
        return None
    title = "Does the decoder row say whether a feature is stable?"
    if left := _without_copies(spans.predictions):
        apart, chance = left
        says = "is partly" if compare(apart, chance) == "more" else "is not"
        title = f"Stability {says} predictable from the decoder vector: AUROC {apart.mean:.2f}, random directions {chance.mean:.2f}"
    rows = [
        PredictionScore(p.setting, p.f1, p.f1_spread, p.auroc, p.auroc_spread, p.n_pairs) for p in spans.predictions
    ]
    return prediction_dots(rows, title)
