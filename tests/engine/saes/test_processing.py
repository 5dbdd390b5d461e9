"""How the model was loaded that an SAE was trained on: what is linear is computed, what is not known is refused or remarked."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seedscope.engine.saes.importers import ensemble
from seedscope.engine.saes.importers.imported import Imported
from seedscope.engine.saes.importers.saelens import CONFIG, WEIGHTS, read
from seedscope.engine.saes.sae import SAE, assemble
from support.paths import CHECKPOINTS

D_IN, D_SAE = 12, 30
RESIDUAL, HEADS = "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"


def weights(architecture: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    t = {"W_enc": torch.randn(D_IN, D_SAE), "b_enc": torch.randn(D_SAE), "W_dec": torch.randn(D_SAE, D_IN)}
    t["b_dec"] = torch.randn(D_IN) + 1  # of another mean than 0
    if architecture == "gated":
        t |= {"b_gate": t.pop("b_enc"), "r_mag": torch.randn(D_SAE) / 4, "b_mag": torch.randn(D_SAE)}
    return t | ({"threshold": torch.rand(D_SAE)} if architecture == "jumprelu" else {})


def written(
    folder: Path, kwargs: object = None, *, architecture: str = "standard", hook: str = RESIDUAL, **settings
) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(weights(architecture), folder / WEIGHTS)
    metadata = {
        "sae_lens_version": "6.54.12",
        "model_name": settings.pop("model_name", "gpt2-small"),
        "hook_name": hook,
    }
    if kwargs is not None:
        metadata["model_from_pretrained_kwargs"] = kwargs
    more = {"k": 4} if architecture == "topk" else {}
    (folder / CONFIG).write_text(json.dumps({"architecture": architecture, "metadata": metadata} | more | settings))
    return folder


def as_sae(one: Imported) -> SAE:
    return assemble({name: tensor[None] for name, tensor in one.tensors.items()}, one.convention, (0,)).requires_grad_(
        False
    )


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_centred_writing_weights_are_part_of_what_the_sae_reads(architecture, subtract, normalize, tmp_path):
    """On activations of the released model the same codes as on centred ones, and a reconstruction that has their mean."""
    settings = {"architecture": architecture, "apply_b_dec_to_input": subtract, "normalize_activations": normalize}
    plain = read(written(tmp_path / "plain", **settings))
    centred = read(written(tmp_path / "centred", {"center_writing_weights": True}, **settings))
    rows = torch.randn(50, D_IN) + 2 * torch.randn(50, 1)
    mean = rows.mean(1, keepdim=True)
    expected, got = as_sae(plain).encode(rows - mean), as_sae(centred).encode(rows)
    torch.testing.assert_close(got.values, expected.values, rtol=1e-4, atol=1e-5)
    assert torch.equal(got.indices, expected.indices)
    reconstruction = as_sae(plain)(rows - mean)[:, 0] + mean
    torch.testing.assert_close(as_sae(centred)(rows)[:, 0], reconstruction, rtol=1e-4, atol=1e-4)
    assert "the mean over d_model is taken out" in " ".join(centred.remarks)
    if normalize == "none":
        difference = as_sae(plain).pre_activations(rows) - as_sae(centred).pre_activations(rows)
        assert difference.abs().max() > 0.1


@pytest.mark.parametrize(
    ("kwargs", "hook"),
    [
        ({}, RESIDUAL),
        ({"center_writing_weights": False, "fold_ln": True, "center_unembed": True, "n_devices": 1}, RESIDUAL),
        ({"fold_value_biases": True, "refactor_factored_attn_matrices": True}, RESIDUAL),
        ({"center_writing_weights": True}, HEADS),
        ({"center_writing_weights": True}, "blocks.1.mlp.hook_post"),
        ({"no_processing": True}, RESIDUAL),
    ],
)
def test_processing_that_changes_nothing_there_is_taken_as_it_is(kwargs, hook, tmp_path):
    one = read(written(tmp_path / "one", kwargs, hook=hook))
    assert one.convention.normalize == "none"
    assert not [remark for remark in one.remarks if "loaded" in remark or "centred" in remark]


def test_processing_by_default_is_centring(tmp_path):
    assert read(written(tmp_path / "one", {"no_processing": False})).convention.normalize == "centre"


def test_models_with_rms_norms_are_never_centred(tmp_path):
    one = read(written(tmp_path / "one", {"center_writing_weights": True}, model_name="google/gemma-2-2b"))
    assert one.convention.normalize == "none"
    assert "has no effect on a model with RMS norms" in " ".join(one.remarks)


@pytest.mark.parametrize(
    ("kwargs", "hook", "reason"),
    [
        ({"fold_value_biases": True}, HEADS, "heads' outputs are other numbers"),
        ({"refactor_factored_attn_matrices": True}, HEADS, "heads' outputs are other numbers"),
        ({"no_processing": False}, HEADS, "fold_value_biases"),
        ({"fold_ln": True}, "blocks.1.ln2.hook_normalized", "the norm has no gain"),
        ({"center_writing_weights": True}, "", "no hook point"),
        (["fold_ln"], RESIDUAL, "expected an object"),
    ],
)
def test_processing_that_only_the_processed_model_knows_is_refused(kwargs, hook, reason, tmp_path):
    with pytest.raises(ValueError, match=reason) as refusal:
        read(written(tmp_path / "one", kwargs, hook=hook))
    assert str(tmp_path / "one" / CONFIG) in str(refusal.value)


def test_centred_inputs_of_constant_length_are_refused(tmp_path):
    folder = written(tmp_path / "one", {"center_writing_weights": True}, normalize_activations="constant_norm_rescale")
    with pytest.raises(ValueError, match="no convention describes both"):
        read(folder)


def test_what_may_change_numbers_and_is_not_known_gets_a_remark(tmp_path):
    kwargs = {"dtype": "bfloat16", "revision": "step1000"}
    remarks = " ".join(read(written(tmp_path / "one", kwargs, rotate_inputs=True, n_batches=3)).remarks)
    for part in (
        "dtype = bfloat16: activations here have another precision",
        "revision = step1000",
        "rotate_inputs = True",
    ):
        assert part in remarks
    assert "n_batches" not in remarks


# -- configs that say nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "remarked"),
    [
        ({}, True),
        ({"sae_lens_training_version": "2.1.3"}, True),
        ({"sae_lens_training_version": "3.19.1"}, True),
        ({"sae_lens_training_version": "3.19.2"}, False),
        ({"sae_lens_training_version": "5.11.0"}, False),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": False}}, False),
        ({"model_from_pretrained_kwargs": {}}, True),
        ({"hook_name": HEADS}, False),
        ({"model_name": "google/gemma-2b"}, False),
    ],
)
def test_saelens_before_3_19_2_processed_models_by_default(changes, remarked, tmp_path):
    """SAELens pull request 279: until then from_pretrained, since then from_pretrained_no_processing."""
    folder = written(tmp_path / "old")
    flat = {"architecture": "standard", "model_name": "gpt2-small", "hook_name": RESIDUAL} | changes
    (folder / CONFIG).write_text(json.dumps(flat))
    one = read(folder)
    assert one.convention.normalize == "none"
    assert any("before 3.19.2 writing weights were centred by default" in remark for remark in one.remarks) == remarked


def test_other_libraries_files_that_record_processing_get_a_remark(tmp_path):
    for name, config in (
        ("dictionary_learning/standard/trainer_0", "config.json"), ("sparsify/topk/layers.3", "cfg.json"),
    ):  # fmt: skip
        folder = shutil.copytree(CHECKPOINTS / name, tmp_path / name)
        settings = json.loads((folder / config).read_text())
        more = {"model_kwargs": {"center_writing_weights": True}, "fold_ln": False, "center_unembed": True}
        (folder / config).write_text(json.dumps(settings | more))
        remarks = [remark for remark in ensemble.read(folder).remarks if "loaded so" in remark]
        assert len(remarks) == 1, remarks
        assert "model_kwargs = {'center_writing_weights': True}" in remarks[0]
        assert not [remark for remark in ensemble.read(CHECKPOINTS / name).remarks if "loaded so" in remark]
