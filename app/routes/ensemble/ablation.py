"""Masking features: explained variance and next-token loss without stable, unstable or random features, beside controls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from seedscope.app import render
from seedscope.app.figures.buckets import MASK_LABEL
from seedscope.app.figures.drawing import Figure
from seedscope.app.figures.masking import CURVES, EV, LOSS, CurvePoint, ReferenceLine, masking_curves
from seedscope.app.findings.loss_recovered import loss_recovered
from seedscope.app.routes.address import EnsembleJudgement, EnsembleName, Plain, StudyName, judged_shares, open_ensemble
from seedscope.app.store.missing import Missing
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.tables.features import Ablation
from seedscope.engine.contract.tables.study import Ensemble, Member, Study

router = APIRouter()
MASKS = MASK_LABEL | {mask: mask for mask in ("all stable", "all middle", "all unstable")}


@dataclass(frozen=True)
class MaskLine:
    """One kind of mask, over the members that have it; what is lost is against the same members unmasked."""

    mask: str
    label: str
    is_control: bool
    n_masked: float  # mean over members
    n_draws: int  # per member, of EV
    n_members: int
    ev: float
    ev_spread: float | None  # SD over members; None for one
    ev_lost: float
    loss: float | None  # nats per token
    loss_spread: float | None
    loss_added: float | None


@dataclass(frozen=True)
class MaskingLine:
    """One place of a curve, mean over members: each member's sizes run from one feature to all of the kind."""

    kind: str
    n_masked: float
    n_members: int
    ev: float
    ev_spread: float | None
    loss: float | None
    loss_spread: float | None


@dataclass(frozen=True)
class MemberWorth:
    """What one member's reconstruction keeps."""

    seed: int
    ev: float | None
    loss_own: float | None
    loss_spliced: float | None
    loss_zero: float | None
    loss_recovered: float | None  # (zero - spliced) / (zero - own); None where zeros cost nothing
    n_loss_tokens: int | None


@dataclass(frozen=True)
class AblationSide:
    """The ensemble or its control, judged by its own settings; means over members."""

    ensemble: str
    is_control: bool
    n_members: int
    ev: float | None
    stable: float | None  # share of the features that are judged; None for one SAE alone
    loss_recovered: float | None
    loss_own: float | None
    loss_zero: float | None


@dataclass(frozen=True)
class AblationPage:
    """`/s/{study}/{ensemble}/ablation`: what is lost when stable, unstable or any other features are masked."""

    study: Study
    ensemble: Ensemble
    theta: float  # that the masks' buckets were judged by
    epsilon: float
    sentence: str
    masks: list[MaskLine]
    curves: list[MaskingLine]
    members: list[MemberWorth]
    sides: list[AblationSide]  # empty without a control
    missing: list[Missing]
    figure_list: list[Figure]


@render.page(router, "/s/{study}/{ensemble}/ablation", "ensemble/ablation.html", "ablation")
def ablation(
    request: Request, study: StudyName, ensemble: EnsembleName, asked: Annotated[Plain, Query()]
) -> AblationPage:
    """What buckets are worth: explained variance and next-token loss with features masked, beside controls."""
    store, row = open_ensemble(request, study, ensemble)
    rows = store.ablations(ensemble)
    members = [_member_line(member) for member in store.members(ensemble)]
    masks = _mask_lines(rows)
    points = {kind: _places([row for row in rows if row.mask == kind]) for kind in CURVES}
    lacks = store.missing(ensemble)
    return AblationPage(
        study=store.study,
        ensemble=row,
        theta=row.theta,
        epsilon=row.epsilon,
        sentence=_sentence(masks, members),
        masks=masks,
        curves=[_curve_line(kind, place) for kind, places in points.items() for place in places],
        members=members,
        sides=_sides(store, row),
        missing=[lacks[result] for result in ("ablate", "loss") if result in lacks],
        figure_list=_figures(row.n_tokens, rows, points, members),
    )


@router.get("/s/{study}/{ensemble}/ablation.csv", name="ablation.csv")
@router.get("/s/{study}/{ensemble}/ablation.parquet", name="ablation.parquet")
def ablation_download(
    request: Request, study: StudyName, ensemble: EnsembleName, asked: Annotated[Plain, Query()]
) -> Response:
    """Every mask of every member, as CSV or Parquet."""
    store, _ = open_ensemble(request, study, ensemble)
    return render.download(request, store.ablation_table(ensemble), f"{study}-{ensemble}-ablation")


# -- means over members ------------------------------------------------------------------------------------------


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _mean(values: Sequence[float | None]) -> float | None:
    """None where any is."""
    known = _all_known(values)
    return fmean(known) if known else None


def _all_known(values: Sequence[float | None]) -> list[float] | None:
    """The values; None where any is."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _mask_lines(rows: list[Ablation]) -> list[MaskLine]:
    whole = {row.seed: row for row in rows if row.mask == "none"}
    lines = []
    for mask, label in MASKS.items():
        masked = [row for row in rows if row.mask == mask]
        if not masked:
            continue
        same = [whole[row.seed] for row in masked]
        ev, loss = [row.ev for row in masked], _all_known([row.loss for row in masked])
        whole_loss = _mean([row.loss for row in same])
        mean_loss = fmean(loss) if loss else None
        lines.append(
            MaskLine(
                mask=mask,
                label=label,
                is_control="matched" in mask or "random" in mask,
                n_masked=fmean(row.n_masked for row in masked),
                n_draws=max(row.n_draws for row in masked),
                n_members=len(masked),
                ev=fmean(ev),
                ev_spread=_spread(ev),
                ev_lost=fmean(row.ev for row in same) - fmean(ev),
                loss=mean_loss,
                loss_spread=_spread(loss) if loss and whole_loss is not None else None,
                loss_added=None if mean_loss is None or whole_loss is None else mean_loss - whole_loss,
            )
        )
    return lines


@dataclass(frozen=True)
class _Place:
    """The same place of every member's curve."""

    n_masked: list[float]
    ev: list[float]
    loss: list[float] | None


def _places(rows: list[Ablation]) -> list[_Place]:
    """The places of one kind's curve from one feature to all of them.

    Sizes differ between members, so that members are read at the same place of their own sizes, first to last; a small
    bucket has fewer sizes and is read between two of them.
    """
    curves: dict[int, list[Ablation]] = {}
    for row in rows:
        curves.setdefault(row.seed, []).append(row)
    n_places = max(map(len, curves.values()), default=0)

    def read(of: Callable[[Ablation], float | None]) -> np.ndarray | None:
        """(members, places); None where any value is not known."""
        at, lines = np.linspace(0, 1, n_places), []
        for curve in curves.values():
            values = _all_known([of(row) for row in curve])
            if values is None:
                return None
            lines.append(np.interp(at, np.linspace(0, 1, len(values)), values))
        return np.array(lines)

    n_masked, ev, loss = read(lambda row: row.n_masked), read(lambda row: row.ev), read(lambda row: row.loss)
    if not n_places or n_masked is None or ev is None:
        return []
    return [
        _Place(n_masked[:, i].tolist(), ev[:, i].tolist(), None if loss is None else loss[:, i].tolist())
        for i in range(n_places)
    ]


def _curve_line(kind: str, place: _Place) -> MaskingLine:
    loss = place.loss
    return MaskingLine(
        kind,
        fmean(place.n_masked),
        len(place.ev),
        fmean(place.ev),
        _spread(place.ev),
        None if loss is None else fmean(loss),
        None if loss is None else _spread(loss),
    )


def _member_line(member: Member) -> MemberWorth:
    return MemberWorth(
        seed=member.seed,
        ev=member.ev,
        loss_own=member.loss_own,
        loss_spliced=member.loss_spliced,
        loss_zero=member.loss_zero,
        loss_recovered=loss_recovered(member),
        n_loss_tokens=member.n_loss_tokens,
    )


# -- in words ----------------------------------------------------------------------------------------------------


def _sentence(masks: list[MaskLine], members: list[MemberWorth]) -> str:
    """The page in one sentence, made from its numbers."""
    by_mask = {line.mask: line for line in masks}
    if not by_mask:
        own, spliced, zero = (_mean([getattr(m, f"loss_{n}") for m in members]) for n in ("own", "spliced", "zero"))
        if own is None:
            return "What removing features costs was not measured."
        return (
            f"The reconstruction in place of the activations takes the loss from {own:.3f} to {spliced:.3f} nats per "
            f"token, zeros to {zero:.3f}; what removing a bucket costs was not measured."
        )
    if "N stable" not in by_mask:
        return (
            "The buckets are too small to compare N stable with four times as many unstable features: in no seed is "
            "there one stable feature beside four unstable ones."
        )
    first = by_mask["N stable"]
    before = first.ev + first.ev_lost
    text = f"Removing {first.n_masked:.0f} stable features per SAE takes EV from {before:.2f} to {first.ev:.2f}"
    if first.loss_added is not None:
        text += f" and {'raises' if first.loss_added >= 0 else 'lowers'} the loss by {abs(first.loss_added):.3f} nats per token"
    others = {
        "4N unstable": "four times as many unstable ones",
        "N matched to stable": "as many of the stable ones’ density",
        "N random": "as many at random",
    }
    return f"{text}; " + "; ".join(f"{says}: {_costs(by_mask[mask])}" for mask, says in others.items()) + "."


def _costs(line: MaskLine) -> str:
    return f"{line.ev:.2f}" + ("" if line.loss_added is None else f", {line.loss_added:+.3f}")


# -- the control -------------------------------------------------------------------------------------------------


def _sides(store: StudyStore, row: Ensemble) -> list[AblationSide]:
    """The ensemble that was trained on the model and its controls; empty where this one has neither."""
    original = row.control_of if row.control_of in store.ensembles else row.ensemble
    controls = [each.ensemble for each in store.ensembles.values() if each.control_of == original]
    return [_side(store, name, is_control=name != original) for name in (original, *controls)] if controls else []


def _side(store: StudyStore, name: str, *, is_control: bool) -> AblationSide:
    row, members = store.ensemble(name), [_member_line(member) for member in store.members(name)]
    counts = store.features(EnsembleJudgement.resolved(row).query(name)).matched_counts()
    ev, recovered, own, zero = (
        _mean([getattr(m, n) for m in members]) for n in ("ev", "loss_recovered", "loss_own", "loss_zero")
    )
    return AblationSide(name, is_control, row.n_members, ev, judged_shares(counts)["stable"], recovered, own, zero)


# -- figures -----------------------------------------------------------------------------------------------------


def _figures(
    n_tokens: int | None, rows: list[Ablation], points: dict[str, list[_Place]], members: list[MemberWorth]
) -> list[Figure]:
    whole = [row for row in rows if row.mask == "none"]
    if not whole or not any(points.values()):
        return []

    def along(of: Callable[[_Place], list[float] | None]) -> list[CurvePoint]:
        return [
            CurvePoint(
                kind, fmean(p.n_masked), min(p.n_masked), max(p.n_masked), len(p.ev), fmean(values), _spread(values)
            )
            for kind, places in points.items()
            for p in places
            if (values := of(p)) is not None
        ]  # fmt: skip

    n_draws = max(row.n_draws for row in rows if row.mask in CURVES)
    drawn = f"{n_draws} draw{'s' * (n_draws != 1)} each"
    ev = fmean(row.ev for row in whole)
    levels = [ReferenceLine("nothing removed", ev)]
    drawn_curves = [masking_curves(EV, along(lambda p: p.ev), levels, ev, n_tokens or 0, drawn)]
    own, spliced, zero = (_mean([getattr(m, f"loss_{n}") for m in members]) for n in ("own", "spliced", "zero"))
    n_loss_tokens = [m.n_loss_tokens for m in members if m.n_loss_tokens is not None]
    is_measured = all(place.loss is not None for places in points.values() for place in places)
    if own is None or spliced is None or zero is None or not n_loss_tokens or not is_measured:
        return drawn_curves
    levels = [
        ReferenceLine("the model itself", own, below=True),
        ReferenceLine("spliced", spliced),
        ReferenceLine("zeros in place", zero),
    ]
    drawn_curves.append(
        masking_curves(LOSS, along(lambda p: p.loss), levels, spliced, max(n_loss_tokens), "on fewer draws than EV")
    )
    return drawn_curves
