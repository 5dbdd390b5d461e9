"""Rows -> Plotly figure dictionaries; pure functions."""

from app.figures.buckets import ablation, density_by_bucket
from app.figures.drawing import Figure
from app.figures.members import pair_histogram, seed_matrix
from app.figures.stability import convergence, stability_cdf, stability_distribution, theta_sweep
from app.figures.tradeoff import TradeOff, trade_off

__all__ = [
    "Figure", "TradeOff", "ablation", "convergence", "density_by_bucket", "pair_histogram", "seed_matrix", "stability_cdf",
    "stability_distribution", "theta_sweep", "trade_off",
]  # fmt: skip
