"""A small study whose ensemble shares two small spans: planted decoder rows on real activations, through the real pipeline."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from seedscope.engine.activations.harvest import LanguageModel
from seedscope.engine.demo import stdlib
from seedscope.engine.progress import Progress
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.publish import publish

SPAN_STUDY, SPAN_ENSEMBLE = "planted", "topk-80"
RANKS = (6, 4)
PER_DIRECTION = 2  # features per direction of a span, in every seed
N_SEEDS, N_NOISE, N_SHARED = 5, 40, 20
THETA = 0.97  # two of many rows in a span of a few directions may well have a cosine of 0.7
HOOKPOINT = "blocks.2.hook_resid_post"


def members_with_spans(
    d_in: int,
    *,
    n_seeds: int = N_SEEDS,
    ranks: tuple[int, ...] = RANKS,
    n_noise: int = N_NOISE,
    n_shared: int = N_SHARED,
    seed: int = 0,
) -> sae.SAE:
    """Untrained SAEs: a block of rows per rank that lie in one span in all seeds, noise, and rows that all seeds have alike.

    Every seed tiles each span its own way, so that no feature of a block comes back and the span does.
    """
    rng = np.random.default_rng(seed)
    spans = [np.linalg.qr(rng.standard_normal((d_in, rank)))[0] for rank in ranks]
    shared = rng.standard_normal((n_shared, d_in))
    rows = []
    for _ in range(n_seeds):
        blocks = [rng.standard_normal((PER_DIRECTION * span.shape[1], span.shape[1])) @ span.T for span in spans]
        of_seed = np.concatenate([*blocks, rng.standard_normal((n_noise, d_in)), shared])
        rows.append(of_seed / np.linalg.norm(of_seed, axis=1, keepdims=True))
    unit = np.stack(rows)
    decoder = unit * rng.uniform(0.5, 2, size=(*unit.shape[:2], 1))
    tensors = [
        unit.transpose(0, 2, 1),
        np.zeros(unit.shape[:2]),
        decoder,
        0.1 * rng.standard_normal((n_seeds, d_in)),
    ]
    k = unit.shape[1] // 2
    return sae.SAE(*(torch.from_numpy(t.astype(np.float32)) for t in tensors), k=k, seeds=tuple(range(n_seeds)))


def planted_block(feature: int) -> int | None:
    """Which span of RANKS a feature tiles; None for the others."""
    ends = np.cumsum([PER_DIRECTION * rank for rank in RANKS])
    at = int(np.searchsorted(ends, feature, side="right"))
    return at if at < len(ends) else None


def publish_spans(root: Path, model: LanguageModel, texts: Iterable[tuple[str, str]]) -> sae.SAE:
    """Publish the study with activity and shared spans; `model` is the embedded one. Returns its members."""
    members = members_with_spans(model.network.config.hidden_size)
    folder, place = root / SPAN_STUDY, Path("sae") / SPAN_ENSEMBLE / "0"
    members.save(folder / place)
    held = tuple(catalogue.MemberPlan(seed, members.digest(i)) for i, seed in enumerate(members.seeds))
    ensemble = catalogue.EnsemblePlan(
        SPAN_ENSEMBLE, "imported", str(place), held, hookpoint=HOOKPOINT, shared_start="no"
    )
    tokens = catalogue.Tokens(("texts",), n_ctx=32, n_eval=2_000)
    catalogue.write(
        catalogue.StudyPlan(SPAN_STUDY, str(stdlib.MODEL_DIR), tokens, THETA, ensembles=(ensemble,)), folder
    )
    only = ("match", "activity", "shared_spans")
    analyse(folder, only=only, loss_tokens=30, model=model, texts=texts, device="cpu", progress=Progress(quiet=True))
    publish(folder)
    return members
