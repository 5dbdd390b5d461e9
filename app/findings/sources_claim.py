"""Which features of one SAE lose their counterparts to which cause, and what that says, in one sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seedscope.app.formats import percent

SAYS = {
    "start": "another start",
    "order": "another data order",
    "sample": "another data sample",
    "all": "all three",
    "model": "another model and start",
}


@dataclass(frozen=True)
class LossPattern:
    """Features of the reference SAE that lose their counterparts to exactly these causes."""

    lost_to: list[str]  # empty: kept under each
    n: int
    share: float  # of the reference SAE's judged features
    mean_p: dict[str, float]  # {cause: mean p of these features}
    features: list[int]  # the most frequent of them


def is_lost(matched: np.ndarray, comparisons: int) -> np.ndarray:
    """Whether fewer than half of the comparisons hold a match."""
    return 2 * matched < comparisons


def loss_patterns(
    matched: Mapping[str, np.ndarray],
    comparisons: Mapping[str, int],
    feature: np.ndarray,
    firings: np.ndarray,
    causes: Sequence[str],
    *,
    n_listed: int = 12,
) -> list[LossPattern]:
    """Every combination of single causes that occurs, the most frequent first; p is given of all causes in `matched`."""
    if not len(feature):
        return []
    lost = np.stack([is_lost(matched[cause], comparisons[cause]) for cause in causes], 1)
    patterns = []
    for pattern in np.unique(lost, axis=0):
        at = np.flatnonzero((lost == pattern).all(1))
        often = at[np.argsort(-firings[at], kind="stable")][:n_listed]
        patterns.append(
            LossPattern(
                lost_to=[cause for cause, is_in in zip(causes, pattern, strict=True) if is_in],
                n=len(at),
                share=len(at) / len(feature),
                mean_p={cause: float(counted[at].mean() / comparisons[cause]) for cause, counted in matched.items()},
                features=feature[often].tolist(),
            )
        )
    return sorted(patterns, key=lambda each: (-each.n, each.lost_to))


def sources_sentence(p: Mapping[str, float], p_all: Mapping[str, float]) -> str:
    """What each cause leaves of mean p, and how much of what all three lose each loses alone; `p_all` are of all features."""
    said = [f"{SAYS[name]} leaves mean p at {p[name]:.2f}" for name in ("start", "order", "sample") if name in p]
    said += [f"{SAYS['all']} leave it at {p['all']:.2f}"] if "all" in p else []
    text = ", ".join(said)
    sentences = [f"{text[0].upper()}{text[1:]}."] if text else []
    if "all" in p and p["all"] < 1:
        alone = {name: (1 - p[name]) / (1 - p["all"]) for name in ("start", "order", "sample") if name in p}
        if alone:
            most = max(alone, key=lambda name: alone[name])
            sentences.append(
                f"Of the matches that all three lose together, {SAYS[most]} alone loses {percent(alone[most])}"
                f"{' as many' if alone[most] > 1 else ''}."
            )
    if "model" in p_all:
        beside = f", beside {p_all['start']:.2f} for another start alone" if "start" in p_all else ""
        sentences.append(
            f"Another seed of the language model itself, with another start, leaves {p_all['model']:.2f} of all features{beside}."
        )
    return " ".join(sentences)
