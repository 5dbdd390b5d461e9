"""The types of an explanation and its scores, and their form as arrays of a part.

Explainers see contexts of one half of the documents, scores are taken on contexts of the other (engine.features.examples).
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np


class ExplanationScore(NamedTuple):
    """How well an explanation tells a feature's active contexts from silent ones that its explainer did not see."""

    kind: str  # detection: which contexts hold the feature; fuzzing: which contexts have the right tokens marked
    value: float | None  # balanced accuracy; None where scoring failed
    shuffled: float | None  # the same with the labels shuffled, mean over draws: the level of knowing nothing
    shuffled_p95: float | None  # what 95 % of the draws stay below, or reach: above it, it is hardly chance
    n_active: int
    n_silent: int
    said: np.ndarray  # int8 per scored context, in the order of Examples: 1 said active, 0 said silent, -1 no answer
    failure: str | None = None  # why there is no value


class FeatureExplanation(NamedTuple):
    """One explanation of one feature."""

    feature: int
    explainer: str  # "token rule", or "openai:" and the model's name
    text: str | None  # None where explaining failed
    scores: tuple[ExplanationScore, ...]
    failure: str | None = None  # why there is no text


def as_arrays(explanations: Iterable[FeatureExplanation]) -> dict[str, np.ndarray]:
    """Explanations as named arrays of numbers and text, for a file without pickles; `from_arrays` is its inverse."""
    listed = list(explanations)
    scores = [(i, score) for i, each in enumerate(listed) for score in each.scores]
    said = [score.said for _, score in scores]
    arrays: dict[str, Any] = {
        "feature": np.array([each.feature for each in listed], np.int32),
        "explainer": _texts(each.explainer for each in listed),
        "text": _texts(each.text for each in listed),
        "has_text": np.array([each.text is not None for each in listed], bool),
        "failure": _texts(each.failure for each in listed),
        "score_of": np.array([i for i, _ in scores], np.int32),
        "score_kind": _texts(score.kind for _, score in scores),
        "score_failure": _texts(score.failure for _, score in scores),
        "score_said": np.concatenate([np.zeros(0, np.int8), *said]),
        "score_length": np.array([len(each) for each in said], np.int32),
    }
    for name in ("value", "shuffled", "shuffled_p95"):
        values = [getattr(score, name) for _, score in scores]
        arrays[f"score_{name}"] = np.array([np.nan if value is None else value for value in values], np.float64)
    for name in ("n_active", "n_silent"):
        arrays[f"score_{name}"] = np.array([getattr(score, name) for _, score in scores], np.int32)
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray]) -> list[FeatureExplanation]:
    """The explanations that `as_arrays` was given."""
    scores: list[list[ExplanationScore]] = [[] for _ in arrays["feature"]]
    lengths = arrays["score_length"]
    parts = np.split(arrays["score_said"], np.cumsum(lengths)[:-1]) if len(lengths) else []

    def number(name: str, i: int) -> float | None:
        value = float(arrays[f"score_{name}"][i])
        return None if np.isnan(value) else value

    for i, (owner, said) in enumerate(zip(arrays["score_of"], parts, strict=True)):
        scores[owner].append(
            ExplanationScore(
                str(arrays["score_kind"][i]), number("value", i), number("shuffled", i), number("shuffled_p95", i),
                int(arrays["score_n_active"][i]), int(arrays["score_n_silent"][i]), said,
                str(arrays["score_failure"][i]) or None,
            )
        )  # fmt: skip
    rows = zip(
        *(arrays[name].tolist() for name in ("feature", "explainer", "text", "has_text", "failure")), strict=True
    )
    return [
        FeatureExplanation(feature, explainer, text if has_text else None, tuple(scores[i]), failure or None)
        for i, (feature, explainer, text, has_text, failure) in enumerate(rows)
    ]


def _texts(values: Iterable[str | None]) -> np.ndarray:
    # Fixed width drops zero characters at the end; no explanation ends in one.
    texts = [value or "" for value in values]
    return np.array(texts, str) if texts else np.zeros(0, "<U1")
