"""What a weights file holds, in words: names and shapes of its tensors, for errors about files of no known format."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from seedscope.engine.saes.importers import unpickle
from seedscope.engine.saes.importers.files import parsed_json, require_file

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".pkl")
CONFIGS = ("config.json", "cfg.json")
_SHOWN = 8  # tensors
_KEYS, _VALUE = 12, 24  # of a config; characters of a value
_LOOKED_AT = 200  # files below a folder, at most
WAY_OUT = (
    "If you know how it encodes, save its tensors as W_enc (d_in, d_sae), b_enc, W_dec (d_sae, d_in), b_dec in a .safetensors "
    'file, with a JSON file beside it such as {"architecture": "topk", "k": 32, "subtract_b_dec": true}'
)


def first_tensors(folder: Path) -> str:
    """The tensors of the first weights file below a folder, "" where it has none."""
    for path, _ in zip(sorted(folder.rglob("*")), range(_LOOKED_AT), strict=False):
        if path.suffix in SUFFIXES and path.is_file() and (tensors := tensors_in(path)):
            return f"{path.relative_to(folder)} holds {tensors}{_beside(path)}"
    return ""


def _beside(path: Path) -> str:
    """The keys of a config beside a weights file, in words; "" where there is none."""
    for name in CONFIGS:
        try:
            config = parsed_json(path.parent / name)
        except (OSError, ValueError):
            continue
        if isinstance(config, Mapping) and config:
            keys = ", ".join(f"{key} = {_short(value)}" for key, value in list(config.items())[:_KEYS])
            return f"; {name} beside it says {keys}{', ..' * (len(config) > _KEYS)}"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _VALUE else f"{text[:_VALUE]}.."


def tensors_in(path: Path) -> str:
    """Names and shapes of a file's tensors, and the class of a pickled object; "" where it holds none or is not readable."""
    try:
        if path.suffix == ".safetensors":
            require_file(path)
            with safe_open(path, "pt") as file:
                shapes = [(name, tuple(file.get_slice(name).get_shape())) for name in file.keys()]  # noqa: SIM118
        else:
            shapes = list(_tensors(unpickle.peek(path), "", 5))
    except (ValueError, OSError, SafetensorError, AttributeError, KeyError, TypeError):
        return ""
    return ", ".join(f"{name} {shape}" for name, shape in shapes[:_SHOWN]) + ", .." * (len(shapes) > _SHOWN)


def _tensors(value: Any, name: str, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of the tensors in containers and pickled objects, whose classes stand in the names."""
    kind = unpickle.named(value)
    if kind in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        yield name or "a tensor", tuple(value.arguments[2])
    elif kind == "torch._utils._rebuild_parameter":
        yield from _tensors(value.arguments[0], name, depth)
    elif depth:
        items: Any = ()
        if isinstance(value, Mapping):
            items = value.items()
        elif isinstance(value, list | tuple):
            items = enumerate(value)
        elif isinstance(value, unpickle.Stub):
            items, name = vars(value).items(), f"{name} {kind}".strip()
        for key, item in items:
            yield from _tensors(item, f"{name}.{key}".lstrip("."), depth - 1)
