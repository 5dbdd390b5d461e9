"""A study of one imported ensemble, analysed; and what its store then holds."""

from pathlib import Path

import numpy as np

from seedscope.engine.activations.harvest import LanguageModel
from seedscope.engine.progress import Progress
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.import_ensemble import enrol
from support.imports import make_run
from support.layouts import LAYOUTS
from support.studies import ask
from support.tiny_models import WIDTH

N_CTX, D_SAE, K, SEEDS = 16, 24, 3, (0, 1, 3)


PLACE = "blocks.1.hook_resid_post"


class Kept(Progress):
    """Silent; keeps the names of stages and what was said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.stages: list[str] = []
        self.said: list[str] = []

    def stage(self, name: str, unit: str):
        self.stages.append(name)
        return super().stage(name, unit)

    def say(self, text: str) -> None:
        self.said.append(text)


def enrol_one(
    tmp_path: Path,
    name: str,
    *,
    first: int = 0,
    d_in: int = WIDTH,
    hookpoint: str | None = PLACE,
    decoder_scale: float = 1,
    **options,
) -> catalogue.EnsemblePlan:
    """Random SAEs, other ones for another `first`, whose decoder rows agree in part: some rows of all are nearly equal.

    Their reconstruction is worse than none; with a small `decoder_scale` it is of the activations' size.
    """
    run = make_run(d_in=d_in, d_sae=D_SAE, seeds=tuple(first + seed for seed in SEEDS))
    rng = np.random.default_rng(first + 99)
    common = rng.normal(size=(D_SAE // 2, d_in))
    for tensors in run.values():
        tensors["W_dec"][: D_SAE // 2] = common + 0.1 * rng.normal(size=common.shape)
        tensors["W_enc"][:] = tensors["W_dec"].T + 0.1 * rng.normal(size=tensors["W_enc"].shape)
        tensors["W_dec"] *= decoder_scale
    folder = tmp_path / f"files-{name}-{first}"
    LAYOUTS["openai"].write(folder, run, K)
    return enrol(tmp_path / "root", "mine", name, [folder], hookpoint=hookpoint, **options)


def on_tokens(*files: Path, n_ctx: int = N_CTX) -> dict[str, object]:
    return {"model": "tiny", "tokens": catalogue.Tokens(tuple(map(str, files)), n_ctx=n_ctx)}


def run(study: Path, model: LanguageModel | None = None, **options) -> Kept:
    progress = Kept()
    analyse(study, model=model, device="cpu", loss_tokens=40, progress=progress, **options)
    return progress


def one(store: Path, sql: str) -> tuple:
    (row,) = ask(store, sql)
    return row


def column(store: Path, name: str, ensemble: str = "one", table: str = "Feature") -> np.ndarray:
    sql = f"SELECT {name} FROM {table} WHERE ensemble = '{ensemble}' ORDER BY seed, feature"
    return np.array([row[0] for row in ask(store, sql)])
