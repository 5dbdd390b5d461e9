"""Compare an imported SAE with what its own library computed; the forward pass is plain NumPy."""

from collections.abc import Mapping

import numpy as np
import torch

from seedscope.engine.saes.convention import TENSORS, Convention
from seedscope.engine.saes.importers.imported import Imported
from seedscope.engine.saes.sae import SAE
from support.paths import CHECKPOINTS


def forward(tensors: Mapping[str, object], convention: Convention, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Activations (tokens, d_sae) and reconstructions (tokens, d_in) of x, in float64, from Convention's docstring alone."""
    t = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    raw = x.astype(np.float64)
    x = raw * convention.input_scale
    scale, mean = np.ones((len(x), 1)), np.zeros((len(x), 1))
    if convention.normalize == "layer_norm":
        mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        x, scale = (x - mean) / (std + 1e-5), std + 1e-5 * convention.layer_norm_eps_out
    elif convention.normalize == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=1, keepdims=True) / x.shape[1] ** 0.5
        x = x / scale
    inside = x - t["b_dec"] if convention.subtract_b_dec else x
    pre = inside @ t["W_enc"] + t["b_enc"]
    norms = np.linalg.norm(t["W_dec"], axis=1) if convention.rescale_by_decoder_norm else np.ones(pre.shape[1])
    pre = pre * norms
    acts = np.maximum(pre, 0)
    if convention.architecture == "topk":
        order = np.argsort(-pre, axis=1, kind="stable")
        np.put_along_axis(acts, order[:, convention.k :], 0, axis=1)
    elif convention.architecture == "groupmax":
        grouped = pre.reshape(len(pre), convention.k, -1)
        first = grouped.argmax(2)[..., None] == np.arange(grouped.shape[2])
        acts = acts * first.reshape(acts.shape)
    elif convention.architecture == "jumprelu":
        acts = acts * (pre >= t["threshold"] if convention.inclusive else pre > t["threshold"])
    elif convention.architecture == "gated":
        acts = np.maximum(inside @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"], 0) * (pre > 0)
    out = (acts / norms) @ t["W_dec"] + t["b_dec"]
    if convention.transcoder:
        return acts, out + raw @ t["W_skip"] if convention.skip else out
    return acts, (out * scale + mean) / convention.input_scale


def goldens(library: str) -> dict[str, dict[str, np.ndarray]]:
    """Input, activations and reconstruction of every checkpoint, by its path below the library's folder."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(CHECKPOINTS / library / "expected.npz") as held:
        for key in held.files:
            name, part = key.rsplit("/", 1)
            found.setdefault(name, {})[part] = held[key]
    return found


def as_module(member: Imported) -> SAE:
    """The engine's own SAE of one member."""
    held = {name: tensor[None] for name, tensor in member.tensors.items()}
    more = {name: held.pop(name) for name in member.convention.tensors if name not in TENSORS}
    return SAE(**held, more=more, convention=member.convention, seeds=(member.seed or 0,))


def assert_same(member: Imported, golden: dict[str, np.ndarray]) -> None:
    """Activations and reconstructions to 1e-5 of the largest value, and the same features on."""
    acts, out = forward(member.tensors, member.convention, golden["x"])
    x = torch.from_numpy(golden["x"])
    codes = (module := as_module(member)).encode(x)
    dense = torch.zeros(len(x), member.d_sae).scatter_add_(1, codes.indices[:, 0], codes.values[:, 0])
    pairs = [(acts, golden["acts"]), (out, golden["out"])]
    pairs += [(dense.detach().numpy(), golden["acts"]), (module.decode(codes)[:, 0].detach().numpy(), golden["out"])]
    for ours, theirs in pairs:
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert ((acts > 0) == (golden["acts"] > 0)).mean() > 0.9999
    assert 0 < (golden["acts"] > 0).mean() < 1  # the golden itself has something to say
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in member.tensors.values())
