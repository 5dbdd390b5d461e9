"""How an ensemble came to be: its training, agreement from the start on, and whether worth or stability comes first."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app import figures, render
from app.figures.trajectory import Along, Scale, along_training, by_bucket, short
from app.formats import percent
from app.routes.query import EnsembleName, Plain, StudyName, open_ensemble
from app.store import Missing
from app.store.precedence import QUANTITIES, TELLS, Lag, Separation
from app.store.trajectory import BucketPoint, Features, Stabilization, Trajectory, judge_stabilization
from engine import schema
from engine.training_tables import AgreementPoint, Checkpoint, CosineGeometry, TracePoint

router = APIRouter()
QUANTITY_DRAWN = {
    "best cosine": ("@accent", "solid", "circle"),
    "worth": ("@stable", "dash", "diamond"),
    "density": ("@null", "dot", "square"),
}  # noqa: E501


@dataclass(frozen=True)
class TrajectoryPage:
    """`/s/{study}/{ensemble}/trajectory`: training, agreement from step 0 on, and features by where they end."""

    study: schema.Study
    ensemble: schema.Ensemble
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
    figure_training: list[figures.Figure]
    figure_agreement: list[figures.Figure]
    figure_features: list[figures.Figure]
    figure_first: list[figures.Figure]


@render.page(router, "/s/{study}/{ensemble}/trajectory", "trajectory.html", "trajectory")
def trajectory(
    request: Request, study: StudyName, ensemble: EnsembleName, asked: Annotated[Plain, Query()]
) -> TrajectoryPage:
    """How training went, how members came to agree from step 0 on, and whether features' worth or stability comes first."""
    store, row = open_ensemble(request, study, ensemble)
    found, features = store.trajectories.read(ensemble), store.trajectories.features(ensemble)
    verdict, word = judge_stabilization(found, row.shared_start), _word(row)
    lacks = store.missing(ensemble)
    return TrajectoryPage(
        study=store.study,
        ensemble=row,
        theta=row.theta,
        epsilon=row.epsilon,
        sentence=_sentence(verdict, found),
        stabilization=verdict,
        trace=found.trace,
        checkpoints=found.checkpoints,
        agreement=found.agreement,
        geometry=found.geometry,
        geometry_says=_geometry_says(found.geometry),
        n_features=features and features.n,
        n_all=features and features.n_all,
        buckets=features.points if features else [],
        separations=features.separations if features else [],
        lags=features.lags if features else [],
        answer=_answer(features, word) if features else [],
        missing=[lacks["trajectory"]] if "trajectory" in lacks else [],
        figure_training=_training(found.trace),
        figure_agreement=_agreement(found, verdict) if verdict else [],
        figure_features=_features(features, found, word, row.theta) if features else [],
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


def _word(row: schema.Ensemble) -> str:
    return "stability" if row.shared_start == "no" else "agreement"


# -- in words ----------------------------------------------------------------------------------------------------------


def _sentence(verdict: Stabilization | None, found: Trajectory) -> str:
    """Whether training brought members together, made from the numbers."""
    if verdict is None:
        if found.trace:
            return "How training went is known; agreement along it was not measured."
        return "How its members were trained is not known here."
    v = verdict
    if v.kind == "shared start":
        began = "at 0" if v.start < 0.005 else f"at {v.start:.2f}"
        return (
            f"Members share their start: their {v.measure} begins {began} by construction and ends at {v.end:.2f}. It cannot fall "
            "below its beginning, so that this agreement says nothing about stabilization."
        )
    ways = f"from {v.start:.3f} to {v.end:.3f}"
    if v.kind == "not shown":
        return (
            f"No stabilization is shown: between members that began apart the {v.measure} went {ways}, and that is not below "
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
        f"Stabilization is shown: members began apart, at {where}, and training took their {v.measure} {ways}, by {v.fall:.3f} or "
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
        f"{percent(share)} of every row is one common direction at the end ({percent(first.mean_share)} at the start): two features "
        f"of one dictionary have a cosine of {last.mean_cosine:+.3f} on average, and cosines between members are inflated by as much."
    )


def _answer(features: Features, word: str) -> list[str]:
    """Which comes first, as far as the numbers say."""
    if not features.lags:
        return ["Worth was not measured along training, so that nothing can be said of what comes first."]
    said = []
    told = {}
    for quantity in QUANTITIES:
        points = [each for each in features.separations if each.quantity == quantity]
        # From there on at every checkpoint: a single one above the level may be chance.
        below = max((i for i, each in enumerate(points) if each.auc < TELLS), default=-1)
        told[quantity] = points[below + 1] if points and below + 1 < len(points) else None
    if features.separations:
        parts = [
            f"{quantity} from {'the start' if not point.tokens else f'{point.tokens:,} tokens'} on ({point.auc:.2f})"
            if point
            else f"{quantity} at no checkpoint for good"
            for quantity, point in told.items()
        ]
        said.append(
            f"Features that end stable are told from those that end unstable (AUC ≥ {TELLS}) by "
            + ", by ".join(parts)
            + "."
        )
        if told["worth"] and told["best cosine"]:
            first, second = told["worth"].tokens, told["best cosine"].tokens
            said.append(
                "Both tell from the same checkpoint on."
                if first == second
                else f"Worth tells {'earlier' if first < second else 'later'} than {word} itself."
            )
    means, beyond = {}, {}
    for before in ("worth", "best cosine"):
        rows = [each for each in features.lags if each.before == before]
        means[before] = fmean(each.partial for each in rows)
        beyond[before] = sum(each.is_beyond and each.partial * means[before] > 0 for each in rows)
    n = len(features.lags) // 2
    said.append(
        f"From one checkpoint to the next, of features with equal best cosine those worth more gain "
        f"{'more' if means['worth'] > 0 else 'less'} of it (partial rank correlation {means['worth']:+.2f} on average, beyond chance "
        f"in {beyond['worth']} of {n} steps); of features of equal worth those with the higher best cosine gain "
        f"{'more' if means['best cosine'] > 0 else 'less'} worth ({means['best cosine']:+.2f}, {beyond['best cosine']} of {n})."
    )
    led = {before: beyond[before] > n / 2 and means[before] > 0 for before in means}
    if led["worth"] and led["best cosine"]:
        said.append(
            f"Each goes before gains of the other: the numbers do not put worth before {word}, nor {word} before worth."
        )
    elif led["worth"]:
        said.append(f"Worth goes before gains of {word} in most steps, {word} does not go before gains of worth.")
    elif led["best cosine"]:
        said.append(
            f"{word.capitalize()} goes before gains of worth in most steps, worth does not go before gains of {word}."
        )
    else:
        said.append("Neither goes before gains of the other in most steps.")
    said.append(
        "What goes before need not be the cause: both may follow a third, such as how often a feature is needed."
    )
    return said


# -- figures -----------------------------------------------------------------------------------------------------------


def _training(trace: list[TracePoint]) -> list[figures.Figure]:
    """Loss, EV, L0 and dead share, each member a thin line beside the mean."""
    seeds = sorted({row.seed for row in trace})
    if not seeds:
        return []
    ends = {
        name: fmean(getattr(row, name) for row in trace if row.step == trace[-1].step) for name in ("ev", "l0", "dead")
    }
    lowest = min(row.ev for row in trace)
    what = (
        ("loss", "Loss", Scale("loss of a batch", ".3g", log=True), "What each member minimises, of one batch"),
        ("ev", f"Explained variance reaches {ends['ev']:.3f}", Scale("explained variance", range=(max(lowest, -0.25) - 0.05, 1)),
         "EV on the same training rows at every point"),
        ("l0", f"{ends['l0']:.1f} features are active per token at the end", Scale("active features per token (L0)", ".3g", log=True),
         "L0 on the same training rows at every point"),
        ("dead", f"{percent(ends['dead'])} of features are dead at the end", Scale("dead share", ".1%"),
         "Share of features that have been silent for long"),
    )  # fmt: skip
    drawn = []
    for name, title, scale, reading in what:
        by_seed = {
            seed: [row for row in trace if row.seed == seed and getattr(row, name) is not None] for seed in seeds
        }
        lines = [
            Along(
                f"seed {seed}",
                [r.tokens for r in rows],
                [getattr(r, name) for r in rows],
                colour="@null",
                width=0.8,
                marker=None,
            )
            for seed, rows in by_seed.items()
        ]
        tokens = sorted({row.tokens for rows in by_seed.values() for row in rows})
        held = [[getattr(r, name) for rows in by_seed.values() for r in rows if r.tokens == each] for each in tokens]
        lines.append(Along("mean", tokens, [fmean(each) for each in held], marker=None))
        table = [
            (f"{at:,}", *(f"{value:.4g}" for value in (fmean(each), min(each), max(each))))
            for at, each in zip(tokens, held, strict=True)
        ]
        drawn.append(
            along_training(
                f"training_{name}", title, f"{reading}; {len(seeds)} members as thin lines, and their mean.", lines, scale,
                header=("tokens", "mean over members", "lowest", "highest"), table=table,
            )
        )  # fmt: skip
    return drawn


def _agreement(found: Trajectory, verdict: Stabilization) -> list[figures.Figure]:
    tokens = {each.step: each.tokens for each in found.checkpoints}
    everyone, living = found.of("all"), found.of("live")
    pairs = f"Mean over {verdict.n_pairs} pairs of members, band from the smallest to the largest"
    drawn = []
    for id, name, title, axis in (
        ("distance", "distance", "Hungarian distance", "Hungarian distance (mean 1 − cosine)"),
        ("best_cosine", "best_cosine", "Mean best cosine", "mean best cosine"),
    ):
        if everyone[0].distance is None and name == "distance":
            continue

        def line(rows: Sequence[AgreementPoint], label: str, *, name: str = name, **look: str) -> Along:
            edges = [[getattr(r, f"{name}_{edge}") for r in rows] for edge in ("low", "high")]
            return Along(label, [tokens[r.step] for r in rows], [getattr(r, name) for r in rows], *edges, **look)

        lines = [line(everyone, "all features")]
        if living:
            lines.append(line(living, "living ones", colour="@stable", dash="dash", marker="diamond"))
        at = [tokens[row.step] for row in found.geometry]
        lines.append(Along("mean direction taken out", at, [getattr(row, f"centred_{name}") for row in found.geometry],
                           colour="@middle", dash="dot", marker="square"))  # fmt: skip
        level = getattr(found.geometry[0], f"random_{name}")
        lines.append(
            Along(
                "random dictionaries",
                [at[0], at[-1]],
                [level, level],
                colour="@null",
                dash="dash",
                width=1.5,
                marker=None,
            )
        )
        start, end = getattr(everyone[0], name), getattr(everyone[-1], name)
        table = [
            (f"{tokens[row.step]:,}", row.population, f"{row.n_features:,.1f}", row.n_pairs,
             *(f"{getattr(row, name + edge):.4f}" for edge in ("", "_low", "_high")))
            for row in (*everyone, *living)
        ]  # fmt: skip
        drawn.append(
            along_training(
                id, f"{title}: {start:.3f} at the start, {end:.3f} at the end",
                f"{pairs}. Dashed grey: random unit dictionaries of the same size, {level:.3f}.", lines, Scale(axis),
                header=("tokens", "features", "of them per member", "pairs", title, "smallest", "largest"), table=table,
            )
        )  # fmt: skip
    return drawn


def _features(features: Features, found: Trajectory, word: str, theta: float) -> list[figures.Figure]:
    held: dict[str, list[BucketPoint]] = {}
    for point in features.points:
        held.setdefault(point.bucket, []).append(point)
    n = f"n = {features.n:,} features by the bucket in which they end"
    n += f", a random choice of {features.n_all:,}" if features.n < features.n_all else ""
    n_tokens, n_comparisons = found.checkpoints[0].n_tokens, found.checkpoints[0].n_comparisons
    drawn = [
        by_bucket(
            "along_stability", f"When do features that end stable come apart in {word}?",
            f"Mean share of {n_comparisons} comparisons that match at θ = {theta:.2f} as they stand at the same step; {n}. "
            "Band: ± one standard deviation over members.", Scale(f"{word} p", range=(-0.03, 1.03)),
            {b: [(p.tokens, p.n, p.stability, p.stability_spread) for p in points] for b, points in held.items()},
        ),
    ]  # fmt: skip
    if not features.lags:
        return drawn
    on = f"on the same {n_tokens:,} evaluation tokens at every checkpoint; {n}. Band: ± one standard deviation over members."
    scaled = {b: [(p.tokens, p.n, 1000 * p.worth, None if p.worth_spread is None else 1000 * p.worth_spread) for p in points]
              for b, points in held.items()}  # fmt: skip
    return [
        *drawn,
        by_bucket("along_worth", "What are they worth meanwhile?", f"Mean EV lost when a feature alone is masked, {on}",
                  Scale("marginal worth, ‰ of EV", ".3f", zero=True), scaled),
        by_bucket("along_density", "How often do they fire meanwhile?", f"Mean share of tokens on which a feature fires, {on}",
                  Scale("density", ".2%"),
                  {b: [(p.tokens, p.n, p.density, p.density_spread) for p in points] for b, points in held.items()}),
    ]  # fmt: skip


def _first(features: Features) -> list[figures.Figure]:
    """What tells first where features end, and what goes before what."""
    drawn = []
    if features.separations:
        one = features.separations[0]
        lines, table = [], []
        for quantity in QUANTITIES:
            rows = [each for each in features.separations if each.quantity == quantity]
            colour, dash, marker = QUANTITY_DRAWN[quantity]
            edges = (
                [[each.low for each in rows], [each.high for each in rows]]
                if rows and rows[0].low is not None
                else [None, None]
            )
            if rows:
                lines.append(
                    Along(
                        quantity, [r.tokens for r in rows], [r.auc for r in rows], *edges, colour, dash, marker=marker
                    )
                )
            table += [
                (quantity, f"{r.tokens:,}", f"{r.auc:.3f}", "–" if r.low is None else f"{r.low:.3f} – {r.high:.3f}")
                for r in rows
            ]
        drawn.append(
            along_training(
                "separation", "What tells first which features end stable?",
                f"AUC: how often one of {one.n_stable:,} features that end stable has more of it than one of {one.n_unstable:,} that end "
                f"unstable, within {one.n_members} members; 0.5 is chance. Band: 95 % over members. Where features end is judged by "
                "matches at the end, so that best cosine has to tell there.",
                lines, Scale("AUC, ends stable against ends unstable", range=(0.2, 1.02)),
                header=("quantity", "tokens", "AUC", "95 % over members"), table=table,
            )
        )  # fmt: skip
    if features.lags:
        lines, table = [], []
        for before, label in (
            ("worth", "worth before a gain of best cosine"),
            ("best cosine", "best cosine before a gain of worth"),
        ):
            rows = [each for each in features.lags if each.before == before]
            colour, dash, marker = QUANTITY_DRAWN[before]
            edges = (
                [[each.low for each in rows], [each.high for each in rows]] if rows[0].low is not None else [None, None]
            )
            lines.append(
                Along(
                    label, [r.next_tokens for r in rows], [r.partial for r in rows], *edges, colour, dash, marker=marker
                )
            )
            table += [
                (label, f"{short(r.tokens)} – {short(r.next_tokens)}", f"{r.n:,}", f"{r.partial:+.3f}",
                 "–" if r.low is None else f"{r.low:+.3f} – {r.high:+.3f}", f"± {r.null:.3f}", f"{r.plain:+.3f}")
                for r in rows
            ]  # fmt: skip
        rows = [each for each in features.lags if each.before == "worth"]
        at, null = [r.next_tokens for r in rows], [r.null for r in rows]
        lines.append(
            Along("by chance, 95 %", at, [None] * len(at), [-x for x in null], null, "@null", "dash", 1.5, None)
        )
        drawn.append(
            along_training(
                "lags", "What goes before what, from one checkpoint to the next?",
                f"Partial rank correlation of one quantity with the other’s change up to the checkpoint shown, among features in which "
                f"the other is equal; n = {rows[0].n:,} living features, within {rows[0].n_members} members. Bands: 95 % over members; "
                "grey: what 95 % of random orders stay inside.",
                lines, Scale("partial rank correlation", "+.3f", zero=True),
                header=("what before what", "tokens", "features", "partial", "95 % over members", "by chance, 95 %", "Spearman, plain"),
                table=table,
            )
        )  # fmt: skip
    return drawn
