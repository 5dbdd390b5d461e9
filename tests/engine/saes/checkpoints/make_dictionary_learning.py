"""Train and write tiny dictionary_learning checkpoints with trainSAE, and what the library computes with them.

Run in an environment with dictionary-learning 0.1.0: `python make_dictionary_learning.py`.
"""

# ruff: noqa: E402

import importlib
import json
import shutil
import sys
from pathlib import Path
from unittest.mock import MagicMock

for unused in ("nnsight", "wandb", "umap", "plotly", "plotly.express", "circuitsvis"):  # imported, never called here
    try:
        importlib.import_module(unused)
    except ImportError:
        sys.modules[unused] = MagicMock()

import numpy as np
import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE, MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE

FOLDER = Path(__file__).parent / "dictionary_learning"
D_IN, D_SAE, STEPS = 8, 24, 80
expected = {}


def activations(seed, n=64):
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(16, D_IN, generator=torch.Generator().manual_seed(99))
    codes = torch.rand(n, 16, generator=generator) * (torch.rand(n, 16, generator=generator) < 0.2)
    return codes @ sources + 0.5


def make(name, kind, trainer, *, save_steps=None, scaled=False, **options):
    common = {"steps": STEPS, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 2, "lm_name": "pythia-70m"}
    common |= {"lr": 1e-2, "warmup_steps": 5, "device": "cpu", "submodule_name": "resid_post_layer_2"}
    config = {"trainer": trainer, **common, **options}
    data = (activations(step) for step in range(10 * STEPS))
    trainSAE(
        data,
        [config],
        steps=STEPS,
        save_dir=str(FOLDER / name),
        save_steps=save_steps,
        device="cpu",
        normalize_activations=scaled,
    )
    keep(f"{name}/trainer_0", kind, FOLDER / name / "trainer_0" / "ae.pt")
    for step in save_steps or ():
        file = f"checkpoints/ae_{step}.pt"
        keep(f"{name}/trainer_0/{file}", kind, FOLDER / name / "trainer_0" / file)


def keep(name, kind, file):
    sae = kind.from_pretrained(file, **({"normalize_decoder": False} if kind is AutoEncoder else {}))
    x = activations(10**6, 24) * 1.5
    x[0] = 0
    with torch.no_grad():
        acts, out = sae.encode(x), sae(x)
    for part, tensor in (("x", x), ("acts", acts), ("out", out)):
        expected[f"{name}/{part}"] = tensor.numpy()


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    quick = {"sparsity_warmup_steps": 10}
    make("standard", AutoEncoder, StandardTrainer, seed=3, **quick)
    make("april", AutoEncoder, StandardTrainerAprilUpdate, seed=4, **quick)
    make("gated", GatedAutoEncoder, GatedSAETrainer, seed=5, **quick)
    make("jumprelu", JumpReluAutoEncoder, JumpReluTrainer, seed=6, target_l0=4.0, **quick)
    make("topk", AutoEncoderTopK, TopKTrainer, seed=7, k=3, threshold_start_step=10)
    make("batchtopk", BatchTopKSAE, BatchTopKTrainer, seed=8, k=3, threshold_start_step=10, save_steps=[40])
    make("batchtopk_scaled", BatchTopKSAE, BatchTopKTrainer, seed=9, k=3, threshold_start_step=10, scaled=True)
    make("batchtopk_short", BatchTopKSAE, BatchTopKTrainer, seed=10, k=3)
    groups = {"group_fractions": [0.25, 0.75], "threshold_start_step": 10}
    make("matryoshka", MatryoshkaBatchTopKSAE, MatryoshkaBatchTopKTrainer, seed=11, k=3, **groups)
    # No trainer of this release writes AutoEncoderNew; the state dict is saved as trainSAE saves it.
    torch.manual_seed(12)
    sae = AutoEncoderNew(D_IN, D_SAE)
    torch.nn.init.normal_(sae.encoder.bias, std=0.3)
    torch.nn.init.normal_(sae.decoder.bias, std=0.3)
    folder = FOLDER / "new" / "trainer_0"
    folder.mkdir(parents=True)
    torch.save({name: tensor.cpu() for name, tensor in sae.state_dict().items()}, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderNew", "seed": 12}}))
    keep("new/trainer_0", AutoEncoderNew, folder / "ae.pt")
    np.savez_compressed(FOLDER / "expected.npz", **expected)


main()
