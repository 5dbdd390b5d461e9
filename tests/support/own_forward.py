"""What each library computes with a checkpoint's files, in float64 and plain NumPy, from the files alone.

Written from the libraries' sources, without the importers, to check them on files that were changed in any way.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

Arrays = dict[str, np.ndarray]
Forward = tuple[np.ndarray, np.ndarray]  # activations (tokens, d_sae) and reconstructions (tokens, d_in)


def saelens(folder: Path, x: np.ndarray) -> Forward:
    config, t = _json(folder / "cfg.json"), _safetensors(folder / "sae_weights.safetensors")
    kind = config.get("architecture") or "standard"
    if kind == "standard" and "topk" in (config.get("activation_fn_str"), config.get("activation_fn")):
        kind = "topk"
    batch = kind in ("batchtopk", "matryoshka_batchtopk")
    if "b_gate" in t:
        t["b_enc"] = t.pop("b_gate")
    if "log_threshold" in t:
        t["threshold"] = np.exp(t["log_threshold"])
    if batch and "topk_threshold" in t:
        t["threshold"] = np.full(len(t["b_enc"]), t["topk_threshold"].item())
    t = _fitted(t)
    tuned = t.get("scaling_factor", t.get("finetuning_scaling_factor"))
    if tuned is not None and config.get("finetuning_scaling_factor", True) is not False:
        t = _fitted(t | {"W_dec": t["W_dec"] * tuned[:, None]})
    scaler, rescale = folder / "activation_scaler.json", bool(config.get("rescale_acts_by_decoder_norm"))
    normalize = config.get("normalize_activations")
    normalize = "expected_average_only_in" if normalize is True else normalize or "none"
    trainer = scaler.exists() or batch
    factor = _json(scaler).get("scaling_factor") if scaler.exists() else None
    whitening = folder / "activation_whitening.safetensors"
    whiten = trainer and normalize == "covariance_whitening" and whitening.exists()
    norms = np.linalg.norm(t["W_dec"], axis=1) if rescale else np.ones(len(t["W_dec"]))
    inside, back, unfolded = x, lambda out: out, None
    if whiten:
        w = _safetensors(whitening)
        inside, back = (x - w["mean"]) @ w["matrix"], lambda out: out @ w["inverse_matrix"] + w["mean"]
        # SAELens subtracts b_dec after folding, where it stands in the units of x.
        unfolded = t["b_dec"] @ w["inverse_matrix"] @ w["matrix"]
    elif trainer and factor is not None and normalize == "expected_average_only_in":
        inside, back, norms = x * factor, lambda out: out / factor, norms / factor if rescale else norms
        if rescale and "threshold" in t:
            t["threshold"] = t["threshold"] / factor
    elif normalize == "layer_norm":
        mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        inside, back = (x - mean) / (std + 1e-5), lambda out: out * std + mean
    elif normalize == "constant_norm_rescale":
        length = np.linalg.norm(x, axis=1, keepdims=True) / x.shape[1] ** 0.5
        inside, back = x / np.maximum(length, 1e-300), lambda out: out * length
    subtracts = config.get("apply_b_dec_to_input", True) in (True, None)
    centred = inside - (unfolded if whiten else t["b_dec"]) * subtracts
    pre = centred @ t["W_enc"] + t["b_enc"]
    if kind == "gated":
        acts = np.maximum(centred @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"], 0) * (pre > 0)
    elif kind == "topk":
        acts = _topk(pre * norms, int(float(config.get("k", (config.get("activation_fn_kwargs") or {}).get("k")))))
    else:
        acts = np.maximum(pre * (norms if trainer else 1), 0)
        if kind != "standard":
            acts = acts * (pre * (norms if trainer else 1) > t["threshold"])
    divided = norms if kind == "topk" or trainer else np.ones_like(norms)
    return acts, back(_divided(acts, divided) @ t["W_dec"] + t["b_dec"])


def sparsify(folder: Path, x: np.ndarray) -> Forward:
    config, t = _json(folder / "cfg.json"), _safetensors(folder / "sae.safetensors")
    t |= {"W_enc": t["encoder.weight"].T, "b_enc": t["encoder.bias"]}
    t = _fitted(t)
    pre = np.maximum((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0)
    k = int(float(config["k"]))
    if (config.get("activation") or "topk") == "topk":
        acts = _topk(pre, k)
    else:
        groups = pre.reshape(len(x), k, -1)
        acts = (groups * (groups.argmax(2)[..., None] == np.arange(groups.shape[2]))).reshape(pre.shape)
    return acts, acts @ t["W_dec"] + t["b_dec"]


def dictionary_learning(folder: Path, x: np.ndarray) -> Forward:
    t = _state(folder / "ae.pt")
    config = _json(folder / "config.json") if (folder / "config.json").exists() else {}
    trainer = config.get("trainer") if isinstance(config.get("trainer"), dict) else config
    kind = trainer.get("dict_class") or (
        "GatedAutoEncoder" if "gate_bias" in t
        else "MatryoshkaBatchTopKSAE" if "group_sizes" in t
        else "JumpReluAutoEncoder" if "W_enc" in t and t["threshold"].ndim == 1
        else "AutoEncoderNew" if "decoder.bias" in t
        else "AutoEncoder"
    )  # fmt: skip
    names = {"encoder.bias": "b_enc", "bias": "b_dec", "decoder.bias": "b_dec", "decoder_bias": "b_dec",
             "gate_bias": "b_enc", "mag_bias": "b_mag"}  # fmt: skip
    for matrix, linear in (("W_enc", "encoder.weight"), ("W_dec", "decoder.weight")):
        if linear in t:
            t[matrix] = t.pop(linear).T
    t = _fitted({names.get(name, name): value for name, value in t.items()})
    centred = x if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - t["b_dec"]
    pre = centred @ t["W_enc"] + t["b_enc"]
    acts = np.maximum(pre, 0)
    if kind == "GatedAutoEncoder":
        acts = np.maximum(centred @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"], 0) * (pre > 0)
    elif kind == "AutoEncoderTopK":
        acts = _topk(acts, int(t["k"].item() if "k" in t else trainer["k"]))
    elif "TopK" in kind or kind == "JumpReluAutoEncoder":
        acts = acts * (acts > t["threshold"])
    return acts, acts @ t["W_dec"] + t["b_dec"]


def overcomplete(file: Path, x: np.ndarray) -> Forward:
    """A state dict with a JSON file beside it; l2 dictionaries and archetypes."""
    t, beside = _state(file), _json(file.with_suffix(".json"))
    scale = np.exp(t.get("dictionary.multiplier", np.zeros(())))
    if "dictionary.C" in t:
        weights = np.maximum(t["dictionary.W"], 0)
        weights = weights / (weights.sum(1, keepdims=True) + 1e-8)
        relax = t["dictionary.Relax"]
        relax = relax * np.minimum(float(beside["delta"]) / np.linalg.norm(relax, axis=1, keepdims=True), 1)
        decoder = (weights @ t["dictionary.C"] + relax) * scale
    else:
        raw = t["dictionary._weights"]
        kind = str(beside["normalization"]).removeprefix("normalize_")
        length = np.linalg.norm(raw, 2 if kind.endswith("l2") else 1, axis=1, keepdims=True)
        length = length.max() if kind.startswith("max") else length + 1e-8
        decoder = (raw if kind == "identity" else raw / length) * scale
    weight = t["encoder.final_block.0.weight"]
    fitted = _fitted({
        "W_enc": weight.T, "b_enc": t.get("encoder.final_block.0.bias", np.zeros(len(weight))), "W_dec": decoder,
        "b_dec": np.zeros(decoder.shape[1]),
    })  # fmt: skip
    acts = np.maximum(x @ fitted["W_enc"] + fitted["b_enc"], 0)
    name = beside.get("class") or "JumpSAE"
    if "TopK" in name and name != "BatchTopKSAE":
        acts = _topk(acts, int(float(beside["top_k"])))
    elif name == "BatchTopKSAE":
        acts = acts * (acts >= beside["running_threshold"])
    elif "Jump" in name:
        acts = acts * (acts >= np.exp(t["thresholds"]))
    return acts, acts @ fitted["W_dec"]


def gemma_scope(folder: Path, x: np.ndarray) -> Forward:
    old = folder / "params.npz"
    if old.exists():
        with np.load(old) as file:
            t = {name: file[name].astype(np.float64) for name in file.files}
    else:
        t = _safetensors(folder / "params.safetensors")
    t = _fitted({{"w_enc": "W_enc", "w_dec": "W_dec"}.get(name, name): value for name, value in t.items()})
    pre = x @ t["W_enc"] + t["b_enc"]
    acts = np.maximum(pre, 0) * (pre > t["threshold"])
    return acts, acts @ t["W_dec"] + t["b_dec"]


def openai(file: Path, x: np.ndarray) -> Forward:
    raw = torch.load(file, weights_only=True)
    t = _state(file)
    t |= {"W_enc": t["encoder.weight"].T, "b_enc": t["latent_bias"], "b_dec": t["pre_bias"]}
    t["W_dec"] = t["decoder.weight"].T if "decoder.weight" in t else t["encoder.weight"]
    t = _fitted(t)
    top = raw.get("activation", "ReLU") == "TopK"
    mean, std = (x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)) if top else (0.0, 1.0)
    pre = ((x - mean) / (std + 1e-5 * top) - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    acts = _topk(pre, int(raw["activation_state_dict"]["k"])) if top else np.maximum(pre, 0)
    return acts, (acts @ t["W_dec"] + t["b_dec"]) * std + mean


def batch_topk(folder: Path, x: np.ndarray) -> Forward:
    config, t = _json(folder / "config.json"), _fitted(_state(folder / "sae.pt"))
    kind = config["sae_type"]
    normed = bool(config.get("input_unit_norm"))
    mean, std = (x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)) if normed else (0.0, 1.0)
    inside = (x - mean) / (std + 1e-5 * normed)
    acts = np.maximum((inside - t["b_dec"] * (kind != "jumprelu")) @ t["W_enc"] + t["b_enc"], 0)
    if kind == "topk":
        acts = _topk(acts, int(float(config["top_k"])))
    elif kind != "vanilla":
        acts = acts * (acts > (t["threshold"] if kind == "batchtopk" else np.exp(t["jumprelu.log_threshold"])))
    return acts, (acts @ t["W_dec"] + t["b_dec"]) * std + mean


def llama_scope(folder: Path, x: np.ndarray) -> Forward:
    config, t = _json(folder / "hyperparams.json"), _safetensors(folder / "checkpoints" / "final.safetensors")
    t |= {"W_enc": t["encoder.weight"].T, "b_enc": t["encoder.bias"], "W_dec": t["decoder.weight"].T}
    t["b_dec"] = t.get("decoder.bias", np.zeros(t["W_dec"].shape[1]))
    t = _fitted(t)
    norms, wise = config.get("dataset_average_activation_norm"), config["norm_activation"] == "dataset-wise"
    scale_in, scale_out = (len(t["b_dec"]) ** 0.5 / norms[end] if wise else 1.0 for end in ("in", "out"))
    pre = (x * scale_in - t["b_dec"] * bool(config.get("apply_decoder_bias_to_pre_encoder"))) @ t["W_enc"] + t["b_enc"]
    length = np.linalg.norm(t["W_dec"], axis=1)
    length = length if config.get("sparsity_include_decoder_norm") else np.ones_like(length)
    if config["act_fn"] == "topk":
        acts = _topk(pre * length, int(float(config["top_k"])))
        return acts, (_divided(acts, length) @ t["W_dec"] + t["b_dec"]) / scale_out
    above = pre * length > config["jump_relu_threshold"] * scale_out if config["act_fn"] == "jumprelu" else pre > 0
    acts = np.maximum(pre, 0) * above
    return acts, (acts @ t["W_dec"] + t["b_dec"]) / scale_out


def goodfire(file: Path, x: np.ndarray) -> Forward:
    t = _state(file)
    t |= {"W_enc": t["encoder_linear.weight"].T, "b_enc": t["encoder_linear.bias"]}
    t |= {"W_dec": t["decoder_linear.weight"].T, "b_dec": t["decoder_linear.bias"]}
    t = _fitted(t)
    acts = np.maximum(x @ t["W_enc"] + t["b_enc"], 0)
    return acts, acts @ t["W_dec"] + t["b_dec"]


def safetensors(file: Path, x: np.ndarray) -> Forward:
    """Own files and bare ones: architectures topk and jumprelu, without normalisation."""
    with safe_open(file, "pt") as opened:
        settings: dict[str, Any] = dict(opened.metadata() or {})
    if "architecture" not in settings:
        settings |= _json(file.with_suffix(".json"))
    t = _fitted(_safetensors(file))
    scale = float(settings.get("input_scale", 1))
    subtract = settings.get("subtract_b_dec", settings.get("apply_b_dec_to_input", False))
    pre = (x * scale - t["b_dec"] * (str(subtract).lower() == "true")) @ t["W_enc"] + t["b_enc"]
    if settings["architecture"] == "topk":
        acts = _topk(pre, int(float(settings["k"])))
    elif settings["architecture"] == "relu":
        acts = np.maximum(pre, 0)
    else:
        reached = pre >= t["threshold"] if str(settings.get("inclusive")).lower() == "true" else pre > t["threshold"]
        acts = np.maximum(pre, 0) * reached
    return acts, (acts @ t["W_dec"] + t["b_dec"]) / scale


FORWARD: Mapping[str, Callable[[Path, np.ndarray], Forward]] = {
    "saelens": saelens, "sparsify": sparsify, "dictionary_learning": dictionary_learning, "overcomplete": overcomplete,
    "gemma_scope": gemma_scope, "openai": openai, "batch_topk": batch_topk, "llama_scope": llama_scope,
    "goodfire": goodfire, "safetensors": safetensors, "seedscope": safetensors,
}  # fmt: skip


def _fitted(t: Arrays) -> Arrays:
    """Matrices as the lengths of the biases say; decoder rows that are not finite are zero, as the product's remark says."""
    d_in, d_sae = len(t["b_dec"]), len(t["b_enc"])
    fitted = dict(t)
    for name, shape in (("W_enc", (d_in, d_sae)), ("W_dec", (d_sae, d_in))):
        fitted[name] = t[name] if t[name].shape == shape else t[name].T
    finite = (np.abs(fitted["W_dec"]) <= 1e18).all(1, keepdims=True)
    return fitted | {"W_dec": np.where(finite, fitted["W_dec"], 0)}


def _topk(values: np.ndarray, k: int) -> np.ndarray:
    order = np.argsort(-values, axis=1, kind="stable")
    acts = np.maximum(values, 0)
    np.put_along_axis(acts, order[:, k:], 0, axis=1)
    return acts


def _divided(acts: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.divide(acts, by, out=np.zeros_like(acts), where=by != 0)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


def _safetensors(path: Path) -> Arrays:
    with safe_open(path, "pt") as file:
        return {name: _array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


def _state(path: Path) -> Arrays:
    state = torch.load(path, weights_only=True)
    return {name: _array(value) for name, value in state.items() if isinstance(value, Tensor)}
