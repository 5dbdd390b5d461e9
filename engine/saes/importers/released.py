"""SAEs in the layouts of single code bases and releases: BatchTopK (Bussmann et al. 2024), Llama Scope (He et al. 2024), Goodfire.

BatchTopK: a folder with sae.pt and config.json. Llama Scope: hyperparams.json and checkpoints/final.safetensors. Goodfire: a
state dict of encoder_linear and decoder_linear.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.importers import unpickle
from seedscope.engine.saes.importers.facts import fixed, stated
from seedscope.engine.saes.importers.imported import (
    Imported,
    count,
    imported,
    oriented,
    read_json,
    read_safetensors,
    seed_of,
    transposed,
    vector,
)
from seedscope.engine.saes.importers.processing import recorded_processing
from seedscope.engine.saes.importers.settings import recorded
from seedscope.engine.saes.importers.values import flag, positive, shown, subsettings, text

BATCH_TOPK, LLAMA_SCOPE = "sae.pt", "hyperparams.json"
_LLAMA_WEIGHTS = Path("checkpoints") / "final.safetensors"
_GOODFIRE = {
    "encoder_linear.weight": "W_enc",
    "encoder_linear.bias": "b_enc",
    "decoder_linear.weight": "W_dec",
    "decoder_linear.bias": "b_dec",
}
_MODEL_AS_LOADED = (
    "its code base loads models by TransformerLens' defaults, which centre writing weights where norms subtract the mean; it is "
    "read as if they were not centred"
)
# Settings that only earlier versions of BatchTopK's code have.
_EARLIER = ("activation", "tied_weights", "use_encoder_bias")
_LINEAR = {name.replace("_linear", ""): ours for name, ours in _GOODFIRE.items()}


def read_batch_topk(path: Path) -> Imported:
    """The SAE in a folder with sae.pt and config.json, as its code base runs it in evaluation.

    vanilla: relu((x - b_dec) @ W_enc + b_enc). topk: the k largest of relu((x - b_dec) @ W_enc), without b_enc. batchtopk: the
    same above the stored threshold. jumprelu: relu(x @ W_enc + b_enc) above exp(log_threshold). With input_unit_norm every token
    is standardised first. Earlier versions of the code base have further settings: use_encoder_bias, tied_weights, activation;
    their vanilla does not standardise. Raises ValueError for other types, and for batchtopk without a threshold: which
    activations count then depends on the batch.
    """
    file = path / BATCH_TOPK if path.is_dir() else path
    where = file.parent / "config.json"
    config = read_json(where)
    state = unpickle.read(file)
    weights = dict(state) if isinstance(state, Mapping) else {}
    kind, remarks, k = str(config.get("sae_type")), [], 0
    earlier = [name for name in _EARLIER if name in config]
    if config.get("activation", "relu") != "relu":
        raise ValueError(f"{where} has activation = {shown(config['activation'])}, expected 'relu'")
    if kind == "topk":
        k = count(config.get("top_k"), "top_k", where)
    elif kind == "batchtopk":
        if "threshold" not in weights:
            raise ValueError(
                f"{file} was trained with BatchTopK and holds no threshold: which activations count depends on the batch. Add the "
                "smallest activation that passed, averaged over batches, to its state dict as a tensor `threshold`"
            )
        remarks.append("trained with BatchTopK")
    elif kind == "jumprelu":
        if isinstance(logarithm := weights.pop("jumprelu.log_threshold", None), Tensor):
            weights["threshold"] = logarithm.exp()
    elif kind != "vanilla":
        raise ValueError(f"{where} has sae_type = {shown(kind)}, expected vanilla, topk, batchtopk or jumprelu")
    unused = kind in ("topk", "batchtopk") and not flag(config, "use_encoder_bias", where)
    if unused and isinstance(bias := weights.get("b_enc"), Tensor) and bias.any():
        raise ValueError(
            f"{file} has a b_enc that is not zero, which this code base's {kind} does not use; set it to zero, or write "
            '"use_encoder_bias": true into its config.json if it was trained with it'
        )
    if (
        flag(config, "tied_weights", where)
        and kind != "vanilla"
        and isinstance(encoder := weights.get("W_enc"), Tensor)
    ):
        weights["W_dec"] = encoder.T
        remarks.append("the decoder is tied to the encoder")
    normalize = "layer_norm" if flag(config, "input_unit_norm", where) else "none"
    if earlier and kind == "vanilla":
        normalize = "none"
    elif earlier and normalize != "none":
        remarks.append(
            "written by an earlier version of its code, whose output adds the standardised input where this adds the mean"
        )
    remarks += recorded_processing(config, where)
    if normalize == "none":
        remarks.append(_MODEL_AS_LOADED)
    convention = Convention(
        {"vanilla": "relu", "topk": "topk"}.get(kind, "jumprelu"),
        k=k,
        subtract_b_dec=kind != "jumprelu",
        normalize=normalize,
    )
    return imported(
        path,
        weights | vector(weights, "threshold", "b_enc"),
        convention,
        seed=seed_of(config.get("seed")),
        source={
            "format": "batch_topk",
            "library": "bartbussmann/BatchTopK",
            "architecture": kind,
            "model": config.get("model_name"),
            "hookpoint": text(config, "hook_point", where),
        },
        remarks=remarks,
        facts=fixed("format batch_topk", "library", "scale", "b_dec")
        | {"normalisation": ("", "config.json: input_unit_norm")}
        | stated(
            config,
            "config.json",
            {
                "forward pass": "sae_type", "threshold": "sae_type", "k or l1": "top_k", "hook point": "hook_point",
                "model": "model_name", "dataset": "dataset_path", "seed": "seed",
            },
        ),
        settings=recorded(config),
        sizes=(config.get("act_size"), config.get("dict_size")),
        weights=file,
    )  # fmt: skip


def read_llama_scope(folder: Path) -> Imported:
    """The SAE in a folder with hyperparams.json, as OpenMOSS' lm_saes runs it on activations as the model has them.

    With norm_activation dataset-wise, inputs are scaled to a mean norm of sqrt(d_in), which is folded into the weights; with
    inference they already are. Transcoders predict activations that are scaled in the same way. jumprelu: f_i where f_i, or
    f_i * ||W_dec_i|| with sparsity_include_decoder_norm, is above the threshold. topk: the k largest of these;
    f_i * ||W_dec_i|| are then its activations, as after the library's transform_to_unit_decoder_norm. relu: all that are
    positive.

    The threshold is one of activations without that scale: lm_saes finds it after the scale is folded in
    (Initializer.initialize_jump_relu_threshold), and so has its author's correction of SAELens' loader (SAELens pull request
    483). Raises ValueError for other activation functions and other normalisations.
    """
    where, config = folder / LLAMA_SCOPE, read_json(folder / LLAMA_SCOPE)
    inside, outside = text(config, "hook_point_in", where), text(config, "hook_point_out", where)
    transcoder = inside != outside
    for name, expected in (
        ("act_fn", ("jumprelu", "topk", "relu")),
        ("norm_activation", ("dataset-wise", "inference")),
        ("use_glu_encoder", (None, False)),
        ("sparsity_include_decoder_norm", (None, False, True)),
        ("apply_decoder_bias_to_pre_encoder", (None, False, True)),
    ):
        if config.get(name) not in expected:
            options = " or ".join(str(option) for option in expected if option is not None)
            raise ValueError(f"{where} has {name} = {shown(config.get(name))}, expected {options}")
    stored, _ = read_safetensors(folder / _LLAMA_WEIGHTS)
    weights = {ours: stored[name].double() for name, ours in _LINEAR.items() if name in stored}
    weights |= transposed(weights, "W_enc", "W_dec")
    act, ranked = str(config["act_fn"]), bool(config.get("sparsity_include_decoder_norm"))
    remarks: list[str] = []
    if {"W_enc", "b_enc", "W_dec"} <= weights.keys():
        weights.setdefault("b_dec", torch.zeros(weights["W_dec"].shape[-1:], dtype=torch.float64))
        weights = oriented(folder / _LLAMA_WEIGHTS, weights, remarks, transcoder=transcoder)
        if config.get("apply_decoder_bias_to_pre_encoder"):
            if transcoder:
                raise ValueError(
                    f"{where} has apply_decoder_bias_to_pre_encoder = true, expected false of a transcoder ({inside} to "
                    f"{outside}): its decoder's bias belongs to what it predicts"
                )
            weights["b_enc"] = weights["b_enc"] - weights["b_dec"] @ weights["W_enc"]
        length = weights["W_dec"].norm(dim=1)
        scale_in, scale_out = _scales(config, where, len(weights["W_enc"]), len(weights["b_dec"]))
        if act == "jumprelu":
            threshold = positive(config.get("jump_relu_threshold"), "jump_relu_threshold", where) * scale_out
            weights["threshold"] = threshold / (length if ranked else torch.ones_like(length))
        elif act == "topk" and ranked:
            weights["W_enc"], weights["b_enc"] = weights["W_enc"] * length, weights["b_enc"] * length
            weights["W_dec"] = weights["W_dec"] / torch.where(length > 0, length, 1)[:, None]
            remarks.append("the norms of its decoder rows, by which it ranks, folded into the encoder")
        weights["W_enc"] = weights["W_enc"] * scale_in
        weights["W_dec"], weights["b_dec"] = weights["W_dec"] / scale_out, weights["b_dec"] / scale_out
        if scale_in != 1 or scale_out != 1:
            mean = config["dataset_average_activation_norm"]["in"]
            remarks.append(f"the scale of its inputs, sqrt(d_in) / {mean:g}, folded into the weights")
    if act == "jumprelu" and ranked:
        remarks.append("its threshold is one of activations times decoder norms, which SAELens' loader leaves out")
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in stored.values()}
    remarks += recorded_processing(config, where)
    remarks += [f"weights cast from {name}" for name in sorted(types - {"float32"})]
    return imported(
        folder,
        {name: tensor.float() for name, tensor in weights.items()},
        Convention(
            act,
            k=count(config.get("top_k"), "top_k", where) if act == "topk" else 0,
            subtract_b_dec=False,
            transcoder=transcoder,
        ),
        source={
            "format": "llama_scope",
            "library": "Llama Scope",
            "hookpoint": inside,
            "hookpoint_out": outside if transcoder else None,
        },
        remarks=remarks,
        facts=fixed("format llama_scope", "library", "b_dec", "normalisation")
        | stated(
            config,
            LLAMA_SCOPE,
            {
                "forward pass": "act_fn",
                "threshold": "jump_relu_threshold",
                "scale": "dataset_average_activation_norm",
                "k or l1": "top_k",
                "hook point": "hook_point_in",
                "output hook point": "hook_point_out",
            },
        )
        | {"dtype": (", ".join(sorted(types)), f"{_LLAMA_WEIGHTS.name}: tensors")},
        settings=recorded(config),
        sizes=(config.get("d_model"), config.get("d_sae")),
        weights=folder / _LLAMA_WEIGHTS,
    )


def _scales(config: Mapping[str, Any], where: Path, d_in: int, d_out: int) -> tuple[float, float]:
    """What inputs are multiplied by, and what reconstructions are divided by."""
    if config["norm_activation"] == "inference":
        return 1.0, 1.0
    name = "dataset_average_activation_norm"
    norms = subsettings(config, name, where)
    return (
        d_in**0.5 / positive(norms.get("in"), f"{name}.in", where),
        d_out**0.5 / positive(norms.get("out"), f"{name}.out", where),
    )


def is_goodfire(value: Any) -> bool:
    """Whether a `torch.save` file's content looks like Goodfire's state dict."""
    return isinstance(value, Mapping) and _GOODFIRE.keys() <= value.keys()


def read_goodfire(path: Path) -> Imported:
    """The SAE in a state dict of Goodfire: relu(x @ W_enc + b_enc), without centring."""
    value = unpickle.read(path)
    if not is_goodfire(value):
        raise ValueError(f"{path} holds no state dict of Goodfire, expected {', '.join(_GOODFIRE)}")
    weights = {ours: value[name] for name, ours in _GOODFIRE.items()}
    weights |= transposed(weights, "W_enc", "W_dec")  # Linear weights are (out, in)
    source = {"format": "goodfire", "library": "Goodfire"}
    return imported(path, weights, Convention("relu", subtract_b_dec=False), source=source)


def _is_batch_topk(folder: Path) -> bool:
    """Whether the config beside a sae.pt, a name that others use as well, is this code base's."""
    config = folder / "config.json"
    return config.is_file() and "sae_type" in read_json(config)


def _is_llama_scope(folder: Path) -> bool:
    """Whether weights lie where this release has them."""
    return (folder / _LLAMA_WEIGHTS).is_file()


# {format whose file's name others use as well: whether a folder is of it}.
CONFIRMED = {"batch_topk": _is_batch_topk, "llama_scope": _is_llama_scope}
