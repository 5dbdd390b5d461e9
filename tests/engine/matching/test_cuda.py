"""The fused kernel against the plain product: in Triton's interpreter everywhere, on the device where there is one."""

import importlib.util
import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch

from seedscope.engine.matching import cuda
from seedscope.engine.matching.kernels import Best, best_cosines
from support.golden import unit_rows
from support.paths import ROOT

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# Triton decides at its import whether it interprets, and this process may hold it already. Bands of 3 tiles are uneven.
INTERPRETED = """
import sys, jaxtyping
jaxtyping.install_import_hook("seedscope.engine", "beartype.beartype")
import torch
from seedscope.engine.matching import cuda
cuda.BAND = 3
results = {}
for name, pair in torch.load(sys.argv[1]).items():
    proofs = []
    found = cuda.fused_best_cosines(*pair, report=proofs.append)
    results[name] = ([tuple(best) for best in found], tuple(proofs[0]))
torch.save(results, sys.argv[2])
"""


class Result(NamedTuple):
    pair: tuple[torch.Tensor, torch.Tensor]
    found: tuple[Best, Best]
    proof: cuda.Certificate


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(unit_rows(np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32))


def fan(copies: int, d: int, seed: int, step: float = 3e-6) -> tuple[torch.Tensor, torch.Tensor]:
    """A row and near-copies of one direction whose cosines with it, near 0.76, differ by 2/3 step, in random order."""
    rng = np.random.default_rng(seed)
    plane = np.linalg.qr(rng.normal(size=(d, 2)))[0].T
    angles = 0.7 + step * rng.permutation(copies)
    blades = np.stack([np.cos(angles), np.sin(angles)], 1) @ plane
    return torch.from_numpy(plane[:1].astype(np.float32)), torch.from_numpy(blades.astype(np.float32))


def cases() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    shapes = [(40, 90, 100), (270, 10, 16), (1, 40, 8), (40, 1, 130), (1, 1, 5), (5, 3, 3)]
    pairs = {f"{n}x{m}x{d}": (unit(n, d, seed=1), unit(m, d, seed=2)) for n, m, d in shapes}
    a, b = unit(20, 64, seed=3), unit(60, 64, seed=4)
    b[7], b[50], b[51] = a[3], a[3], a[11]
    pairs["planted"] = a, b
    eye = torch.eye(4)
    pairs["copies"] = eye[[3, 0, 2, 1]], torch.cat([eye, eye.flip(0), *[eye] * 6])
    for copies in (30, 90):
        row, blades = fan(copies, 64, seed=6)
        pairs[f"fan of {copies}"] = torch.cat([unit(5, 64, seed=5), row]), torch.cat([blades, unit(20, 64, seed=6)])
    pairs["below float32"] = fan(4, 64, seed=1, step=1e-7)
    return pairs


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """All cases through the kernels in one process that interprets them."""
    asked, answered = (tmp_path_factory.mktemp("fused") / name for name in ("asked.pt", "answered.pt"))
    torch.save(cases(), asked)
    command = [sys.executable, "-W", "error", "-c", INTERPRETED, str(asked), str(answered)]
    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stderr
    return {
        name: Result(pair, tuple(Best(*best) for best in found), cuda.Certificate(*proof))
        for (name, pair), (found, proof) in zip(cases().items(), torch.load(answered).values(), strict=True)
    }


def assert_same(found: tuple[Best, Best], right: tuple[Best, Best]) -> None:
    for mine, plain in zip(found, right, strict=True):
        assert mine.partner.dtype == plain.partner.dtype
        torch.testing.assert_close(mine.partner, plain.partner, rtol=0, atol=0)
        torch.testing.assert_close(mine.cosine, plain.cosine, rtol=0, atol=1e-6)
        torch.testing.assert_close(mine.runner_up, plain.runner_up, rtol=0, atol=1e-6)


@needs_triton
@pytest.mark.parametrize("name", cases())
def test_the_kernels_find_what_the_plain_product_finds(interpreted, name):
    pair, found, proof = interpreted[name]
    assert_same(found, best_cosines(*pair))
    assert proof.rows == len(pair[0]) + len(pair[1])


@needs_triton
def test_far_fewer_cosines_are_computed_than_there_are_and_no_row_is_left_to_the_plain_product(interpreted):
    (a, b), _, proof = interpreted["270x10x16"]
    assert proof.share == 1
    assert proof.computed < len(a) * len(b)
    assert interpreted["40x90x100"].proof.share == 1


@needs_triton
def test_of_exact_copies_the_lowest_index_wins_and_the_copy_is_the_runner_up(interpreted):
    forward, _ = interpreted["copies"].found
    assert forward.partner.tolist() == [3, 0, 2, 1]
    assert forward.cosine.tolist() == forward.runner_up.tolist() == [1.0] * 4
    forward, backward = interpreted["planted"].found
    assert forward.partner[[3, 11]].tolist() == [7, 51]
    assert forward.runner_up[3].item() == forward.cosine[3].item()
    assert backward.partner[[7, 50, 51]].tolist() == [3, 3, 11]


@needs_triton
def test_cosines_too_close_for_float32_are_ties_too(interpreted):
    (a, b), (forward, _), _ = interpreted["below float32"]
    assert forward.partner.tolist() == [0]
    assert (a.double() @ b.double().T).argmax().item() != 0


@needs_triton
@pytest.mark.parametrize("copies", [30, 90])
def test_near_ties_that_float16_cannot_tell_apart_are_decided_in_float32(interpreted, copies):
    (a, b), (forward, _), _ = interpreted[f"fan of {copies}"]
    right = (a[-1:].double() @ b.double().T).argmax().item()
    screened = (a[-1:].half().float() @ b.half().float().T).argmax().item()
    assert forward.partner[-1].item() == right != screened


@needs_triton
def test_every_copy_within_the_error_bound_is_computed_and_too_many_send_the_row_to_the_plain_product(interpreted):
    few, many = interpreted["fan of 30"].proof, interpreted["fan of 90"].proof
    assert few.recomputed == 0
    assert few.computed >= 30
    assert many.recomputed >= 1
    assert many.share < 1


DEVICES = [
    ("cpu", True, (0, 0), "plain", "no CUDA device"),
    ("cuda", False, (9, 0), "plain", "triton is not installed"),
    ("cuda", True, (8, 0), "plain", "CUDA capability 8.0, the fused kernel needs 9.0"),
    ("cuda", True, (9, 0), "fused", "CUDA capability 9.0, checked against plain torch on this device"),
]


@pytest.mark.parametrize(("device", "installed", "capability", "kernel", "reason"), DEVICES)
def test_the_choice_names_a_kernel_and_says_why(monkeypatch, device, installed, capability, kernel, reason):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(cuda, "HAS_TRITON", installed)
    monkeypatch.setattr(cuda, "_agrees", lambda device: True)
    label = {"plain": "plain torch", "fused": "fused Triton"}[kernel]
    assert cuda.choice.__wrapped__(torch.device(device)) == (kernel, f"{label}: {reason}")


def test_a_kernel_that_fails_or_differs_on_a_device_is_not_chosen_there(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda, "HAS_TRITON", True)

    def fails(device: torch.device) -> bool:
        raise RuntimeError("no such instruction")

    for check, reason in (
        (fails, "does not run here (RuntimeError: no such"),
        (lambda device: False, "differs from it"),
    ):
        monkeypatch.setattr(cuda, "_agrees", check)
        kernel, said = cuda.choice.__wrapped__(torch.device("cuda"))
        assert kernel == "plain"
        assert reason in said


def test_the_check_on_a_device_tells_right_answers_from_wrong_ones(monkeypatch):
    def wrong(a: torch.Tensor, b: torch.Tensor) -> tuple:
        forward, backward = best_cosines(a, b)
        return forward._replace(partner=forward.partner.roll(1)), backward

    for kernel, agrees in ((best_cosines, True), (wrong, False)):
        monkeypatch.setattr(cuda, "fused_best_cosines", kernel)
        assert cuda._agrees(torch.device("cpu")) is agrees


def test_without_a_device_the_plain_product_answers():
    a, b = unit(9, 8, seed=1), unit(7, 8, seed=2)
    assert_same(cuda.best(a, b), best_cosines(a, b))


def test_without_triton_the_module_still_loads():
    code = "import sys; sys.modules['triton'] = None; "
    code += "from seedscope.engine.matching import cuda; raise SystemExit(cuda.HAS_TRITON)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_cosines_from_rounded_rows_stay_within_the_error_bound():
    a, b = unit(200, 768, seed=1), unit(300, 768, seed=2)
    a[:100] = b[:100]
    rounded_a, rounded_b = cuda.prepare(a), cuda.prepare(b)
    worst_residual, worst_length = rounded_b.worst
    bound = rounded_a.residual * worst_length + rounded_a.length * worst_residual
    screened = rounded_a.half[:200].double() @ rounded_b.half[:300].double().T
    off = (screened - a.double() @ b.double().T).abs()
    assert (off.amax(1) <= bound).all()
    assert bound.max() < 1e-3


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("rows_a", "rows_b", "d_in"), [(5000, 4099, 768), (1, 300, 100), (16_384, 12_000, 2304)])
def test_the_compiled_kernels_find_what_the_plain_product_finds(rows_a, rows_b, d_in):
    a, b = unit(rows_a, d_in, seed=1), unit(rows_b, d_in, seed=2)
    row, blades = fan(90, d_in, seed=3)
    a[-1:] = row
    b[200:290] = blades
    b[5], b[77] = a[0], a[0]
    pair = a.cuda(), b.cuda()
    proofs = []
    found = cuda.fused_best_cosines(*pair, report=proofs.append)
    for mine, plain, rows, others in zip(found, best_cosines(*pair), pair, pair[::-1], strict=True):
        torch.testing.assert_close(mine.cosine, plain.cosine, rtol=0, atol=1e-6)
        torch.testing.assert_close(mine.runner_up, plain.runner_up, rtol=0, atol=1e-6)
        differ = mine.partner != plain.partner  # among so many rows some are ties up to the rounding of float32
        mine_there, plain_there = (
            (rows[differ].double() * others[best.partner[differ]].double()).sum(1) for best in (mine, plain)
        )
        torch.testing.assert_close(mine_there, plain_there, rtol=0, atol=1e-6)
        assert differ.sum() <= 2
    assert rows_a == 1 or proofs[0].share > 0.99
