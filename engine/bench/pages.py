"""Server time of pages while theta moves, on a generated study of 96 x 16,384 features served by the dashboard."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from seedscope.engine.bench.dashboard import Dashboard
from seedscope.engine.bench.generated_study import ENSEMBLE, STUDY, StudySize, generated_study
from seedscope.engine.bench.report import BenchLine

N_MEMBERS, D_SAE, N_CONTEXTS = 96, 16_384, 2
THETAS = [0.5 + 0.01 * i for i in range(40)]
GOAL_S = 0.2


def lines(
    *, n_members: int = N_MEMBERS, d_sae: int = D_SAE, report: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[BenchLine]:
    """One line per page: server time while theta moves in steps of 0.01, every figure and number of the page drawn."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generated_study(root, StudySize(n_members, d_sae, N_CONTEXTS), report=report)
        with Dashboard(root) as server:
            base = f"/s/{STUDY}/{ENSEMBLE}"
            for name, path in (
                ("overview", base), ("seed x seed", f"{base}/members"), ("feature table", f"{base}/features"),
                ("feature", f"{base}/3/5"),
            ):  # fmt: skip
                began = time.perf_counter()
                server.get(path)
                first = time.perf_counter() - began
                taken = [server.get(f"{path}?theta={theta:.2f}") for theta in THETAS]
                off_grid = statistics.median(server.get(f"{path}?theta={theta + 0.005:.3f}") for theta in THETAS[::10])
                yield BenchLine(
                    work=f"theta moved on the {name} page, {n_members} x {d_sae:,}",
                    ours_s=statistics.median(taken),
                    goal=f"under {GOAL_S} s of server time",
                    remark=f"slowest of {len(taken)}: {max(taken):.3f} s; first view {first:.2f} s; "
                    f"theta off the grid of hundredths {off_grid:.2f} s",
                )
