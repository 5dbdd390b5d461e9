"""Laws of the SAE module: its forward is a dense TopK, its members are strangers, its digest sees every bit."""

import numpy as np
import pytest
import torch
from golden import topk_codes

from engine import sae

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
