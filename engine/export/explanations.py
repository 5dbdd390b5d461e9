"""Explanations of a published study, and the contexts they were scored on, batch by batch for exports."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.activations.tokens import PADDING, TokenSet
from seedscope.engine.contract.tables import explanations as tables
from seedscope.engine.contract.tables.study import Ensemble, TokenWindow
from seedscope.engine.explanations.exchange.records import ScoredExamples
from seedscope.engine.explanations.explanation import ExplanationScore, FeatureExplanation
from seedscope.engine.export.open_study import Opened
from seedscope.engine.features.examples import HALVES, Examples

BATCH = 1024  # features in memory at a time, with 100 contexts each: 300 MB as records
OF_SCORE = ("kind", "value", "shuffled", "shuffled_p95", "n_active", "n_silent", "failure")


class Batch(NamedTuple):
    """Explanations of consecutive features of one member."""

    explanations: dict[int, list[FeatureExplanation]]  # by feature, ascending; of one feature by explainer
    scored: ScoredExamples | None  # None where no context is known


def batches(study: Opened, row: Ensemble, seed: int) -> Iterator[Batch]:
    """One member's explanations, BATCH features at a time; none of features without any."""
    tokens, texts = window_tokens(study), study.texts.to_pylist()
    for first in range(0, row.d_sae, BATCH):
        where: dict[str, Any] = {"ensemble": row.ensemble, "seed": seed, "feature": range(first, first + BATCH)}
        scores: dict[tuple[int, str], list[ExplanationScore]] = {}
        for line in study.store.table(tables.Score, **where).to_pylist():
            said = np.array(line["said"], np.int8)
            score = ExplanationScore(**{name: line[name] for name in OF_SCORE}, said=said)
            scores.setdefault((line["feature"], line["explainer"]), []).append(score)
        explanations: dict[int, list[FeatureExplanation]] = {}
        for line in study.store.table(tables.Explanation, **where).to_pylist():
            feature, explainer = line["feature"], line["explainer"]
            own_scores = tuple(scores.get((feature, explainer), ()))
            explanations.setdefault(feature, []).append(
                FeatureExplanation(feature, explainer, line["text"], own_scores, line["failure"])
            )
        if explanations:
            yield Batch(explanations, tokens and ScoredExamples(_examples(study, where), tokens, texts))


def window_tokens(study: Opened) -> TokenSet | None:
    """The evaluation tokens as the store has them; None where it has none."""
    windows, n_ctx = study.store.table(TokenWindow), study.study.n_ctx
    if not len(windows) or n_ctx is None:
        return None
    ids = np.full((len(windows), n_ctx), PADDING, np.int32)
    lists = windows["token_ids"].combine_chunks()
    ids[np.arange(n_ctx) < lists.value_lengths().to_numpy()[:, None]] = lists.flatten().to_numpy()
    return TokenSet(ids, windows["document"].to_numpy(), windows["start"].to_numpy(), [], None)


def explanation_lists(study: Opened, row: Ensemble, seed: int, features: range) -> dict[int, list[dict[str, Any]]]:
    """{feature: its `explanations` as the pages' JSON names them}; features without any are left out."""
    where: dict[str, Any] = {"ensemble": row.ensemble, "seed": seed, "feature": features}
    scores: dict[tuple[int, str], list[dict[str, Any]]] = {}
    names = ["feature", "explainer", *OF_SCORE]
    for line in study.store.table(tables.Score, names, **where).to_pylist():
        scores.setdefault((line.pop("feature"), line.pop("explainer")), []).append(line)
    explanations: dict[int, list[dict[str, Any]]] = {}
    names = ["feature", "explainer", "text", "failure"]
    for line in study.store.table(tables.Explanation, names, **where).to_pylist():
        feature = line.pop("feature")
        explanations.setdefault(feature, []).append(line | {"scores": scores.get((feature, line["explainer"]), [])})
    return explanations


def is_explained(study: Opened, row: Ensemble) -> bool:
    """Whether any feature of an ensemble has an explanation."""
    where = [{"ensemble": row.ensemble, "seed": member.seed} for member in study.members[row.ensemble]]
    return any(study.store.table(tables.Explanation, ["feature"], **each).num_rows for each in where)


def _examples(study: Opened, where: dict[str, Any]) -> Examples:
    """The scored contexts of some features, in the order of their answers; where features are active is known, not how strongly."""
    scored = study.store.table(tables.Scored, **where)
    sizes = scored["kinds"].combine_chunks().value_lengths().to_numpy()
    kinds, windows, offsets, lengths, masks = (
        scored[name].combine_chunks().flatten().to_numpy()
        for name in ("kinds", "windows", "offsets", "lengths", "masks")
    )
    n, half = len(kinds), HALVES.index("scored")
    return Examples(
        feature=np.repeat(scored["feature"].to_numpy(), sizes),
        half=np.full(n, half, np.uint8),
        kind=kinds.astype(np.uint8),
        start=windows.astype(np.int64) * study.study.n_ctx + offsets,
        length=lengths.astype(np.uint8),
        mask=masks.astype(np.uint16),
        peak=np.zeros(n, np.float32),
        peak_at=np.zeros(n, np.uint8),
    )
