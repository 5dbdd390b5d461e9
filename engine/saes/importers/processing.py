"""What an SAE's config says of the model it was trained on: processed weights change what the SAE reads.

TransformerLens can rewrite a model's weights while it loads them; the logits stay, activations at some places do not
(TransformerLens: HookedTransformer.from_pretrained, load_and_process_state_dict). SAELens loads without processing unless
`model_from_pretrained_kwargs` says otherwise (sae_lens/load_model.py).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedscope.engine.saes.importers.values import shown

# What TransformerLens does by default where a config says that the model was processed.
_DEFAULTS = {
    "fold_ln": True,
    "center_writing_weights": True,
    "center_unembed": True,
    "fold_value_biases": True,
    "refactor_factored_attn_matrices": False,
}
# - fold_ln moves a norm's gain and bias into the weights that read it, so sums, heads and neurons stay as they are.
# - center_unembed changes the logits alone.
_WITHOUT_EFFECT = {
    "fold_ln", "center_unembed", "no_processing", "device", "n_devices", "n_ctx", "default_prepend_bos",
    "default_padding_side", "move_to_device", "trust_remote_code", "cache_dir", "device_map", "low_cpu_mem_usage", "token",
    "local_files_only", "attn_implementation", "use_safetensors", "tokenizer", "output_loading_info",
}  # fmt: skip
# Names under which configs say that the model's weights were rewritten.
_PROCESSING = (
    _DEFAULTS.keys() - {"center_unembed"}
    | {"model_from_pretrained_kwargs", "from_pretrained_kwargs", "model_kwargs", "process_model", "model_processing"}
)  # fmt: skip
UNSAID = "does not say how its model was loaded"  # part of the remark that `unsaid` makes
_UNPROCESSED = (3, 19, 2)  # SAELens: from this version on models are loaded without processing
_STREAM = re.compile(r"blocks\.\d+\.hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)|hook_embed")
_HEADS = re.compile(r"blocks\.\d+\.attn\.hook_(z|v)")
_NORMED = re.compile(r".*hook_normalized")
# Families with RMS norms: there TransformerLens leaves the writing weights as they are, as the mean counts.
_RMS = re.compile(r"llama|gemma|mistral|mixtral|qwen|phi-?[34]|olmo-2|smollm|deepseek|(^|/)yi-", re.IGNORECASE)
_CHANGES = re.compile(
    r"normali|scal|cent(er|re)|subtract|whiten|rotat|project|offset|shift|clip|noise|head_index|preproc"
)
_KNOWN = {
    "normalize_activations", "rescale_acts_by_decoder_norm", "finetuning_scaling_factor", "normalize_sae_decoder",
    "noise_scale", "scale_sparsity_penalty_by_decoder_norm", "mse_loss_normalization", "decoder_heuristic_init_norm",
    "decoder_init_norm", "use_ghost_grads", "lr_scheduler_name", "hook_head_index", "finetuning_method", "jumprelu_tanh_scale",
    "wandb_project", "autocast", "autocast_lm", "noise_std",
}  # fmt: skip


def is_centred(metadata: Mapping[str, Any], hookpoint: str | None, file: Path, remarks: list[str]) -> bool:
    """Whether the mean over d_model was taken out of what the SAE was trained on; adds remarks on what else is recorded.

    Raises ValueError where the processing changes what the SAE reads in a way that only the processed model knows.
    """
    recorded = metadata.get("model_from_pretrained_kwargs") or {}
    if not isinstance(recorded, Mapping):
        raise ValueError(f"{file} has model_from_pretrained_kwargs = {shown(recorded)}, expected an object")
    without = recorded.get("no_processing", metadata.get("no_processing"))
    settings = (_DEFAULTS if without is False else {}) | dict(recorded)
    hook = hookpoint or ""
    for name in ("fold_value_biases", "refactor_factored_attn_matrices"):
        if settings.get(name) and _HEADS.fullmatch(hook):
            raise ValueError(
                f"{file} says that the SAE reads {hook} of a model loaded with {name}: its heads' outputs are other numbers "
                "than those of the model as it was released, and how they differ is in that model's weights. Import SAEs that "
                "were trained without it"
            )
    if settings.get("fold_ln") and _NORMED.fullmatch(hook):
        raise ValueError(
            f"{file} says that the SAE reads {hook} of a model loaded with fold_ln: there the norm has no gain and bias. Import "
            "SAEs that were trained without it"
        )
    for name in sorted(settings.keys() - _WITHOUT_EFFECT - _DEFAULTS.keys()):
        if settings[name] is not None:
            what = (
                "activations here have another precision"
                if name in ("dtype", "torch_dtype")
                else "this may change what it reads and is not repeated here"
            )
            remarks.append(f"trained on a model loaded with {name} = {settings[name]}: {what}")
    if not settings.get("center_writing_weights"):
        return False
    if _RMS.search(str(metadata.get("model_name") or "")):
        remarks.append("center_writing_weights is recorded and has no effect on a model with RMS norms")
        return False
    if _STREAM.fullmatch(hook):
        return True
    if not hook:
        raise ValueError(
            f"{file} records center_writing_weights and no hook point, so whether the SAE reads centred activations is not "
            "known; write its hook_name into that file"
        )
    if not _HEADS.fullmatch(hook) and not hook.endswith("hook_post"):
        remarks.append(f"trained on a model loaded with center_writing_weights, which {hook} is read without")
    return False


def unsaid(metadata: Mapping[str, Any], hookpoint: str | None, file: Path) -> list[str]:
    """A remark where SAELens may have processed the model by default: before 3.19.2, and its config does not say.

    Until then SAELens called TransformerLens' from_pretrained, which folds norms and centres writing weights; since then
    from_pretrained_no_processing (SAELens pull request 279).
    """
    recorded = metadata.get("model_from_pretrained_kwargs") or {}
    version = str(metadata.get("sae_lens_version") or metadata.get("sae_lens_training_version") or "")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if {"center_writing_weights", "no_processing"} & recorded.keys() or numbers >= _UNPROCESSED:
        return []
    if (
        _RMS.search(str(metadata.get("model_name") or ""))
        or _HEADS.fullmatch(hookpoint or "")
        or (hookpoint or "").endswith("hook_post")
    ):
        return []
    written = f"by SAELens {version}" if numbers else "by a version of SAELens that it does not name"
    return [
        f"{file.name} was written {written} and {UNSAID}: before 3.19.2 writing weights were centred "
        'by default. It is read as if they were not; if they were, write "model_from_pretrained_kwargs": '
        '{"center_writing_weights": true} into it'
    ]


def recorded_processing(config: Mapping[str, Any], file: Path) -> list[str]:
    """A remark on every setting, at any depth, that says how the model was processed that an SAE was trained on.

    For libraries that do not repeat it themselves when they read such a file.
    """
    remarks = []
    for name, value in config.items():
        if name in _PROCESSING and value not in (None, False, "", {}, []):
            remarks.append(
                f"{file.name} has {name} = {value}: it was trained on a model that was loaded so, which is not repeated here"
            )
        elif isinstance(value, Mapping):
            remarks += recorded_processing(value, file)
    return remarks


def unknown_settings(config: Mapping[str, Any], file: Path) -> list[str]:
    """A remark on every setting whose name says that it may change numbers, and that no importer reads."""
    return [
        f"{file.name} has {name} = {shown(value)}, which is not known here and may change numbers"
        for name, value in sorted(config.items())
        if name not in _KNOWN and _CHANGES.search(name) and value not in (None, False, "none", "", {}, [])
    ]
