"""What SAELens computes with exported SAEs: by its formulas, by our importer, and by the library itself where installed."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from seedscope.engine.saes import saelens
from seedscope.engine.saes.convention import MORE_TENSORS, Convention
from seedscope.engine.saes.importers.ensemble import read
from seedscope.engine.saes.sae import SAE
from seedscope.engine.saes.saelens import refusal
from support.importer_checks import forward

D_IN, D_SAE, K = 8, 24, 4
ARCHITECTURES = [
    {"architecture": "relu"}, {"architecture": "topk", "k": K},
    {"architecture": "topk", "k": K, "rescale_by_decoder_norm": True}, {"architecture": "jumprelu"},
    {"architecture": "jumprelu", "inclusive": True}, {"architecture": "gated"}, {"architecture": "groupmax", "k": K},
]  # fmt: skip
EVERY = [
    Convention(**architecture, subtract_b_dec=subtract, normalize=normalize, layer_norm_eps_out=eps, input_scale=scale)
    for architecture, subtract, (normalize, eps), scale in itertools.product(
        ARCHITECTURES,
        (True, False),
        (("none", False), ("layer_norm", False), ("layer_norm", True), ("constant_norm_rescale", False)),
        (1.0, 0.37),
    )
]
EXPRESSED = [c for c in EVERY if refusal(c) is None]
FOLDED = [c for c in EXPRESSED if c.inclusive or (c.input_scale != 1 and c.normalize == "none")]


def some_sae(convention: Convention, *, zero_row: bool = False) -> SAE:
    """Random tensors, decoder rows of all kinds of norms, thresholds that some activations do not reach."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=generator) * 0.6

    more = {name: draw(D_SAE) for name in MORE_TENSORS.get(convention.architecture, ())}
    if "threshold" in more:
        more["threshold"] = more["threshold"].abs() * 0.5
    W_dec = draw(D_SAE, D_IN)
    if zero_row:
        W_dec[0, 5] = 0
    return SAE(
        draw(D_IN, D_SAE), draw(D_SAE), W_dec, draw(D_IN), seeds=(3,), convention=convention, more=more
    )  # fmt: skip


def inputs() -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(64, D_IN)) * 2 + 0.5).astype(np.float32)


def save(member: SAE, folder: Path) -> Path:
    saelens.save(
        member, folder, {"model_name": "gpt2", "hook_name": "blocks.2.hook_resid_post", "seed": 3, "context_size": None}
    )
    return folder


def name(convention: Convention) -> str:
    told = convention.as_json()
    return "-".join(
        [told.pop("architecture"), *(f"{k}={v}" for k, v in told.items() if v not in (False, 0, 1, "none"))]
    )


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(ours - theirs).max() <= 2e-6 * np.abs(theirs).max()


def test_what_is_expressed_and_what_is_refused_is_all_there_is():
    refused = [c for c in EVERY if c not in EXPRESSED]
    assert len(EVERY) == 112
    for c in refused:
        assert c.architecture == "groupmax" or (
            c.normalize == "layer_norm" and (c.layer_norm_eps_out or c.input_scale != 1)
        )
    assert len(refused) == 16 + 6 * 2 * 3  # all of groupmax; of the others layer_norm with another eps or a scale


@pytest.mark.parametrize(
    ("convention", "reason"),
    [
        (Convention("groupmax", k=4), "it has no groupmax"),
        (Convention("relu", normalize="layer_norm", layer_norm_eps_out=True), r"multiplied by std \+ 1e-5"),
        (Convention("relu", normalize="layer_norm", input_scale=2.0), "inputs are scaled by 2.0 before layer_norm"),
        (Convention("relu", input_scale=0.0), "input_scale is 0.0, expected a positive number"),
        (Convention("relu", input_scale=-1.0), "input_scale is -1.0"),
        (Convention("relu", input_scale=float("inf")), "input_scale is inf"),
    ],
)
def test_a_refusal_says_what_saelens_cannot_express(convention, reason):
    assert re.search(reason, refusal(convention))


@pytest.mark.parametrize("convention", EXPRESSED, ids=name)
def test_an_exported_sae_read_again_computes_the_same(convention, tmp_path):
    member = some_sae(convention)
    again = read(save(member, tmp_path / "seed-3"))
    x = inputs()
    ours, theirs = forward(member.member_tensors(0), convention, x), forward(again.tensors, again.convention, x)
    assert 0 < (ours[0] > 0).mean() < 1
    assert ((ours[0] > 0) == (theirs[0] > 0)).all()
    for one, other in zip(ours, theirs, strict=True):
        assert_close(other, one)
    assert (again.seed, again.source["hookpoint"]) == (3, "blocks.2.hook_resid_post")


@pytest.mark.parametrize("convention", [c for c in EXPRESSED if c not in FOLDED], ids=name)
def test_what_needs_no_folding_is_written_bit_for_bit(convention, tmp_path):
    member = some_sae(convention)
    again = read(save(member, tmp_path / "seed-3"))
    for key, tensor in member.member_tensors(0).items():
        assert torch.equal(again.tensors[key], tensor)
    without_scale = convention.as_json() | {"input_scale": 1.0}  # a normalisation to a norm does not see it
    assert again.convention.as_json() == without_scale


def test_a_threshold_that_is_reached_exactly_counts_as_before(tmp_path):
    eye = torch.eye(3)[None]
    threshold = torch.tensor([[0.5, 0.1, 0.0]])
    convention = Convention("jumprelu", subtract_b_dec=False, inclusive=True)
    zeros = torch.zeros(1, 3)
    member = SAE(eye, zeros, eye, zeros, seeds=(0,), convention=convention, more={"threshold": threshold})
    again = read(save(member, tmp_path / "seed-0"))
    assert not again.convention.inclusive
    below = torch.nextafter(threshold[0], torch.tensor(-1.0))
    x = torch.stack([threshold[0], below, threshold[0] + 1]).numpy()
    expected = np.where(x >= threshold.numpy(), np.maximum(x, 0), 0)
    acts, _ = forward(again.tensors, again.convention, x)
    assert (acts == expected).all()
    assert (acts > 0).tolist() == [[True, True, False], [False, False, False], [True, True, True]]


def test_a_row_without_a_direction_gives_no_nan_where_saelens_divides_by_norms(tmp_path):
    convention = Convention("topk", k=K, rescale_by_decoder_norm=True)
    member = some_sae(convention, zero_row=True)
    again = read(save(member, tmp_path / "seed-3"))
    assert not again.convention.rescale_by_decoder_norm
    x = inputs()
    codes = member.encode(torch.from_numpy(x))
    dense = torch.zeros(len(x), D_SAE).scatter_add_(1, codes.indices[:, 0], codes.values[:, 0]).detach().numpy()
    acts, out = forward(again.tensors, again.convention, x)
    assert_close(acts, dense)
    assert_close(out, member.decode(codes)[:, 0].detach().numpy())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("convention", EXPRESSED, ids=name)
def test_saelens_itself_loads_an_export_and_computes_the_same(convention, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    for zero_row in (False, True):
        member = some_sae(convention, zero_row=zero_row)
        loaded = sae_lens.SAE.load_from_disk(save(member, tmp_path / f"seed-{zero_row:d}"))
        x = torch.from_numpy(inputs())
        codes = member.encode(x)
        dense = torch.zeros(len(x), D_SAE).scatter_add_(1, codes.indices[:, 0], codes.values[:, 0])
        assert_close(loaded.encode(x).detach().numpy(), dense.detach().numpy())
        assert_close(loaded(x).detach().numpy(), member.decode(codes)[:, 0].detach().numpy())
        assert loaded.cfg.metadata.hook_name == "blocks.2.hook_resid_post"
