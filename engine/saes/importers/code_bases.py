"""SAEs as single code bases save them in .pt files: sae-stability (TopK with optimizer state), and Kissane's and Krzyzanowski's.

sae-stability (deenais/sae-stability-pythia70m): a dict with model_state_dict, optimizer_state_dict, config, seed, k and
tokens_seen, as `train_arms_shared_stream` writes it. Attention SAEs (ckkissane/attn-saes-gpt2-small-all-layers): a state dict
NAME.pt with NAME_cfg.json beside it. Both code bases take activations of a model that TransformerLens loads with its defaults.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from seedscope.engine.saes.convention import TENSORS, Convention
from seedscope.engine.saes.importers import unpickle
from seedscope.engine.saes.importers.facts import fixed, stated
from seedscope.engine.saes.importers.imported import Imported, count, imported, read_json, seed_of
from seedscope.engine.saes.importers.processing import is_centred
from seedscope.engine.saes.importers.settings import recorded
from seedscope.engine.saes.importers.values import shown

MODEL_STATE = "model_state_dict"
_PROCESSED = {"no_processing": False}  # TransformerLens' from_pretrained, without a word on processing
_DEFAULT_PROCESSING = ("TransformerLens' defaults", "the code base loads its model so")


def is_sae_stability(value: Any) -> bool:
    """Whether a `torch.save` file's content looks like a checkpoint of sae-stability, or like several in one."""
    if not isinstance(value, Mapping) or not isinstance(value.get("config"), Mapping):
        return False
    state = value.get(MODEL_STATE)
    return (isinstance(state, Mapping) and set(TENSORS) <= state.keys()) or {"models", "optimizers"} <= value.keys()


def read_sae_stability(path: Path) -> Imported:
    """The SAE in a checkpoint of sae-stability: relu of the k largest of (x - b_dec) @ W_enc + b_enc; the optimizer is left out.

    The residual stream that it reads is of centred writing weights. Raises ValueError for a rolling checkpoint, which holds
    several SAEs, and for runs with another sparsity than TopK.
    """
    value = unpickle.read(path)
    if not is_sae_stability(value):
        raise ValueError(f"{path} holds no {MODEL_STATE} of W_enc, b_enc, W_dec, b_dec with a config, expected them")
    if MODEL_STATE not in value:
        arms = ", ".join(map(str, list(value["models"])[:4]))
        raise ValueError(
            f"{path} is a rolling checkpoint of several SAEs ((k, seed): {arms}, ..), expected a file of one, such as "
            "seed42_k64_tokens1000000000.pt"
        )
    config = value["config"]
    if config.get("sparsity") != "topk" or value.get("k") is None:
        raise ValueError(
            f"{path} has sparsity = {shown(config.get('sparsity'))} and k = {shown(value.get('k'))} in its config, expected topk "
            "and a number: the forward pass of other runs of this code base is not known here. Save its tensors with a JSON file "
            "that says how it encodes"
        )
    tokens = value.get("tokens_seen")
    remarks: list[str] = []
    hookpoint = config.get("hook_point")
    centred = is_centred(_PROCESSED | {"model_name": config.get("model_name")}, hookpoint, path, remarks)
    if centred:
        remarks.append("reads centred activations: its model was loaded with TransformerLens' defaults")
    return imported(
        path,
        value[MODEL_STATE],
        Convention("topk", k=count(value["k"], "k", path), normalize="centre" if centred else "none"),
        seed=seed_of(value.get("seed")),
        source={
            "format": "sae_stability",
            "library": "sae-stability",
            "architecture": "topk",
            "model": config.get("model_name"),
            "hookpoint": hookpoint,
        },
        remarks=remarks,
        facts=fixed("format sae_stability", "library", "forward pass", "normalisation", "scale", "b_dec")
        | {
            "processing of the model": _DEFAULT_PROCESSING,
            "k or l1": ("", f"{path.name}: k"),
            "seed": ("", f"{path.name}: seed"),
        }
        | stated(config, f"{path.name}: config", {"hook point": "hook_point", "model": "model_name"}),
        settings=recorded(config) | ({"million tokens": str(tokens // 10**6)} if isinstance(tokens, int) else {}),
    )


def config_beside(path: Path) -> Path:
    """The config that belongs to an attention SAE\'s weights: NAME_cfg.json for NAME.pt."""
    return path.with_name(f"{path.stem}_cfg.json")


def is_connor_rob(path: Path, value: Any) -> bool:
    """Whether a `torch.save` file is a state dict with the config of this code base beside it."""
    if not isinstance(value, Mapping) or set(TENSORS) != value.keys() or not config_beside(path).is_file():
        return False
    return {"act_size", "dict_size", "act_name"} <= read_json(config_beside(path)).keys()


def read_connor_rob(path: Path) -> Imported:
    """The SAE in NAME.pt with NAME_cfg.json: relu((x - b_dec) @ W_enc + b_enc).

    Where it reads heads\' outputs (hook_z) of a model whose value biases were folded away, its hook point is left open: the
    activations of the model as it was released are other numbers.
    """
    value = unpickle.read(path)
    if not is_connor_rob(path, value):
        raise ValueError(f"{path} holds no state dict with {config_beside(path).name} beside it, expected both")
    where, remarks = config_beside(path), list[str]()
    config = read_json(where)
    hookpoint, centred = config.get("act_name"), False
    try:
        centred = is_centred(_PROCESSED | {"model_name": config.get("model_name")}, hookpoint, where, remarks)
    except ValueError:
        remarks.append(
            f"reads {hookpoint} of a model loaded with TransformerLens' defaults, which fold value biases away: the model as it "
            "was released has other numbers there, so the hook point is left open. Record activations of the processed model for "
            "--activations"
        )
        hookpoint = None
    tensors = {name: tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
    for name, length in (("b_dec", config["act_size"]), ("b_enc", config["dict_size"])):
        if name in tensors and tuple(tensors[name].shape) != (length,):
            raise ValueError(
                f"{path}: {name} has the shape {tuple(tensors[name].shape)}, {where.name} says ({length},)"
            )
    return imported(
        path,
        tensors,
        Convention("relu", normalize="centre" if centred else "none"),
        seed=seed_of(config.get("seed")),
        source={
            "format": "connor_rob",
            "library": "attention SAEs",
            "architecture": "standard",
            "model": config.get("model_name"),
            "hookpoint": hookpoint,
        },
        remarks=remarks,
        facts=fixed("format connor_rob", "library", "forward pass", "normalisation", "scale", "b_dec")
        | {"processing of the model": _DEFAULT_PROCESSING}
        | stated(
            config,
            where.name,
            {"model": "model_name", "k or l1": "l1_coeff", "seed": "seed"}
            | ({"hook point": "act_name"} if hookpoint else {}),
        ),
        settings=recorded(config),
    )
