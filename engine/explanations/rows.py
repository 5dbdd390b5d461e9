"""Explanations and scores as rows of the contract."""

from collections.abc import Sequence

import numpy as np

from seedscope.engine.contract.names import words
from seedscope.engine.contract.tables import explanations as tables
from seedscope.engine.contract.tables.explanations import Scored, Word
from seedscope.engine.explanations.explanation import ExplanationScore, FeatureExplanation
from seedscope.engine.explanations.rule_search import NAME as TOKEN_RULE
from seedscope.engine.features.examples import HALVES, Examples
from seedscope.engine.store.database import Writer
from seedscope.engine.store.rows import row_keys


def listed_explanations(explanations: Sequence[FeatureExplanation], d_sae: int) -> dict[str, list]:
    """The explanation of each feature that lists show, and its detection score: others come before token rules."""
    columns: dict[str, list] = {name: [None] * d_sae for name in ("explanation", "explainer", "score")}
    for each in sorted(explanations, key=lambda each: (each.explainer != TOKEN_RULE, each.explainer)):
        if each.text is not None:
            detection = next((score.value for score in each.scores if score.kind == "detection"), None)
            for name, value in (("explanation", each.text), ("explainer", each.explainer), ("score", detection)):
                columns[name][each.feature] = value
    return columns


def add_explanations(
    writer: Writer,
    ensemble: str,
    seed: int,
    explanations: Sequence[FeatureExplanation],
    examples: Examples | None,
    n_ctx: int,
) -> None:
    """One member's explanations with their scores, the words they are found by, and the contexts they were scored on.

    Without activity there are no contexts: then all explanations are of others.
    """
    ordered = sorted(explanations, key=lambda each: (each.feature, each.explainer))
    columns = {name: [getattr(each, name) for each in ordered] for name in ("explainer", "text", "failure")}
    writer.add(tables.Explanation, row_keys(ensemble, seed, np.array([each.feature for each in ordered])) | columns)
    scores = [(each, score) for each in ordered for score in sorted(each.scores, key=lambda score: score.kind)]
    if scores:
        keys = row_keys(ensemble, seed, np.array([each.feature for each, _ in scores]))
        named = {name: [getattr(score, name) for _, score in scores] for name in ExplanationScore._fields}
        writer.add(tables.Score, keys | {"explainer": [each.explainer for each, _ in scores]} | named)
    pairs = sorted({(word, each.feature) for each in ordered if each.text for word in words(each.text)})
    if pairs:
        keys = row_keys(ensemble, seed, np.array([feature for _, feature in pairs]))
        writer.add(Word, keys | {"word": [word for word, _ in pairs]})
    if examples is not None and len(scored := np.flatnonzero(examples.half == HALVES.index("scored"))):
        features, first = np.unique(examples.feature[scored], return_index=True)
        lists = {
            "kinds": examples.kind, "windows": examples.start // n_ctx, "offsets": examples.start % n_ctx,
            "lengths": examples.length, "masks": examples.mask,
        }  # fmt: skip
        split = {name: np.split(column[scored].astype(np.int32), first[1:]) for name, column in lists.items()}
        writer.add(Scored, row_keys(ensemble, seed, features) | split)
