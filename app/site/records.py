"""What a feature's page shows, as short as it can be said: static/site-feature.js draws the page from it.

Everything comes from the context of the dashboard's own page (`app.routes.feature.permalink`).
"""

from dataclasses import asdict
from typing import Any

from seedscope.app.findings.shared_span_claim import membership_says
from seedscope.app.routes.feature.contexts import ShownContext
from seedscope.app.routes.feature.counterparts import Counterpart
from seedscope.app.routes.feature.permalink import FIRST_IN_FULL, FeaturePage
from seedscope.app.site.packing import shortened
from seedscope.app.site.texts import Texts
from seedscope.engine.contract.stability import is_match

BEFORE, BEHIND = 6, 4  # tokens around its peak that a counterpart's context shows, as on the dashboard
_AS_THEY_ARE = (
    "feature", "stability", "stability_low", "stability_high", "n_matched", "bucket", "dead", "trigger", "trigger_share",
    "trigger_what", "token_entropy", "top_tokens", "density", "n_active", "mean_activation", "max_activation", "quantiles",
    "decoder_norm", "histogram", "ablation", "positive_logits", "negative_logits", "explanations", "label_agreement", "subspace",
    "trajectory", "predicted",
)  # fmt: skip


def thinned(feature: dict[str, Any], n_contexts: int | None) -> dict[str, Any]:
    """A record with its first contexts alone, and how many there are in all; with None as it is."""
    contexts = feature.get("contexts") or []
    if n_contexts is None or len(contexts) <= n_contexts:
        return feature
    return feature | {"contexts": contexts[:n_contexts], "n_contexts": len(contexts)}


def record(page: FeaturePage, texts: Texts) -> dict[str, Any]:
    """A feature's page; what is None there is absent here."""
    values = {name: getattr(page, name) for name in _AS_THEY_ARE}
    values |= {
        "why": page.nav_why,
        "largest": page.nav_largest,
        "matches": [_counterpart(each, texts, shows=i < FIRST_IN_FULL or len(page.matches) <= 32)
                    for i, each in enumerate(page.matches)],
        "contexts": None if page.contexts is None else [_context(each, texts) for each in page.contexts],
        "nearest": page.nav_counterpart and [str(page.nav_counterpart[0]), *page.nav_counterpart[1:]],
        "spans": [[each.span, membership_says(each), each.explanation, each.energy] for each in page.shared_spans or []],
        "differs": page.nav_differs,
    }  # fmt: skip
    return {name: shortened(_plain(value)) for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    """A dataclass, or a list of them, as JSON has it."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _context(context: ShownContext, texts: Texts) -> list[Any]:
    """[group, document, start, length, peak, activations]."""
    return [context.group, *texts.add(context), context.peak, _activations(context.activations, 0)]


def _activations(values: list[float], first: int) -> list[float]:
    """[place, activation, place, activation, ..] of those above zero."""
    return [each for i, a in enumerate(values, first) if a > 0 for each in (i, short_activation(a))]


def _counterpart(m: Counterpart, texts: Texts, *, shows: bool) -> list[Any]:
    """One other seed's counterpart; static/site-feature.js names the places of this list."""
    context: list[Any] | None = None
    if m.contexts:
        c = m.contexts[0]
        low, high = max(c.peak - BEFORE, 0), min(c.peak + BEHIND + 1, len(c.tokens))
        document, start, _ = texts.add(c)
        context = (
            [document, start + low, high - low, c.peak - low, _activations(c.activations[low:high], 0)]
            if shows
            else None
        )
    one_to_one = m.rule_partner is not None and m.hungarian_partner == m.rule_partner
    mutual = m.mutual and m.rule_partner is not None and m.rule_partner == m.partner
    flags = m.matched + 2 * mutual + 4 * one_to_one + 8 * bool(m.partner_dead)
    values = [
        str(m.seed), m.rule_partner, m.rule_cosine, m.runner_up_cosine if m.partner is not None else None, flags, m.partner_bucket,
        m.correlation, m.jaccard, m.substitution, context, m.explanation, m.explainer, m.score,
    ]  # fmt: skip
    while values[-1] is None:
        values.pop()
    return values


_ROW = (
    "seed", "feature", "bucket", "n_matched", "density", "n_active", "worth_ev", "worth_loss", "cofiring", "substitution",
    "max_activation", "token_entropy", "trigger", "trigger_share", "trigger_what", "explanation", "explainer", "score",
    "predicted", "predicted_interval", "mean_cosine", "decoder_norm",
)  # fmt: skip
_MEASURED = ("mean_cosine", "decoder_norm")  # that the table shows where no activity was measured


class RowTable:
    """Lines of the feature table by column, with token texts by number."""

    def __init__(self, theta: float, *, has_activity: bool) -> None:
        self._theta = theta
        self._names = [name for name in _ROW if not (has_activity and name in _MEASURED)]
        self.tokens: dict[str, int] = {}

    def columns(self, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
        """{column: values} of lines of the table as its JSON has them; columns that are None throughout are absent."""
        found = {name: [shortened(row.get(name)) for row in rows] for name in self._names}
        found["seed"] = [str(row["seed"]) for row in rows]  # scripts know no whole numbers beyond 2^53
        found["cosines"] = [[short_cosine(cosine, self._theta) for cosine in row["cosines"]] for row in rows]
        found["top_tokens"] = [row["top_tokens"] and [self._number(text) for text in row["top_tokens"]] for row in rows]
        found["top_token_counts"] = [
            row["top_token_shares"] and [round(share * (row["n_active"] or 0)) for share in row["top_token_shares"]]
            for row in rows
        ]
        return {name: values for name, values in found.items() if any(value is not None for value in values)}

    def _number(self, text: str) -> int:
        return self.tokens.setdefault(text, len(self.tokens))


def short_cosine(cosine: float, theta: float) -> float:
    """A cosine at three decimals where that changes neither its side of theta nor its first two decimals; else whole."""
    short = round(cosine, 3)
    same = bool(is_match([short], theta)[0]) == bool(is_match([cosine], theta)[0])
    return short if same and f"{short:.2f}" == f"{cosine:.2f}" else cosine


def short_activation(activation: float) -> float:
    """An activation at the three decimals that pages show, where that leaves its first two as they are; else whole."""
    short = round(activation, 3)
    return short if short > 0 and f"{short:.2f}" == f"{activation:.2f}" else activation
