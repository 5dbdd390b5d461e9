"""Damaged copies of checkpoints: changed bytes, tensors and settings, drawn from a seeded generator."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS = (".safetensors", ".pt", ".pth", ".npz")
_HUGE = 100.0  # sums with others are still exact enough in float32
_DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.bool)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, -1, -7, 3.5, float("nan"), float("inf"), 1e30, 10**30, 2**63, "", "none", "false", "32",
    "\udcff".encode("utf-8", "replace").decode(), [], [1, 2], {}, {"a": None}, "topk", "blocks.1.hook_resid_post",
)  # fmt: skip


def mutate(folder: Path, rng: np.random.Generator) -> str:
    """Damage one file or two of a checkpoint's folder, in place; a few words on what was done."""
    return "; ".join(_once(folder, rng) for _ in range(1 if rng.random() < 0.8 else 2))


def _once(folder: Path, rng: np.random.Generator) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[rng.integers(len(files))]
    weights = path.suffix in WEIGHTS
    actions: list[Callable[[Path, np.random.Generator], str]] = [_bits, _cut, _zeros, _longer]
    actions += [_tensor] * 8 if weights else [_setting] * 8
    action = actions[rng.integers(len(actions))]
    return f"{path.relative_to(folder)}: {action(path, rng)}"


# -- bytes ---------------------------------------------------------------------------------------------------------


def _bits(path: Path, rng: np.random.Generator) -> str:
    data = bytearray(path.read_bytes())
    places = rng.integers(len(data), size=rng.integers(1, 9)) if data else []
    for place in places:
        data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(data))
    return f"bits flipped at {sorted(map(int, places))}"


def _cut(path: Path, rng: np.random.Generator) -> str:
    data = path.read_bytes()
    length = int(rng.integers(len(data))) if data else 0
    path.write_bytes(data[:length])
    return f"cut to {length} of {len(data)} bytes"


def _zeros(path: Path, rng: np.random.Generator) -> str:
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data))) if data else 0
    stop = min(start + int(rng.integers(1, 65)), len(data))
    data[start:stop] = bytes(stop - start)
    path.write_bytes(bytes(data))
    return f"zeros from {start} to {stop}"


def _longer(path: Path, rng: np.random.Generator) -> str:
    more = rng.integers(256, size=rng.integers(1, 33), dtype=np.uint8).tobytes()
    path.write_bytes(path.read_bytes() + more)
    return f"{len(more)} bytes appended"


# -- tensors -------------------------------------------------------------------------------------------------------


def _tensor(path: Path, rng: np.random.Generator) -> str:
    read = _read(path)
    if read is None:
        return _bits(path, rng)
    state, write = read
    names = sorted(name for name, value in state.items() if isinstance(value, Tensor))
    name = names[rng.integers(len(names))]
    tensor, words = _changed(state, names, name, rng)
    if tensor is not None:
        state[name] = tensor
    write(state)
    return words


def _changed(state: dict[str, Any], names: list[str], name: str, rng: np.random.Generator) -> tuple[Tensor | None, str]:
    tensor = state[name]
    action = rng.integers(10)
    if action == 0:
        dtype = _DTYPES[rng.integers(len(_DTYPES))]
        return tensor.to(dtype), f"{name} as {dtype}"
    if action == 1:
        other = names[rng.integers(len(names))]
        state[name], state[other] = state[other], state[name]
        return None, f"{name} and {other} swapped"
    if action == 2:
        return tensor.T.contiguous() if tensor.ndim == 2 else tensor[..., None], f"{name} transposed"
    if action == 3:
        del state[name]
        return None, f"{name} removed"
    if action == 4:
        state[name.upper() + "_2"] = state.pop(name)
        return None, f"{name} renamed"
    if action == 5:
        shorter = tensor[:-1] if tensor.ndim else tensor.repeat(3)
        return shorter.contiguous(), f"{name} without its last row"
    if action == 6:
        return tensor.flatten(), f"{name} flattened"
    if action == 7:
        return tensor[None], f"{name} with one more axis"
    value = (float("nan"), float("inf"), 0.0, _HUGE)[rng.integers(3 if action == 8 and tensor.ndim > 1 else 4)]
    changed = tensor.clone()
    if not changed.is_floating_point():
        return changed.flatten()[:0], f"{name} empty"
    if action == 8 or not changed.ndim:
        changed.fill_(value)
        return changed, f"{name} filled with {value}"
    changed[rng.integers(len(changed))] = value
    return changed, f"a row of {name} filled with {value}"


def _read(path: Path) -> tuple[dict[str, Any], Callable[[dict[str, Any]], object]] | None:
    """The tensors of a weights file by name, and how to write them back; None where it is damaged already, or a module."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                return {name: file.get_tensor(name) for name in file.keys()}, (  # noqa: SIM118
                    lambda state: save_file(state, path, metadata)
                )
        if path.suffix == ".npz":
            with open(path, "rb") as opened, np.load(opened) as file:
                arrays = {name: torch.from_numpy(file[name]) for name in file.files}
            return arrays, lambda state: np.savez(path, **{name: _numpy(tensor) for name, tensor in state.items()})
        state = torch.load(path, weights_only=True)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, EOFError) as _:
        return None
    except Exception:  # whatever PyTorch's unpickler raises on damaged bytes or on classes that it does not know
        return None
    return (dict(state), lambda changed: torch.save(changed, path)) if isinstance(state, dict) else None


def _numpy(tensor: Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


# -- settings ------------------------------------------------------------------------------------------------------


def _setting(path: Path, rng: np.random.Generator) -> str:
    try:
        config = json.loads(path.read_text())
    except ValueError:
        return _bits(path, rng)
    if rng.random() < 0.05 or not isinstance(config, dict) or not config:
        value = _VALUES[rng.integers(len(_VALUES))]
        path.write_text(json.dumps(value))
        return f"the whole file is {value!r}"
    holder, words = config, ""
    while True:
        name = sorted(holder)[rng.integers(len(holder))]
        words += f".{name}"
        inner = holder[name]
        if not (isinstance(inner, dict) and inner and rng.random() < 0.8):
            break
        holder = inner
    if rng.random() < 0.2:
        del holder[name]
        words += " removed"
    else:
        holder[name] = _VALUES[rng.integers(len(_VALUES))]
        words += f" = {holder[name]!r}"
    path.write_text(json.dumps(config))
    return words


def snapshot(folder: Path) -> dict[str, bytes]:
    """{path: content} of everything below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def copied(source: Path, target: Path) -> Path:
    """A writable copy of a file or folder."""
    return shutil.copytree(source, target) if source.is_dir() else Path(shutil.copy(source, target))
