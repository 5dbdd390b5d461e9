"""Results -> rows of the contract: what the analyses found, as the columns that the Writer takes."""

from collections.abc import Sequence

import numpy as np

from seedscope.engine.contract import schema
from seedscope.engine.contract.schema import (
    RULE_COLUMN,
    RULES,
    TRIGGERS,
    Ablation,
    Context,
    Feature,
    Logit,
    Match,
    Member,
    NullMatch,
    Pair,
)
from seedscope.engine.contract.stability import count_on_grid
from seedscope.engine.explanations.explanation import HALVES, Examples, Explanation, Score, words
from seedscope.engine.explanations.rule_search import NAME as TOKEN_RULE
from seedscope.engine.features.ablation import Masking, Worth
from seedscope.engine.features.activity import Activity, Contexts
from seedscope.engine.features.logits import Logits
from seedscope.engine.features.loss import Losses, MaskedLoss
from seedscope.engine.matching.match import Chance, Matches, rule_cosine
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import Writer


def add_row(writer: Writer, row: object) -> None:
    """One dataclass row of any table."""
    writer.add(type(row), {name: [value] for name, value in vars(row).items()})


def add_member(
    writer: Writer,
    ensemble: str,
    member: catalogue.Member,
    norms: np.ndarray,
    matches: Matches,
    *,
    activity: Activity | None = None,
    worth: Worth | None = None,
    loss: Losses | None = None,
    logits: Logits | None = None,
    explanations: Sequence[Explanation] = (),
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
    rules = {RULE_COLUMN[rule]: rule_cosine(rule, matches) for rule in RULES}
    none = np.zeros((d_sae, 0))
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
        **_shown(explanations, d_sae),
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
    }
    writer.add(Match, keys | partners)
    if activity:
        _add_contexts(writer, ensemble, seed, activity.contexts)
    if logits:
        _add_logits(writer, ensemble, seed, logits)


def dead_features(norms: np.ndarray, activity: Activity | None) -> np.ndarray:
    """(d_sae,) features known to be dead: without a direction, or never active on the evaluation tokens."""
    return (norms == 0) | (activity.n_active == 0) if activity else norms == 0


def _shown(explanations: Sequence[Explanation], d_sae: int) -> dict[str, list]:
    """The explanation of each feature that lists show, and its detection score: others come before token rules."""
    found: dict[str, list] = {name: [None] * d_sae for name in ("explanation", "explainer", "score")}
    for each in sorted(explanations, key=lambda each: (each.explainer != TOKEN_RULE, each.explainer)):
        if each.text is not None:
            detection = next((score.value for score in each.scores if score.kind == "detection"), None)
            for name, value in (("explanation", each.text), ("explainer", each.explainer), ("score", detection)):
                found[name][each.feature] = value
    return found


def add_explanations(
    writer: Writer, ensemble: str, seed: int, explanations: Sequence[Explanation], examples: Examples | None, n_ctx: int
) -> None:
    """One member's explanations with their scores, the words they are found by, and the contexts they were scored on.

    Without activity there are no contexts: then all explanations are of others.
    """
    found = sorted(explanations, key=lambda each: (each.feature, each.explainer))
    columns = {name: [getattr(each, name) for each in found] for name in ("explainer", "text", "failure")}
    writer.add(schema.Explanation, row_keys(ensemble, seed, np.array([each.feature for each in found])) | columns)
    scores = [(each, score) for each in found for score in sorted(each.scores, key=lambda score: score.kind)]
    if scores:
        keys = row_keys(ensemble, seed, np.array([each.feature for each, _ in scores]))
        named = {name: [getattr(score, name) for _, score in scores] for name in Score._fields}
        writer.add(schema.Score, keys | {"explainer": [each.explainer for each, _ in scores]} | named)
    pairs = sorted({(word, each.feature) for each in found if each.text for word in words(each.text)})
    if pairs:
        keys = row_keys(ensemble, seed, np.array([feature for _, feature in pairs]))
        writer.add(schema.Word, keys | {"word": [word for word, _ in pairs]})
    if examples is not None and len(scored := np.flatnonzero(examples.half == HALVES.index("scored"))):
        features, first = np.unique(examples.feature[scored], return_index=True)
        lists = {
            "kinds": examples.kind, "windows": examples.start // n_ctx, "offsets": examples.start % n_ctx,
            "lengths": examples.length, "masks": examples.mask,
        }  # fmt: skip
        split = {name: np.split(column[scored].astype(np.int32), first[1:]) for name, column in lists.items()}
        writer.add(schema.Scored, row_keys(ensemble, seed, features) | split)


def _add_contexts(writer: Writer, ensemble: str, seed: int, c: Contexts) -> None:
    if not len(c.feature):
        return
    columns = {
        "group": c.group,
        "rank": c.rank,
        "document": c.document,
        "position": c.position,
        "peak": c.peak,
        "token_ids": [ids[:length] for ids, length in zip(c.token_ids, c.length, strict=True)],
        "activations": [acts[:length] for acts, length in zip(c.activations, c.length, strict=True)],
    }
    writer.add(Context, row_keys(ensemble, seed, c.feature) | columns)


def _add_logits(writer: Writer, ensemble: str, seed: int, logits: Logits) -> None:
    for sign, ids, values in ((1, logits.positive_ids, logits.positive), (-1, logits.negative_ids, logits.negative)):
        n_features, n = ids.shape
        keys = row_keys(ensemble, seed, np.repeat(np.arange(n_features), n))
        found = {"sign": np.full(n_features * n, sign), "rank": np.tile(np.arange(n), n_features),
                 "token": np.ravel(ids), "logit": np.ravel(values)}  # fmt: skip
        writer.add(Logit, keys | found)


def add_pairs(
    writer: Writer,
    ensemble: str,
    seeds: tuple[int, ...],
    index: int,
    matches: Matches,
    norms: np.ndarray,
    activity: Activity | None,
) -> None:
    """One anchor's ordered pairs under every rule that was computed; `matches` holds its slices, `norms` as for add_member."""
    dead = dead_features(norms, activity)
    others = [seeds[other] for other in matches.other]
    for rule in RULES:
        cosines = rule_cosine(rule, matches)
        if cosines.shape[-1]:
            gap = matches.gap if rule in ("hungarian", "both") else np.zeros(len(others))
            add_anchor_pairs(writer, ensemble, rule, seeds[index], others, cosines, dead, norms > 0, gap)


def add_anchor_pairs(
    writer: Writer,
    ensemble: str,
    rule: str,
    seed: int,
    others: list[int],
    cosines: np.ndarray,
    dead: np.ndarray,
    directed: np.ndarray,
    gap: np.ndarray,
) -> None:
    """One anchor's pairs under one rule; `cosines` is (d_sae, comparisons), NO_MATCH where the rule forms no pair."""
    living = directed & ~dead
    mine = np.ascontiguousarray(cosines.T)
    paired = mine > schema.NO_MATCH
    n = len(others)
    columns = {
        "seed": np.full(n, seed),
        "other": others,
        "n_anchors": np.full(n, directed.sum()),
        "n_living": np.full(n, living.sum()),
        "n_paired": paired.sum(1),
        "mean_cosine": (mine * paired).sum(1, dtype=np.float64) / np.maximum(paired.sum(1), 1),
        "gap": gap,
        "matched": count_on_grid(mine[:, directed]),
        "matched_living": count_on_grid(mine[:, living]),
    }
    writer.add(Pair, {"ensemble": ensemble, "rule": rule} | columns)


def add_null(writer: Writer, ensemble: str, seed: int, kind: str, chance: Chance) -> None:
    """What one null finds for one member; `chance.cosine` is (anchors, comparisons)."""
    keys = row_keys(ensemble, seed, chance.feature)
    writer.add(NullMatch, keys | {"kind": kind, "cosines": chance.cosine})


def add_ablation(writer: Writer, ensemble: str, seed: int, maskings: list[Masking], losses: list[MaskedLoss]) -> None:
    """Explained variance of one member under every kind and size of mask, with the loss where that was measured."""
    found = {(each.mask, each.n_masked): each for each in losses}
    for masking in maskings:
        loss = found.get((masking.mask, masking.n_masked))
        add_row(writer, Ablation(ensemble, seed, *masking, loss and loss.loss, loss and loss.loss_sd))


def row_keys(ensemble: str, seed: int, feature: np.ndarray) -> dict[str, object]:
    """The key columns of rows that belong to features of one member."""
    return {"ensemble": ensemble, "seed": np.full(len(feature), seed), "feature": feature}
