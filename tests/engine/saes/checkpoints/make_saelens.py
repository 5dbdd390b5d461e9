"""Write SAELens checkpoints with SAELens' own save functions, and what SAELens computes with them.

Run in an environment with sae-lens 6.54.12: `python make_saelens.py`.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

FOLDER = Path(__file__).parent / "saelens"
D_IN, D_SAE, K = 8, 24, 3
expected = {}


def fill(sae, seed):
    """Random tensors, decoder rows of all kinds of norms, thresholds that some activations do not reach."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sae.named_parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.6)
            if name == "threshold":
                tensor.abs_()
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold = torch.tensor(0.7312345678, dtype=torch.float64)
    return sae


def metadata():
    return SAEMetadata(model_name="pythia-70m", hook_name="blocks.2.hook_resid_post", context_size=128)


def inputs(seed=0):
    x = torch.randn(24, D_IN, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5
    x[0] = 0
    return x


def keep(name, x, acts, out):
    for kind, tensor in (("x", x), ("acts", acts), ("out", out)):
        expected[f"{name}/{kind}"] = tensor.detach().numpy().astype(np.float32)


def inference(name, sae):
    sae.save_model(FOLDER / name)
    loaded = SAE.load_from_disk(FOLDER / name)
    x = inputs()
    keep(name, x, loaded.encode(x), loaded(x))


def exported(name, sae, seed):
    """A training SAE's inference save."""
    sae.save_inference_model(FOLDER / name)
    (FOLDER / name / "runner_cfg.json").write_text(json.dumps({"seed": seed, "model_name": "pythia-70m"}))
    loaded = SAE.load_from_disk(FOLDER / name)
    x = inputs()
    keep(name, x, loaded.encode(x), loaded(x))


def checkpoint(name, sae, scaler):
    """What SAETrainer.save_checkpoint writes of the SAE; expected is the library's export of it, on raw activations."""
    sae.save_model(FOLDER / name)
    scaler.save(str(FOLDER / name / "activation_scaler.json"))
    sae = TrainingSAE.load_from_disk(FOLDER / name)
    if scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        sae.fold_activation_whitening(scaler.whitening.mean, scaler.whitening.matrix, scaler.whitening.inverse_matrix)
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        loaded = SAE.load_from_disk(folder)
    x = inputs()
    keep(name, x, loaded.encode(x), loaded(x))


def whitening():
    mean = torch.randn(D_IN, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    matrix = torch.eye(D_IN, dtype=torch.float64) + 0.2 * torch.randn(
        D_IN, D_IN, generator=torch.Generator().manual_seed(6), dtype=torch.float64
    )
    return ActivationScaler(whitening=ActivationWhitening(mean, matrix, torch.linalg.inv(matrix)))


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    base = {"d_in": D_IN, "d_sae": D_SAE}

    def base_meta():
        return base | {"metadata": metadata()}

    inference("standard", fill(StandardSAE(StandardSAEConfig(**base_meta())), 1))
    inference("standard_uncentred", fill(StandardSAE(StandardSAEConfig(**base_meta(), apply_b_dec_to_input=False)), 2))
    inference("layer_norm", fill(StandardSAE(StandardSAEConfig(**base_meta(), normalize_activations="layer_norm")), 3))
    inference("topk", fill(TopKSAE(TopKSAEConfig(**base_meta(), k=K)), 5))
    inference("topk_rescaled", fill(TopKSAE(TopKSAEConfig(**base_meta(), k=K, rescale_acts_by_decoder_norm=True)), 6))
    inference("jumprelu", fill(JumpReLUSAE(JumpReLUSAEConfig(**base_meta())), 7))
    inference("jumprelu_uncentred", fill(JumpReLUSAE(JumpReLUSAEConfig(**base_meta(), apply_b_dec_to_input=False)), 8))
    inference("gated", fill(GatedSAE(GatedSAEConfig(**base_meta())), 9))
    cfg = StandardSAEConfig(**base_meta(), normalize_activations="constant_norm_rescale")
    sae = fill(StandardSAE(cfg), 4)
    sae.save_model(FOLDER / "constant_norm")
    x = inputs()[1:]  # the library divides by the norm, and zero has none
    loaded = SAE.load_from_disk(FOLDER / "constant_norm")
    keep("constant_norm", x, loaded.encode(x), loaded(x))
    half = fill(StandardSAE(StandardSAEConfig(**base_meta(), dtype="bfloat16")), 10)
    half.save_model(FOLDER / "bfloat16")
    loaded = SAE.load_from_disk(FOLDER / "bfloat16", dtype="float32")
    keep("bfloat16", inputs(), loaded.encode(inputs()), loaded(inputs()))

    widths = {"matryoshka_widths": [8, D_SAE]}
    exported("trained_topk", fill(TopKTrainingSAE(TopKTrainingSAEConfig(**base_meta(), k=K)), 11), 7)
    exported("trained_batchtopk", fill(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**base_meta(), k=K)), 12), 8)
    matryoshka = MatryoshkaBatchTopKTrainingSAEConfig(**base_meta(), k=K, **widths)
    exported("trained_matryoshka", fill(MatryoshkaBatchTopKTrainingSAE(matryoshka), 13), 9)
    exported("trained_jumprelu", fill(JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**base_meta())), 14), 10)

    scaled = base | {"normalize_activations": "expected_average_only_in"}
    white = base | {"normalize_activations": "covariance_whitening"}
    scaler = ActivationScaler(scaling_factor=0.8437)

    def with_meta(options):
        return options | {"metadata": metadata()}

    checkpoint("checkpoint_topk", fill(TopKTrainingSAE(TopKTrainingSAEConfig(**with_meta(scaled), k=K)), 15), scaler)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**with_meta(scaled), k=K))
    checkpoint("checkpoint_batchtopk", fill(sae, 16), scaler)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**with_meta(scaled), k=K, rescale_acts_by_decoder_norm=False))
    checkpoint("checkpoint_batchtopk_plain", fill(sae, 17), scaler)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**with_meta(base), k=K))
    checkpoint("checkpoint_batchtopk_unscaled", fill(sae, 18), ActivationScaler())
    sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**with_meta(scaled)))
    checkpoint("checkpoint_jumprelu", fill(sae, 19), scaler)
    sae = GatedTrainingSAE(GatedTrainingSAEConfig(**with_meta(white), apply_b_dec_to_input=False))
    checkpoint("checkpoint_gated_whitened", fill(sae, 20), whitening())
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(**with_meta(white), k=K))
    checkpoint("checkpoint_topk_whitened", fill(sae, 21), whitening())
    np.savez_compressed(FOLDER / "expected.npz", **expected)


main()
