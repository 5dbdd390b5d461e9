"""Laws of the SAE module: its forward is the dense definition, its members are strangers, its digest sees every bit."""

from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from seedscope.engine.saes import sae
from seedscope.engine.saes.convention import MORE_TENSORS, NORMALIZATIONS, Convention
from support.golden import jumprelu_codes, normalised_forward, topk_codes

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


def arrays(module: sae.SAE, member: int) -> dict[str, np.ndarray]:
    return {name: getattr(module, name)[member].detach().numpy() for name in TENSORS}


@pytest.fixture
def x() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(50, 6)))


@pytest.mark.parametrize("k", [1, 4, 20])
def test_forward_equals_a_dense_topk(make_sae, x, k):
    module = make_sae(k=k)
    out = module(x).detach().numpy()
    for member in range(module.n_members):
        t = arrays(module, member)
        codes = topk_codes(x.numpy(), t["W_enc"], t["b_enc"], t["b_dec"], k)
        np.testing.assert_allclose(out[:, member], codes @ t["W_dec"] + t["b_dec"], atol=1e-12)


# -- every convention --------------------------------------------------------------------------------------------

BASES = [
    Convention("relu"),
    Convention("topk", k=4),
    Convention("topk", k=20),  # more than there are positive ones
    Convention("topk", k=4, rescale_by_decoder_norm=True),
    Convention("groupmax", k=5),
    Convention("groupmax", k=20),
    Convention("jumprelu"),
    Convention("jumprelu", inclusive=True),
    Convention("gated"),
]
CONVENTIONS = [
    replace(base, normalize=normalize, layer_norm_eps_out=eps, input_scale=scale, subtract_b_dec=subtract)
    for base, normalize, eps, scale, subtract in product(
        BASES, NORMALIZATIONS, (False, True), (1.0, 0.37), (True, False)
    )
    if normalize == "layer_norm" or not eps
]


def make(convention: Convention, *, members: int = 2, seed: int = 0, dtype=np.float32) -> sae.SAE:
    """Random tensors of any architecture: 20 features in 6 dimensions; feature 7's decoder row is zero, 8 never fires."""
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (6, 20), "b_enc": (20,), "W_dec": (20, 6), "b_dec": (6,)}
    shapes |= dict.fromkeys(("threshold", "r_mag", "b_mag"), (20,)) | {"W_skip": (6, 6)}
    tensors = {name: rng.normal(size=(members, *shape)).astype(dtype) for name, shape in shapes.items()}
    tensors["W_dec"][:, 7] = 0
    tensors["b_enc"][:, 8] = tensors["b_mag"][:, 8] = -1e3
    held = {name: torch.from_numpy(tensors[name]) for name in convention.tensors}
    more = {name: held.pop(name) for name in convention.tensors if name not in TENSORS}
    return sae.SAE(**held, more=more, convention=convention, seeds=tuple(range(members)))


def tensors_of(module: sae.SAE, member: int) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().astype(np.float64) for name, tensor in module.member_tensors(member).items()}


def spread(codes: sae.Codes, member: int, d_sae: int) -> np.ndarray:
    """Dense (tokens, d_sae) from sparse codes."""
    values, indices = (t[:, member].detach().numpy() for t in codes[:2])
    dense = np.zeros((len(values), d_sae))
    np.add.at(dense, (np.arange(len(values))[:, None], indices), values)
    return dense


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
def test_codes_and_reconstruction_are_those_of_the_definition(convention, x):
    module = make(convention)
    rows = 3 * x.float() + 0.5
    with torch.no_grad():
        codes, out = module.encode(rows), module(rows).numpy()
    for member in range(2):
        wanted, x_hat = normalised_forward(rows.numpy().astype(np.float64), tensors_of(module, member), convention)
        assert (wanted > 0).any()
        assert_close(spread(codes, member, 20), wanted)
        assert_close(out[:, member], x_hat)


@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
def test_features_add_up_to_the_reconstruction_without_bias_and_shift(convention, x):
    module = make(convention, dtype=np.float64)
    with torch.no_grad():
        codes = module.encode(x)
        scale = torch.ones(50, 2) if codes.scale is None else codes.scale
        shift = torch.zeros(50, 2) if codes.shift is None else codes.shift
        whole = module.decode(codes, bias=False) + scale[..., None] * module.b_dec + shift[..., None]
    torch.testing.assert_close(whole, module(x).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("convention", BASES, ids=str)
def test_the_width_is_k_or_what_the_busiest_token_needs(convention, x):
    codes = make(convention, dtype=np.float64).encode(x)
    counts = (codes.values > 0).sum(-1)
    assert codes.values.shape[-1] == (convention.k or counts.max())
    assert (codes.values >= 0).all()
    assert ((codes.indices >= 0) & (codes.indices < 20)).all()


@pytest.mark.parametrize("convention", [Convention("relu"), Convention("gated"), Convention("groupmax", k=4)], ids=str)
def test_where_nothing_fires_the_codes_are_zero_and_the_reconstruction_is_the_bias(convention, x):
    module = make(convention, dtype=np.float64)
    with torch.no_grad():
        module.b_enc -= 1e3
        if convention.architecture == "gated":
            module.b_mag -= 1e3
        codes = module.encode(x)
    assert codes.values.shape[-1] == (convention.k or 1)
    assert not codes.values.any()
    torch.testing.assert_close(module(x), module.b_dec.expand(50, 2, 6))


@pytest.mark.parametrize("inclusive", [False, True])
def test_a_pre_activation_exactly_at_its_threshold_passes_only_where_it_is_inclusive(inclusive):
    """Whole numbers, so that every product is exact. A threshold may be negative: then relu alone decides."""
    rng = np.random.default_rng(0)
    x, W, threshold = rng.integers(-2, 3, (90, 5)), rng.integers(-2, 3, (5, 9)), rng.integers(-1, 4, 9)
    pre = (x @ W).astype(np.float32)
    assert ((pre == threshold) & (pre > 0)).sum() > 10
    one, zero = (lambda a: torch.from_numpy(a.astype(np.float32))[None]), torch.zeros
    module = sae.SAE(
        one(W), zero(1, 9), one(W.T), zero(1, 5), more={"threshold": one(threshold)}, seeds=(0,),
        convention=Convention("jumprelu", inclusive=inclusive),
    )  # fmt: skip
    codes = module.encode(one(x)[0])
    np.testing.assert_array_equal(spread(codes, 0, 9), jumprelu_codes(pre, threshold, inclusive))


@pytest.mark.parametrize("eps", [False, True])
def test_layer_norm_gives_a_constant_row_its_mean_back(eps):
    module = make(Convention("relu", normalize="layer_norm", layer_norm_eps_out=eps), dtype=np.float64)
    rows = torch.full((3, 6), 2.5, dtype=torch.float64)
    atol = 1e-3 if eps else 1e-12  # the published variant adds epsilon times the reconstruction of zeros
    torch.testing.assert_close(module(rows), rows[:, None].expand(-1, 2, -1), rtol=0, atol=atol)


def test_a_zero_row_comes_back_as_zero_where_norms_are_made_constant():
    module = make(Convention("topk", k=3, normalize="constant_norm_rescale"))
    assert not module(torch.zeros(2, 6)).any()


@pytest.mark.parametrize("convention", CONVENTIONS[::5], ids=str)
def test_rows_of_its_own_for_every_member_are_normalised_one_by_one(convention, x):
    module = make(convention, dtype=np.float64)
    own = torch.stack([x, 2 * x + 1], 1)
    both = module(own)
    for member in range(2):
        torch.testing.assert_close(both[:, member], module(own[:, member])[:, member], rtol=0, atol=1e-10)


@pytest.mark.parametrize("convention", BASES, ids=str)
def test_codes_made_in_parts_are_codes_made_at_once(convention, x, monkeypatch):
    module = make(convention, dtype=np.float64)
    whole = module.encode(x)
    monkeypatch.setattr(sae, "DENSE", 7 * 2 * 20)
    parts = module.encode(x)
    assert whole.values.shape == parts.values.shape
    for member in range(2):
        np.testing.assert_allclose(spread(parts, member, 20), spread(whole, member, 20), atol=1e-12)


def test_unit_norms_are_what_one_unit_of_activation_adds(x):
    for convention in (Convention("topk", k=4), Convention("topk", k=4, rescale_by_decoder_norm=True)):
        module = make(convention, dtype=np.float64)
        for feature in range(20):
            codes = sae.Codes(torch.ones(1, 2, 1).double(), torch.full((1, 2, 1), feature))
            added = module.decode(codes, bias=False).norm(dim=-1)[0]
            torch.testing.assert_close(added, module.unit_norms()[:, feature])


@pytest.mark.parametrize(
    ("convention", "more", "said"),
    [
        (Convention("jumprelu"), {}, r"further tensors are \[\], expected \['threshold'\] for jumprelu"),
        (Convention("relu"), {"threshold": torch.zeros(1, 8)}, r"expected \[\] for relu"),
        (Convention("jumprelu"), {"threshold": torch.zeros(8)}, r"threshold has the shape \(8,\), expected \(1, 8\)"),
        (Convention("topk", k=9), {}, r"k is 9, expected 1 to d_sae \(8\)"),
        (Convention("groupmax", k=3), {}, r"k is 3, expected a divisor of d_sae \(8\)"),
        (Convention("relu", rescale_by_decoder_norm=True), {}, "rescale_by_decoder_norm is defined for topk"),
        (None, {}, "convention is None and k is None"),
    ],
)
def test_tensors_that_do_not_fit_the_convention_are_refused(convention, more, said):
    with pytest.raises(ValueError, match=said):
        sae.SAE(torch.zeros(1, 3, 8), torch.zeros(1, 8), torch.zeros(1, 8, 3), torch.zeros(1, 3),
                convention=convention, more=more, seeds=(0,))  # fmt: skip


@pytest.mark.parametrize("convention", CONVENTIONS[::3], ids=str)
def test_any_convention_is_saved_and_read_back_bit_for_bit(convention, tmp_path):
    module = make(replace(convention, input_scale=1 / 3))
    module.save(tmp_path, provenance={"model": "m", "architecture": "a lie"})
    loaded = sae.load(tmp_path, (1, 0))
    assert loaded.convention == module.convention
    assert [type(v) for v in loaded.convention.as_json().values()] == [type(v) for v in convention.as_json().values()]
    assert [loaded.digest(0), loaded.digest(1)] == [module.digest(1), module.digest(0)]
    alone, metadata = sae.read(tmp_path / "seed-1.safetensors")
    assert (alone.digest(0), alone.seeds, metadata["model"]) == (module.digest(1), (1,), "m")
    assert all(torch.equal(loaded.member_tensors(1)[n], t) for n, t in module.member_tensors(0).items())


OTHER = {"architecture": "groupmax", "k": 5, "subtract_b_dec": False, "normalize": "layer_norm",
         "layer_norm_eps_out": True, "input_scale": 1.0000001, "inclusive": True, "rescale_by_decoder_norm": True,
         "transcoder": True, "skip": True}  # fmt: skip
NEEDS = {"transcoder": {"subtract_b_dec": False}, "skip": {"subtract_b_dec": False, "transcoder": True}}


@pytest.mark.parametrize("name", [field.name for field in fields(Convention)])
def test_every_field_of_the_convention_is_in_the_digest_and_shared_by_an_ensemble(name, tmp_path):
    plain = Convention("topk", k=4, **NEEDS.get(name, {}))
    module, other = make(plain), make(replace(plain, **{name: OTHER[name]}))
    assert module.digest(0) != other.digest(0)
    module.save(tmp_path)
    other.save(tmp_path / "other")
    (tmp_path / "other" / "seed-1.safetensors").rename(tmp_path / "seed-1.safetensors")
    with pytest.raises(ValueError, match=f"{name} = ") as raised:
        sae.load(tmp_path, (0, 1))
    assert str(getattr(plain, name)) in str(raised.value)
    assert str(OTHER[name]) in str(raised.value)


@pytest.mark.parametrize("convention", [Convention("jumprelu"), Convention("gated")], ids=str)
def test_further_tensors_are_in_the_digest(convention):
    for name in MORE_TENSORS[convention.architecture]:
        module = make(convention)
        before = [module.digest(0), module.digest(1)]
        with torch.no_grad():
            getattr(module, name)[1, 3] += 1
        assert [module.digest(0) == before[0], module.digest(1) == before[1]] == [True, False]


def test_files_written_before_there_were_conventions_still_load(tmp_path):
    tensors = make(Convention("topk", k=4)).member_tensors(0)
    old = {"architecture": "topk", "k": "4", "apply_b_dec_to_input": "true", "normalize_activations": "none"}
    save_file(tensors, tmp_path / "seed-0.safetensors", old | {"seed": "0", "model": "m"})
    assert sae.load(tmp_path, (0,)).convention == Convention("topk", k=4)
    assert sae.read(tmp_path / "seed-0.safetensors")[0].convention == Convention("topk", k=4)
    save_file(tensors, tmp_path / "seed-0.safetensors", {"k": "4"})
    assert sae.load(tmp_path, (0,)).convention == Convention("topk", k=4)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "has k = None in its metadata, expected a whole number"),
        ({"k": "four"}, "has k = 'four' in its metadata, expected a whole number"),
        ({"k": "4", "inclusive": "maybe"}, "has inclusive = 'maybe' in its metadata, expected true or false"),
        ({"architecture": "relu", "input_scale": "x"}, "has input_scale = 'x' in its metadata, expected a number"),
        ({"architecture": "magic"}, "architecture is 'magic', expected one of relu"),
        ({"architecture": "gated"}, "expected W_enc, b_enc, W_dec, b_dec, r_mag, b_mag"),
        ({"k": "21"}, r"k is 21, expected 1 to d_sae \(20\)"),
    ],
)
def test_files_that_do_not_say_how_to_use_them_are_refused_by_name(metadata, said, tmp_path):
    path = tmp_path / "seed-0.safetensors"
    save_file(make(Convention("topk", k=4)).member_tensors(0), path, metadata)
    with pytest.raises(ValueError, match=said) as raised:
        sae.read(path)
    assert str(path) in str(raised.value)


def test_a_file_holds_the_tensors_of_its_architecture_and_no_others(tmp_path):
    make(Convention("gated")).save(tmp_path)
    assert set(load_file(tmp_path / "seed-0.safetensors")) == {*TENSORS, "r_mag", "b_mag"}


# -- plain TopK --------------------------------------------------------------------------------------------------


def test_at_most_k_distinct_features_are_active_and_none_is_negative(make_sae, x):
    codes = make_sae(k=4).encode(x)
    assert codes.values.shape == codes.indices.shape == (50, 3, 4)
    assert (codes.values >= 0).all()
    assert (codes.indices.sort(-1).values.diff(dim=-1) > 0).all()


def test_members_do_not_touch_each_other(make_sae, x):
    module = make_sae()
    alone = [
        sae.SAE(**{n: getattr(module, n)[m : m + 1].detach() for n in TENSORS}, k=module.k, seeds=(m,))
        for m in range(3)
    ]
    torch.testing.assert_close(module(x), torch.cat([one(x) for one in alone], 1), rtol=0, atol=1e-12)
    assert [module.digest(m) for m in range(3)] == [one.digest(0) for one in alone]


def test_rows_repeated_for_every_member_give_what_shared_rows_give(make_sae, x):
    module = make_sae()
    repeated = x[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(module(repeated), module(x), rtol=0, atol=1e-12)


def test_decoding_without_bias_leaves_exactly_the_decoder_bias_out(make_sae, x):
    module = make_sae()
    codes = module.encode(x)
    torch.testing.assert_close(module.decode(codes, bias=False) + module.b_dec, module.decode(codes))


def test_an_ensemble_owns_its_tensors():
    """A start hands in W_enc as the transposed view of W_dec; trained in place, both must go their own ways."""
    W_dec = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    module = sae.SAE(W_dec.transpose(1, 2), torch.zeros(2, 5), W_dec, torch.zeros(2, 3), k=1, seeds=(0, 1))
    with torch.no_grad():
        module.W_dec += 1
    torch.testing.assert_close(module.W_enc, W_dec.transpose(1, 2))
    torch.testing.assert_close(module.W_dec, W_dec + 1)
    assert len({getattr(module, name).untyped_storage().data_ptr() for name in TENSORS}) == 4


def test_directions_are_unit_decoder_rows(make_sae):
    module = make_sae()
    directions = module.directions()
    assert directions.dtype == torch.float32
    for member in range(3):
        rows = arrays(module, member)["W_dec"]
        np.testing.assert_allclose(directions[member], rows / np.linalg.norm(rows, axis=1)[:, None], atol=1e-6)


def test_saved_members_load_bit_for_bit_in_any_choice_of_seeds(make_sae, tmp_path):
    module = make_sae(dtype=np.float32)
    module.save(tmp_path)
    loaded = sae.load(tmp_path, (2, 0))
    assert (loaded.seeds, loaded.k) == ((2, 0), module.k)
    assert [loaded.digest(0), loaded.digest(1)] == [module.digest(2), module.digest(0)]
    assert all(torch.equal(getattr(loaded, n)[0], getattr(module, n)[2]) for n in TENSORS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"seed-{s}.safetensors" for s in range(3)]


@pytest.mark.parametrize("name", TENSORS)
def test_one_flipped_bit_changes_the_digest_of_its_member_alone(make_sae, name):
    module = make_sae(dtype=np.float32)
    before = [module.digest(m) for m in range(3)]
    with torch.no_grad():
        tensor = getattr(module, name)
        last = (1, *(-1,) * (tensor.ndim - 1))
        tensor[last] = torch.nextafter(tensor[last], torch.tensor(torch.inf))
    after = [module.digest(m) for m in range(3)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_k_is_part_of_the_digest(make_sae):
    assert make_sae(k=4).digest(0) != make_sae(k=5).digest(0)


def test_loading_a_missing_member_names_its_file(make_sae, tmp_path):
    make_sae().save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"seed-7\.safetensors"):
        sae.load(tmp_path, (0, 7))


def test_members_of_different_k_are_not_one_ensemble(make_sae, tmp_path):
    make_sae(members=1, k=4).save(tmp_path)
    make_sae(members=2, k=5).save(tmp_path / "other")
    (tmp_path / "other" / "seed-1.safetensors").rename(tmp_path / "seed-1.safetensors")
    with pytest.raises(ValueError, match=r"k = \[4, 5\]"):
        sae.load(tmp_path, (0, 1))
