"""An ensemble as `/compare` shows it beside another: what it is, and its figures under one judgement."""

from dataclasses import dataclass
from statistics import fmean

from seedscope.app.routes.address import EnsembleJudgement, JudgedEnsemble, judged_shares
from seedscope.engine.contract.tables.study import Ensemble


@dataclass(frozen=True)
class EnsembleBeside:
    """One ensemble; means are over members, shares of the features judged. None for what was not computed or is unknown."""

    study: str
    model: str | None
    ensemble: Ensemble
    address: str
    theta: float
    epsilon: float
    rule: str
    dead: str | None
    judged: str  # what the shares are of, in words
    stable: float | None
    middle: float | None
    unstable: float | None
    n_judged: int
    null_rate: dict[str, float]
    seeds: list[int]
    ev: float | None
    l0: float | None
    n_dead: int | None  # of all members together
    n_features: int
    loss_own: float | None  # nats per token
    loss_spliced: float | None


def ensemble_beside(opened: JudgedEnsemble[EnsembleJudgement]) -> EnsembleBeside:
    """One ensemble under a judgement; raises BadValue for a rule that was not computed."""
    store, row, query = opened
    counts = store.features(query.query(row.ensemble)).matched_counts()
    members = store.members(row.ensemble)
    activity = store.has(row.ensemble, "activity")
    return EnsembleBeside(
        study=store.study.study,
        model=store.study.model,
        ensemble=row,
        address=f"/s/{store.study.study}/{row.ensemble}",
        theta=query.theta,
        epsilon=query.epsilon,
        rule=query.rule,
        dead=query.dead,
        judged=query.judged(activity=activity),
        **judged_shares(counts),
        n_judged=sum(n for _, bucket, _, n in counts if bucket != "dead"),
        null_rate=store.null_rates(row.ensemble, query.theta, query.rule),
        seeds=[member.seed for member in members],
        ev=_mean([member.ev for member in members]),
        l0=_mean([member.l0 for member in members]),
        n_dead=sum(member.n_dead or 0 for member in members) if activity else None,
        n_features=row.n_members * row.d_sae,
        loss_own=_mean([member.loss_own for member in members]),
        loss_spliced=_mean([member.loss_spliced for member in members]),
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
