"""A training step of many members on a device, and whole small trainings of every variant, against float64 on a CPU."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seedscope.engine.bench.gpu_sizes import GpuSizes
from seedscope.engine.bench.gpu_work import (
    GpuSlot,
    Limit,
    Result,
    Work,
    WrongResultError,
    double,
    same,
    within,
    within_norm,
)
from seedscope.engine.bench.outside import ask_peers, seconds_or_reason
from seedscope.engine.bench.report import BenchLine
from seedscope.engine.contract.recipe import VARIANTS, TrainConfig
from seedscope.engine.machine import free_memory
from seedscope.engine.training.ensemble import train_ensemble
from seedscope.engine.training.gradients import gradient
from seedscope.engine.training.members import Training
from seedscope.engine.training.memory import predicted
from seedscope.engine.training.variants import RECIPES, TrainingMoment

GRADIENT = 1e-4  # allowed error of a gradient, as a share of its norm; float32's own is below 1e-5
WEIGHT = 1e-6  # allowed error of a weight after a whole training in float64
PRODUCT, PRODUCT_BF16 = "the encoder's product alone, float32", "the encoder's product alone, bf16"
SMALL = TrainConfig(d_sae=64, k=3, seeds=(0, 1, 2), batch=64, n_tokens=64 * 8, silent_after=256, aux_k=4)
SMALL_D_IN = 8
STEPS = 100_000  # of a training that is never finished; no feature counts as silent before its end
PEERS = {"sparsify": "sparsify's kernels", "flex_sae": "flex_sae's kernels"}
PEER_STEPS = 20


def train(sizes: GpuSizes, slot: GpuSlot) -> Iterator[Work]:
    """The step at size; then every variant from start to end, small."""
    device = slot.device
    yield _step(sizes, device)
    yield _small(device)


def _step(sizes: GpuSizes, device: torch.device) -> Work:
    config = TrainConfig(
        d_sae=sizes.d_sae, k=sizes.k, seeds=tuple(range(sizes.trained_members)), batch=sizes.batch,
        n_tokens=sizes.batch * STEPS, silent_after=sizes.batch * STEPS,
    )  # fmt: skip
    need = predicted(config, sizes.d_in, dtype=torch.float32, sample_rows=2 * sizes.batch, keeps=False)
    n_members = max(min(sizes.trained_members, need.fits(free_memory(device) // 2)), 1)
    config = replace(config, seeds=config.seeds[:n_members])
    sample = made_rows(2 * sizes.batch, sizes.d_in)
    training = Training(config, sample, device)
    batch = sample[: sizes.batch].to(device)
    parameters = {name: getattr(training.sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    members = sorted({0, n_members - 1})

    def gradients() -> Result:
        """What one step computes before the optimizer moves anything, of the first and the last member."""
        step = RECIPES[config.variant].run(training.sae, batch, config, TrainingMoment(0, 1.0))
        step.loss.sum().backward()
        with torch.no_grad():
            codes = training.sae.activate(training.sae.pre_activations(batch))
            found: Result = {name: torch.stack([gradient(p)[m] for m in members]) for name, p in parameters.items()}
            for parameter in parameters.values():
                parameter.grad = None
        return found | {
            "error": step.error.detach()[members], "residual": step.residual.detach()[:, members],
            "fired": step.fired[members], "indices": codes.indices[:, members], "values": codes.values[:, members],
        }  # fmt: skip

    def check(found: Result) -> float:
        return max(
            _check_member({name: p[member] for name, p in parameters.items()}, batch, found, at)
            for at, member in enumerate(members)
        )

    with torch.no_grad():
        encoder = training.sae.W_enc.transpose(1, 2).reshape(-1, sizes.d_in).clone()
    half, half_batch = encoder.bfloat16(), batch.bfloat16()
    fewer = (
        ""
        if n_members == sizes.trained_members
        else f"{n_members} members because half of the free memory holds no more; "
    )
    return Work(
        name=f"one training step of {n_members} x {sizes.d_sae:,} TopK, d_in {sizes.d_in}, k {sizes.k}, batch {sizes.batch:,}",
        ours=lambda: training.advance(batch, 1e-4, STEPS, before=lambda step: None),
        checked=gradients,
        check=check,
        limit=PRODUCT,
        limits={
            PRODUCT: Limit(partial(torch.nn.functional.linear, batch, encoder)),
            PRODUCT_BF16: Limit(partial(torch.nn.functional.linear, half_batch, half)),
        },
        flops=2.0 * sizes.batch * encoder.numel(),
        remark=f"{fewer}no feature is silent yet, so AuxK is not in it; rate of the encoder's product alone, "
        f"precision of products: {torch.get_float32_matmul_precision()}",
    )


def made_rows(n: int, d_in: int) -> Tensor:
    """Sparse mixtures of random directions of unit mean square norm, on the CPU: (n, d_in) float32."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2 * d_in, d_in, generator=generator)
    strength = torch.rand(n, 2 * d_in, generator=generator)
    strength = strength * (torch.rand(n, 2 * d_in, generator=generator) < 8 / (2 * d_in))
    rows = strength @ directions + 0.1 * torch.randn(n, d_in, generator=generator)
    return rows / rows.square().sum(1).mean().sqrt()


def _check_member(parameters: dict[str, Tensor], batch: Tensor, found: Result, at: int) -> float:
    """Codes, error and gradients of one member by autograd in float64, on the device, with the codes' own features."""
    indices = torch.as_tensor(found["indices"])[:, at].to(batch.device)
    if indices.min() < 0 or indices.max() >= len(parameters["b_enc"]):
        raise WrongResultError("indices name features that do not exist")
    W_enc, b_enc, W_dec, b_dec = (p.detach().double().requires_grad_() for p in parameters.values())
    x = batch.double()
    pre = (x - b_dec) @ W_enc + b_enc
    chosen = pre.gather(1, indices)
    with torch.no_grad():
        size = float(pre.abs().max())
        beaten = pre.scatter(1, indices, -torch.inf).amax(1) - chosen.amin(1)
        if float(beaten.max()) > 1e-5 * size:
            raise WrongResultError(f"indices: a feature that was left out is larger by {float(beaten.max()):.3g}")
        if bool((indices.sort(1).values.diff(dim=1) == 0).any()):
            raise WrongResultError("indices name a feature twice")
    values = chosen.relu()
    out = torch.nn.functional.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum") + b_dec
    error = (x - out).square().sum(1).mean()
    error.backward()
    fired = torch.zeros(len(b_enc), dtype=torch.bool, device=x.device)
    fired[indices[values > 0]] = True
    rights = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    return max(
        within("values", found["values"][:, at], values, 1e-5 * size),
        within_norm("error", found["error"][at], error, GRADIENT),
        within_norm("residual", found["residual"][:, at], x - out, GRADIENT),
        same("fired", found["fired"][at], fired),
        *(within_norm(f"gradient of {name}", found[name][at], gradient(p), GRADIENT) for name, p in rights.items()),
    )


def _small(device: torch.device) -> Work:
    """Start, steps, AuxK, optimizer, projections of decoder rows and what is folded in at the end, of every variant."""
    rows = double(made_rows(512, SMALL_D_IN))

    def trained(where: torch.device | str) -> Result:
        found: Result = {}
        for variant in VARIANTS:
            made = train_ensemble(rows, replace(SMALL, variant=variant), dtype=torch.float64, device=where)
            found |= {f"{name} of {variant}": getattr(made, name).detach() for name in made.convention.tensors}
        return found

    right = {name: double(values) for name, values in trained("cpu").items()}

    def check(found: Result) -> float:
        if found.keys() != right.keys():
            raise WrongResultError(f"found {', '.join(found)}, expected {', '.join(right)}")
        return max(within(name, found[name], right[name], WEIGHT) for name in right)

    n = SMALL.n_tokens // SMALL.batch
    return Work(
        name=f"{len(VARIANTS)} variants trained from start to end in float64, 3 x {SMALL.d_sae}, {n} steps",
        ours=partial(trained, device),
        check=check,
        remark="so small that launches are all it takes",
    )


def peers(sizes: GpuSizes, slot: GpuSlot) -> Iterator[BenchLine]:
    """A training step of one SAE by other programs' kernels, in processes of their own (SEEDSCOPE_BENCH_PYTHON)."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.save(folder / "rows.npy", made_rows(2 * sizes.batch, sizes.d_in)[: sizes.batch].numpy())
        spec = {
            "rows": str(folder / "rows.npy"), "d_in": sizes.d_in, "d_sae": sizes.d_sae, "k": sizes.k,
            "device": slot.device.type, "steps": PEER_STEPS,
        }  # fmt: skip
        answers = ask_peers("gpu_peers.py", PEERS, spec, folder, limit_s=max(slot.left() / len(PEERS), 1))
    remarks = [
        f"{PEERS[name]} {answer['version']}: first error {answer['off']:.1e} from float64's"
        for name, answer in answers.items()
        if "seconds" in answer
    ]
    yield BenchLine(
        work=f"one training step of 1 x {sizes.d_sae:,} TopK, d_in {sizes.d_in}, k {sizes.k}, batch {sizes.batch:,}, by others",
        ours_s=None,
        peers_s={PEERS[name]: seconds_or_reason(answer) for name, answer in answers.items()},
        figure="see training",
        remark="; ".join(["all seeds one after another take so many times that", *remarks]),
    )
