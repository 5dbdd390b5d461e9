"""SAEs by their name in SAELens' registry, `saelens:RELEASE/SAE_ID`: looked up in the sae_lens package where it is installed.

The registry says in which repository of the hub an SAE lies, which layout its files have, and what SAELens overrides of the
files' own config. Read through the package's own `get_pretrained_saes_directory` (sae_lens.loading, before version 6
sae_lens.toolkit).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seedscope.engine.contract.urls import url_in
from seedscope.engine.saes.convention import NORMALIZATIONS
from seedscope.engine.saes.importers.imported import Imported
from seedscope.engine.saes.importers.processing import UNSAID, is_centred
from seedscope.engine.saes.importers.values import shown

PREFIX = "saelens:"
REGISTRY = "SAELens' registry"
WAY_OUT = "install it with: pip install sae-lens; or name the files themselves: hf:OWNER/REPO/FOLDER"
_MODULES = ("sae_lens.loading.pretrained_saes_directory", "sae_lens.toolkit.pretrained_saes_directory")
_SHOWN = 4  # names in an error
# Layouts of the registry whose forward pass is no plain SAE's, or is not known here.
_REFUSED = {
    "temporal": "SAEs over time, which read other tokens as well",
    "qwen_scope": "files that do not say how many features fire",
    "mwhanna_transcoder": "transcoders in a layout that is not read",
    "mntss_clt_layer_transcoder": "cross-layer transcoders",
}
# Overrides that say nothing about numbers.
_INFORMATIVE = {
    "dataset_path",
    "neuronpedia_id",
    "model_name",
    "hook_name",
    "context_size",
    "sae_lens_training_version",
}


@dataclass(frozen=True)
class RegistryEntry:
    """What the registry says of one SAE."""

    name: str  # RELEASE/SAE_ID
    hub: str  # hf:OWNER/REPO/PATH
    layout: str  # the name of SAELens' loader
    model: str | None = None
    scale: float | None = None  # of activations, where files are to be read with one that they do not hold
    overrides: Mapping[str, Any] = field(default_factory=dict)


def named(path: str) -> str:
    """A path as it is; or, of RELEASE/SAE_ID that is no path, `saelens:RELEASE/SAE_ID`.

    Raises ValueError for a name that is no path and cannot be looked up, or is in no release.
    """
    if path.startswith(PREFIX):
        lookup(path)
        return path
    release, _, sae_id = path.partition("/")
    plain = not path.startswith(("hf:", "public:", "file:", "/", "~", ".")) and bool(release and sae_id)
    plain = plain and url_in(path) is None
    if not plain or Path(path).exists() or Path(release).is_dir():
        return path
    if find_spec("sae_lens") is None:
        raise ValueError(
            f"found no file or folder {path}; if it is a name of {REGISTRY} (RELEASE/SAE_ID), that takes the sae_lens package: "
            f"{WAY_OUT}"
        )
    if release not in _directory():
        raise ValueError(
            f"found no file or folder {path}, and no release {shown(release)} in {REGISTRY}{_alike(release, _directory())}; name a "
            "file, a folder, RELEASE/SAE_ID or hf:OWNER/REPO/FOLDER"
        )
    lookup(PREFIX + path)
    return PREFIX + path


def lookup(name: str) -> RegistryEntry:
    """The entry of `saelens:RELEASE/SAE_ID`; raises ValueError where it is not there, or of a layout that is not read."""
    release, _, sae_id = name.removeprefix(PREFIX).partition("/")
    known = _directory().get(release)
    if known is None:
        raise ValueError(f"found no release {shown(release)} in {REGISTRY}{_alike(release, _directory())}")
    if sae_id not in known.saes_map:
        raise ValueError(
            f"release {release} of {REGISTRY} has no SAE {shown(sae_id)}{_alike(sae_id, known.saes_map)}; it has "
            f"{len(known.saes_map)}"
        )
    layout = known.conversion_func or "sae_lens"
    if layout in _REFUSED:
        raise ValueError(
            f"{release}/{sae_id} of {REGISTRY} (hf:{known.repo_id}/{known.saes_map[sae_id]}) has the layout {layout}: "
            f"{_REFUSED[layout]}, expected SAEs"
        )
    path = known.saes_map[sae_id].strip("/")
    return RegistryEntry(
        name=f"{release}/{sae_id}",
        hub=f"hf:{known.repo_id}" + (f"/{path}" if path not in ("", ".") else ""),
        layout=layout,
        model=known.model,
        scale=None if layout.startswith("llama_scope") else (known.norm_scaling_factor or {}).get(sae_id),
        overrides=dict(known.config_overrides or {}),
    )


def applied(member: Imported, entry: RegistryEntry) -> Imported:
    """The SAE with what the registry says beside its files: processing of the model, and normalisation of activations.

    Raises ValueError where the processing changes what it reads in a way that only the processed model knows.
    """
    remarks, of_files = [f"{REGISTRY}: {entry.name}"], member.remarks
    convention, facts = member.convention, dict(member.facts)
    kwargs = entry.overrides.get("model_from_pretrained_kwargs")
    if kwargs and "processing of the model" in facts:
        metadata = {"model_from_pretrained_kwargs": kwargs, "model_name": entry.model}
        path, places = Path(member.source["path"]), [member.source.get("hookpoint"), member.source.get("hookpoint_out")]
        if convention.transcoder and any(is_centred(metadata, place, path, []) for place in places if place):
            raise ValueError(
                f"{REGISTRY} has center_writing_weights for {entry.name}: what a transcoder reads and predicts there is centred, "
                "and no convention describes both. Import transcoders that were trained without it"
            )
        if is_centred(metadata, places[0], path, remarks):
            convention = replace(convention, normalize=_one_of("centre", convention.normalize, member))
        if {
            "center_writing_weights",
            "no_processing",
        } & kwargs.keys():  # which the files may lack, and the registry says
            of_files = tuple(remark for remark in of_files if UNSAID not in remark)
        says = ", ".join(f"{name} {str(value).lower()}" for name, value in kwargs.items())
        facts["processing of the model"] = says, REGISTRY
    if normalize := entry.overrides.get("normalize_activations"):
        if normalize not in NORMALIZATIONS:
            raise ValueError(
                f"{REGISTRY} has normalize_activations = {shown(normalize)} for {entry.name}, which is not known here"
            )
        convention = replace(convention, normalize=_one_of(normalize, convention.normalize, member))
        facts["normalisation"] = normalize, REGISTRY
    others = entry.overrides.keys() - _INFORMATIVE - {"model_from_pretrained_kwargs", "normalize_activations"}
    remarks += [
        f"{REGISTRY} has {name} = {shown(entry.overrides[name])}, which is not known here and may change numbers"
        for name in sorted(others)
    ]
    return replace(member, convention=convention, facts=facts, remarks=(*of_files, *remarks))


def _one_of(wanted: str, present: str, member: Imported) -> str:
    if present not in ("none", wanted):
        raise ValueError(
            f"{member.source['path']} normalises activations by {present}, and {REGISTRY} by {wanted}: both at once are "
            "not known here"
        )
    return wanted


def _directory() -> Mapping[str, Any]:
    """{release: what the package knows of it}; raises ValueError where the package is not there or cannot be used."""
    if find_spec("sae_lens") is None:
        raise ValueError(f"names of {REGISTRY} take the sae_lens package, which is not installed: {WAY_OUT}")
    problem: Exception | None = None
    for module in _MODULES:
        try:
            releases: Mapping[str, Any] = import_module(module).get_pretrained_saes_directory()
            return releases
        except ImportError as error:  # of another version, or without its dependencies
            problem = problem or error
    raise ValueError(f"the sae_lens package cannot be used ({problem}); {WAY_OUT}")


def _alike(name: str, names: Mapping[str, Any]) -> str:
    """Names that begin alike, in words."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(names), _SHOWN, 0.4) or list(names)[:_SHOWN]
    return f", such as {', '.join(close)}" if close else ""
