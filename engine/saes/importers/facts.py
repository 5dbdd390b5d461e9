"""Facts of an SAE that its numbers rest on, each with where it was read: a file's key, a name, an option, or an assumption.

Importers state what their files say (`stated`, `fixed`); `complete` adds what the tensors and the convention say. What no
file said, and the code had to choose, is marked ASSUMED.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from seedscope.engine.saes.convention import Convention

Facts = dict[str, tuple[str, str]]
"""{fact: (value, source)}, in the order of NAMES."""

NEURONPEDIA = "neuronpedia"  # MODEL/SOURCE of its pages there; a fact of those SAEs alone that have some
ASSUMED, BY_USER, FOLDER_NAME = "assumed", "you", "folder name"
NOT_STATED = "not stated"
NAMES = (
    "library", "forward pass", "threshold", "normalisation", "scale", "b_dec", "hook point", "d_in", "d_sae", "k or l1",
    "recorded L0",
    "model", "processing of the model", "dtype", "dataset", "seed",
)  # fmt: skip
_BEHIND = {"hook point": "output hook point", "d_in": "d_out"}  # facts of transcoders alone, and where they stand
TRANSCODER_NAMES = tuple(one for name in NAMES for one in (name, _BEHIND.get(name)) if one)


def stated(settings: Mapping[str, Any], file: str, keys: Mapping[str, str | Iterable[str]]) -> Facts:
    """What a file's settings say: for every fact its first key that has a value, dots leading into nested objects."""
    facts: Facts = {}
    for fact, names in keys.items():
        for key in (names,) if isinstance(names, str) else names:
            value = _value(settings, key)
            if value is not None and value != "":
                facts[fact] = _text(value), f"{file}: {key}"
                break
    return facts


def _value(settings: Mapping[str, Any], key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def fixed(source: str, *names: str) -> Facts:
    """Facts that a format leaves no choice in; their values are those of the convention."""
    return dict.fromkeys(names, ("", source))


def dtype_of(tensors: Mapping[str, Tensor]) -> str:
    """The number types of the weight matrices, as stored."""
    matrices = [tensor for name, tensor in tensors.items() if name in ("W_enc", "W_dec")] or list(tensors.values())
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in matrices}))


def complete(
    facts: Mapping[str, tuple[str, str]],
    tensors: Mapping[str, Tensor],
    convention: Convention,
    source: Mapping[str, str],
    seed: int | None,
    dtype: str,
) -> Facts:
    """All facts of one SAE in the order of NAMES, or of a transcoder in that of TRANSCODER_NAMES.

    The forward pass, sizes, hook point, model and seed are those that are computed with, whatever the files call them; what
    an importer stated adds their source. Facts of the convention without a source are ASSUMED, others NOT_STATED.
    """
    c = convention
    d_sae, d_out = tensors["W_dec"].shape
    d_in = len(tensors["W_enc"])
    library = " ".join(source[name] for name in ("library", "library_version") if name in source)
    used = {
        "forward pass": c.architecture
        + (" of decoder-scaled activations" if c.rescale_by_decoder_norm else "")
        + (" transcoder" if c.transcoder else "")
        + (" with a skip connection" if c.skip else ""),
        "normalisation": c.normalize + (", eps undone on the way out" if c.layer_norm_eps_out else ""),
        "b_dec": "subtracted before encoding" if c.subtract_b_dec else "not subtracted before encoding",
    }
    completed: Facts = {}
    for name in TRANSCODER_NAMES if c.transcoder else NAMES:
        value, where = facts.get(name, ("", ""))
        if name in used:
            completed[name] = used[name], where or ASSUMED
        elif name == "scale":
            completed[name] = value or f"{c.input_scale:g}", where or ASSUMED
        elif name == "threshold" and "threshold" in tensors:
            completed[name] = _threshold(tensors["threshold"], c), where or "weights"
        elif name == "threshold":
            completed[name] = "none", where or facts.get("forward pass", ("", ""))[1] or ASSUMED
        elif name in ("d_in", "d_out", "d_sae"):
            size = {"d_in": d_in, "d_out": d_out, "d_sae": d_sae}[name]
            sized_by = {"d_in": "rows of W_enc" if c.transcoder else "length of b_dec", "d_out": "length of b_dec"}
            completed[name] = str(size), where or f"weights: {sized_by.get(name, 'length of b_enc')}"
        elif name == "k or l1":
            completed[name] = (f"k {c.k}", where or ASSUMED) if c.k else _penalty(value, where)
        elif name == "processing of the model":
            completed[name] = (value, where) if where else ("none", ASSUMED)
        elif name == "dtype":
            completed[name] = value or dtype, where or "weights"
        elif name == "seed":
            completed[name] = (NOT_STATED, "") if seed is None else (str(seed), where or "files")
        else:
            known = {
                "library": library,
                "hook point": source.get("hookpoint"),
                "output hook point": source.get("hookpoint_out"),
                "model": source.get("model"),
            }
            value = known.get(name) or value
            completed[name] = (value, where or ("the files' layout" if name == "library" else "files")) if value else (
                NOT_STATED, ""
            )  # fmt: skip
    return completed | {name: facts[name] for name in (NEURONPEDIA,) if name in facts}


def _penalty(value: str, where: str) -> tuple[str, str]:
    """What training asked for where the forward pass has no k: a penalty, or the k that a BatchTopK kept on average."""
    if not value:
        return NOT_STATED, ""
    return (f"k {value} in training" if where.endswith(("k", "top_k")) else f"l1 {value}"), where


def _threshold(threshold: Tensor, convention: Convention) -> str:
    low, high = float(threshold.min()), float(threshold.max())
    text = f"{low:.4g} for all features" if low == high else f"one per feature, {low:.4g} to {high:.4g}"
    return f"{text}, reached" if convention.inclusive else f"{text}, exceeded"


def changed(facts: Facts, source: str, **values: str | None) -> Facts:
    """The facts with values from another source; underscores in names stand for spaces, None changes nothing."""
    new = {name.replace("_", " "): (value, source) for name, value in values.items() if value is not None}
    return {name: new.get(name, facts[name]) for name in facts}


def completed_as_transcoder(facts: Facts, d_out: int) -> Facts:
    """Facts of an SAE that is taken for a transcoder by the user's word."""
    more: Facts = {"output hook point": (NOT_STATED, ""), "d_out": (str(d_out), "weights: length of b_dec")}
    value, _ = facts["forward pass"]
    more["forward pass"] = f"{value} transcoder", BY_USER
    completed = {name: more.get(name) or facts[name] for name in TRANSCODER_NAMES}
    return completed | {name: facts[name] for name in (NEURONPEDIA,) if name in facts}


def assumed(facts: Mapping[str, tuple[str, str]]) -> list[str]:
    """Names of the facts that were assumed."""
    return [name for name, (_, source) in facts.items() if source == ASSUMED]


def in_short(members: Mapping[int, Mapping[str, tuple[str, str]]]) -> list[str]:
    """A line per fact, where all members agree; otherwise a line per value, with the seeds that have it."""
    lines = []
    for name in (*TRANSCODER_NAMES, NEURONPEDIA):
        seeds: dict[tuple[str, str], list[int]] = {}
        for seed, facts in members.items():
            if name in facts:
                seeds.setdefault(facts[name], []).append(seed)
        if name == "seed" and len({source for _, source in seeds}) == 1:
            listed = ", ".join(value for value, _ in seeds)
            seeds = {(listed, next(iter(seeds))[1]): list(members)}
        for (value, source), having in seeds.items():
            of = f" (seed {', '.join(map(str, having))})" if len(seeds) > 1 else ""
            lines.append(f"{name}: {value}{f'  [{mark(source)}]' if source else ''}{of}")
    return lines


def mark(source: str) -> str:
    """The source as it is printed: what was assumed has a sign."""
    return f"! {source}" if source == ASSUMED else source
