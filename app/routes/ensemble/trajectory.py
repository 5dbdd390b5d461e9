"""How an ensemble came to be: its training, agreement from the start on, and whether worth or stability comes first."""

from dataclasses import dataclass
from statistics import fmean
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from seedscope.app import render
from seedscope.app.figures.drawing import Figure, Heading
from seedscope.app.figures.trajectory import (
    Along,
    Scale,
    agreement_figures,
    along_training,
    by_bucket,
    short,
    training_figures,
)
from seedscope.app.findings.features_along import BucketPoint, FeaturesAlong
from seedscope.app.findings.precedence import QUANTITIES, TELLS, Lag, Separation
from seedscope.app.findings.stabilization import Stabilization, Trajectory, judge_stabilization
from seedscope.app.formats import percent
from seedscope.app.routes.address import EnsembleName, Plain, StudyName, open_ensemble
from seedscope.app.store.missing import Missing
from seedscope.engine.contract.tables.study import Ensemble, Study
from seedscope.engine.contract.tables.training import AgreementPoint, Checkpoint, CosineGeometry, TracePoint

router = APIRouter()
SHOWN: dict[str, str] = {"worth": "marginal EV"} | {
    name: name for name in ("best cosine", "density")
}  # quantities in words
ALIKE = 0.05  # share of comparisons in which features that end stable match, up to which they are like all others
QUANTITY_DRAWN = {
    "best cosine": ("@accent", "solid", "circle"),
    "worth": ("@stable", "dash", "diamond"),
    "density": ("@null", "dot", "square"),
}


@dataclass(frozen=True)
class TrajectoryPage:
    """`/s/{study}/{ensemble}/trajectory`: training, agreement from step 0 on, and features by where they end."""

    study: Study
    ensemble: Ensemble
    theta: float  # that features' matches were counted by, and the buckets in which they end
    epsilon: float
    sentence: str
    stabilization: Stabilization | None
    trace: list[TracePoint]
    checkpoints: list[Checkpoint]
    agreement: list[AgreementPoint]
    geometry: list[CosineGeometry]
    geometry_says: str
    n_features: int | None  # that what follows is of; of n_all where it is smaller
    n_all: int | None
    buckets: list[BucketPoint]
    separations: list[Separation]
    lags: list[Lag]
    answer: list[str]  # what comes first, sentence by sentence
    missing: list[Missing]
    figure_training: list[Figure]
    figure_agreement: list[Figure]
    figure_features: list[Figure]
    figure_first: list[Figure]


@render.page(router, "/s/{study}/{ensemble}/trajectory", "ensemble/trajectory.html", "trajectory")
def trajectory(
    request: Request, study: StudyName, ensemble: EnsembleName, asked: Annotated[Plain, Query()]
) -> TrajectoryPage:
    """How training went, how members came to agree from step 0 on, and whether features' worth or stability comes first."""
    store, row = open_ensemble(request, study, ensemble)
    course, features = store.trajectories.read(ensemble), store.trajectories.features(ensemble)
    verdict, word = judge_stabilization(course, row.shared_start), _word(row)
    lacks = store.missing(ensemble)
    return TrajectoryPage(
        study=store.study,
        ensemble=row,
        theta=row.theta,
        epsilon=row.epsilon,
        sentence=_sentence(verdict, course),
        stabilization=verdict,
        trace=course.trace,
        checkpoints=course.checkpoints,
        agreement=course.agreement,
        geometry=course.geometry,
        geometry_says=_geometry_says(course.geometry),
        n_features=features.n if features else None,
        n_all=features.n_all if features else None,
        buckets=features.points if features else [],
        separations=features.separations if features else [],
        lags=features.lags if features else [],
        answer=_answer(features, row) if features else [],
        missing=[lacks["trajectory"]] if "trajectory" in lacks else [],
        figure_training=training_figures(course.trace),
        figure_agreement=agreement_figures(course.checkpoints, course.of("all"), course.of("live"), course.geometry)
        if verdict
        else [],
        figure_features=_features(features, course, word, row.theta) if features else [],
        figure_first=_first(features) if features else [],
    )


@router.get("/s/{study}/{ensemble}/trajectory.csv", name="trajectory.csv")
@router.get("/s/{study}/{ensemble}/trajectory.parquet", name="trajectory.parquet")
def trajectory_download(
    request: Request, study: StudyName, ensemble: EnsembleName, asked: Annotated[Plain, Query()]
) -> Response:
    """Agreement and cosine geometry at every checkpoint, as CSV or Parquet."""
    store, _ = open_ensemble(request, study, ensemble)
    return render.download(request, store.trajectories.table(ensemble), f"{study}-{ensemble}-trajectory")


def _word(row: Ensemble) -> str:
    return "stability" if row.shared_start == "no" else "agreement"


# -- in words ----------------------------------------------------------------------------------------------------------


def _sentence(verdict: Stabilization | None, course: Trajectory) -> str:
    """Whether training brought members together, made from the numbers."""
    if verdict is None:
        if course.trace:
            return "How training went is known; agreement along it was not measured."
        return "How its seeds were trained is not known here."
    v = verdict
    if v.kind == "shared start":
        began = "at 0" if v.start < 0.005 else f"at {v.start:.2f}"
        return (
            f"Seeds share their start: their {v.measure} begins {began} by construction and ends at {v.end:.2f}. It cannot fall "
            "below its beginning, so that this agreement says nothing about stabilization."
        )
    ways = f"from {v.start:.3f} to {v.end:.3f}"
    if v.kind == "not shown" and v.end >= v.start:
        return (
            f"No stabilization is shown: seeds do not share their start and yet begin at a {v.measure} of {v.start:.3f}, beside "
            f"{v.random:.3f} for random dictionaries, and training did not bring them nearer: they end at {v.end:.3f}."
        )
    if v.kind == "not shown":
        return (
            f"No stabilization is shown: between seeds that began apart the {v.measure} went {ways}, and that is not below "
            "where every pair began, or is the work of the mean direction alone."
        )
    share = v.fall / v.start
    near = abs(v.start - v.random) < 0.03
    where = (
        f"the level of random dictionaries ({v.random:.3f})"
        if near
        else f"{v.start:.3f}, beside {v.random:.3f} for random dictionaries: starts that are made alike are alike"
    )
    return (
        f"Stabilization is shown: seeds began apart, at {where}, and training took their {v.measure} {ways}, by {v.fall:.3f} or "
        f"{percent(share, 0)} of the way to 0; without their mean direction from {v.centred_start:.3f} to {v.centred_end:.3f}."
    )


def _geometry_says(geometry: list[CosineGeometry]) -> str:
    if not geometry:
        return ""
    first, last = geometry[0], geometry[-1]
    share = last.mean_share
    if share < 0.02:
        return (
            f"Rows have next to nothing in common ({percent(share)} of them at the end): cosines are what they seem, and taking "
            "the mean direction out changes little."
        )
    return (
        f"{percent(share)} of every row is one common direction at the end ({percent(first.mean_share)} at the start): two "
        f"features of one dictionary have a cosine of {last.mean_cosine:+.3f} on average, and cosines between seeds are "
        "inflated where they share that direction."
    )


def _answer(features: FeaturesAlong, row: Ensemble) -> list[str]:
    """Which comes first, as far as the numbers say."""
    if not features.lags:
        return [
            "What removing a feature costs was not measured in training, so that nothing can be said of what comes first."
        ]
    sentences = [
        *_told_by(features.separations, _word(row)),
        *_before(features.points, shared=row.shared_start == "yes"),
    ]
    rows = {before: [each for each in features.lags if each.before == before] for before in ("worth", "best cosine")}
    n = len(rows["worth"])
    mean = {before: fmean(each.partial for each in lags) for before, lags in rows.items()}
    often = {before: sum(each.is_beyond and each.partial > 0 for each in lags) for before, lags in rows.items()}
    most = {before: max(lags, key=lambda each: abs(each.partial)) for before, lags in rows.items()}

    def course(before: str) -> str:
        top, last = most[before], rows[before][-1]
        return (
            f"partial rank correlation {mean[before]:+.2f} on average, above chance in {often[before]} of {n} steps, strongest "
            f"{top.partial:+.2f} up to {top.next_tokens:,} tokens, {last.partial:+.2f} in the last"
        )

    sentences.append(
        "From one checkpoint to the next, of features with equal best cosine those with more marginal EV gain "
        f"{'more' if mean['worth'] > 0 else 'less'} of it ({course('worth')}); of features of equal marginal EV "
        f"those with the higher best cosine gain {'more' if mean['best cosine'] > 0 else 'less'} marginal EV "
        f"({course('best cosine')})."
    )
    led = {before: often[before] > n / 2 for before in rows}
    word = _word(row)
    if all(led.values()):
        sentences.append(
            f"Each goes before gains of the other in most steps: neither marginal EV nor {word} comes first."
        )
    elif not any(led.values()):
        sentences.append("Neither goes before gains of the other in most steps.")
    else:
        first, second = ("marginal EV", word) if led["worth"] else (word, "marginal EV")
        sentences.append(
            f"So far as one goes before the other, it is {first}: it goes before gains of {second} in most steps, {second} before "
            f"gains of {first} in {'none' if not min(often.values()) else 'fewer than half'} of them."
        )
    sentences.append(
        "What goes before need not be the cause: both may follow a third, such as how often a feature is needed."
    )
    return sentences


def _told_by(separations: list[Separation], word: str) -> list[str]:
    """From when on each quantity tells where features end."""
    if not separations:
        return []
    first_by_quantity: dict[str, Separation | None] = {}
    for quantity in QUANTITIES:
        points = [each for each in separations if each.quantity == quantity]
        # From there on at every checkpoint: a single one above the level may be chance.
        below = max((i for i, each in enumerate(points) if each.auc < TELLS), default=-1)
        first_by_quantity[quantity] = points[below + 1] if below + 1 < len(points) else None
    parts = [
        f"{SHOWN[quantity]} from {f'{point.tokens:,} tokens' if point.tokens else 'the start'} on ({point.auc:.2f})"
        if point
        else f"{SHOWN[quantity]} at no checkpoint for good"
        for quantity, point in first_by_quantity.items()
    ]
    sentence = (
        f"Features that end stable are told from those that end unstable (AUC ≥ {TELLS}) by {', by '.join(parts)}."
    )
    first, second = first_by_quantity["worth"], first_by_quantity["best cosine"]
    if not (first and second) or first.step == second.step:
        return [sentence]
    step = min(first.step, second.step)
    one, other = (
        next(each for each in separations if (each.quantity, each.step) == (name, step))
        for name in ("worth", "best cosine")
    )
    apart = _are_apart(one, other)
    return [
        f"{sentence} Marginal EV tells {'earlier' if first.step < second.step else 'later'} than {word} itself"
        f"{'' if apart else f', though at {one.tokens:,} tokens their intervals overlap'}."
    ]


def _are_apart(one: Separation, other: Separation) -> bool:
    """Whether two intervals are known and do not overlap."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low > other.high or other.low > one.high


def _before(points: list[BucketPoint], *, shared: bool) -> list[str]:
    """What the two buckets were worth at the last checkpoint at which their matches were still alike."""
    by_bucket = {name: [each for each in points if each.bucket == name] for name in ("stable", "unstable")}
    pairs = list(zip(*by_bucket.values(), strict=True)) if all(by_bucket.values()) else []
    alike = [(a, b) for a, b in pairs if (b.stability > 1 - ALIKE if shared else a.stability < ALIKE)]
    if not alike:
        return []
    stable, unstable = alike[-1]
    if stable.worth is None or unstable.worth is None:
        return []
    when = "at the start" if not stable.tokens else f"at {stable.tokens:,} tokens"
    return [
        f"{when[0].upper()}{when[1:]}, the last checkpoint at which hardly any of them {'differed' if shared else 'matched'} "
        f"({percent(stable.stability)} of comparisons of those that end stable, {percent(unstable.stability)} of the others), the "
        f"former held {1000 * stable.worth:.3f} ‰ of EV each, the latter {1000 * unstable.worth:.3f} ‰."
    ]


# -- figures -----------------------------------------------------------------------------------------------------------


def _features(features: FeaturesAlong, course: Trajectory, word: str, theta: float) -> list[Figure]:
    by_end: dict[str, list[BucketPoint]] = {}
    for point in features.points:
        by_end.setdefault(point.bucket, []).append(point)
    n = f"n = {features.n:,} features by the bucket in which they end"
    n += f", a random choice of {features.n_all:,}" if features.n < features.n_all else ""
    n_tokens, n_comparisons = course.checkpoints[0].n_tokens, course.checkpoints[0].n_comparisons
    drawn = [
        by_bucket(
            "along_stability", f"When do features that end stable come apart in {word}?",
            f"Mean share of {n_comparisons} comparisons that match at θ = {theta:.2f} as they stand at the same step; {n}. "
            "Band: ± one standard deviation over seeds.", Scale(f"{word} p", range=(-0.03, 1.03)),
            {b: [(p.tokens, p.n, p.stability, p.stability_spread) for p in points] for b, points in by_end.items()},
        ),
    ]  # fmt: skip
    if not features.lags:
        return drawn
    on = f"on the same {n_tokens:,} evaluation tokens at every checkpoint; {n}. Band: ± one standard deviation over seeds."
    worth = {b: [(p.tokens, p.n, 1000 * p.worth, None if p.worth_spread is None else 1000 * p.worth_spread)
                 for p in points if p.worth is not None] for b, points in by_end.items()}  # fmt: skip
    density = {b: [(p.tokens, p.n, p.density, p.density_spread) for p in points if p.density is not None]
               for b, points in by_end.items()}  # fmt: skip
    return [
        *drawn,
        by_bucket("along_worth", "How much reconstruction relies on each meanwhile",
                  f"Mean EV lost when a feature alone is removed, {on}",
                  Scale("marginal EV, ‰", ".3f", zero=True), worth),
        by_bucket("along_density", "How often do they fire meanwhile?", f"Mean share of tokens on which a feature fires, {on}",
                  Scale("density", ".2%"), density),
    ]  # fmt: skip


def _first(features: FeaturesAlong) -> list[Figure]:
    """What tells first where features end, and what goes before what."""
    drawn = [_separation_figure(features.separations)] if features.separations else []
    return [*drawn, _lag_figure(features.lags)] if features.lags else drawn


def _separation_figure(separations: list[Separation]) -> Figure:
    one = separations[0]
    lines, table = [], []
    for quantity in QUANTITIES:
        rows = [each for each in separations if each.quantity == quantity]
        if rows:
            lines.append(_quantity_line(quantity, SHOWN[quantity], [(r.tokens, r.auc, r.low, r.high) for r in rows]))
        table += [
            (SHOWN[quantity], f"{r.tokens:,}", f"{r.auc:.3f}", "–" if r.low is None else f"{r.low:.3f} – {r.high:.3f}")
            for r in rows
        ]
    return along_training(
        "separation", "What tells first which features end stable?",
        f"AUC: how often one of {one.n_stable:,} features that end stable has more of it than one of "
        f"{one.n_unstable:,} that end unstable, within {one.n_members} seeds; 0.5 is chance. Band: 95 % over seeds. "
        "Where features end is judged by matches at the end, so that best cosine has to tell there.",
        lines, Scale("AUC, ends stable against ends unstable", range=(0, 1.02)),
        header=(
            "quantity", Heading("tokens", "token_position"), Heading("AUC", "auc"),
            Heading("95 % over seeds", "interval_seeds"),
        ),
        table=table,
    )  # fmt: skip


def _lag_figure(lags: list[Lag]) -> Figure:
    lines, table = [], []
    labels = {
        "worth": "marginal EV before a gain of best cosine",
        "best cosine": "best cosine before a gain of marginal EV",
    }
    for before, label in labels.items():
        rows = [each for each in lags if each.before == before]
        lines.append(_quantity_line(before, label, [(r.next_tokens, r.partial, r.low, r.high) for r in rows]))
        table += [
            (label, f"{short(r.tokens)} – {short(r.next_tokens)}", f"{r.n:,}", f"{r.partial:+.3f}",
             "–" if r.low is None else f"{r.low:+.3f} – {r.high:+.3f}", f"± {r.null:.3f}", f"{r.plain:+.3f}")
            for r in rows
        ]  # fmt: skip
    rows = [each for each in lags if each.before == "worth"]
    at = [r.next_tokens for r in rows]
    low: list[float | None] = [-r.null for r in rows]
    high: list[float | None] = [r.null for r in rows]
    lines.append(Along("by chance, 95 %", at, [None] * len(at), low, high, "@null", "dash", 1.5, None))
    return along_training(
        "lags", "What goes before what, from one checkpoint to the next?",
        "Partial rank correlation of one quantity with the other’s change up to the checkpoint shown, given the other as "
        f"it stands before; n = {rows[0].n:,} features that end alive, within {rows[0].n_members} seeds. "
        "Bands: 95 % over seeds; grey: what 95 % of random orders stay inside.",
        lines, Scale("partial rank correlation", "+.3f", zero=True),
        header=(
            "what before what", Heading("tokens", "token_position"), Heading("features", "n_features"),
            Heading("partial", "partial"),
            Heading("95 % over seeds", "interval_seeds"), Heading("by chance", "partial_chance"),
            Heading("Spearman, plain", "spearman"),
        ),
        table=table,
    )  # fmt: skip


def _quantity_line(quantity: str, label: str, points: list[tuple[int, float, float | None, float | None]]) -> Along:
    """A quantity as its figures draw it, from (tokens, value, low, high); a band where the interval is known."""
    tokens, values, low, high = (list(column) for column in zip(*points, strict=True))
    colour, dash, marker = QUANTITY_DRAWN[quantity]
    is_known = low[0] is not None
    return Along(
        label, tokens, values, low if is_known else None, high if is_known else None, colour, dash, marker=marker
    )
