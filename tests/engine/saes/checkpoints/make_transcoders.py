"""Write transcoders of SAELens and sparsify with their own save functions, and what they compute with them.

Run in an environment with sae-lens 6.54.12 and eai-sparsify 1.3.3: `python make_transcoders.py`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from sae_lens.saes import transcoder as saelens
from sae_lens.saes.sae import SAEMetadata
from sparsify import SparseCoder, SparseCoderConfig

FOLDER = Path(__file__).parent / "transcoders"
D_IN, D_OUT, D_SAE = 8, 6, 24
KINDS = {
    "transcoder": (saelens.Transcoder, saelens.TranscoderConfig),
    "skip_transcoder": (saelens.SkipTranscoder, saelens.SkipTranscoderConfig),
    "jumprelu_transcoder": (saelens.JumpReLUTranscoder, saelens.JumpReLUTranscoderConfig),
    "jumprelu_skip_transcoder": (saelens.JumpReLUSkipTranscoder, saelens.JumpReLUSkipTranscoderConfig),
}
HOOKS = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"}
expected = {}


def randomize(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.6)
            if name == "threshold":
                tensor.abs_()


def inputs():
    return torch.randn(24, D_IN, generator=torch.Generator().manual_seed(0)) * 1.5 + 0.5


def keep(name, **tensors):
    expected.update({f"{name}/{kind}": tensor.detach().numpy() for kind, tensor in tensors.items()})


def make_saelens(name, kind, seed, **options):
    module_class, config_class = KINDS[kind]
    config = config_class(
        d_in=D_IN, d_out=D_OUT, d_sae=D_SAE, apply_b_dec_to_input=False, metadata=SAEMetadata(**HOOKS), **options
    )
    module = module_class(config)
    randomize(module, seed)
    module.save_model(FOLDER / name)
    module = module_class.load_from_disk(FOLDER / name)
    x = inputs()
    with torch.no_grad():
        keep(name, x=x, acts=module.encode(x), out=module(x))


def make_sparsify(name, seed, **options):
    module = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=4, transcode=True, **options))
    randomize(module, seed)
    module.save_to_disk(FOLDER / name)
    module = SparseCoder.load_from_disk(FOLDER / name)
    x = inputs()
    with torch.no_grad():
        codes, out = module.encode(x), module(x, x).sae_out
    acts = torch.zeros(len(x), D_SAE).scatter_(1, codes.top_indices, codes.top_acts)
    keep(name, x=x, acts=acts, out=out)


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for seed, kind in enumerate(KINDS):
        make_saelens(f"saelens/{kind}", kind, seed)
    make_saelens("saelens/layer_norm", "skip_transcoder", 5, normalize_activations="layer_norm")
    make_sparsify("sparsify/plain/layers.3.mlp", 6)
    make_sparsify("sparsify/skip/layers.3.mlp", 7, skip_connection=True)
    # What the trainer writes beside the hookpoints, in which older versions have the flag alone.
    (FOLDER / "sparsify" / "skip" / "config.json").write_text(
        json.dumps(
            {"sae": {"transcode": True, "skip_connection": True}, "hookpoints": ["layers.3.mlp"], "init_seeds": [5]}
        )
    )
    np.savez_compressed(FOLDER / "expected.npz", **expected)


main()
