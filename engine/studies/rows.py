"""Rows of the contract for one member and its pairs, from arrays of matching, activity, worth, loss and explanations."""

from collections.abc import Sequence

import numpy as np

from seedscope.engine.contract.schema import DECODER_RULES, RULE_COLUMN, TRIGGERS
from seedscope.engine.contract.tables.features import Feature, Match
from seedscope.engine.contract.tables.study import Member
from seedscope.engine.explanations.explanation import FeatureExplanation
from seedscope.engine.explanations.rows import listed_explanations
from seedscope.engine.features.ablation import Worth
from seedscope.engine.features.activity import Activity
from seedscope.engine.features.function import MemberFunction
from seedscope.engine.features.function_rows import add_substitutes, known
from seedscope.engine.features.logits import Logits
from seedscope.engine.features.loss import Losses
from seedscope.engine.features.rows import add_contexts, add_logits
from seedscope.engine.matching.match import Matches, rule_cosine
from seedscope.engine.matching.rows import add_anchor_pairs
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import Writer
from seedscope.engine.store.rows import add_row, row_keys


def add_member(
    writer: Writer,
    ensemble: str,
    member: catalogue.MemberPlan,
    norms: np.ndarray,
    matches: Matches,
    *,
    activity: Activity | None = None,
    worth: Worth | None = None,
    loss: Losses | None = None,
    logits: Logits | None = None,
    explanations: Sequence[FeatureExplanation] = (),
    function: MemberFunction | None = None,
) -> None:
    """One member, its features and their contexts; `matches` holds this member's (d_sae, comparisons) slices.

    `norms` are of its decoder rows, 0 for those without a direction. What was not computed is None.
    """
    seed, d_sae, undirected = member.seed, len(norms), norms == 0
    dead = dead_features(norms, activity)
    row = Member(
        ensemble=ensemble,
        seed=seed,
        sae_digest=member.digest,
        source=member.source,
        library=member.library,
        trained_on=member.trained_on,
        remarks=list(member.remarks),
        ev=worth.ev if worth else None,
        l0=float(activity.n_active.sum()) / activity.n_tokens if activity else None,
        n_dead=int(dead.sum()) if activity else None,
        loss_own=loss.own if loss else None,
        loss_spliced=loss.spliced if loss else None,
        loss_zero=loss.zero if loss else None,
        n_loss_tokens=loss.n_tokens if loss else None,
        n_undirected=int(undirected.sum()),
        histogram_edges=activity.histogram_edges.tolist() if activity else [],
    )
    add_row(writer, row)
    keys = row_keys(ensemble, seed, np.arange(d_sae))
    none = np.zeros((d_sae, 0))
    rules = {RULE_COLUMN[rule]: rule_cosine(rule, matches) for rule in DECODER_RULES}
    rules[RULE_COLUMN["active"]] = function.active_correlation if function else none
    triggers = activity.triggers if activity else None
    measured = {
        "dead": dead if activity else [True if bare else None for bare in undirected],
        "density": activity.n_active / activity.n_tokens if activity else None,
        "n_active": activity.n_active if activity else None,
        "n_tokens": np.full(d_sae, activity.n_tokens) if activity else None,
        "mean_activation": activity.mean_activation if activity else None,
        "max_activation": activity.max_activation if activity else None,
        "decoder_norm": norms,
        "quantiles": activity.quantiles if activity else none,
        "token_entropy": triggers.entropy if triggers else None,
        "top_token_share": triggers.top_share if triggers else None,
        "trigger": [TRIGGERS[i] for i in triggers.trigger] if triggers else [None] * d_sae,
        "trigger_share": triggers.covered if triggers else None,
        "trigger_what": triggers.what.tolist() if triggers else [None] * d_sae,
        "worth_ev": worth.marginal if worth else None,
        "worth_loss": loss.attributed if loss else None,
        "cofiring": known(function.mean_correlation) if function else None,
        "substitution": known(function.median_substitution) if function else None,
        **listed_explanations(explanations, d_sae),
        "histogram": activity.histogram if activity else none,
        "top_token_ids": activity.top_token_ids if activity else none,
        "top_token_counts": activity.top_token_counts if activity else none,
    }
    writer.add(Feature, keys | rules | measured)
    partners = {
        "partners": matches.partner,
        "runner_up_cosines": matches.runner_up,
        "mutuals": matches.mutual,
        "encoder_cosines": matches.encoder_cosine,
        "live_partners": matches.live_partner,
        "hungarian_partners": matches.hungarian_partner,
        "hungarian_encoder_cosines": matches.hungarian_encoder_cosine,
        "encoder_partners": matches.encoder_partner,
        "active_partners": function.active_partner if function else none,
    }
    writer.add(Match, keys | partners)
    if activity:
        add_contexts(writer, ensemble, seed, activity.contexts)
    if logits:
        add_logits(writer, ensemble, seed, logits)
    if function:
        add_substitutes(writer, ensemble, seed, function)


def dead_features(norms: np.ndarray, activity: Activity | None) -> np.ndarray:
    """(d_sae,) features known to be dead: without a direction, or never active on the evaluation tokens."""
    return (norms == 0) | (activity.n_active == 0) if activity else norms == 0


def add_pairs(
    writer: Writer,
    ensemble: str,
    seeds: tuple[int, ...],
    index: int,
    matches: Matches,
    norms: np.ndarray,
    activity: Activity | None,
    function: MemberFunction | None = None,
) -> None:
    """One anchor's ordered pairs under every rule that was computed; `matches` holds its slices, `norms` as for add_member."""
    dead = dead_features(norms, activity)
    others = [seeds[other] for other in matches.other]
    by_rule = {rule: rule_cosine(rule, matches) for rule in DECODER_RULES}
    if function:
        by_rule["active"] = function.active_correlation
    for rule, cosines in by_rule.items():
        if cosines.shape[-1]:
            gap = matches.gap if rule in ("hungarian", "both") else np.zeros(len(others))
            add_anchor_pairs(writer, ensemble, rule, seeds[index], others, cosines, dead, norms > 0, gap)
