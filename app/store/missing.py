"""What an ensemble lacks, why, and the command that adds it."""

from collections.abc import Collection
from dataclasses import dataclass

from engine import schema
from engine.schema import ANALYSES

LATER = "not computed by this version"
# Results that no version computes yet.
PLANNED = {
    "trigger": "trigger classes", "logits": "logit effects", "explanations": "auto-interpretation", "subspace": "geometry",
}  # fmt: skip


@dataclass(frozen=True)
class Missing:
    """One result that is not there."""

    result: str  # in words
    reason: str
    command: str | None  # that adds it; None where none does

    @property
    def is_planned(self) -> bool:
        """Whether nothing that users do would add it."""
        return self.reason == LATER

    def __str__(self) -> str:
        return self.reason + (f"; run `{self.command}`" if self.command else "")


def missing(study: schema.Study, ensemble: schema.Ensemble, rules: Collection[str]) -> dict[str, Missing]:
    """{result: why it is not there and what adds it} of an ensemble; `rules` are those that its pairs were matched by.

    Results: `activity`, `live` (the rule), `one-to-one`, `ablate`, `loss`, and those of PLANNED.
    """

    def lacks(result: str, analysis: str) -> Missing:
        command = f"seedscope analyze {study.study}"
        place = " --hookpoint NAME" if ensemble.hookpoint is None else ""
        if study.model is None:
            return Missing(
                result, "the study has no model to run on tokens", f"{command} --model DIR_OR_ID{place} --tokens FILE"
            )
        if place:
            return Missing(result, "the hook point that the SAEs read is not known", command + place)
        return Missing(result, "not computed yet", f"{command} --only {analysis}")

    match, activity, ablate = ANALYSES
    found = {}
    if activity not in ensemble.computed:
        found["activity"] = lacks("activity: density, contexts, dead features", activity)
    if "live" not in rules:
        known = activity in ensemble.computed
        result = "matching with living features alone"
        found["live"] = lacks(result, match if known else activity)
    if "hungarian" not in rules:
        reason = "not done for all pairs at this size; the page of a pair matches it on demand"
        command = f"seedscope analyze {study.study} --only match --rule hungarian"
        found["one-to-one"] = Missing("one-to-one matching", reason, command)
    if ablate not in ensemble.computed:
        found["ablate"] = lacks("worth: explained variance with features masked", ablate)
    found["loss"] = Missing("next-token loss", LATER, None)
    if study.causal is False:
        reason = f"undefined: in {study.model} every token sees the tokens after it"
        found["loss"] = Missing("next-token loss", reason, None)
    return found | {key: Missing(words, LATER, None) for key, words in PLANNED.items()}
