"""What one SAE and its text say of each of its features, as numbers that compare across SAEs: the inputs of a predictor.

Nothing here needs a second SAE. Quantities with a scale of their own (activations, norms, biases, worth) are set against the
SAE's own living features, so that libraries, models and hook points compare. The choice is this project's.
"""

from typing import NamedTuple

import numpy as np

from seedscope.engine.contract.tables.predictions import INPUTS

NEAREST = 10  # rows that crowding is a mean over
BLOCK = 1024  # rows whose cosines with all others are in memory at once
NO_ACTIVITY = "no activity was measured"
NO_WORTH = "no worth was measured"
NO_TEXT = "the activations came without tokens"
NO_PLACE = "a transcoder’s encoder and decoder rows lie in different spaces"


class OneActivity(NamedTuple):
    """What a pass over text says of one SAE's features, (d_sae,) each."""

    n_tokens: int
    n_active: np.ndarray
    mean_activation: np.ndarray  # where active
    token_entropy: np.ndarray | None  # bits; None without tokens, as the next
    top_token_share: np.ndarray | None


class OneSaeInputs(NamedTuple):
    """The inputs of one SAE's features."""

    values: (
        np.ndarray
    )  # (d_sae, INPUTS) float64; NaN of features that are dead or without a direction, and of missing inputs
    missing: dict[str, str]  # {input: why it is not known}


def one_sae_inputs(
    decoder: np.ndarray,
    encoder: np.ndarray,
    bias: np.ndarray,
    *,
    activity: OneActivity | None,
    worth: np.ndarray | None,
    transcoder: bool = False,
) -> OneSaeInputs:
    """Inputs from decoder rows (d_sae, d_out), encoder rows (d_sae, d_in), encoder biases (d_sae,), activity and worth in EV.

    density: log10 of the share of tokens; crowding: mean cosine with the ten nearest rows; worth: asinh of the explained variance
    that masking it costs in units of the SAE's median; mean activation and encoder norm (times the decoder row's norm): log of
    their ratio to the median; encoder bias (likewise): distance from the median in interquartile ranges; encoder_decoder: cosine
    of the two rows; top_token_share: 0 to 1; token_entropy: bits. Without activity every feature with a direction counts as living.
    """
    decoder, encoder, bias = (np.asarray(each, float) for each in (decoder, encoder, bias))
    norms, encoder_norms = np.linalg.norm(decoder, axis=1), np.linalg.norm(encoder, axis=1)
    alive = (norms > 0) & np.isfinite(norms)
    unit = np.where(alive[:, None], decoder, 0) / np.where(alive, norms, 1)[:, None]
    columns: dict[str, np.ndarray] = {"crowding": np.full(len(norms), np.nan)}
    columns["crowding"][alive] = crowding(unit[alive])
    missing: dict[str, str] = {}
    if activity is None:
        missing |= dict.fromkeys(("density", "mean_activation", "top_token_share", "token_entropy"), NO_ACTIVITY)
    else:
        alive &= activity.n_active > 0
        columns["density"] = np.log10(np.maximum(activity.n_active, 1) / activity.n_tokens)
        columns["mean_activation"] = _log_ratio(activity.mean_activation, alive)
        if activity.token_entropy is None or activity.top_token_share is None:
            missing |= dict.fromkeys(("top_token_share", "token_entropy"), NO_TEXT)
        else:
            columns |= {"top_token_share": activity.top_token_share, "token_entropy": activity.token_entropy}
    if worth is None:
        missing["worth"] = NO_WORTH
    else:
        columns["worth"] = np.arcsinh(worth / (_median(np.abs(worth), alive) or 1))
    columns["encoder_norm"] = _log_ratio(encoder_norms * norms, alive)
    columns["encoder_bias"] = _in_quartiles(bias * norms, alive)
    if transcoder:
        missing["encoder_decoder"] = NO_PLACE
    else:
        columns["encoder_decoder"] = (unit * encoder).sum(1) / np.where(encoder_norms > 0, encoder_norms, np.inf)
    values = np.full((len(norms), len(INPUTS)), np.nan)
    for name, column in columns.items():
        values[alive, INPUTS.index(name)] = column[alive]
    return OneSaeInputs(values, {name: missing[name] for name in INPUTS if name in missing})


def crowding(unit: np.ndarray) -> np.ndarray:
    """(n,) mean cosine of each unit row with the NEAREST rows that are nearest to it, itself left out; 0 for a row alone."""
    rows = unit.astype(np.float32)
    n_nearest = min(NEAREST, len(rows) - 1)
    means = np.zeros(len(rows))
    for first in range(0, len(rows) if n_nearest > 0 else 0, BLOCK):
        cosines = rows[first : first + BLOCK] @ rows.T
        at = np.arange(len(cosines))
        cosines[at, first + at] = -np.inf
        means[first : first + len(cosines)] = np.partition(cosines, -n_nearest, axis=1)[:, -n_nearest:].mean(1)
    return means


def _median(values: np.ndarray, alive: np.ndarray) -> float:
    return float(np.median(values[alive])) if alive.any() else 0.0


def _log_ratio(values: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Log of positive values over their median among the living; NaN where a value is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(values) - np.log(_median(values, alive))
    return np.where(np.isfinite(ratio), ratio, np.nan)


def _in_quartiles(values: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Distance from the median in interquartile ranges of the living; 0 throughout where they hardly differ."""
    if not alive.any():
        return np.zeros(len(values))
    low, middle, high = np.quantile(values[alive], (0.25, 0.5, 0.75))
    return (values - middle) / (high - low) if high - low > 1e-12 else np.zeros(len(values))
