"""Folding changes how an SAE is written and nothing that it computes: in double precision, for every convention there is."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from seedscope.engine.saes import sae
from seedscope.engine.saes.convention import MORE_TENSORS, Convention
from seedscope.engine.saes.folding import fold, largest_difference
from support.golden import jumprelu_codes, normalised_forward, unit_rows

BASES = [
    Convention("relu"),
    Convention("topk", k=4),
    Convention("topk", k=4, rescale_by_decoder_norm=True),
    Convention("jumprelu"),
    Convention("jumprelu", inclusive=True),
    Convention("gated"),
]
CONVENTIONS = [
    replace(base, input_scale=scale, subtract_b_dec=subtract)
    for base, scale, subtract in product(BASES, (1.0, 0.37), (True, False))
]


def make(convention: Convention, *, one_norm: bool = False) -> sae.SAE:
    """Random tensors, 20 features in 6 dimensions, in double precision; feature 7's decoder row is zero."""
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (6, 20), "b_enc": (20,), "W_dec": (20, 6), "b_dec": (6,)}
    shapes |= dict.fromkeys(("threshold", "r_mag", "b_mag"), (20,))
    tensors = {name: rng.normal(size=(1, *shape)) for name, shape in shapes.items()}
    if one_norm:
        tensors["W_dec"] = 3 * unit_rows(tensors["W_dec"])
    else:
        tensors["W_dec"][:, 7] = 0
    held = {name: torch.from_numpy(tensors[name]) for name in convention.tensors}
    more = {name: held.pop(name) for name in MORE_TENSORS.get(convention.architecture, ())}
    return sae.SAE(**held, more=more, convention=convention, seeds=(0,))


def arrays(module: sae.SAE) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.member_tensors(0).items()}


@pytest.fixture
def x() -> np.ndarray:
    return 3 * np.random.default_rng(1).normal(size=(200, 6)) + 0.5


@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
def test_a_folded_sae_computes_what_it_was_folded_from(convention, x):
    given = make(convention)
    found = fold(given).sae
    assert found.convention == Convention(convention.architecture, k=convention.k)
    codes, wanted = normalised_forward(x, arrays(given), convention)
    folded_codes, out = normalised_forward(x, arrays(found), found.convention)
    assert (codes > 0).any()
    assert np.abs(out - wanted).max() < 1e-12 * np.abs(wanted).max()
    assert largest_difference(given, found, torch.from_numpy(x)) < 1e-12
    kept = np.arange(20) != 7
    assert ((folded_codes > 0) == (codes > 0))[:, kept].all()
    before, after = (arrays(each)["W_dec"][kept] for each in (given, found))
    np.testing.assert_allclose(unit_rows(after), unit_rows(before), atol=1e-14)
    if not (convention.architecture == "topk" and not convention.rescale_by_decoder_norm):
        np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1)


def test_topk_rows_of_one_norm_become_unit_rows_and_others_stay_as_they_are(x):
    one = fold(make(Convention("topk", k=4), one_norm=True))
    np.testing.assert_allclose(np.linalg.norm(arrays(one.sae)["W_dec"], axis=1), 1)
    assert "divided by their norms, 3 to 3" in one.remarks[0]
    many = fold(make(Convention("topk", k=4)))
    assert "keep their norms" in many.remarks[0]


def test_an_inclusive_threshold_in_single_precision_lets_pass_what_reaches_it_exactly():
    threshold = np.float32(0.7)
    eye = torch.eye(6)[None]
    given = sae.SAE(
        eye, torch.zeros(1, 6), eye, torch.zeros(1, 6), more={"threshold": torch.full((1, 6), float(threshold))},
        convention=Convention("jumprelu", inclusive=True), seeds=(0,),
    )  # fmt: skip
    found = fold(given).sae.float()
    near = np.array([np.nextafter(threshold, np.float32(0)), threshold, np.nextafter(threshold, np.float32(1))] * 2)
    out = found(torch.from_numpy(near[None].astype(np.float32)))[0, 0].detach().numpy()
    np.testing.assert_array_equal(out, jumprelu_codes(near, threshold, inclusive=True))


@pytest.mark.parametrize(
    ("convention", "said"),
    [
        (Convention("relu", normalize="layer_norm"), "normalize is layer_norm"),
        (Convention("topk", k=4, normalize="constant_norm_rescale"), "normalize is constant_norm_rescale"),
        (Convention("groupmax", k=4), "architecture is groupmax"),
    ],
    ids=str,
)
def test_what_no_fixed_weights_can_do_is_refused_by_its_name(convention, said):
    with pytest.raises(ValueError, match=said):
        fold(make(convention))
