"""SAEs and transcoders of EleutherAI's sparsify (formerly sae), of `SparseCoder.save_to_disk`. Follows eai-sparsify 1.3.3.

A transcoder reads what enters the module that its folder is named after, and predicts what leaves it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedscope.engine.saes.convention import SKIP, Convention
from seedscope.engine.saes.importers.facts import FOLDER_NAME, Facts, fixed, stated
from seedscope.engine.saes.importers.imported import (
    Imported,
    as_given,
    count,
    imported,
    read_json,
    read_safetensors,
    seed_of,
    transposed,
    whole,
)
from seedscope.engine.saes.importers.processing import recorded_processing
from seedscope.engine.saes.importers.settings import recorded
from seedscope.engine.saes.importers.values import flag, shown

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_ACTIVATIONS = ("topk", "groupmax")
_DEFAULT_EXPANSION = 32  # of the library, for files that leave it out


def read(folder: Path) -> Imported:
    """The SAE or transcoder in a folder with cfg.json and sae.safetensors.

    Its seed is the folder's, `seed<k>`, or the run's only one. Raises ValueError for skip connections of SAEs, encoders without
    decoder and signed top-k.
    """
    where, config = folder / CONFIG, read_json(folder / CONFIG)
    stored, _ = read_safetensors(folder / WEIGHTS)
    activation = config.get("activation") or "topk"
    named = as_given(folder)
    hook = named.parent if re.fullmatch(r"seed\d+", named.name) else named
    run = _run(hook)
    of_run = run["sae"] if isinstance(run.get("sae"), dict) else run
    # Files of older versions have the flag in the run's config alone.
    transcoder = flag(config if "transcode" in config else of_run, "transcode", where)
    skip = flag(config if "skip_connection" in config else of_run, "skip_connection", where)
    if skip and not transcoder:
        raise ValueError(f"{folder} has a skip connection past the features; expected an SAE without one")
    if flag(config, "signed", where):
        raise ValueError(f"{folder} has signed activations (signed in {CONFIG}); expected activations of at least zero")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{where} has activation = {shown(activation)}, expected one of {', '.join(_ACTIVATIONS)}")
    if "W_dec" not in stored and "encoder.weight" in stored:
        raise ValueError(f"{folder / WEIGHTS} has no decoder (W_dec); save the SparseCoder with decoder=True")
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
    if {*names, "W_dec", "b_dec", *([SKIP] if skip else [])} - stored.keys():
        raise ValueError(
            f"{folder / WEIGHTS} holds {', '.join(sorted(stored)) or 'no tensors'}, expected encoder.weight, encoder.bias, "
            f"W_dec, b_dec{', W_skip' * skip} as sparsify's SparseCoder.save_to_disk writes them"
        )
    tensors = {names.get(name, name): tensor for name, tensor in stored.items()}
    d_in = count(config.get("d_in"), "d_in", where)
    n_latents = whole(config.get("num_latents") or 0, "num_latents", where)
    d_sae = n_latents or d_in * count(config.get("expansion_factor", _DEFAULT_EXPANSION), "expansion_factor", where)
    if (len(tensors["b_dec"]), len(tensors["b_enc"])) != (d_in, d_sae):
        raise ValueError(
            f"{folder / WEIGHTS} has {len(tensors['b_enc'])} features of {len(tensors['b_dec'])} dimensions, but {CONFIG} "
            f"says {d_sae} of {d_in}; the two files are not of one SAE"
        )
    # The encoder's rows are features. It is transposed here, because shapes cannot tell how a square matrix is stored.
    tensors |= transposed(tensors, "W_enc", *([SKIP] if skip else []))  # the skip connection is stored as (d_out, d_in)
    told_by = {"forward pass": ("", f"{CONFIG if 'transcode' in config else 'config.json'}: transcode")}
    return imported(
        folder,
        tensors,
        Convention(
            activation,
            k=count(config.get("k"), "k", where),
            subtract_b_dec=not transcoder,
            transcoder=transcoder,
            skip=skip,
        ),
        seed=_seed(named),
        source={
            "format": "sparsify",
            "library": "eai-sparsify",
            "hookpoint": f"{hook.name}.input" if transcoder else hook.name,
            "hookpoint_out": hook.name if transcoder else None,
        },
        remarks=[
            *(["trained with Multi-TopK"] if config.get("multi_topk") else []),
            *recorded_processing(run, hook.parent / "config.json"),
            *recorded_processing(config, where),
        ],
        facts=_facts(folder, named, config, hook) | (told_by if transcoder else {}),
        weights=folder / WEIGHTS,
        settings=recorded(run, config),
    )


def _facts(folder: Path, named: Path, config: Mapping[str, Any], hook: Path) -> Facts:
    facts = fixed("format sparsify", "library", "threshold", "normalisation", "scale", "b_dec")
    facts |= stated(config, CONFIG, {"forward pass": "activation", "k or l1": "k", "d_in": "d_in"})
    facts |= stated(config, CONFIG, {"d_sae": "num_latents" if config.get("num_latents") else "expansion_factor"})
    facts |= fixed(FOLDER_NAME, "hook point", "output hook point")
    facts |= stated(_run(hook), "config.json", {"model": "model", "dataset": "dataset", "seed": "init_seeds"})
    if re.fullmatch(r"seed\d+", named.name):
        facts["seed"] = "", FOLDER_NAME
    return facts


def _run(hook: Path) -> dict[str, Any]:
    """The settings of the run that a hookpoint's folder belongs to; {} where they are not beside it."""
    run = hook.parent / "config.json"
    return read_json(run) if run.is_file() else {}


def _seed(folder: Path) -> int | None:
    if match := re.fullmatch(r"seed(\d+)", folder.name):
        return int(match[1])
    if (run := folder.parent / "config.json").is_file():
        seeds = read_json(run).get("init_seeds")
        return seed_of(seeds[0]) if isinstance(seeds, list) and len(seeds) == 1 else None
    return None
