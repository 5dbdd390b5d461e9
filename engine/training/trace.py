"""Trace of a training: loss, explained variance, L0, dead features and agreement of members at some of its steps."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seedscope.engine.contract.checksums import damaged_file
from seedscope.engine.contract.files import write_whole
from seedscope.engine.saes.sae import SAE

FILE = "trace.json"
FORMAT, FORMAT_VERSION = "seedscope.trace", 1
EVALUATED_ROWS = 1024
MOST_ANCHORS = 128  # features of a member whose best cosines are averaged; with more, evenly spaced ones
ALL_PAIRS = 8  # members of which all pairs are compared; with more, each and the next


@dataclass(frozen=True)
class Point:
    """One moment of training; a tuple holds one value per member, in seed order."""

    step: int
    """Steps that were made: 0 is the start."""
    tokens: int
    """Tokens that each member has seen."""
    seeds: tuple[int, ...]
    loss: tuple[float, ...] | None
    """What each member minimises, of the batch that the next step is made with; None behind the last step."""
    ev: tuple[float, ...]
    """Explained variance of the same EVALUATED_ROWS training rows at every point, as the SAE stands for inference."""
    l0: tuple[float, ...]
    """Active features per token of those rows."""
    dead_frac: tuple[float, ...]
    """Share of features that have not fired for `silent_after` tokens."""
    agreement: float | None
    """Mean best cosine, signed, of features of a member in another one, over pairs; None for a single member."""


@dataclass
class Trace:
    """The points of a training, kept by `train_ensemble`: with its checkpoints, and here.

    `on_point` is called with each point when it is measured. A resumed training does not measure again the points it has
    passed; they are in `points`.
    """

    n_points: int = 24
    n_even: int = 24  # evenly spaced, so that a page keeps moving until the end
    on_point: Callable[[Point], None] = lambda point: None
    points: list[Point] = field(default_factory=list)

    def steps(self, n_steps: int) -> set[int]:
        """Log-spaced and evenly spaced steps at which a point is taken, the start and the end among them."""
        spaced = np.geomspace(1, n_steps, max(self.n_points - 1, 1)), np.linspace(0, n_steps, self.n_even + 1)
        return {0, n_steps} | {round(step) for steps in spaced for step in steps}

    def add(self, point: Point) -> None:
        """Keep a point in the place of one of the same step and members."""
        self.points = [each for each in self.points if (each.step, each.seeds) != (point.step, point.seeds)] + [point]
        self.on_point(point)

    def as_json(self) -> list[dict]:
        """Plain values, in the order of steps."""
        return [asdict(point) for point in sorted(self.points, key=lambda point: (point.step, point.seeds))]

    def save(self, folder: Path) -> None:
        """Write `trace.json`."""
        head = {"format": FORMAT, "version": FORMAT_VERSION}
        write_whole(folder / FILE, json.dumps(head | {"points": self.as_json()}, indent=1))


def points_of(plain: list[dict]) -> list[Point]:
    """Points from their plain values."""
    points = []
    for each in plain:
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in each.items()}
        points.append(Point(**fields))
    return points


def read(folder: Path) -> list[Point]:
    """The points that `Trace.save` wrote; an empty list where there are none.

    Raises ValueError for a file that is damaged, or of another format or version.
    """
    path = folder / FILE
    try:
        if damaged_file(folder, beginning=FILE):
            raise ValueError("its checksum is another one")
        content = json.loads(path.read_text())
        head = {key: content.get(key) for key in ("format", "version")}
        points = points_of(content["points"]) if head == {"format": FORMAT, "version": FORMAT_VERSION} else None
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {str(error)[:100]}); remove it to publish without training curves, or "
            "train the ensemble again"
        ) from None
    if points is None:
        raise ValueError(f"{path} is {head}, expected {FORMAT} version {FORMAT_VERSION}")
    return points


@torch.no_grad()
def measured(
    sae: SAE, rows: Float[Tensor, "n d_in"], *, step: int, tokens: int, loss: Tensor | None, dead: Tensor
) -> Point:
    """A point of an SAE as it stands; `rows` in the units of training, `dead` (members, d_sae)."""
    codes = sae.encode(rows)
    residual = rows[:, None] - sae.decode(codes)
    ev = 1 - residual.pow(2).sum((0, 2)) / (rows - rows.mean(0)).pow(2).sum()
    l0 = (codes.values > 0).sum(-1).to(rows.dtype).mean(0)
    return Point(
        step, tokens, sae.seeds, None if loss is None else tuple(loss.tolist()), tuple(ev.tolist()), tuple(l0.tolist()),
        tuple(dead.to(rows.dtype).mean(-1).tolist()), agreement(sae.directions()),
    )  # fmt: skip


def agreement(directions: Float[Tensor, "members d_sae d_in"]) -> float | None:
    """Mean best cosine over ordered pairs of members and MOST_ANCHORS features of each; None for a single member.

    Cost: 2 MOST_ANCHORS d_sae d_in FLOPs per pair; of more than ALL_PAIRS members, each is compared with the next.
    """
    n = len(directions)
    if n < 2:
        return None
    anchors = directions[:, :: max(directions.shape[1] // MOST_ANCHORS, 1)]
    means = []
    for member, rows in enumerate(directions):
        others = [i for i in range(n) if i != member] if n <= ALL_PAIRS else [(member - 1) % n]
        means.append(float((anchors[others].flatten(0, 1) @ rows.T).amax(1).mean()))
    return float(np.mean(means))
