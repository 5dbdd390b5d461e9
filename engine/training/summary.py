"""Reduce a trace for display: rounded values of a few members for a page that polls every second, one line for a terminal."""

import math

from seedscope.engine.contract.progress_files import MOST_MEMBERS, Moment
from seedscope.engine.training.trace import Point


def summarise(points: list[Point], seeds: tuple[int, ...]) -> list[Moment]:
    """The points in the order of steps, values of five digits, for at most MOST_MEMBERS evenly spaced seeds."""
    shown = {seeds[i * len(seeds) // MOST_MEMBERS] for i in range(MOST_MEMBERS)} if len(seeds) > MOST_MEMBERS else seeds
    moments = []
    for point in sorted(points, key=lambda point: (point.step, point.seeds)):
        at = [i for i, seed in enumerate(point.seeds) if seed in shown]
        values = (point.loss, point.ev, point.l0, point.dead_frac)
        loss, ev, l0, dead = ([_short(of[i]) for i in at] if of else [] for of in values)
        own = [point.seeds[i] for i in at]
        moments.append(Moment(point.step, point.tokens, own, loss, ev, l0, dead, _short(point.agreement)))
    return moments


def in_words(point: Point) -> str:
    """Means over members: `EV 0.912 loss 0.0881 agreement 0.64`."""
    parts = [f"EV {sum(point.ev) / len(point.ev):.3f}"]
    if point.loss is not None:
        parts.append(f"loss {sum(point.loss) / len(point.loss):.3g}")
    if point.agreement is not None:
        parts.append(f"agreement {point.agreement:.2f}")
    return " ".join(parts)


def _short(value: float | None) -> float | None:
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
