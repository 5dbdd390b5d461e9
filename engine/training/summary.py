"""A trace for whoever watches: few enough values for a page that asks every second, and a few words for a terminal."""

import math

from seedscope.engine.contract.progress_files import MOST_MEMBERS, Moment
from seedscope.engine.training.trace import Point


def told(points: list[Point], seeds: tuple[int, ...]) -> list[Moment]:
    """The points in the order of steps, five digits each, of at most MOST_MEMBERS of all seeds, evenly spaced ones."""
    shown = {seeds[i * len(seeds) // MOST_MEMBERS] for i in range(MOST_MEMBERS)} if len(seeds) > MOST_MEMBERS else seeds
    found = []
    for point in sorted(points, key=lambda point: (point.step, point.seeds)):
        at = [i for i, seed in enumerate(point.seeds) if seed in shown]
        values = (point.loss, point.ev, point.l0, point.dead_frac)
        loss, ev, l0, dead = ([_short(of[i]) for i in at] if of else [] for of in values)
        own = [point.seeds[i] for i in at]
        found.append(Moment(point.step, point.tokens, own, loss, ev, l0, dead, _short(point.agreement)))
    return found


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
