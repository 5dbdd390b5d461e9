"""F1 and AUROC of telling stable features by their decoder row, setting by setting, as dots."""

from collections.abc import Sequence
from typing import NamedTuple

from seedscope.app.figures.drawing import Figure, Heading, layout

# {setting: (name, whether it is chance or another control)}, from the figure that papers report down to chance.
SETTINGS = {
    "plain": ("another seed", False),
    "isotropic": ("random directions, copied alike", True),
    "fewer": ("another seed, fewer rows", False),
    "disjoint": ("no shared copies", False),
    "isotropic_disjoint": ("random directions, no shared copies", True),
    "shuffled": ("shuffled labels", True),
    "always_stable": ("always “stable”", True),
}
_SCORES = {"auroc": ("AUROC", "circle"), "f1": ("F1", "diamond")}


class PredictionScore(NamedTuple):
    """Scores in one setting, mean over ordered pairs."""

    setting: str  # of SETTINGS
    f1: float
    f1_spread: float | None
    auroc: float | None
    auroc_spread: float | None
    n_pairs: int


def prediction_dots(rows: Sequence[PredictionScore], title: str) -> Figure:
    """A dot per setting and score with its spread; controls hollow and grey."""
    held = sorted(rows, key=lambda row: list(SETTINGS).index(row.setting))
    names = [SETTINGS[row.setting][0] for row in held]
    data = []
    for at, (score, (label, symbol)) in enumerate(_SCORES.items()):
        for control in (False, True):
            some = [row for row in held if SETTINGS[row.setting][1] == control and getattr(row, score) is not None]
            colour = "@null" if control else "@accent"
            spread = [getattr(row, f"{score}_spread") or 0 for row in some]
            data.append(
                {
                    "type": "scatter", "mode": "markers", "x": [getattr(row, score) for row in some],
                    "y": [names.index(SETTINGS[row.setting][0]) + (0.15 if at else -0.15) for row in some],
                    "name": label, "legendgroup": label, "showlegend": not control,
                    "marker": {"color": colour, "symbol": f"{symbol}-open" if control else symbol, "size": 9,
                               "line": {"color": colour, "width": 1.5}},
                    "error_x": {"type": "data", "array": spread, "color": colour, "thickness": 1.2, "width": 3},
                    "text": [SETTINGS[row.setting][0] for row in some],
                    "hovertemplate": f"%{{text}}: {label} %{{x:.3f}}<extra></extra>",
                }
            )  # fmt: skip
    n_pairs = max(row.n_pairs for row in held)
    line = {"type": "line", "x0": 0.5, "x1": 0.5, "y0": 0, "y1": 1, "yref": "paper"}
    low = min([row.f1 - (row.f1_spread or 0) for row in held] + [0.45])
    return Figure(
        "predictability",
        title,
        f"Logistic regression on one seed’s decoder rows, tested on another’s; balanced, positive class stable. Mean over "
        f"n = {n_pairs} ordered pairs, bars: ± one standard deviation over pairs. Grey and hollow: controls; the line is the "
        "AUROC of guessing. How to read: only what the rows without shared copies score above their random directions is left.",
        {
            "data": data,
            "layout": layout(
                "score", "", showlegend=True, legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
                xaxis={"range": [max(low - 0.03, 0), 1.0]},
                yaxis={"tickvals": list(range(len(names))), "ticktext": [_wrapped(name) for name in names],
                       "range": [len(names) - 0.5, -0.5], "title": {"text": ""}, "zeroline": False},
                shapes=[line | {"line": {"color": "@soft", "width": 1, "dash": "dash"}}],
            ),
        },
        (
            "setting", Heading("F1", "f1"), Heading("SD", "sd"), Heading("AUROC", "auroc"), Heading("SD", "sd"),
            Heading("pairs", "n_pairs"),
        ),
        tuple(
            (name, *(_shown(v) for v in (row.f1, row.f1_spread, row.auroc, row.auroc_spread)), row.n_pairs or "–")
            for name, row in zip(names, held, strict=True)
        ),
    )  # fmt: skip


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _wrapped(name: str) -> str:
    """Long names on two lines: a phone has little room beside the dots."""
    words, middle = name.split(), len(name) / 2
    if len(name) < 18:
        return name
    cut = min(range(1, len(words)), key=lambda i: abs(len(" ".join(words[:i])) - middle))
    return " ".join(words[:cut]) + "<br>" + " ".join(words[cut:])
