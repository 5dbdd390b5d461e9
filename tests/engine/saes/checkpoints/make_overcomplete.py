"""Train and write tiny overcomplete modules, and what the library computes with them.

Run in an environment with overcomplete 0.3.0: `python make_overcomplete.py`.
"""

# ruff: noqa: E402

import importlib
import shutil
import sys
from pathlib import Path
from unittest.mock import MagicMock

for unused in ("torchvision", "torchvision.transforms", "timm", "matplotlib", "matplotlib.pyplot", "cv2", "skimage"):
    try:
        importlib.import_module(unused)
    except ImportError:
        sys.modules[unused] = MagicMock()

import numpy as np
import torch
from overcomplete.sae import QSAE, SAE, BatchTopKSAE, JumpSAE, MpSAE, RAJumpSAE, RATopKSAE, TopKSAE

FOLDER = Path(__file__).parent / "overcomplete"
D_IN, D_SAE = 8, 24
expected = {}


def activations(seed, n=64):
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed)) * 1.5 + 0.3


def train(sae, steps=30):
    """As the library's own loop: reconstruction error, Adam; the module is left in training mode."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=2e-2)
    sae.train()
    for step in range(steps):
        x = activations(step)
        optimizer.zero_grad()
        _, codes, x_hat = sae(x)
        ((x - x_hat).square().mean() + 1e-3 * codes.abs().mean()).backward()
        optimizer.step()
    return sae


def make(name, sae, *, evaluate_first=False, state=False):
    train(sae)
    if evaluate_first:
        sae.eval()
    FOLDER.mkdir(exist_ok=True)
    torch.save(sae.state_dict() if state else sae, FOLDER / f"{name}.pt")
    sae.eval()
    x = activations(10**6, 24)
    x[0] = 0
    with torch.no_grad():
        _, acts, out = sae(x)
    for kind, tensor in (("x", x), ("acts", acts), ("out", out)):
        expected[f"{name}/{kind}"] = tensor.numpy()


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    torch.manual_seed(0)
    points = activations(77, 32)
    make("sae", SAE(D_IN, D_SAE))
    make("sae_l1_bn", SAE(D_IN, D_SAE, "mlp_bn_1", {"normalization": "l1", "use_multiplier": True}))
    make("topk_max_l2", TopKSAE(D_IN, D_SAE, 3, dictionary_params={"normalization": "max_l2"}))
    make("topk_eval", TopKSAE(D_IN, D_SAE, 3), evaluate_first=True)
    make("topk_tied", TopKSAE(D_IN, D_SAE, 3).tied(bias=True))
    make("topk_untied", TopKSAE(D_IN, D_SAE, 3).untied())
    make("batchtopk", BatchTopKSAE(D_IN, D_SAE, 3 * 64))
    make("jump", JumpSAE(D_IN, D_SAE, dictionary_params={"normalization": "identity"}))
    make("ra_topk_seed0", RATopKSAE(D_IN, D_SAE, points, 3, delta=0.4))
    make("ra_topk_seed1", RATopKSAE(D_IN, D_SAE, points, 3, delta=0.4))
    make("ra_jump", RAJumpSAE(D_IN, D_SAE, points))
    make("state_topk", TopKSAE(D_IN, D_SAE, 3), state=True)
    make("state_jump", JumpSAE(D_IN, D_SAE), state=True)
    make("state_ra_topk", RATopKSAE(D_IN, D_SAE, points, 3, delta=0.4), state=True)
    for name, sae in (
        ("refused_qsae", QSAE(D_IN, D_SAE)),
        ("refused_mp", MpSAE(D_IN, D_SAE)),
        ("refused_mlp", TopKSAE(D_IN, D_SAE, 3, "mlp_bn_3")),
        ("refused_layer_norm", TopKSAE(D_IN, D_SAE, 3, "mlp_ln_1")),
    ):
        torch.save(sae, FOLDER / f"{name}.pt")
    np.savez_compressed(FOLDER / "expected.npz", **expected)


main()
