"""Explanations of a whole ensemble: scores by bucket and against stability, and the words of unstable against stable ones."""

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

import pyarrow as pa
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from seedscope.app import render
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.scores import ScoreCurve, score_by_stability
from seedscope.app.findings.scores import BucketScores, ScorePoint, by_bucket, by_stability
from seedscope.app.findings.word_contrast import Contrast, WordLine
from seedscope.app.formats import optional_percent, percent
from seedscope.app.jobs.kinds import language_model
from seedscope.app.routes.address import RULE_SAYS, EnsembleJudgement, EnsembleName, JudgedEnsemble, StudyName, judged
from seedscope.app.store.errors import BadValue
from seedscope.app.store.explanations import ScoreKind
from seedscope.app.store.missing import Missing
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.stability import ALONE_SENTENCE
from seedscope.engine.contract.tables.study import Ensemble, Study

router = APIRouter()
OPENAI = "openai:"  # in front of a language model's name

_COLUMN_TYPES = {str(int): pa.int64(), str(bool | None): pa.bool_()}
_WORDS = pa.schema(
    {"about": pa.string(), "word": pa.string()}
    | {f.name: _COLUMN_TYPES.get(str(f.type), pa.float64()) for f in fields(WordLine)[1:]}
)


class ExplanationsQuery(EnsembleJudgement):
    """The judgement, whose explanations, and which kind of score."""

    explainer: str | None = None
    kind: ScoreKind | None = None


@dataclass(frozen=True)
class Control:
    """The same recipe on the model with random weights; or, seen from there, on the model as trained."""

    ensemble: str
    is_random: bool
    buckets: list[BucketScores]
    points: list[ScorePoint]


@dataclass(frozen=True)
class ExplanationsPage:
    """`/s/{study}/{ensemble}/explanations`: what explanations score by bucket, and which words set buckets apart."""

    study: Study
    ensemble: Ensemble
    theta: float
    epsilon: float
    rule: str
    rules: list[str]
    dead: str | None
    explainer: str | None  # None where nothing is explained
    explainers: dict[str, int]  # features that each has a text for
    kind: str | None
    kinds: list[str]
    sentence: str
    buckets: list[BucketScores] | None
    points: list[ScorePoint] | None
    control: Control | None
    contrast: Contrast | None
    missing: list[Missing]
    figure_scores: Figure | None
    nav_query: ExplanationsQuery
    nav_judgement: dict[str, Any]
    nav_rules: dict[str, str]
    nav_judged: str
    nav_push: str
    nav_lacks: list[Missing]
    nav_model: str | None  # the language model that can be asked from here


@render.page(router, "/s/{study}/{ensemble}/explanations", "ensemble/explanations.html", "explanations")
def explanations(
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[ExplanationsQuery], Depends(judged(ExplanationsQuery))],
) -> ExplanationsPage:
    """How well features are explained, by bucket and by stability, and which words set unstable explanations apart."""
    store, row, asked = opened
    stored = store.explanations
    explainer = stored.check(ensemble, asked.explainer)
    kinds = stored.kinds(ensemble, explainer) if explainer else []
    kind = _kind(asked, kinds)
    buckets = points = control = contrast = drawn = None
    if explainer and row.n_comparisons:
        buckets, points = _scored(store, row, asked, explainer, kind or "detection")
        contrast = store.vocabulary.contrast(asked.query(ensemble), explainer)
        control = _control(store, row, asked, explainer, kind or "detection")
        if kind and any(point.n for point in points):
            drawn = _drawn(row, points, control, kind, buckets)
    lacking = store.missing(ensemble)
    return ExplanationsPage(
        study=store.study,
        ensemble=row,
        theta=asked.theta,
        epsilon=asked.epsilon,
        rule=asked.rule,
        rules=store.rules(ensemble),
        dead=asked.dead,
        explainer=explainer,
        explainers=stored.explainers(ensemble),
        kind=kind,
        kinds=kinds,
        sentence=_sentence(explainer, kind, buckets, contrast) if row.n_comparisons else ALONE_SENTENCE,
        buckets=buckets,
        points=points,
        control=control,
        contrast=contrast,
        missing=list(lacking.values()),
        figure_scores=drawn,
        nav_query=asked,
        nav_judgement=asked.judgement(),
        nav_rules={rule: RULE_SAYS[rule] for rule in store.rules(ensemble)},
        nav_judged=asked.judged(activity=store.has(ensemble, "activity")),
        nav_push=render.url(f"/s/{study}/{ensemble}/explanations", **asked.parameters()),
        nav_lacks=[lacking["explanations"]] if "explanations" in lacking else [],
        nav_model=None if store.study.synthetic or store.study.recorded else language_model(),
    )


@router.get("/s/{study}/{ensemble}/explanations.csv", name="explanations.csv")
@router.get("/s/{study}/{ensemble}/explanations.parquet", name="explanations.parquet")
def explanations_download(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedEnsemble[ExplanationsQuery], Depends(judged(ExplanationsQuery))],
) -> Response:
    """Every word that is compared between buckets, and every kind of token rule, as CSV or Parquet."""
    store, _, asked = opened
    explainer = store.explanations.check(ensemble, asked.explainer)
    lines: list[dict[str, Any]] = []
    if explainer and store.ensembles[ensemble].n_comparisons:
        contrast = store.vocabulary.contrast(asked.query(ensemble), explainer)
        lines = [{"about": "word"} | asdict(line) for line in contrast.words]
        lines += [{"about": "kind of rule"} | asdict(line) for line in contrast.rule_kinds or ()]
    return render.download(request, pa.Table.from_pylist(lines, schema=_WORDS), f"{study}-{ensemble}-words")


def _kind(asked: ExplanationsQuery, kinds: list[str]) -> str | None:
    if asked.kind is not None and asked.kind not in kinds:
        raise BadValue("kind", repr(asked.kind), ", ".join(kinds) or "none: these explanations were not scored")
    return asked.kind or next(iter(kinds), None)


def _scored(
    store: StudyStore, row: Ensemble, asked: ExplanationsQuery, explainer: str, kind: str
) -> tuple[list[BucketScores], list[ScorePoint]]:
    tally = store.explanations.scores(asked.query(row.ensemble), explainer, kind)
    return by_bucket(tally), by_stability(tally)


def _control(store: StudyStore, row: Ensemble, asked: ExplanationsQuery, explainer: str, kind: str) -> Control | None:
    """The random-weights control of an ensemble, or what an ensemble is the control of; None without the same scores there."""
    for name, other in store.ensembles.items():
        if row.ensemble not in (name, other.control_of) and row.control_of != name:
            continue
        if name == row.ensemble or asked.rule not in store.rules(name):
            continue
        if explainer in store.explanations.explainers(name) and kind in store.explanations.kinds(name, explainer):
            return Control(name, other.control_of is not None, *_scored(store, other, asked, explainer, kind))
    return None


def _drawn(
    row: Ensemble, points: list[ScorePoint], control: Control | None, kind: str, buckets: list[BucketScores]
) -> Figure:
    ends = [(point, point.mean) for point in points if point.mean is not None]
    (first, first_mean), (last, last_mean) = ends[0], ends[-1]
    title = "Do explanations of stable features score higher?"
    if len(ends) > 1 and first.low is not None and last.low is not None:
        title = "Explanations of stable and of unstable features score alike"
        side = _side(first, last)
        if side:
            title = (
                f"Features that come back in {'every' if last.p == 1 else 'most'} seed{'s' * (last.p < 1)} have explanations "
                f"that score {side} than those that come back in {'none' if first.p == 0 else 'few'}: {last_mean:.2f} against "
                f"{first_mean:.2f}"
            )
    levels = [line.shuffled_p95 for line in buckets if line.shuffled_p95 is not None]
    sizes = [line.n_scored for line in buckets if line.shuffled_p95 is not None]
    level = sum(a * n for a, n in zip(levels, sizes, strict=True)) / sum(sizes) if levels else None
    beside = None if control is None else _curve(control.ensemble, control.points)
    return score_by_stability(_curve(row.ensemble, points), beside, title, kind, level)


def _side(first: ScorePoint, last: ScorePoint) -> Literal["higher", "lower"] | None:
    """Whether the last interval stands above or below the first; None where they overlap or are not known."""
    if first.low is None or first.high is None or last.low is None or last.high is None:
        return None
    return "higher" if last.low > first.high else "lower" if last.high < first.low else None


def _curve(name: str, points: list[ScorePoint]) -> ScoreCurve:
    columns = ("p", "n", "mean", "low", "high", "members")
    return ScoreCurve(name, *([getattr(point, column) for point in points] for column in columns))


def _sentence(
    explainer: str | None, kind: str | None, buckets: list[BucketScores] | None, contrast: Contrast | None
) -> str:
    """The page in one sentence, made from its numbers."""
    if explainer is None or buckets is None:
        return "Nothing is explained yet."
    explained = sum(line.n_explained for line in buckets)
    n_features = sum(line.n_features for line in buckets)
    named = f"Language model {explainer.removeprefix(OPENAI)}" if explainer.startswith(OPENAI) else explainer
    text = f"{named[0].upper()}{named[1:]}: {explained:,} of {n_features:,} features explained"
    line = {each.bucket: each for each in buckets}
    if kind and all(line[b].score.median is not None for b in ("stable", "unstable")):
        medians = [f"{line[b].score.median:.2f} for {b}" for b in ("stable", "unstable")]
        text += f"; the median {kind} score is {medians[0]} and {medians[1]} ones"
        above = [optional_percent(line[b].above, 0) for b in ("stable", "unstable")]
        text += f", and {above[0]} and {above[1]} of them score above their chance level"
    leading = contrast.rule_kinds or contrast.words if contrast else []
    if contrast and leading:
        most = leading[0]
        named = f"rules of the kind “{most.word}” make up" if contrast.rule_kinds else f"“{most.word}” stands in"
        text += f"; {named} {percent(most.unstable)} of unstable and {percent(most.stable)} of stable explanations"
    return text + "."
