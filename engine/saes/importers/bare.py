"""Plain safetensors files: SeedScope's own `seed-N.safetensors`, and others with their settings in metadata or JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedscope.engine.saes.convention import ARCHITECTURES, NORMALIZATIONS, Convention
from seedscope.engine.saes.importers.facts import fixed, stated
from seedscope.engine.saes.importers.imported import (
    Imported,
    count,
    imported,
    peek_safetensors,
    read_json,
    read_safetensors,
    seed_of,
    vector,
)
from seedscope.engine.saes.importers.processing import recorded_processing
from seedscope.engine.saes.importers.settings import recorded
from seedscope.engine.saes.importers.values import positive, shown

OWN, BARE = "seedscope", "safetensors"
_BESIDE = ("cfg.json", "config.json")
_EXAMPLE = '{"architecture": "topk", "k": 32, "subtract_b_dec": true}'
# Other libraries' names of the same settings.
_ALIASES = {"apply_b_dec_to_input": "subtract_b_dec", "normalize_activations": "normalize"}
_KEYS = {
    "library": "library",
    "forward pass": "architecture",
    "normalisation": ("normalize", "normalize_activations"),
    "scale": "input_scale",
    "b_dec": ("subtract_b_dec", "apply_b_dec_to_input"),
    "hook point": ("hook_name", "hookpoint"),
    "output hook point": ("hook_name_out", "hookpoint_out"),
    "k or l1": "k",
    "model": ("model_name", "model"),
    "dataset": "dataset",
    "seed": "seed",
}
_OWN_FACTS = {"library": ("SeedScope", "format seedscope")} | fixed("format seedscope", "scale", "normalisation")
_SHOWN = (
    "model", "model_name", "hookpoint", "hook_name", "hookpoint_out", "hook_name_out", "dataset", "library",
    "library_version",
)  # fmt: skip


def kind(path: Path) -> str:
    """OWN or BARE, whichever a file is, "" if it holds no SAE. Raises ValueError where it is truncated."""
    names, metadata = peek_safetensors(path)
    if not {"W_enc", "W_dec"} <= names:
        return ""
    return OWN if path.stem.startswith("seed-") and "architecture" in metadata else BARE


def read(path: Path) -> Imported:
    """The SAE in a safetensors file; its settings are in the file's metadata or in a JSON file beside it.

    Raises ValueError where they are missing or contradict the tensors.
    """
    tensors, metadata = read_safetensors(path)
    if missing := [name for name in ("W_enc", "b_enc", "W_dec", "b_dec") if name not in tensors]:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}, expected W_enc, b_enc, W_dec, b_dec; found {', '.join(sorted(tensors))}. "
            "Rename the tensors, and write zeros where the SAE has no such bias"
        )
    settings, where = _settings(path, metadata)
    convention = _convention(settings, where, no_bias=not tensors["b_dec"].any())
    own = kind(path) == OWN
    seed = settings.get("seed")
    source = {"format": OWN if own else BARE} | {name: settings.get(name) for name in _SHOWN}
    for name, other_name in (("model", "model_name"), ("hookpoint", "hook_name"), ("hookpoint_out", "hook_name_out")):
        source[name] = source.pop(other_name) or source[name]
    return imported(
        path,
        tensors | vector(tensors, "threshold", "b_enc"),
        convention,
        seed=seed_of(int(seed) if isinstance(seed, str) and seed.isdigit() else seed),
        source=source,
        facts=(_OWN_FACTS if own else {})
        | stated(settings, where.name if where != path else f"{path.name} metadata", _KEYS),
        remarks=recorded_processing(settings, where),
        settings=recorded(settings),
    )


def _settings(path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, Any], Path]:
    """The settings, and the file that they are in: the safetensors file itself, or a JSON file beside it."""
    if "architecture" in metadata:
        return dict(metadata), path
    for beside in (path.with_suffix(".json"), *(path.parent / name for name in _BESIDE)):
        if beside.is_file():
            return {**metadata, **read_json(beside)}, beside
    raise ValueError(
        f"found nothing that says how {path} is used: no architecture in its metadata, no {path.stem}.json, "
        f"{' or '.join(_BESIDE)} beside it. Write {path.with_suffix('.json')} such as {_EXAMPLE}"
    )


def _convention(settings: Mapping[str, Any], where: Path, *, no_bias: bool) -> Convention:
    values = {_ALIASES.get(name, name): value for name, value in settings.items()}
    architecture = values.get("architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{where} has architecture = {shown(architecture)}, expected one of {', '.join(ARCHITECTURES)}"
        )
    fields: dict[str, Any] = {"architecture": architecture}
    if architecture in ("topk", "groupmax"):
        fields["k"] = count(values.get("k"), "k", where)
    for name in ("subtract_b_dec", "layer_norm_eps_out", "inclusive", "rescale_by_decoder_norm", "transcoder", "skip"):
        if name in values:
            fields[name] = _truth(values[name], name, where)
    if "subtract_b_dec" not in fields:
        if not no_bias and not fields.get("transcoder"):
            raise ValueError(
                f"{where} does not say whether b_dec is subtracted before encoding, and b_dec is not zero; "
                'write "subtract_b_dec": true or false into it'
            )
        fields["subtract_b_dec"] = False
    if (normalize := values.get("normalize", "none")) not in NORMALIZATIONS:
        raise ValueError(f"{where} has normalize = {shown(normalize)}, expected one of {', '.join(NORMALIZATIONS)}")
    fields["normalize"] = normalize
    if "input_scale" in values:
        try:
            fields["input_scale"] = float(values["input_scale"])
        except (TypeError, ValueError):
            raise ValueError(f"{where} has input_scale = {shown(values['input_scale'])}, expected a number") from None
        positive(fields["input_scale"], "input_scale", where)
    try:
        return Convention(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _truth(value: Any, name: str, where: Path) -> bool:
    truth = {"true": True, "false": False}.get(str(value).lower())
    if truth is None:
        raise ValueError(f"{where} has {name} = {shown(value)}, expected true or false")
    return truth
