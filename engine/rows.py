"""Results -> rows of the contract: what the analyses found, as the columns that the Writer takes."""

from typing import NamedTuple

import numpy as np

from engine import schema
from engine.ablate import Worth
from engine.activity import Activity, Contexts
from engine.match import Chance, Matches, rule_cosine
from engine.schema import RULE_COLUMN, RULES, Context, Feature, Match, Member, NullMatch, Pair
from engine.stability import count_on_grid
from engine.store import Writer


def add_row(writer: Writer, row: object) -> None:
    """One dataclass row of any table."""
    writer.add(type(row), {name: [value] for name, value in vars(row).items()})


class Origin(NamedTuple):
    """Where one member's file comes from; None where that is not known."""

    source: str | None = None
    library: str | None = None
    trained_on: str | None = None
    remarks: tuple[str, ...] = ()


def add_member(
    writer: Writer,
    ensemble: str,
    seed: int,
    digest: str,
    norms: np.ndarray,
    matches: Matches,
    *,
    origin: Origin = Origin(),
    activity: Activity | None = None,
    worth: Worth | None = None,
) -> None:
    """One member, its features and their contexts; `matches` holds this member's (d_sae, comparisons) slices.

    `norms` are of its decoder rows, 0 for those without a direction. What was not computed is None.
    """
    d_sae, undirected = len(norms), norms == 0
    dead = dead_features(norms, activity)
    row = Member(
        ensemble=ensemble,
        seed=seed,
        sae_digest=digest,
        source=origin.source,
        library=origin.library,
        trained_on=origin.trained_on,
        remarks=list(origin.remarks),
        ev=worth.ev if worth else None,
        l0=float(activity.n_active.sum()) / activity.n_tokens if activity else None,
        n_dead=int(dead.sum()) if activity else None,
        n_undirected=int(undirected.sum()),
        histogram_edges=activity.histogram_edges.tolist() if activity else [],
    )
    add_row(writer, row)
    keys = row_keys(ensemble, seed, np.arange(d_sae))
    rules = {RULE_COLUMN[rule]: rule_cosine(rule, matches) for rule in RULES}
    none = np.zeros((d_sae, 0))
    measured = {
        "dead": dead if activity else [True if bare else None for bare in undirected],
        "density": activity.n_active / activity.n_tokens if activity else None,
        "n_active": activity.n_active if activity else None,
        "n_tokens": np.full(d_sae, activity.n_tokens) if activity else None,
        "mean_activation": activity.mean_activation if activity else None,
        "max_activation": activity.max_activation if activity else None,
        "decoder_norm": norms,
        "worth_ev": worth.marginal if worth else None,
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


def dead_features(norms: np.ndarray, activity: Activity | None) -> np.ndarray:
    """(d_sae,) features known to be dead: without a direction, or never active on the evaluation tokens."""
    return (norms == 0) | (activity.n_active == 0) if activity else norms == 0


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


def add_pairs(
    writer: Writer, ensemble: str, seeds: tuple[int, ...], matches: Matches, dead: np.ndarray, directed: np.ndarray
) -> None:
    """Every ordered pair of members under every rule that was computed; `dead` and `directed` are (members, d_sae)."""
    for rule in RULES:
        cosines = rule_cosine(rule, matches)
        if not cosines.shape[-1]:
            continue
        for anchor, seed in enumerate(seeds):
            others = [seeds[other] for other in matches.other[anchor]]
            gap = matches.gap[anchor] if rule in ("hungarian", "both") else np.zeros(len(others))
            add_anchor_pairs(writer, ensemble, rule, seed, others, cosines[anchor], dead[anchor], directed[anchor], gap)


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


def add_null(writer: Writer, ensemble: str, seeds: tuple[int, ...], kind: str, chance: Chance) -> None:
    """What one null finds, all members."""
    for member, seed in enumerate(seeds):
        keys = row_keys(ensemble, seed, chance.feature)
        writer.add(NullMatch, keys | {"kind": kind, "cosines": chance.cosine[member]})


def row_keys(ensemble: str, seed: int, feature: np.ndarray) -> dict[str, object]:
    """The key columns of rows that belong to features of one member."""
    return {"ensemble": ensemble, "seed": np.full(len(feature), seed), "feature": feature}
