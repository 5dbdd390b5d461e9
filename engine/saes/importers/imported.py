"""The neutral form of an SAE of any library, and the checks and readers that all formats share."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seedscope.engine.saes.convention import SKIP, Convention
from seedscope.engine.saes.importers.facts import Facts, complete, dtype_of
from seedscope.engine.saes.importers.files import parsed_json, require_file
from seedscope.engine.saes.importers.unpickle import unwrapped
from seedscope.engine.saes.importers.values import shown

# Share of the decoder rows that may hold NaN or infinite numbers; one row always may.
ROWS_NOT_FINITE = 0.01
INDEX = ".index.json"  # what follows the name of a safetensors file that was saved in parts
LONGEST_TEXT = 900  # characters of what a file says, as it is kept
LARGEST = 1e18  # of a weight: the squares of larger ones are infinite in float32
# What safetensors raises for a type of numbers that this version of PyTorch does not have.
ODD = (AttributeError, KeyError, TypeError, RuntimeError)
# Tensors that change the forward pass of what is no transcoder in a way that no convention describes.
FOREIGN = (SKIP, "affine_skip_connection")


@dataclass(frozen=True)
class Imported:
    """One SAE or transcoder, float32, in SAELens orientation: decoder rows are the features.

    `tensors`: W_enc (d_in, d_sae), b_enc (d_sae,), W_dec (d_sae, d_out), b_dec (d_out,) and the further tensors of the
    convention, (d_sae,) each, W_skip (d_in, d_out); the gate's bias is b_enc. `seed` is the one that the library recorded.
    `source` says where it comes from: format, path, library and what else its files record. `remarks` are for readers of its
    numbers. `facts` say what its numbers rest on and where each was read; see `facts`. `settings` are those of its training,
    which members of an ensemble must share: {name: value as text}.
    """

    tensors: dict[str, Tensor]
    convention: Convention
    seed: int | None
    source: dict[str, str]
    remarks: tuple[str, ...] = ()
    facts: Facts = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def library(self) -> str | None:
        """The library that wrote it, with its version where it is recorded; None where the files do not say."""
        return " ".join(self.source[name] for name in ("library", "library_version") if name in self.source) or None

    @property
    def d_in(self) -> int:
        return self.tensors["W_enc"].shape[0]

    @property
    def d_out(self) -> int:
        """Length of decoder rows; d_in except in transcoders."""
        return self.tensors["W_dec"].shape[1]

    @property
    def d_sae(self) -> int:
        return self.tensors["W_dec"].shape[0]


def imported(
    path: Path,
    named: Mapping[str, Tensor],
    convention: Convention,
    *,
    seed: int | None = None,
    source: Mapping[str, Any],
    remarks: Iterable[str] = (),
    facts: Mapping[str, tuple[str, str]] | None = None,
    settings: Mapping[str, str] | None = None,
    weights: Path | None = None,
    sizes: tuple[Any, Any] = (None, None),
) -> Imported:
    """An Imported from tensors that already have the convention's names, checked; values of `source` that are None are left out.

    `facts` are those whose source the importer knows. The lengths of b_dec and b_enc say which axis is which (a transcoder's
    b_dec that of d_out); a matrix that is stored the other way round is transposed. `weights` is the file that holds them,
    where `path` is a folder. `sizes` are the d_in and d_sae that its config states, None where it does not. Raises ValueError
    where a tensor is missing, is no floating-point tensor, has a shape that does not fit, or holds numbers that are not finite,
    but for a few decoder rows.
    """
    remarks = list(remarks)
    tensors = {name: named[name] for name in convention.tensors if name in named}
    if missing := [name for name in convention.tensors if name not in tensors]:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}, expected the tensors {', '.join(convention.tensors)} for "
            f"{convention.architecture}; found {', '.join(sorted(named))}. Save the whole SAE again"
        )
    if foreign := [name for name in FOREIGN if name in named and name not in tensors]:
        raise ValueError(
            f"{path} holds {foreign[0]}, a skip connection past the features, and nothing says that it is a transcoder: not an "
            "SAE that can be scored"
        )
    tensors = oriented(path, tensors, remarks, transcoder=convention.transcoder)
    d_in, d_sae = tensors["W_enc"].shape
    if not d_in or not d_sae or not tensors["b_dec"].numel():
        raise ValueError(f"{path} has {d_sae} features of {d_in} dimensions, expected at least one of each")
    for name, size, stated in zip(("d_in", "d_sae"), (d_in, d_sae), sizes, strict=True):
        if stated is not None and whole(stated, name, path) != size:
            raise ValueError(
                f"{path} has {d_sae} features of {d_in} dimensions, but its config says that {name} is {stated}; the two are not "
                "of one SAE"
            )
    if convention.rescale_by_decoder_norm and convention.architecture != "topk":
        raise ValueError(
            f"{path} has rescale_by_decoder_norm with {convention.architecture}, expected it with topk alone"
        )
    if convention.k > d_sae:
        raise ValueError(f"{path} has k = {convention.k}, expected at most its {d_sae} features")
    if convention.architecture == "groupmax" and d_sae % convention.k:
        raise ValueError(f"{path} has {d_sae} features in k = {convention.k} groups, expected groups of one size")
    for dtype in sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - {"float32"}):
        remarks.append(f"weights cast from {dtype}")
    dtype = dtype_of(tensors)
    # Transposed views are copied: files are written from contiguous memory.
    tensors = {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in tensors.items()}
    _require_finite(weights or path, tensors)
    recorded = {name: bounded(value) for name, value in source.items() if value not in (None, "")}
    recorded |= {"path": str(path)}
    facts = {name: (bounded(value), bounded(where)) for name, (value, where) in (facts or {}).items()}
    remarks = [bounded(remark) for remark in remarks]
    completed = complete(facts or {}, tensors, convention, recorded, seed, dtype)
    return Imported(tensors, convention, seed, recorded, tuple(remarks), completed, settings or {})


def bounded(value: Any) -> str:
    """A value of a file as a text that a page can show: of bounded length, on one line."""
    text = " ".join(str(value).split())
    text = "".join(each for each in text if each.isprintable())
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}.."


def oriented(
    path: Path, named: Mapping[str, Tensor], remarks: list[str], *, transcoder: bool = False
) -> dict[str, Tensor]:
    """The convention's tensors in SAELens orientation, as the lengths of b_dec and b_enc say.

    A matrix that is stored the other way round is transposed, with a remark. Importers that compute with tensors call this
    first. Raises ValueError where one is no floating-point tensor, or has a shape that does not fit.
    """
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{path}: {name} has the type {kind}, expected a tensor of floating-point numbers")
    d_out, d_sae = _lengths(path, named)
    d_in = _d_in(named["W_enc"], d_sae) if transcoder else d_out
    tensors = dict(named)
    for name, tensor in named.items():
        shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,), SKIP: (d_in, d_out)}
        expected, shape = shapes.get(name, (d_sae,)), tuple(tensor.shape)
        if shape != expected and tensor.ndim == 2 and shape == expected[::-1]:
            tensors[name] = tensor.T
            width = f"d_out {d_out}" if transcoder else f"d_in {d_in}"
            remarks.append(f"{name} was stored as {shape} and is transposed: its biases say {width}, d_sae {d_sae}")
        elif shape != expected:
            raise ValueError(
                f"{path}: {name} has the shape {shape}, expected {expected}, as b_dec has {d_out} entries and b_enc "
                f"{d_sae}. Check that all tensors come from one SAE"
            )
    return tensors


def transposed(tensors: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    """{name: its transpose} of the matrices among these tensors; others are left out, for `oriented` to refuse."""
    return {name: tensor.T for name in names if isinstance(tensor := tensors.get(name), Tensor) and tensor.ndim == 2}


def _require_finite(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for NaN and infinite numbers; a few decoder rows may hold them, which then have no direction."""
    damaged = []
    for name, tensor in tensors.items():
        # A gated SAE's gain is the exponential of r_mag.
        wrong = ~((tensor.exp() if name == "r_mag" else tensor).abs() <= LARGEST)
        if name == "W_dec":
            n_rows = int(wrong.any(1).sum())
            if n_rows > max(1, int(ROWS_NOT_FINITE * len(tensor))):
                damaged.append(f"{name} ({n_rows:,} of {len(tensor):,} rows)")
        elif wrong.any():
            damaged.append(f"{name} ({int(wrong.sum()):,} of {tensor.numel():,} numbers)")
    if damaged:
        raise ValueError(
            f"{file} holds numbers that are not finite (NaN or infinite, or above {LARGEST:g}) in {', '.join(damaged)}, expected "
            "none there: its training diverged, or its numbers were too large for the type that they were stored in. Leave this "
            "SAE out, or save it again as float32 from an earlier step"
        )


def _d_in(W_enc: Tensor, d_sae: int) -> int:
    """The axis of a transcoder's encoder that is not its features'."""
    if W_enc.ndim != 2:
        return W_enc.numel()
    return W_enc.shape[0] if W_enc.shape[1] == d_sae else W_enc.shape[1]


def _lengths(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """(d_out, d_sae) from the lengths of the biases; d_out is d_in except in transcoders."""
    for name in ("b_dec", "b_enc"):
        if tensors[name].ndim != 1:
            raise ValueError(f"{path}: {name} has the shape {tuple(tensors[name].shape)}, expected one dimension")
    return len(tensors["b_dec"]), len(tensors["b_enc"])


def as_given(path: Path) -> Path:
    """The absolute path by its own names: links are not followed, because the names of what they lead to say nothing."""
    return Path(os.path.abspath(path))


def vector(tensors: Mapping[str, Tensor], name: str, like: str) -> dict[str, Tensor]:
    """{name: tensor} with a scalar repeated to the length of the tensor `like`; unchanged if it has an axis, {} if absent."""
    if name not in tensors:
        return {}
    value = tensors[name]
    return {name: value.reshape(()).expand(len(tensors[like])) if value.numel() == 1 and value.ndim < 1 else value}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ValueError naming the file where it is missing or holds anything else."""
    try:
        value = parsed_json(path)
    except FileNotFoundError:
        raise ValueError(
            f"found no {path.name} in {path.parent}, expected it beside the weights: copy it there"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); copy it again from where the SAE was saved") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, expected an object with the SAE's settings")
    return value


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; raises ValueError naming the file where it is missing or truncated."""
    index = path.with_name(path.name + INDEX)
    if index.is_file() and not path.is_file():
        return _read_shards(index)
    require_file(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return unwrapped(tensors), file.metadata() or {}
    except FileNotFoundError:
        raise ValueError(f"found no file {path}, expected the SAE's weights") from None
    except (SafetensorError, OSError, *ODD) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); copy or download it again") from None


def _read_shards(index: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of the files that an index names, and the metadata of all; raises ValueError where one is missing."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in files.values()
    ):
        raise ValueError(
            f"{index} has no weight_map that names files beside it; copy it again from where the SAE was saved"
        )
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name in sorted(set(files.values())):
        part, about = read_safetensors(index.parent / name)
        tensors, metadata = tensors | part, metadata | about
    return tensors, metadata


def peek_safetensors(path: Path) -> tuple[set[str], dict[str, str]]:
    """Names of the tensors and the metadata of a safetensors file, without reading a tensor. Raises as `read_safetensors`."""
    require_file(path)
    try:
        with safe_open(path, "pt") as file:
            return set(unwrapped(dict.fromkeys(file.keys()))), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); copy or download it again") from None


def whole(value: Any, name: str, path: Path) -> int:
    """A whole number from JSON, metadata or a 0-d tensor; raises ValueError naming the field and the file otherwise."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    try:
        if not isinstance(value, bool) and float(value) == int(float(value)):
            return int(float(value))
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{path} has {name} = {shown(value)}, expected a whole number")


def count(value: Any, name: str, path: Path) -> int:
    """A whole number of at least 1, as `whole`."""
    number = whole(value, name, path)
    if number < 1:
        raise ValueError(f"{path} has {name} = {number}, expected at least 1")
    return number


def seed_of(value: Any) -> int | None:
    """A recorded value as a seed; None where it is no whole number of at least 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
