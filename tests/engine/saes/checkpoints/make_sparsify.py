"""Write sparsify checkpoints with its own save function, and what it computes with them.

Run in an environment with eai-sparsify 1.3.3: `python make_sparsify.py`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from sparsify import SparseCoder, SparseCoderConfig

FOLDER = Path(__file__).parent / "sparsify"
D_IN = 8
expected = {}


def make(name, seed, dtype=None, **options):
    sae = SparseCoder(D_IN, SparseCoderConfig(**options), dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in sae.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.6)
        sae.encoder.bias.sub_(1)  # so that some tokens have fewer than k positive activations
    sae.save_to_disk(FOLDER / name)
    sae = SparseCoder.load_from_disk(FOLDER / name).float()
    x = torch.randn(24, D_IN, generator=torch.Generator().manual_seed(0)) * 1.5 + 0.5
    x[0] = sae.b_dec
    with torch.no_grad():
        codes = sae.encode(x)
        # Not forward: under multi_topk it returns the reconstruction of 4 k features.
        out = sae.decode(codes.top_acts, codes.top_indices)
    acts = torch.zeros(len(x), sae.num_latents).scatter_(1, codes.top_indices, codes.top_acts)
    if name.startswith("refused"):
        return
    for kind, tensor in (("x", x), ("acts", acts), ("out", out)):
        expected[f"{name}/{kind}"] = tensor.detach().numpy()


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    make("topk/layers.3", 1, num_latents=24, k=4)
    make("expansion/layers.3", 2, expansion_factor=3, k=4)
    make("groupmax/h.1", 3, num_latents=24, k=4, activation="groupmax")
    make("bfloat16/layers.3", 4, torch.bfloat16, num_latents=24, k=4, multi_topk=True)
    for seed in (0, 2, 10):
        make(f"several/layers.3/seed{seed}", 10 + seed, num_latents=24, k=4)
    make("refused/skip", 5, num_latents=24, k=4, skip_connection=True)
    # The part of the trainer's config.json that says which seeds a run has.
    (FOLDER / "several" / "config.json").write_text(json.dumps({"hookpoints": ["layers.3"], "init_seeds": [0, 2, 10]}))
    (FOLDER / "topk" / "config.json").write_text(json.dumps({"hookpoints": ["layers.3"], "init_seeds": [5]}))
    np.savez_compressed(FOLDER / "expected.npz", **expected)


main()
