"""SAEs and transcoders of SAELens: version 6 (`SAE.save_model`, `save_inference_model`), 3 to 5, trainer checkpoints, and objects.

Follows sae-lens 6.54.12: sae_lens/saes, sae_lens/loading/pretrained_sae_loaders.py, sae_lens/training.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seedscope.engine.saes.convention import NORMALIZATIONS, SKIP, Convention
from seedscope.engine.saes.importers.facts import NEURONPEDIA, Facts, dtype_of, fixed, stated
from seedscope.engine.saes.importers.imported import (
    Imported,
    count,
    imported,
    oriented,
    read_json,
    read_safetensors,
    seed_of,
    vector,
)
from seedscope.engine.saes.importers.processing import is_centred, unknown_settings, unsaid
from seedscope.engine.saes.importers.settings import recorded
from seedscope.engine.saes.importers.values import flag, positive, shown, subsettings, text

CONFIG, RUNNER, WEIGHTS, SCALER, WHITENING = (
    "cfg.json",
    "runner_cfg.json",
    "sae_weights.safetensors",
    "activation_scaler.json",
    "activation_whitening.safetensors",
)
_BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
_ARCHITECTURES = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"} | dict.fromkeys(
    _BATCH_TOPK, "jumprelu"
)
# {what SAELens calls a transcoder: the SAE of the same activation function}.
_TRANSCODERS = {
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
_HOOKS_OUT = ("hook_name_out", "hook_point_out", "out_hook_point")
_KEYS = {
    NEURONPEDIA: ("metadata.neuronpedia_id", "neuronpedia_id"),
    "recorded L0": "metadata.l0",
    "library": (
        "sae_lens_version",
        "metadata.sae_lens_version",
        "metadata.sae_lens_training_version",
        "sae_lens_training_version",
    ),
    "forward pass": ("architecture", "activation_fn_str", "activation_fn"),
    "normalisation": "normalize_activations",
    "b_dec": "apply_b_dec_to_input",
    "hook point": ("metadata.hook_name", "hook_name", "metadata.hook_point", "hook_point"),
    "k or l1": ("l1_coefficient", "metadata.l1_coefficient"),
    "model": ("metadata.model_name", "model_name"),
    "processing of the model": ("metadata.model_from_pretrained_kwargs", "model_from_pretrained_kwargs"),
    "dataset": ("metadata.dataset_path", "dataset_path"),
    "seed": "seed",
}
_REFUSED = {
    "crosscoder": "it reads several sites at once and has a decoder for each, so a feature has no one direction",
    "cross_layer": "a feature has a decoder for every layer above it, so it has no one direction",
    "clt": "a feature of a cross-layer transcoder has a decoder for every layer above it, so it has no one direction",
    "abstopk": "its activations may be negative",
    "matching_pursuit": "it has no encoder: its codes come from an iterative search",
    "temporal": "it attends to earlier tokens",
}


def read(folder: Path) -> Imported:
    """The SAE or transcoder in a folder with cfg.json and sae_weights.safetensors.

    Trainer checkpoints become what SAELens itself exports at the end of training: the activation scale or whitening and,
    where the library ranks by them, the decoder norms are folded into the weights. Raises ValueError for architectures
    whose forward pass no convention describes.
    """
    return understood(_saved(folder))


def from_object(sae: Any, place: Path) -> Imported:
    """An SAE or transcoder of SAELens in memory, as the library itself would save it; `place` stands for its folder in messages.

    A training SAE is taken as SAELens exports it for inference. Tensors may share memory with the object's, which stays as it is.
    Raises ValueError for what is no SAE of SAELens 6, and as `read`: for one that was trained on scaled activations and has the
    scale not folded in, for instance.
    """
    config: Any = getattr(sae, "cfg", None)
    state: Any = getattr(sae, "state_dict", None)
    if not callable(getattr(config, "to_dict", None)) or not callable(state):
        raise ValueError(
            f"{place} is a {type(sae).__name__}, expected an SAE of SAELens 6 (with cfg.to_dict and state_dict); files are read by "
            "seedscope import"
        )
    tensors = dict(state())
    for_inference = getattr(sae, "process_state_dict_for_saving_inference", None)
    if callable(for_inference):
        for_inference(tensors)
        settings = config.get_inference_sae_cfg_dict()
    else:
        if callable(for_saving := getattr(sae, "process_state_dict_for_saving", None)):
            for_saving(tensors)
        settings = config.to_dict()
    try:
        plain = json.loads(json.dumps(settings))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place} has a config that SAELens could not save as JSON ({error})") from None
    return understood(SavedSAE(place, plain, {name: tensor.detach().cpu() for name, tensor in tensors.items()}))


class SavedSAE(NamedTuple):
    """What SAELens keeps of an SAE: the contents of its folder, or what they would be."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    runners: tuple[dict[str, Any], ...] = ()  # configs of its run, the nearest last
    scaler: dict[str, Any] | None = None  # of a trainer checkpoint
    whitening: dict[str, Tensor] | None = None


def _saved(folder: Path) -> SavedSAE:
    scaler, whitening = folder / SCALER, folder / WHITENING
    # One runner that trained several SAEs wrote its config one level up.
    runners = [path for path in (folder.parent / RUNNER, folder / RUNNER) if path.is_file()]
    return SavedSAE(
        folder,
        read_json(folder / CONFIG),
        read_safetensors(folder / WEIGHTS)[0],
        tuple(read_json(path) for path in runners),
        read_json(scaler) if scaler.exists() else None,
        read_safetensors(whitening)[0] if whitening.exists() else None,
    )


def understood(saved: SavedSAE) -> Imported:
    """The SAE or transcoder in what SAELens keeps of it; raises ValueError as `read`."""
    folder, config, t = saved.folder, saved.config, saved.tensors
    runner = saved.runners[-1] if saved.runners else {}
    nested = config.get("metadata")
    metadata = nested if isinstance(nested, dict) else config
    version = str(config.get("sae_lens_version") or metadata.get("sae_lens_version") or "")
    details = subsettings(config, "activation_fn_kwargs", folder / CONFIG)
    name, told_by = _architecture(config, folder), _transcoder_flag(config, metadata, runner)
    name = _TRANSCODERS.get(name, name)
    k = count(config.get("k", details.get("k")), "k", folder / CONFIG) if name == "topk" else 0
    remarks: list[str] = []
    dtype = dtype_of(t)
    # Version 6 has no such key and no such tensor; a key that is absent says nothing.
    scaled = flag(config, "finetuning_scaling_factor", folder / CONFIG, default=True)
    t = _renamed(t, name, folder, remarks, scaled=scaled)
    if told_by:
        _require_transcoder(config, folder, told_by, t)
    folded = _folded(t, saved, remarks)
    trained_as = str(metadata.get("training_architecture") or name)
    if trained_as in _BATCH_TOPK:
        remarks.append(f"trained with {'Matryoshka ' if 'matryoshka' in trained_as else ''}BatchTopK")
    if _reshape(config, metadata) != "none":
        remarks.append("reads the heads' outputs z, flattened to (heads * d_head)")
    hookpoint = text(metadata, "hook_name", folder / CONFIG) or text(metadata, "hook_point", folder / CONFIG)
    centred = is_centred(metadata, hookpoint, folder / CONFIG, remarks)
    remarks += unsaid(metadata, hookpoint, folder / CONFIG)
    remarks += unknown_settings(config, folder / CONFIG)
    hookpoint_out, said_by = _hookpoint_out(config, runner) if told_by else ("", "")
    normalize = _normalize(config, folder, folded=folded)
    if hookpoint_out and is_centred(metadata, hookpoint_out, folder / CONFIG, []):
        centred = True
    if centred and told_by:
        raise ValueError(
            f"{folder / CONFIG} records center_writing_weights: what a transcoder reads and predicts there is centred, and no "
            "convention describes both. Import transcoders that were trained without it"
        )
    if centred:
        normalize = _centred(normalize, folder, remarks)
    convention = Convention(
        _ARCHITECTURES[name],
        k=k,
        subtract_b_dec=not told_by and _subtracts(config, folder),
        transcoder=bool(told_by),
        skip=bool(told_by) and SKIP in t,
        normalize=normalize,
        rescale_by_decoder_norm=name == "topk"
        and not folded
        and flag(config, "rescale_acts_by_decoder_norm", folder / CONFIG),
    )
    return imported(
        folder,
        t,
        convention,
        seed=_seed(runner, config),
        source={
            "format": "saelens",
            "library": "sae-lens",
            "library_version": version or metadata.get("sae_lens_training_version"),
            "architecture": trained_as,
            "model": metadata.get("model_name"),
            "hookpoint": hookpoint,
            "hookpoint_out": hookpoint_out or None,
            "dataset": metadata.get("dataset_path"),
            "recorded_l0": metadata.get("l0"),
            "run": folder.parent if saved.scaler is not None else None,
        },
        weights=folder / WEIGHTS,
        remarks=remarks,
        facts=_facts(saved, name, dtype)
        | ({"forward pass": ("", told_by), "output hook point": ("", said_by)} if told_by else {}),
        settings=recorded(runner, config),
        sizes=(config.get("d_in"), config.get("d_sae")),
    )


def _facts(saved: SavedSAE, architecture: str, dtype: str) -> Facts:
    config = saved.config
    facts = fixed("format saelens", "library", "scale") | {"dtype": (dtype, f"{WEIGHTS}: tensors")}
    facts |= stated(config, CONFIG, _KEYS)
    for runner in saved.runners:
        facts |= stated(runner, RUNNER, {"seed": "seed", "k or l1": ("sae.l1_coefficient", "l1_coefficient")})
    if config.get("normalize_activations") == "covariance_whitening":
        facts["scale"] = "whitening, folded into the weights", WHITENING
    elif saved.scaler is not None and config.get("normalize_activations") in (True, "expected_average_only_in"):
        scale = stated(saved.scaler, SCALER, {"scale": "scaling_factor"})
        facts |= {name: (f"{value}, folded into the weights", source) for name, (value, source) in scale.items()}
    if "topk" in architecture:
        facts |= stated(config, CONFIG, {"k or l1": ("k", "activation_fn_kwargs.k")})
        if config.get("architecture", "standard") == "standard":
            facts |= stated(config, CONFIG, {"forward pass": ("activation_fn_str", "activation_fn")})
    return facts


def _architecture(config: Mapping[str, Any], folder: Path) -> str:
    name = text(config, "architecture", folder / CONFIG) or "standard"
    if name == "standard" and (config.get("activation_fn_str") or config.get("activation_fn")) == "topk":
        name = "topk"  # what version 3 wrote
    for refused, reason in _REFUSED.items():
        if refused in str(name):
            raise ValueError(f"{folder} is a SAELens {name}, which cannot be scored: {reason}. Import an SAE instead")
    if name not in _ARCHITECTURES | _TRANSCODERS:
        raise ValueError(
            f"{folder / CONFIG} has architecture = {shown(name)}, expected one of {', '.join([*_ARCHITECTURES, *_TRANSCODERS])}"
        )
    activation = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    if activation not in ("relu", "topk"):
        raise ValueError(f"{folder / CONFIG} has the activation function {shown(activation)}, expected relu or topk")
    return name


def _transcoder_flag(config: Mapping[str, Any], metadata: Mapping[str, Any], runner: Mapping[str, Any]) -> str:
    """The file and key that say that it is a transcoder, which may be the run's config alone; "" where none does."""
    inner = runner.get("sae")
    of_run = (runner, inner) if isinstance(inner, dict) else (runner,)
    for file, settings in [*((CONFIG, each) for each in (config, metadata)), *((RUNNER, each) for each in of_run)]:
        if "transcoder" in str(settings.get("architecture")):
            return f"{file}: architecture"
        if settings.get("is_transcoder") is True:
            return f"{file}: is_transcoder"
        for key in _HOOKS_OUT if settings.get("is_transcoder") is None else ():
            hook_in = settings.get("hook_name") or settings.get("hook_point")
            if settings.get(key) and settings[key] != hook_in:
                return f"{file}: {key}"
    return ""


def _hookpoint_out(config: Mapping[str, Any], runner: Mapping[str, Any]) -> tuple[str, str]:
    """What a transcoder predicts, and the file and key that say so; both "" where none does."""
    for file, settings, inner in ((CONFIG, config, "metadata."), (RUNNER, runner, "sae.")):
        keys = {"output hook point": [prefix + key for prefix in (inner, "") for key in _HOOKS_OUT]}
        for value, source in stated(settings, file, keys).values():
            return value, source
    return "", ""


def _require_transcoder(config: Mapping[str, Any], folder: Path, flag: str, t: dict[str, Tensor]) -> None:
    """Raise ValueError for what no transcoder of SAELens has; its skip connection is turned to (d_in, d_out), in place."""
    if config.get("apply_b_dec_to_input"):
        raise ValueError(
            f"{folder / CONFIG} has apply_b_dec_to_input = true, expected false of a transcoder ({flag}): its b_dec belongs to "
            "what it predicts. SAELens refuses it as well"
        )
    if "W_dec" in t and t["W_dec"].ndim == 3:
        raise ValueError(
            f"{folder} is a cross-layer transcoder (W_dec has the shape {tuple(t['W_dec'].shape)}): a feature has a decoder for "
            "every layer above it, so it has no one direction. Import transcoders of single layers"
        )
    if "b_dec_out" in t:
        raise ValueError(
            f"{folder / WEIGHTS} holds b_dec_out beside b_dec: how its own code base uses the two is not known here. Take b_dec "
            "out of the encoder's bias (b_enc - b_dec @ W_enc), and save b_dec_out as b_dec"
        )
    if SKIP in t:
        t[SKIP] = t[SKIP].T  # stored as (d_out, d_in)


def _subtracts(config: Mapping[str, Any], folder: Path) -> bool:
    return flag(config, "apply_b_dec_to_input", folder / CONFIG, default=True)


def _renamed(t: dict[str, Tensor], name: str, folder: Path, remarks: list[str], *, scaled: bool) -> dict[str, Tensor]:
    """The tensors under the convention's names, a fine-tuned scale of the features in the decoder."""
    t = dict(t)
    if "b_gate" in t:
        t["b_enc"] = t.pop("b_gate")
    if "log_threshold" in t:
        t["threshold"] = t.pop("log_threshold").exp()
    if name in _BATCH_TOPK and {"topk_threshold", "b_enc"} <= t.keys():
        t |= vector({"threshold": t.pop("topk_threshold"), "b_enc": t["b_enc"]}, "threshold", "b_enc")
    scale = t.pop("scaling_factor", t.pop("finetuning_scaling_factor", None))
    if scale is not None and not scaled:
        remarks.append("its scaling_factor is left out: the config says that the features were not fine-tuned by one")
    elif scale is not None and "W_dec" in t and not torch.allclose(scale, torch.ones_like(scale)):
        if scale.ndim != 1 or scale.shape != t["W_dec"].shape[:1]:
            raise ValueError(
                f"{folder / WEIGHTS}: scaling_factor has the shape {tuple(scale.shape)}, expected one value for each of "
                f"the {len(t['W_dec'])} decoder rows"
            )
        t["W_dec"] = t["W_dec"] * scale[:, None]
        remarks.append("the fine-tuned scale of the features is in the decoder")
    return t


def _normalize(config: Mapping[str, Any], folder: Path, *, folded: bool) -> str:
    value = config.get("normalize_activations")
    if isinstance(value, bool):  # up to version 2
        value = "expected_average_only_in" if value else None
    elif value is not None and not isinstance(value, str):
        raise ValueError(f"{folder / CONFIG} has normalize_activations = {shown(value)}, expected text")
    value = value or "none"
    if value in NORMALIZATIONS and value != "centre":
        return value
    if folded:
        return "none"
    missing = {"expected_average_only_in": SCALER, "covariance_whitening": WHITENING}.get(value)
    if missing is None:
        raise ValueError(
            f"{folder / CONFIG} has normalize_activations = {shown(value)}, expected one of {', '.join(NORMALIZATIONS)}"
        )
    raise ValueError(
        f"{folder} was trained on activations that were scaled ({value}), and the scale is not in its files: found no "
        f"usable {missing} beside the weights. Export it with SAELens' save_inference_model after folding, or copy that "
        "file from the trainer checkpoint"
        + (' or write {"scaling_factor": sqrt(d_in) / mean norm of the activations}' if missing == SCALER else "")
    )


def _centred(normalize: str, folder: Path, remarks: list[str]) -> str:
    """The normalisation of an SAE that was trained on centred activations, for activations that are not.

    layer_norm takes the mean out itself, and its reconstruction gets the mean of what it reads, centred or not.
    """
    if normalize == "constant_norm_rescale":
        raise ValueError(
            f"{folder / CONFIG} records center_writing_weights and constant_norm_rescale, which divides by the length of the "
            "centred activations: no convention describes both"
        )
    remarks.append(
        "trained on a model with centred writing weights: the mean over d_model is taken out of what it reads"
    )
    return "centre" if normalize == "none" else normalize


def _folded(t: dict[str, Tensor], saved: SavedSAE, remarks: list[str]) -> bool:
    """Fold a trainer checkpoint's preprocessing into the tensors, in place; False where there is none to fold."""
    folder, config = saved.folder, saved.config
    value = config.get("normalize_activations")
    trainer = saved.scaler is not None or config.get("architecture") in _BATCH_TOPK
    if not trainer or not {"W_enc", "b_enc", "W_dec", "b_dec"} <= t.keys():
        return False
    rescale = flag(config, "rescale_acts_by_decoder_norm", folder / CONFIG)
    factor = (saved.scaler or {}).get("scaling_factor")
    whiten = value == "covariance_whitening" and saved.whitening is not None
    named: dict[str, Tensor] = {
        name: t[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag") if name in t
    }
    t |= oriented(folder / WEIGHTS, named, remarks)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        t[name] = t[name].double()
    if whiten:
        # Whitening mixes the columns, so the norms that rank the features are those before it.
        if rescale:
            _fold_norms(t)
        _fold_whitening(t, saved.whitening or {}, folder, subtract=_subtracts(config, folder))
        remarks.append("whitening of the activations folded into the weights")
    elif factor is not None and value in (True, "expected_average_only_in"):
        factor = positive(factor, "scaling_factor", folder / SCALER)
        t["W_enc"] = t["W_enc"] * factor
        t["W_dec"], t["b_dec"] = t["W_dec"] / factor, t["b_dec"] / factor
        if rescale and "threshold" in t:
            t["threshold"] = t["threshold"] / factor
        remarks.append(f"activation scale {factor:.6g} folded into the weights")
    if rescale and not whiten:
        _fold_norms(t)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if "threshold" in t else [])):
        t[name] = t[name].float()
    remarks.append("a trainer checkpoint, as SAELens would export it")
    return whiten or factor is not None or value in (None, "none")


def _fold_norms(t: dict[str, Tensor]) -> None:
    norms = t["W_dec"].norm(dim=-1).clamp(min=1e-8)
    t["W_enc"], t["b_enc"] = t["W_enc"] * norms, t["b_enc"] * norms
    t["W_dec"] = t["W_dec"] / norms[:, None]


def _fold_whitening(t: dict[str, Tensor], whitening: dict[str, Tensor], folder: Path, *, subtract: bool) -> None:
    """z = (x - mean) @ matrix is what was encoded, x_hat = z_hat @ inverse_matrix + mean what was decoded."""
    d_in = len(t["b_dec"])
    shapes = {"mean": (d_in,), "matrix": (d_in, d_in), "inverse_matrix": (d_in, d_in)}
    stored = {name: tuple(whitening[name].shape) for name in shapes if name in whitening}
    if stored != shapes:
        raise ValueError(f"{folder / WHITENING} holds {stored}, expected {shapes}")
    mean, matrix, inverse = (whitening[name].double() for name in shapes)
    t["W_enc"] = matrix @ t["W_enc"]
    if not subtract:
        shift = mean @ t["W_enc"]
        t["b_enc"] = t["b_enc"] - shift
        if "b_mag" in t:
            t["b_mag"] = t["b_mag"] - shift * t["r_mag"].exp()
    t["W_dec"] = t["W_dec"] @ inverse
    t["b_dec"] = t["b_dec"] @ inverse + mean


def _reshape(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    hook = str(metadata.get("hook_name") or metadata.get("hook_point") or "")
    return str(config.get("reshape_activations") or ("hook_z" if hook.endswith("hook_z") else "none"))


def _seed(runner: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    for recording in (runner, config):
        if (seed := seed_of(recording.get("seed"))) is not None:
            return seed
    return None
