"""Tables of explanations, their scores, the contexts they are scored on, and their words. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Explanation:
    """One explainer's description of a feature, or why there is none."""

    ensemble: str
    seed: int
    feature: int
    explainer: str  # "token rule", "openai:" and the model's name, or what an import names
    text: str | None  # None where explaining failed
    failure: str | None  # why there is no text


@dataclass(frozen=True)
class Score:
    """How well an explanation separates active contexts from silent ones, in documents that its explainer did not see."""

    ensemble: str
    seed: int
    feature: int
    explainer: str
    kind: str  # detection, fuzzing
    value: float | None  # balanced accuracy, 0 to 1; None where scoring failed
    shuffled: float | None  # the same with shuffled labels, mean over draws
    shuffled_p95: float | None  # 95th percentile of these draws
    n_active: int  # contexts that were scored
    n_silent: int
    # One answer per context of Scored: 1 active, 0 silent, -1 none; empty where the answers are not known.
    said: list[int]
    failure: str | None  # why there is no value


@dataclass(frozen=True)
class Scored:
    """The contexts that a feature's explanations are scored on; every list has one entry per context."""

    ensemble: str
    seed: int
    feature: int
    # 0: active, 1: near miss (silent, with tokens on which the feature is active elsewhere), 2: silent.
    kinds: list[int]
    windows: list[int]  # TokenWindow.id
    offsets: list[int]  # index of the context's first token in its window
    lengths: list[int]  # tokens
    masks: list[int]  # bit i is set where the feature is active on token i of the context


@dataclass(frozen=True)
class Word:
    """An inverted index for search: one row per word of a feature's explanations."""

    ensemble: str
    word: str  # lower case
    seed: int
    feature: int
