"""Write SAELens 3, 4 or 5 checkpoints with that version's own save function, and what it computes with them.

Run in an environment with sae-lens 3.23.4, 4.4.5 or 5.11.0: `python make_saelens_legacy.py`.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE, SAEConfig, __version__

MAJOR = int(__version__.split(".")[0])
FOLDER = Path(__file__).parent / f"saelens_{MAJOR}"
D_IN, D_SAE = 8, 24
expected = {}


def make(name, seed, **options):
    settings = {
        "architecture": "standard",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "context_size": 128,
        "model_name": "pythia-70m",
        "hook_name": "blocks.2.hook_resid_post",
        "hook_layer": 2,
        "hook_head_index": None,
        "prepend_bos": True,
        "dataset_path": "pile",
        "dataset_trust_remote_code": True,
        "normalize_activations": "none",
        "dtype": "float32",
        "device": "cpu",
        "sae_lens_training_version": __version__,
    }
    sae = SAE(SAEConfig(**settings | options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name_, tensor in sae.named_parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.6)
            if name_ in ("threshold", "finetuning_scaling_factor"):
                tensor.abs_()
    (FOLDER / name).mkdir(parents=True)  # version 3 makes one level alone
    sae.save_model(str(FOLDER / name))
    x = torch.randn(24, D_IN, generator=torch.Generator().manual_seed(0)) * 2 + 0.5
    with torch.no_grad():
        acts = sae.encode(x)
        for kind, tensor in (("x", x), ("acts", acts), ("out", sae.decode(acts))):
            expected[f"{name}/{kind}"] = tensor.numpy()


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    make("standard", 1)
    make("uncentred", 2, apply_b_dec_to_input=False)
    make("jumprelu", 3, architecture="jumprelu")
    make("gated", 4, architecture="gated")
    top = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    make("topk", 5, architecture="standard" if MAJOR == 3 else "topk", **top)
    make("layer_norm", 6, normalize_activations="layer_norm")
    make("finetuned", 7, finetuning_scaling_factor=True)
    np.savez_compressed(FOLDER / "expected.npz", **expected)


main()
