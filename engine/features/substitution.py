"""Whether a counterpart can stand in for a feature: explained variance with the counterpart in the feature's place.

In member A feature i has weight w_i and decoder row d_i, and r is A's residual x - x_hat; its counterpart j in member B has v_j and
e_j (weights as in `engine.features.ablation`). Without i the residual is r + w_i d_i. Putting v_j e_j in its place takes from the
squared error, summed over tokens,

    2 N - Q,  N = sum v_j (r . e_j) + sum w_i v_j (d_i . e_j),  Q = sum v_j^2 ||e_j||^2;

the feature itself takes D = 2 c_i + G_ii, its marginal worth. Raw score = (2 N - Q) / D. With the factor c = N / Q, or 0 where
that is negative, the gain is largest: N^2 / Q, and the scaled score is N^2 / (Q D). With i still in place N lacks its second term:
what the counterpart adds then, `beside`, is no replacement. Because w_i ||d_i|| is the activation that is reported (times the
token's scale where the SAE normalises), sum w_i v_j (d_i . e_j) is the sum of products of activations times the cosine of the two
rows. Definitions of this project.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Gains(NamedTuple):
    """What one member's features do for the squared error of another member's reconstruction, summed over tokens."""

    along: Float[np.ndarray, " d_sae"]  # sum_t v_j (r . e_j): AblationPass.along
    square: Float[np.ndarray, " d_sae"]  # sum_t v_j^2 ||e_j||^2: AblationPass.diagonal


class Scores(NamedTuple):
    """Of every pair (feature, counterpart): arrays (pairs,); NaN where the feature's own worth is not above 0."""

    raw: np.ndarray
    scaled: np.ndarray
    beside: np.ndarray  # scaled, with the feature still in its place


def scores(worth: np.ndarray, gains: Gains, second: np.ndarray, product: np.ndarray, cosine: np.ndarray) -> Scores:
    """Scores of counterparts `second` (pairs,), whose features are worth `worth` (pairs,): 2 c_i + G_ii.

    `product` is the sum of the two activations' products, times the tokens' squared scales where there are any.
    """
    alone, square = gains.along[second], gains.square[second]
    gain = alone + product * cosine
    raw = 2 * gain - square
    below = np.where(worth > 0, worth, np.nan)
    return Scores(raw / below, _fitted(gain, square) / below, _fitted(alone, square) / below)


def _fitted(gain: np.ndarray, square: np.ndarray) -> np.ndarray:
    """What the best factor that is not below 0 gains."""
    return np.where(square > 0, gain.clip(0) ** 2 / np.where(square > 0, square, 1), 0)


def set_score(worth: float, gain: np.ndarray, quadratic: np.ndarray) -> tuple[float, np.ndarray]:
    """(score, factors) of several features together in a feature's place, with the factors that serve best.

    `gain` (features,) holds N of each, `quadratic` (features, features) sum v_j v_l (e_j . e_l). Factors solve the normal equations
    by least squares, so that features that always fire together do no harm; they may be negative.
    """
    factors = np.linalg.lstsq(quadratic, gain, rcond=1e-10)[0]
    return float(2 * factors @ gain - factors @ quadratic @ factors) / worth, factors
