"""Server time of pages while theta moves, on a study of 96 x 16,384 features written by Writer and served by the dashboard."""

import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from seedscope.engine.bench.report import BenchLine
from seedscope.engine.contract.schema import RULE_COLUMN, SCHEMA_VERSION, TRIGGERS
from seedscope.engine.contract.tables.features import Ablation, Context, Feature, Match, NullMatch
from seedscope.engine.contract.tables.study import Document, Ensemble, Member, Study, Token
from seedscope.engine.matching.rows import add_anchor_pairs
from seedscope.engine.store.database import Writer
from seedscope.engine.store.rows import add_row, row_keys

N_MEMBERS, D_SAE, N_NULL = 96, 16_384, 2048
COSINES = "each feature's cosines are Beta(2, 2) plus normal noise of 0.1, cut to [-1, 1]"
STUDY, ENSEMBLE = "scale", "topk"
THETAS = [0.5 + 0.01 * i for i in range(40)]
GOAL_S = 0.2


def lines(
    *, n_members: int = N_MEMBERS, d_sae: int = D_SAE, report: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[BenchLine]:
    """One line per page: server time while theta moves in steps of 0.01, every figure and number of the page drawn."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_study(root, n_members, d_sae, report)
        with _Server(root) as server:
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
                    f"theta off the grid of hundredths {off_grid:.2f} s; {COSINES}",
                )


class _Server:
    """The dashboard in a process of its own."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> "_Server":
        command = [sys.executable, "-m", "seedscope.app.cli", "serve", "--root", str(self._root), "--port", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline() if self._process.stdout else ""
        address = re.search(r"http://[^/]+", line)
        if address is None:
            raise RuntimeError(f"the server said {line!r}, expected the address that it serves")
        self._address = address[0]
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        if self._process.stdout:
            self._process.stdout.close()

    def get(self, path: str) -> float:
        """Seconds until the whole answer is there; raises HTTPError for anything but 200."""
        began = time.perf_counter()
        with urllib.request.urlopen(self._address + path, timeout=120) as answer:
            answer.read()
        return time.perf_counter() - began


def write_study(root: Path, n_members: int, d_sae: int, report: Callable[[int, int], None]) -> Path:
    """A study of that size whose cosines are drawn, not computed; one-to-one matching is left out, as at this size."""
    rng = np.random.default_rng(0)
    n = n_members - 1
    with Writer(root / STUDY) as writer:
        _add_frame(writer, n_members, d_sae)
        for seed in range(n_members):
            centre = rng.beta(2, 2, d_sae).astype(np.float32)
            cosine = np.clip(centre[:, None] + 0.1 * rng.standard_normal((d_sae, n), np.float32), -1, 1)
            mutual = rng.random((d_sae, n)) < cosine
            dead = rng.random(d_sae) < 0.05
            rules = {"argmax": cosine, "live": cosine, "mutual": np.where(mutual, cosine, np.float32(-1))}
            _add_features(writer, seed, rules, dead, rng)
            _add_matches(writer, seed, cosine, mutual, rng)
            others = [other for other in range(n_members) if other != seed]
            for rule, cosines in rules.items():
                add_anchor_pairs(writer, ENSEMBLE, rule, seed, others, cosines, dead, np.ones(d_sae, bool), np.zeros(n))
            for kind, top in (("haar", 0.3), ("second_moment", 0.5)):
                chance = np.clip(top + 0.05 * rng.standard_normal((N_NULL, n), np.float32), -1, 1)
                writer.add(NullMatch, row_keys(ENSEMBLE, seed, np.arange(N_NULL)) | {"kind": kind, "cosines": chance})
            report(seed + 1, n_members)
        return writer.publish(built_from="bench")


def _add_frame(writer: Writer, n_members: int, d_sae: int) -> None:
    add_row(
        writer,
        Study(STUDY, SCHEMA_VERSION, "bench", "none", "0", True, 1, "none", "0", 1, COSINES, "cpu", "float32"),
    )
    row = Ensemble(ENSEMBLE, "trained", None, "topk", "{}", 768, d_sae, 32, n_members, n_members - 1, "no", "shared",
                   None, None, None, None, None, None, None, "argmax", 0.7, 0.05, 1, 0, None, [], None, None, "0" * 16, "sae", None,
                   ["match", "activity", "ablate"], [])  # fmt: skip
    add_row(writer, row)
    for seed in range(n_members):
        add_row(
            writer,
            Member(
                ENSEMBLE,
                seed,
                f"{seed:016x}",
                None,
                None,
                None,
                [],
                0.8,
                32.0,
                d_sae // 20,
                None,
                None,
                None,
                None,
                0,
                [0.1, 1.0, 10.0],
            ),
        )
        for mask in ("none", "N stable", "4N unstable"):
            add_row(writer, Ablation(ENSEMBLE, seed, mask, 100, 1, 0.8, 0.0, None, None))
        add_row(writer, Context(ENSEMBLE, seed, 0, 0, 0, 0, 0, 0, [0], [1.0]))
    add_row(writer, Token(0, "token"))
    add_row(writer, Document(0, "document"))


def _add_features(
    writer: Writer, seed: int, rules: dict[str, np.ndarray], dead: np.ndarray, rng: np.random.Generator
) -> None:
    d_sae = len(dead)
    none = np.zeros((d_sae, 0), np.float32)
    n_active = np.where(dead, 0, rng.lognormal(6, 1.5, d_sae).astype(np.int64) + 1)
    columns = {
        "dead": dead,
        "density": n_active / 1e6,
        "n_active": n_active,
        "n_tokens": np.full(d_sae, 1_000_000),
        "mean_activation": rng.random(d_sae),
        "max_activation": rng.random(d_sae) * 10,
        "decoder_norm": np.ones(d_sae),
        "worth_ev": rng.random(d_sae) * 1e-3,
        "worth_loss": None,
        "explanation": None,
        "explainer": None,
        "score": None,
        "quantiles": np.sort(rng.random((d_sae, 3)), 1),
        "token_entropy": rng.random(d_sae) * 8,
        "top_token_share": rng.random(d_sae),
        "trigger": [TRIGGERS[i] for i in rng.integers(len(TRIGGERS), size=d_sae)],
        "trigger_share": rng.random(d_sae),
        "trigger_what": ["token"] * d_sae,
        "histogram": rng.integers(0, 100, (d_sae, 2)),
        "top_token_ids": np.zeros((d_sae, 1), int),
        "top_token_counts": np.ones((d_sae, 1), int),
    }
    columns |= {RULE_COLUMN[rule]: rules.get(rule, none) for rule in RULE_COLUMN}
    writer.add(Feature, row_keys(ENSEMBLE, seed, np.arange(d_sae)) | columns)


def _add_matches(writer: Writer, seed: int, cosine: np.ndarray, mutual: np.ndarray, rng: np.random.Generator) -> None:
    d_sae = len(cosine)
    none = np.zeros((d_sae, 0))
    partners = rng.integers(0, d_sae, cosine.shape)
    columns = {
        "partners": partners,
        "runner_up_cosines": cosine - np.float32(0.1),
        "mutuals": mutual,
        "encoder_cosines": cosine,
        "live_partners": partners,
        "hungarian_partners": none,
        "hungarian_encoder_cosines": none,
        "encoder_partners": none,
    }
    writer.add(Match, row_keys(ENSEMBLE, seed, np.arange(d_sae)) | columns)
