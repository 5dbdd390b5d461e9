"""Find the l1 with which training reaches a requested L0: short trainings of one member first, then whole ones."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from seedscope.engine.contract.files import write_whole
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.progress import Progress
from seedscope.engine.training.batches import Rows
from seedscope.engine.training.ensemble import train_ensemble
from seedscope.engine.training.trace import Trace

FORMAT, FORMAT_VERSION = "seedscope.calibration", 1
SHORT = 8  # a short training sees this part of the tokens
MOST_SHORT, MOST_WHOLE = 6, 3
NEAR_SHORT, NEAR_WHOLE = 0.05, 0.03  # |L0 / requested - 1| at which the search ends
NEAR = 0.1  # beyond this, a remark says that members miss the requested L0
STEEPEST = math.log(8)  # of one step of log l1
TYPICAL = -2.0  # d log L0 / d log l1, between -1.3 and -2.9 on the embedded study


@dataclass(frozen=True)
class Pilot:
    """One training of one member."""

    l1: float
    n_tokens: int
    l0: float
    """Active features per token of training rows, at its end."""


@dataclass(frozen=True)
class Calibration:
    """Which l1 was found for an L0, and by what."""

    asked: float
    l1: float
    pilots: tuple[Pilot, ...]

    @property
    def says(self) -> str:
        """One line for people."""
        n_short = sum(each.n_tokens < self.pilots[-1].n_tokens for each in self.pilots)
        return (
            f"l1 = {self.l1:.4g} was found for L0 = {self.asked:g}: {n_short} short and {len(self.pilots) - n_short} whole "
            f"trainings of one member, the last with L0 {self.pilots[-1].l0:.2f}"
        )


def calibrated(
    rows: Callable[[], Rows],
    config: TrainConfig,
    l0: float,
    *,
    name: str,
    kept: Path,
    key: str,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Calibration:
    """Find the l1 with which a member of this recipe ends at L0 active features per token.

    log L0 falls nearly linearly in log l1, so the secant of two trainings gives the next. Trainings on a part of the tokens
    come first; as L0 falls along training, whole ones set right what they miss. Each is kept in the file `kept`
    under `key`, so that a stopped search goes on behind the last one. Deterministic. Cost: that of about three whole trainings of
    one member.
    """
    progress = progress or Progress()
    first = replace(config, seeds=config.seeds[:1])
    short = max(config.n_tokens // SHORT, min(config.n_tokens, 64 * config.batch))
    searches = _read(kept)
    before = [Pilot(**each) for each in searches.get(key, [])]
    pilots: list[Pilot] = []
    l1 = config.l1 or TrainConfig().l1
    for n_tokens, most, near in ((short, MOST_SHORT, NEAR_SHORT), (config.n_tokens, MOST_WHOLE, NEAR_WHOLE)):
        own: list[Pilot] = []
        while len(own) < most and not (own and abs(own[-1].l0 / l0 - 1) <= near):
            if len(pilots) < len(before):
                pilot = before[len(pilots)]
            else:
                pilot = _train(rows(), replace(first, l1=l1, n_tokens=n_tokens), name, device, progress)
                searches[key] = [asdict(each) for each in (*pilots, pilot)]
                _write(kept, searches)
            pilots.append(pilot)
            own.append(pilot)
            l1 = _next(own, _slope(pilots), l0)
        if own:  # the next length begins where this one was best
            best = min(own, key=lambda each: abs(math.log(max(each.l0, 1e-6) / l0)))
            l1 = best.l1 if abs(best.l0 / l0 - 1) <= near else l1
        if n_tokens == config.n_tokens:
            break
    calibration = Calibration(l0, l1, tuple(pilots))
    progress.say(f"{name}: {calibration.says}")
    return calibration


def _train(rows: Rows, config: TrainConfig, name: str, device: torch.device | str, progress: Progress) -> Pilot:
    trace = Trace(n_points=2)
    with progress.stage(f"{name}: trying l1 {config.l1:.4g}", "tokens") as report:
        train_ensemble(rows, config, device=device, trace=trace, report=report)
    (l0,) = max(trace.points, key=lambda point: point.step).l0
    return Pilot(config.l1, config.n_tokens, l0)


def _slope(pilots: Sequence[Pilot]) -> float:
    """d log L0 / d log l1 from the last two trainings of one length that differ; TYPICAL where there are none."""
    for i in range(len(pilots) - 1, 0, -1):
        a, b = pilots[i], pilots[i - 1]
        if a.n_tokens == b.n_tokens and a.l1 != b.l1 and min(a.l0, b.l0) > 0:
            slope = math.log(a.l0 / b.l0) / math.log(a.l1 / b.l1)
            return min(max(slope, -4.0), -1.0)
    return TYPICAL


def _next(own: Sequence[Pilot], slope: float, l0: float) -> float:
    """The l1 to try next, between those that are known to be too small and too large."""
    last = own[-1]
    step = math.log(l0 / max(last.l0, 1e-3 * l0)) / slope
    wanted = math.log(last.l1) + min(max(step, -STEEPEST), STEEPEST)
    low = max((math.log(each.l1) for each in own if each.l0 > l0), default=-math.inf)
    high = min((math.log(each.l1) for each in own if each.l0 <= l0), default=math.inf)
    if low < high and not low < wanted < high and math.isfinite(low) and math.isfinite(high):
        wanted = (low + high) / 2
    return float(f"{math.exp(wanted):.4g}")  # a number that people can read and write again


def _read(path: Path) -> dict[str, list[dict]]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # what is damaged is found again
        return {}
    right = {"format": FORMAT, "version": FORMAT_VERSION}
    return content.get("found", {}) if {name: content.get(name) for name in right} == right else {}


def _write(path: Path, searches: dict[str, list[dict]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"format": FORMAT, "version": FORMAT_VERSION, "found": searches}, indent=1))
