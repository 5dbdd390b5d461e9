"""Training progress as inline SVG that a page can fetch every second: a line per member, and their mean."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from seedscope.app.formats import percent
from seedscope.engine.contract.progress_files import Curves, Moment

WIDTH, HEIGHT = 200, 56
Line = list[tuple[int, float]]  # (tokens, value)


@dataclass(frozen=True)
class Spark:
    """One quantity of a training: what it is now, on average and from the lowest to the highest member, and its course."""

    name: str
    says: str  # what it is, to hover
    mean: str
    low: str | None  # None where all are one value
    high: str | None
    bottom: str  # what the lower edge of the picture stands for, and the upper
    top: str
    picture: Markup


@dataclass(frozen=True)
class MemberNow:
    """The last values of one member; None where they are not numbers."""

    seed: int
    loss: float | None
    ev: float | None
    l0: float | None
    dead: float | None


def _three(value: float) -> str:
    return f"{value:.3g}"


_QUANTITIES: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("EV", "ev", "explained variance of the same training rows at every point", lambda value: f"{value:.3f}"),
    ("loss", "loss", "what each seed minimises, of one batch; log scale", _three),
    ("agreement", "agreement", "mean best cosine of features of a seed in another one", lambda value: f"{value:.2f}"),
    ("L0", "l0", "active features per token", lambda value: f"{value:.1f}"),
    ("dead", "dead", "share of features that have not fired for long", percent),
)


def sparks(curves: Curves) -> list[Spark]:
    """Pictures of EV, loss, agreement, L0 and dead share against tokens; those of which there is no value are left out."""
    drawn = []
    for name, field, says, written in _QUANTITIES:
        lines = _lines(curves.moments, field)
        if not lines:
            continue
        mean, now = _mean(lines), [line[-1][1] for line in lines.values()]
        values = [value for line in lines.values() for _, value in line]
        low, high = min(values), max(values)
        if name == "EV":
            low = max(low, min(0.0, high))  # the start may be far below zero
        if name == "dead":
            low, high = 0.0, max(high, 0.01)
        last, least, most = fmean(now), written(min(now)), written(max(now))
        title = f"{name}, {says}: {written(last)} at {mean[-1][0]:,} of {curves.n_tokens:,} tokens"
        picture = _picture(
            list(lines.values()), mean, curves.n_tokens, low, high, title, log=name == "loss" and low > 0
        )
        apart = least != most
        drawn.append(
            Spark(
                name, says, written(last), least if apart else None, most if apart else None, written(low), written(high),
                picture,
            )
        )  # fmt: skip
    return drawn


def members_now(curves: Curves) -> list[MemberNow]:
    """The last values of each member that is told of, in seed order."""
    fields = ("loss", "ev", "l0", "dead")
    last = {field: {key: line[-1][1] for key, line in _lines(curves.moments, field).items()} for field in fields}
    seeds = sorted({seed for moment in curves.moments for seed in moment.seeds})
    return [MemberNow(seed, *(last[field].get((seed,)) for field in fields)) for seed in seeds]


def _lines(moments: list[Moment], field: str) -> dict[tuple[int, ...], Line]:
    """{seeds: its values}: of each member, or of each group of members where a value is about all of them."""
    lines: dict[tuple[int, ...], Line] = defaultdict(list)
    for moment in moments:
        value = getattr(moment, field)
        each = zip(moment.seeds, value, strict=True) if isinstance(value, list) and value else ()
        of = [((seed,), value) for seed, value in each] if isinstance(value, list) else [(tuple(moment.seeds), value)]
        for key, value in of:
            if value is not None:
                lines[key].append((moment.tokens, value))
    return dict(lines)


def _mean(lines: dict[tuple[int, ...], Line]) -> Line:
    at: dict[int, list[float]] = defaultdict(list)
    for line in lines.values():
        for tokens, value in line:
            at[tokens].append(value)
    return [(tokens, fmean(values)) for tokens, values in sorted(at.items())]


def _picture(lines: list[Line], mean: Line, n_tokens: int, low: float, high: float, title: str, *, log: bool) -> Markup:
    """Members as one thin path, the mean above them; the width is the whole training."""
    scale = math.log if log else float

    def place(tokens: int, value: float) -> str:
        share = (scale(max(value, low)) - scale(low)) / ((scale(high) - scale(low)) or 1)
        return f"{WIDTH * tokens / n_tokens:.1f} {2 + (HEIGHT - 4) * (1 - share):.1f}"

    def path(line: Line) -> str:
        return "M" + "L".join(place(*point) for point in line)

    own = "".join(map(path, lines)) if len(lines) > 1 else ""
    return Markup(
        f'<svg class="spark" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{title}">'
        f'<title>{title}</title><path class="members" d="{own}"/><path class="mean" d="{path(mean)}"/></svg>'
    )
