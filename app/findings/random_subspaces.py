"""The angle between random subspaces of one rank, from the law of large dimensions."""

import math

import numpy as np


def unrelated_angle(rank: int, d: int) -> float:
    """Degrees, about the median principal angle between random subspaces of that rank.

    The law of large dimensions (Wachter 1980), whose density of angles t is sqrt(4a(1-a) - cos^2 t) / (pi a sin t), a =
    rank / d. Above a half of the dimensions two subspaces must meet in 2 rank - d directions, at angle 0.
    """
    share = rank / d
    met = max(2 - 1 / share, 0)  # share of the angles that are 0
    if met >= 0.5:
        return 0.0
    edges = np.linspace(math.acos(math.sqrt(min(4 * share * (1 - share), 1))), math.pi / 2, 4001)
    angle = (edges[1:] + edges[:-1]) / 2
    density = np.sqrt(np.maximum(4 * share * (1 - share) - np.cos(angle) ** 2, 0)) / np.sin(angle)
    cumulated = met + (1 - met) * np.cumsum(density) / density.sum()
    return math.degrees(angle[np.searchsorted(cumulated, 0.5)])
