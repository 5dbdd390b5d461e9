"""Rows -> Plotly figure dictionaries; pure functions."""

from app.figures.atlas import Around, Points, direction_map
from app.figures.buckets import ablation, density_by_bucket
from app.figures.drawing import Figure
from app.figures.masking import CURVES, EV, LOSS, CurvePoint, Level, masking_curves
from app.figures.members import pair_histogram, seed_matrix
from app.figures.pools import POOL_KINDS, Band, PoolAt, PoolMeasure, holders_figure, pool_figure
from app.figures.predictability import Told, prediction_dots
from app.figures.pursuit import Residual, pursuit_residual
from app.figures.scatter import Cells, Cloud, Dots, metric_scatter
from app.figures.scores import ScoreCurve, score_by_stability
from app.figures.seedspans import angle_matrix, energy_matrix, overlap_matrix
from app.figures.spans import CapturedCurve, captured_figure
from app.figures.spectrum import span_spectrum
from app.figures.stability import convergence, stability_cdf, stability_distribution, theta_sweep
from app.figures.tradeoff import SweepDot, TradeOff, sweep, trade_off
from app.figures.truth import MARKS, Axis, Spot, Square, found_by_members, latents_in_span, phase_map

__all__ = [
    "CURVES", "EV", "LOSS", "MARKS", "POOL_KINDS", "Around", "Axis", "Band", "CapturedCurve", "Cells", "Cloud",
    "CurvePoint", "Dots", "Figure", "Level", "Points", "PoolAt", "PoolMeasure", "Residual", "ScoreCurve", "Spot",
    "Square", "SweepDot", "Told", "TradeOff", "ablation", "angle_matrix", "captured_figure", "convergence",
    "density_by_bucket", "direction_map", "energy_matrix", "found_by_members", "holders_figure", "latents_in_span",
    "masking_curves", "metric_scatter", "overlap_matrix", "pair_histogram", "phase_map", "pool_figure",
    "prediction_dots", "pursuit_residual", "score_by_stability", "seed_matrix", "span_spectrum", "stability_cdf",
    "stability_distribution", "sweep", "theta_sweep", "trade_off",
]  # fmt: skip
