"""Tables of explanations, their scores and the words they are found by. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Explanation:
    """What one explainer says of a feature."""

    ensemble: str
    seed: int
    feature: int
    explainer: str  # "token rule", "openai:" and the model's name, or what an import names
    text: str | None  # None where explaining failed
    failure: str | None  # why there is no text


@dataclass(frozen=True)
class Score:
    """How well an explanation tells contexts that hold the feature from others, on documents that its explainer did not see."""

    ensemble: str
    seed: int
    feature: int
    explainer: str
    kind: str  # detection, fuzzing
    value: float | None  # balanced accuracy; None where scoring failed
    shuffled: float | None  # the same with shuffled labels, mean over draws
    shuffled_p95: float | None  # what 95 % of the draws stay below, or reach
    n_active: int
    n_silent: int
    said: list[
        int
    ]  # per context of Scored: 1 said active, 0 said silent, -1 no answer; empty where these are not known
    failure: str | None  # why there is no value


@dataclass(frozen=True)
class Scored:
    """The contexts that a feature's explanations are scored on; lists have one entry per context."""

    ensemble: str
    seed: int
    feature: int
    kinds: list[
        int
    ]  # 0: active, 1: near miss (silent, but it holds tokens that set the feature off elsewhere), 2: silent
    windows: list[int]
    offsets: list[int]  # of the first token in its window
    lengths: list[int]
    masks: list[int]  # bit i is set where the feature is active on token i


@dataclass(frozen=True)
class Word:
    """A word of a feature's explanations, for search: the inverted table."""

    ensemble: str
    word: str  # lower case
    seed: int
    feature: int
