"""How well an anchor's features come back in its comparisons, beside how well the comparisons' own do among themselves."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from seedscope.engine.contract.stability import bucket_bounds


@dataclass(frozen=True)
class StabilityLevel:
    """Stability of some features, each over the same number of comparisons."""

    n_features: int
    mean: float  # of p
    stable: float  # this and the next: share of the features
    unstable: float


@dataclass(frozen=True)
class Ceiling:
    """What matching the recipe is worth at all: the comparisons' level among themselves."""

    anchor: int
    n_comparisons: int  # that both are counted over: one less than there are, for a comparison has that many others
    of_anchor: StabilityLevel
    of_comparisons: StabilityLevel
    means: list[float]  # mean p of each comparison's features, in seed order


def judge_ceiling(
    counts: Sequence[tuple[int, int, int, int]], anchor: int, seeds: Sequence[int], n_comparisons: int, epsilon: float
) -> Ceiling:
    """Both levels from (seed, matches, whether the anchor is among them, features); of the anchor's own, the third says nothing.

    The anchor's shares are what is to be expected when one of its `n_comparisons` comparisons, any of them, is left out.
    """
    n = n_comparisons - 1
    bounds = bucket_bounds(n, epsilon)

    def level(features_by_matches: dict[int, float]) -> StabilityLevel:
        total = sum(features_by_matches.values())
        share = total or 1
        return StabilityLevel(
            round(total),
            sum(x * c for x, c in features_by_matches.items()) / share / n,
            sum(c for x, c in features_by_matches.items() if x >= bounds.stable) / share,
            sum(c for x, c in features_by_matches.items() if x <= bounds.unstable) / share,
        )

    without_one: dict[int, float] = defaultdict(float)
    among: dict[int, dict[int, float]] = {seed: defaultdict(float) for seed in seeds if seed != anchor}
    for seed, x, in_anchor, features in counts:
        if seed == anchor:
            without_one[x - 1] += features * x / (n + 1)
            without_one[x] += features * (1 - x / (n + 1))
        else:
            among[seed][x - in_anchor] += features
    together: dict[int, float] = defaultdict(float)
    for features_by_matches in among.values():
        for x, c in features_by_matches.items():
            together[x] += c
    means = [level(features_by_matches).mean for _, features_by_matches in sorted(among.items())]
    return Ceiling(anchor, n, level({x: c for x, c in without_one.items() if c}), level(together), means)
