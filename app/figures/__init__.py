"""Rows -> Plotly figure dictionaries; pure functions."""

from app.figures.buckets import ablation, density_by_bucket
from app.figures.drawing import Figure
from app.figures.masking import CURVES, EV, LOSS, CurvePoint, Level, masking_curves
from app.figures.members import pair_histogram, seed_matrix
from app.figures.scatter import Cells, Cloud, Dots, metric_scatter
from app.figures.scores import ScoreCurve, score_by_stability
from app.figures.spans import CapturedCurve, captured_figure
from app.figures.stability import convergence, stability_cdf, stability_distribution, theta_sweep
from app.figures.tradeoff import TradeOff, trade_off
from app.figures.truth import MARKS, Axis, Spot, Square, found_by_members, latents_in_span, phase_map

__all__ = [
    "CURVES", "EV", "LOSS", "MARKS", "Axis", "CapturedCurve", "Cells", "Cloud", "CurvePoint", "Dots", "Figure", "Level",
    "ScoreCurve", "Spot", "Square", "TradeOff", "ablation", "captured_figure", "convergence", "density_by_bucket",
    "found_by_members", "latents_in_span", "masking_curves", "metric_scatter", "pair_histogram", "phase_map",
    "score_by_stability", "seed_matrix", "stability_cdf", "stability_distribution", "theta_sweep", "trade_off",
]  # fmt: skip
