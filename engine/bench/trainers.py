"""Time that other programs take to train the same seeds one after another, and how well their SAEs reconstruct.

Run by any interpreter that has them, `python trainers.py NAME SPEC.json`; it stands alone, as `peers.py` does. Prints one
JSON object: seconds for all seeds, EV and L0 on held-out rows by the program's own inference, or why there are none. Both
get rows of the norm that they ask for, the rate, warm-up and decay of the spec, and their own defaults elsewhere.
"""

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any


def dictionary_learning(spec: dict[str, Any]) -> dict[str, Any]:
    """dictionary_learning's trainers, on rows of unit mean square norm, as its `trainSAE` steps them."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    steps = spec["n_tokens"] // spec["batch"]
    sparsity = {"sparsity_warmup_steps": max(int(steps * spec["sparsity_warmup_frac"]), 1)}
    threshold = {"threshold_start_step": steps // 2, "threshold_beta": 0.99}  # 1000 and .999, for longer runs
    trainers: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "topk": (TopKTrainer, {"k": spec["k"], "threshold_start_step": steps // 2}),
        "batchtopk": (BatchTopKTrainer, {"k": spec["k"]} | threshold),
        "matryoshka": (
            MatryoshkaBatchTopKTrainer,
            {"k": spec["k"], "group_fractions": spec["group_fracs"]} | threshold,
        ),
        "relu": (StandardTrainer, {"l1_penalty": spec["l1"]} | sparsity),
        "gated": (GatedSAETrainer, {"l1_penalty": spec["l1"]} | sparsity),
        "jumprelu": (JumpReluTrainer, {"target_l0": spec["k"]} | sparsity),
    }
    if spec["variant"] not in trainers:
        return {"missing": f"it has no {spec['variant']}"}
    make, options = trainers[spec["variant"]]
    rows, held = _rows(spec)
    scale = float(rows.pow(2).sum(1).mean().sqrt())

    def train(seed: int) -> Any:
        import torch

        torch.manual_seed(seed)
        trainer = make(
            steps=steps, activation_dim=rows.shape[1], dict_size=spec["d_sae"], layer=0, lm_name="none", seed=seed, lr=spec["lr"],
            warmup_steps=max(int(steps * spec["warmup_frac"]), 1), decay_start=int(steps * (1 - spec["decay_frac"])),
            device="cpu", **options,
        )  # fmt: skip
        if hasattr(trainer, "dead_feature_threshold"):
            trainer.dead_feature_threshold = spec["silent_after"]
        for step, batch in zip(range(steps), _batches(rows, spec, seed), strict=False):
            trainer.update(step, batch / scale)
        return trainer.ae

    return _timed(spec, train, lambda ae, x: ae.encode(x / scale), lambda ae, f: ae.decode(f) * scale, held) | {
        "version": version("dictionary-learning")
    }


def sae_lens(spec: dict[str, Any]) -> dict[str, Any]:
    """SAELens' trainer, on rows whose mean norm is the root of d_in; measured as the SAE that it saves for inference."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    steps, d_sae, k, rows_held = spec["n_tokens"] // spec["batch"], spec["d_sae"], spec["k"], _rows(spec)
    rows, held = rows_held
    d_in = rows.shape[1]
    factor = d_in**0.5 / float(rows.norm(dim=1).mean())
    warm = max(int(steps * spec["sparsity_warmup_frac"]), 1)
    l1 = {"l1_coefficient": spec["l1"] * d_in**0.5, "l1_warm_up_steps": warm}
    widths = [sum(spec["group_sizes"][: i + 1]) for i in range(len(spec["group_sizes"]))]
    jump = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(k), "l0_coefficient": float(d_in)}
    makers: dict[str, tuple[str, dict[str, Any]]] = {
        "topk": ("TopK", {"k": k}),
        "batchtopk": ("BatchTopK", {"k": float(k)}),
        "matryoshka": ("MatryoshkaBatchTopK", {"k": float(k), "matryoshka_widths": widths}),
        "relu": ("Standard", l1),
        "gated": ("Gated", l1),
        "jumprelu": ("JumpReLU", jump | {"l0_warm_up_steps": warm}),
    }
    if spec["variant"] not in makers:
        return {"missing": f"it has no {spec['variant']}"}
    name, options = makers[spec["variant"]]

    def train(seed: int) -> Any:
        import torch

        torch.manual_seed(seed)
        config = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=d_in, d_sae=d_sae, device="cpu", **options)
        module = getattr(sae_lens, f"{name}TrainingSAE")(config)
        settings = SAETrainerConfig(
            total_training_samples=steps * spec["batch"], train_batch_size_samples=spec["batch"], lr=spec["lr"], lr_end=0.0,
            lr_warm_up_steps=max(int(steps * spec["warmup_frac"]), 1), lr_decay_steps=int(steps * spec["decay_frac"]),
            dead_feature_window=max(spec["silent_after"] // spec["batch"], 1), device="cpu",
        )  # fmt: skip
        return SAETrainer(settings, module, (batch * factor for batch in _batches(rows, spec, seed))).fit()

    def inference(module: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            module.save_inference_model(folder)
            return sae_lens.SAE.load_from_disk(folder)

    return _timed(
        spec, train, lambda one, x: one.encode(x * factor), lambda one, f: one.decode(f) / factor, held, inference
    ) | {"version": version("sae-lens")}


def overcomplete(spec: dict[str, Any]) -> dict[str, Any]:
    """overcomplete's relaxed archetypal TopK by its `train_sae`, on rows of unit mean square norm and their k-means."""
    import torch
    from overcomplete.sae import RATopKSAE, train_sae

    if spec["variant"] != "relaxed-archetypal":
        return {"missing": f"it has no {spec['variant']}"}
    rows, held = _rows(spec)
    scale, steps = float(rows.pow(2).sum(1).mean().sqrt()), spec["n_tokens"] // spec["batch"]
    warm, decay = max(steps * spec["warmup_frac"], 1), max(steps * spec["decay_frac"], 1)
    points = _kmeans(rows[:: max(len(rows) // 16_384, 1)] / scale, spec["d_sae"])

    def train(seed: int) -> Any:
        torch.manual_seed(seed)
        model = RATopKSAE(rows.shape[1], spec["d_sae"], points, top_k=spec["k"], delta=spec["delta"], device="cpu")
        optimizer = torch.optim.Adam(model.parameters(), lr=spec["lr"])
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / warm, 1, (steps - i) / decay))
        batches = [batch / scale for _, batch in zip(range(steps), _batches(rows, spec, seed), strict=False)]
        train_sae(
            model, batches, lambda x, x_hat, *_: (x - x_hat).square().mean(), optimizer, rate, nb_epochs=1, monitoring=0
        )
        return model.eval()

    return _timed(spec, train, lambda m, x: m.encode(x / scale)[1], lambda m, f: m.decode(f) * scale, held) | {
        "version": version("overcomplete")
    }


def _kmeans(points: Any, n: int) -> Any:
    import torch

    centroids = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:n]]
    for _ in range(25):
        nearest = (points @ centroids.T - centroids.pow(2).sum(1) / 2).argmax(1)
        sizes = nearest.bincount(minlength=n)[:, None]
        centroids = torch.where(sizes > 0, torch.zeros_like(centroids).index_add(0, nearest, points) / sizes, centroids)
    return centroids


def _timed(
    spec: dict[str, Any],
    train: Callable[[int], Any],
    encode: Callable[..., Any],
    decode: Callable[..., Any],
    held: Any,
    inference: Callable[[Any], Any] = lambda trained: trained,
) -> dict[str, Any]:
    import torch

    load_optimizers()
    began = time.perf_counter()
    trained = [train(seed) for seed in spec["seeds"]]
    seconds = time.perf_counter() - began
    ev, l0 = [], []
    for one in map(inference, trained):
        with torch.no_grad():
            codes = encode(one, held)
            codes = codes.to_dense() if codes.is_sparse else codes
            left = held - decode(one, codes)
            ev.append(float(1 - left.pow(2).sum() / (held - held.mean(0)).pow(2).sum()))
            l0.append(float((codes > 0).float().sum(1).mean()))
    return {"seconds": seconds, "ev": ev, "l0": l0}


def load_optimizers() -> None:
    """PyTorch loads a second's worth of modules with the first optimizer of a process: no training is charged with it."""
    import torch

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


def _rows(spec: dict[str, Any]) -> tuple[Any, Any]:
    import numpy as np
    import torch

    return torch.from_numpy(np.load(spec["rows"])).float(), torch.from_numpy(np.load(spec["held"])).float()


def _batches(rows: Any, spec: dict[str, Any], seed: int) -> Iterator[Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(rows), generator=generator).split(spec["batch"]):
            if len(chosen) == spec["batch"]:
                yield rows[chosen]


def main() -> None:
    """Train by one program; an error inside it is printed as its answer."""
    name, spec = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    with contextlib.redirect_stdout(sys.stderr):
        try:
            import torch

            torch.set_num_threads(spec["threads"])
            programs = {"dictionary_learning": dictionary_learning, "sae_lens": sae_lens, "overcomplete": overcomplete}
            answer = programs[name](spec)
        except ImportError as error:
            answer = {"missing": f"not installed ({error})"}
        except Exception as error:
            answer = {"missing": f"{type(error).__name__}: {error!s:.300}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
