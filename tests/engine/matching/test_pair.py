"""Two SAEs of any library matched, with where they come from; what is told and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seedscope.engine.matching import pair
from seedscope.engine.saes.importers.ensemble import read
from seedscope.engine.saes.sae import SAE
from support.paths import CHECKPOINTS

# {path: library, architecture, model, hook point}
LIBRARIES = {
    "saelens/trained_topk": ("sae-lens 6.54.12", "topk", "pythia-70m", "blocks.2.hook_resid_post"),
    "saelens_3/standard": ("sae-lens 3.23.4", "relu", "pythia-70m", "blocks.2.hook_resid_post"),
    "dictionary_learning/gated/trainer_0": ("dictionary-learning", "gated", "pythia-70m", "blocks.2.hook_resid_post"),
    "dictionary_learning/batchtopk/trainer_0": ("dictionary-learning", "jumprelu", "pythia-70m", "blocks.2.hook_resid_post"),
    "overcomplete/topk_eval.pt": ("overcomplete", "topk", None, None),
    "overcomplete/ra_jump.pt": ("overcomplete", "jumprelu", None, None),
    "sparsify/topk/layers.3": ("eai-sparsify", "topk", None, "layers.3"),
    "sparsify/several/layers.3/seed2": ("eai-sparsify", "topk", None, "layers.3"),
}  # fmt: skip


@pytest.fixture
def written(make_sae: Callable[..., SAE], tmp_path: Path) -> Callable[..., Path]:
    """Write an SAE of our own with other provenance; the folder that holds its one file."""

    def write(name: str, *, seed: int = 0, **provenance: str) -> Path:
        sae = make_sae(members=1, d_in=8, d_sae=24, seed=seed, dtype=np.float32)
        sae.save(tmp_path / name, provenance=provenance)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", LIBRARIES)
def test_any_librarys_sae_is_matched_with_its_provenance(name: str, tmp_path: Path):
    path, library = CHECKPOINTS / name, LIBRARIES[name][0]
    golden = read(path)
    order = np.random.default_rng(0).permutation(golden.d_sae)
    tensors = {"W_enc": golden.tensors["W_enc"][:, order], "W_dec": golden.tensors["W_dec"][order],
               "b_enc": golden.tensors["b_enc"][order], "b_dec": golden.tensors["b_dec"]}  # fmt: skip
    reordered = tmp_path / "seed-7.safetensors"
    metadata = {"architecture": "relu", "subtract_b_dec": "true", "seed": "7"}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, reordered, metadata)
    found = pair.compare(path, reordered, rule="hungarian").as_json()
    side = found["a"]
    assert tuple(side[field] for field in ("library", "architecture", "model", "hookpoint")) == LIBRARIES[name]
    assert side["convention"] == golden.convention.as_json()
    assert side["seed"] == ("unknown" if golden.seed is None else str(golden.seed))
    assert side["remarks"] == list(golden.remarks)
    assert (side["path"], found["b"]["seed"]) == (str(path), "7")
    assert library in str(pair.compare(path, reordered).a)
    assert [order[partner] for partner in found["a_to_b"]["partner"]] == found["a_to_b"]["feature"]
    assert found["pw_mcc"] == pytest.approx(1, abs=1e-5)
    differs = f"architecture is {golden.convention.architecture} in {path} and relu in {reordered}"
    assert (differs in found["remarks"]) == (golden.convention.architecture != "relu")


def test_best_cosines_between_two_libraries_are_those_of_their_decoders():
    paths = CHECKPOINTS / "saelens" / "trained_topk", CHECKPOINTS / "dictionary_learning" / "gated" / "trainer_0"
    a, b = (torch.nn.functional.normalize(read(path).tensors["W_dec"].double(), dim=1).numpy() for path in paths)
    found = pair.compare(*paths, theta=0.5)
    for way, cosines in ((found.a_to_b, a @ b.T), (found.b_to_a, b @ a.T)):
        np.testing.assert_allclose(way.cosine, cosines.max(1), atol=1e-6)
        assert way.partner == cosines.argmax(1).tolist()
        assert way.n_matched == (cosines.max(1) >= 0.5).sum()


def test_the_digest_is_that_of_the_sae_in_a_study(make_sae: Callable[..., SAE], tmp_path: Path):
    sae = make_sae(members=2, dtype=np.float32)
    sae.save(tmp_path)
    found = pair.compare(tmp_path / "seed-0.safetensors", tmp_path / "seed-1.safetensors")
    assert [found.a.digest, found.b.digest] == [sae.digest(0), sae.digest(1)]


def test_another_model_or_hook_point_is_refused_unless_forced(written: Callable[..., Path]):
    one, other = written("a", model="gpt2", hookpoint="h.3"), written("b", seed=1, model="pythia", hookpoint="h.3")
    with pytest.raises(ValueError, match=r"model is 'gpt2' in .*a and 'pythia' in .*b: .*--force"):
        pair.compare(one, other)
    (forced,) = pair.compare(one, other, force=True).forced
    assert forced == f"model is 'gpt2' in {one} and 'pythia' in {other}"
    with pytest.raises(
        ValueError, match=r"hookpoint is 'layers.3' in .* and 'blocks.2.hook_resid_post' in .*two names"
    ):
        pair.compare(CHECKPOINTS / "sparsify/topk/layers.3", CHECKPOINTS / "dictionary_learning/topk/trainer_0")


def test_a_model_named_by_its_digest_is_not_held_against_one_named_in_words(written: Callable[..., Path]):
    named, digest = written("a", model="gpt2"), written("b", seed=1, model="0123456789abcdef")
    found = pair.compare(named, digest)
    assert found.forced == []
    assert f"model not compared: gpt2 in {named}, 0123456789abcdef in {digest}" in found.remarks[0]
    with pytest.raises(ValueError, match="model is '0123456789abcdef'"):
        pair.compare(digest, written("c", seed=2, model="fedcba9876543210"))


def test_what_is_unknown_is_not_held_against_what_is_known(written: Callable[..., Path]):
    found = pair.compare(written("a", model="gpt2", hookpoint="h.3"), written("b", seed=1))
    assert found.forced == []
    assert (found.b.model, found.b.hookpoint, found.b.library) == (None, None, None)
    assert "library not recorded" in str(found.b)
    assert "model not recorded" in str(found.b)


def test_another_width_is_refused_even_by_force(
    written: Callable[..., Path], make_sae: Callable[..., SAE], tmp_path: Path
):
    make_sae(members=1, d_in=6, dtype=np.float32).save(tmp_path / "narrow")
    with pytest.raises(ValueError, match=r"a has d_in 8, .*narrow has 6"):
        pair.compare(written("a"), tmp_path / "narrow", force=True)


def test_the_same_sae_and_the_same_seed_are_told(written: Callable[..., Path]):
    one = written("a")
    (same,) = pair.compare(one, one).remarks
    assert "both hold the same SAE" in same
    (seed,) = pair.compare(one, written("b", seed=1)).remarks
    assert "both record seed 0" in seed


def test_a_folder_of_several_and_what_is_no_sae_are_refused(written: Callable[..., Path]):
    one = written("a")
    with pytest.raises(ValueError, match=r"holds 3 SAEs .*expected one: name it"):
        pair.compare(CHECKPOINTS / "sparsify" / "several", one)
    with pytest.raises(ValueError, match="is a transcoder"):
        pair.compare(one, CHECKPOINTS / "transcoders" / "sparsify" / "plain")
