"""Fields of a feature's JSON that are null because nothing was computed for them, and the command that computes them."""

from dataclasses import dataclass

from seedscope.app.store.missing import Missing
from seedscope.engine.contract.tables.features import Feature

# {result that may be missing: the fields of the twin that it would fill}
FIELDS = {
    "activity": ("dead", "top_tokens", "density", "n_active", "n_tokens", "mean_activation", "max_activation", "quantiles",
                 "trigger", "trigger_share", "trigger_what", "token_entropy", "top_token_share", "contexts", "histogram",
                 "histogram_edges", "matches.partner_dead", "matches.contexts"),
    "contexts": ("contexts", "top_tokens", "trigger", "trigger_share", "trigger_what", "token_entropy", "top_token_share",
                 "matches.contexts"),
    "live": ("matches.live_partner", "matches.live_cosine"),
    "one-to-one": ("matches.hungarian_partner", "matches.hungarian_cosine", "matches.hungarian_encoder_cosine",
                   "matches.encoder_partner"),
    "function": ("matches.active_partner", "matches.active_correlation", "matches.correlation", "matches.jaccard",
                 "matches.substitution", "matches.scaled_substitution"),
    "ablate": ("ablation.marginal_ev", "ablation.rank"),
    "loss": ("ablation.marginal_loss_nats", "ablation.loss_rank"),
    "logits": ("positive_logits", "negative_logits"),
    "explanations": ("explanations", "matches.explanation", "matches.explainer", "matches.score", "label_agreement"),
    "stability": ("stability", "stability_low", "stability_high", "p_stable", "p_unstable", "bucket"),
    "subspaces": ("subspace",),
    "shared_spans": ("shared_spans",),
    "trajectory": ("trajectory",),
    "predicted": ("predicted",),
    "predictor": (),
}  # fmt: skip


@dataclass(frozen=True)
class Lack:
    """A field of the twin that is null because nothing was computed for it."""

    field: str
    needs: str
    command: str | None  # that computes it; None where none does


def find_lacks(lacking: dict[str, Missing], feature: Feature) -> list[Lack]:
    """Every field that is null for want of a result; a row without a direction is known to be dead without any."""
    whole = {"ablate", "loss"} <= set(lacking)
    return [
        Lack(field, f"{missing.result}: {missing.reason}", missing.command)
        for result, missing in lacking.items()
        for field in (("ablation",) if whole and result == "ablate" else FIELDS[result])
        if not (field == "dead" and feature.dead is not None)
    ]
