"""Activations that were recorded elsewhere: .npy and safetensors files, read as one array of rows without loading them.

A source is one file, or a folder whose files are taken in the natural order of their names (shard-2 before shard-10). Each
holds rows (rows, d_in), or documents (documents, tokens, d_in) of which every token is a row, as float16, bfloat16, float32 or
float64. A safetensors file holds one such tensor, or several of which one is called `activations`. Arrays of token ids beside
them (`tokens.npy`, `input_ids.npy`, `attention_mask.npy`) are not read.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from natsort import natsorted
from safetensors import SafetensorError, safe_open

from seedscope.engine.activations.shards import Shards
from seedscope.engine.contract.urls import on_this_machine, url_in
from seedscope.engine.urls.cache import fetch

SUFFIXES = (".npy", ".safetensors")
NAME = "activations"  # of the tensor, where a file holds several
BESIDE = ("tokens", "input_ids", "token_ids", "attention_mask")  # names of arrays that belong to tokens
MOST_ROWS = 2**31 - 1  # rows are numbered by 32 bits where firings are kept
SMALL = 2**16  # bytes of a file that is loaded instead of mapped: an empty array cannot be mapped
AT_ONCE = 2**22  # numbers that are checked together: 16 MiB as float32
_TYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}  # of safetensors: how the bytes are mapped
WAY_OUT = "save them as float16, bfloat16 or float32 of shape (rows, d_in) or (documents, tokens, d_in)"


class RecordedFile:
    """One file as an array of rows (rows, d_in): `len`, slices and integer arrays, in copies of `dtype`."""

    def __init__(self, path: Path, raw: np.ndarray, *, bfloat16: bool = False) -> None:
        """`raw` is a memory map with two or three dimensions; with `bfloat16` its 16 bits are those of that type."""
        self.path, self.documents = path, raw.shape[1] if raw.ndim == 3 else None
        self._raw, self._bfloat16 = raw.reshape(-1, raw.shape[-1]), bfloat16
        self.dtype = np.dtype(np.float16 if raw.dtype.kind == "f" and raw.dtype.itemsize == 2 else np.float32)
        self.shape = self._raw.shape

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        rows = np.asarray(self._raw[key])
        if self._bfloat16:
            return (rows.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # what float32 cannot hold is found as infinite
            return rows.astype(self.dtype)

    def stored(self, part: slice) -> bytes:
        """The bytes of some rows, as the file has them."""
        return np.ascontiguousarray(self._raw[part]).tobytes()

    @property
    def stored_as(self) -> str:
        """The type of its numbers."""
        return "bfloat16" if self._bfloat16 else self._raw.dtype.newbyteorder("=").name

    def place(self, row: int) -> str:
        """A row in words: its number, and its document and token where the file is divided into documents."""
        if self.documents is None:
            return f"row {row:,}"
        return f"row {row:,} (document {row // self.documents:,}, token {row % self.documents:,})"


class Recorded(NamedTuple):
    """Recorded activations as one array."""

    files: tuple[RecordedFile, ...]
    rows: Shards  # (rows, d_in)

    @property
    def d_in(self) -> int:
        return self.rows.shape[1]

    @property
    def stored_as(self) -> str:
        """The types of their numbers."""
        return ", ".join(sorted({file.stored_as for file in self.files}))

    @property
    def stamp(self) -> str:
        """16 hex digits over names, sizes and times of the files: equal as long as nobody wrote to them."""
        stats = [(str(file.path), file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in self.files]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]

    def check(self, report: Callable[[int, int], None] = lambda done, total: None) -> str:
        """Read every row once; returns 16 hex digits over type, width and bytes of all rows, however they are divided into files.

        Raises ValueError naming file and row where a number is NaN or infinite.
        """
        sha, done = hashlib.sha256(f"{self.stored_as} {self.d_in}".encode()), 0
        step = max(AT_ONCE // self.d_in, 1)
        for file in self.files:
            for first in range(0, len(file), step):
                part = slice(first, min(first + step, len(file)))
                finite = np.isfinite(file[part]).all(1)
                if not finite.all():
                    raise ValueError(
                        f"{file.path}: {file.place(first + int(np.argmin(finite)))} holds a number that is NaN or infinite, "
                        "expected finite activations; leave such rows out"
                    )
                sha.update(file.stored(part))
                done += part.stop - part.start
                report(done, len(self.rows))
        return sha.hexdigest()[:16]


def open_recorded(source: Path | str) -> Recorded:
    """The activations at a file or folder, from the heads of the files alone; those behind a URL are fetched first.

    Raises ValueError naming the file where there are none, or of several widths, where they are no floating-point numbers of
    two or three dimensions, and where a file is not complete.
    """
    url = url_in(source)
    path = fetch(url) if url else Path(on_this_machine(source)).expanduser()
    files = tuple(_open(each) for each in _files(path))
    for file in files:
        if file.shape[1] != files[0].shape[1]:
            raise ValueError(
                f"{files[0].path} has {files[0].shape[1]} numbers per row, {file.path} {file.shape[1]}: expected activations of "
                "one hook point"
            )
    n_rows = sum(map(len, files))
    if not n_rows:
        raise ValueError(f"{path} holds no row of activations, expected at least one")
    kinds = {file.dtype for file in files}
    if len(kinds) > 1:
        for file in files:
            file.dtype = np.dtype(np.float32)
    return Recorded(files, Shards(files))


def require_width(activations: Recorded, d_in: int, name: str) -> None:
    """Raise ValueError where SAEs that read d_in numbers cannot have been trained on these activations."""
    if activations.d_in != d_in:
        raise ValueError(
            f"the activations ({activations.files[0].path}) have {activations.d_in} numbers per row, the SAEs of {name} read "
            f"{d_in}: they are of another model or hook point"
        )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} is a {path.suffix or 'plain'} file, expected activations as .npy or .safetensors")
        return [path]
    if not path.is_dir():
        raise ValueError(
            f"found no file or folder {path}, expected activations as .npy or .safetensors, or a folder of them"
        )
    entries = natsorted((each for each in path.iterdir() if not each.name.startswith(".")), key=lambda each: each.name)
    files = [each for each in entries if each.suffix in SUFFIXES and each.is_file() and not _belongs_to_tokens(each)]
    if not files:
        names = ", ".join(each.name for each in entries[:8]) or "nothing"
        raise ValueError(f"{path} holds {names}, expected activations as .npy or .safetensors files")
    return files


def _belongs_to_tokens(path: Path) -> bool:
    return path.stem in BESIDE or path.stem.endswith(tuple(f"{mark}{name}" for mark in "_-." for name in BESIDE))


def _open(path: Path) -> RecordedFile:
    raw, bfloat16 = _map_npy(path) if path.suffix == ".npy" else _map_safetensors(path)
    if not bfloat16 and raw.dtype.kind != "f":
        raise ValueError(
            f"{path} holds {raw.dtype} of shape {raw.shape}, expected floating-point activations; {WAY_OUT}"
        )
    if raw.ndim not in (2, 3) or not raw.shape[-1]:
        raise ValueError(f"{path} has the shape {raw.shape}, expected (rows, d_in) or (documents, tokens, d_in)")
    if raw.ndim == 3 and not raw.flags.c_contiguous:
        raise ValueError(f"{path} is stored in Fortran order, expected C order: save numpy.ascontiguousarray of it")
    return RecordedFile(path, raw, bfloat16=bfloat16)


def _map_npy(path: Path) -> tuple[np.ndarray, bool]:
    try:
        raw = np.load(path, mmap_mode="r" if path.stat().st_size > SMALL else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} is no complete .npy file of numbers ({error}); write it again with numpy.save"
        ) from None
    if raw.dtype.kind == "V" and raw.dtype.itemsize == 2:
        raise ValueError(
            f"{path} holds 16-bit numbers of a type that .npy does not name (bfloat16?); {WAY_OUT}, bfloat16 in .safetensors"
        )
    return raw, False


def _map_safetensors(path: Path) -> tuple[np.ndarray, bool]:
    try:
        with safe_open(path, "np"):  # checks that the head fits the file
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no complete .safetensors file ({error}); write it again") from None
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(length))
    head.pop("__metadata__", None)
    candidates = {name: entry for name, entry in head.items() if entry["dtype"] in _TYPES and len(entry["shape"]) > 1}
    if NAME in candidates:
        candidates = {NAME: candidates[NAME]}
    if len(candidates) != 1:
        described = ", ".join(
            f"{name} {entry['dtype']} {tuple(entry['shape'])}" for name, entry in list(head.items())[:8]
        )
        raise ValueError(
            f"{path} holds {described or 'no tensor'}, expected one floating-point tensor, or one that is called {NAME}; {WAY_OUT}"
        )
    (entry,) = candidates.values()
    shape, kind = tuple(entry["shape"]), entry["dtype"]
    if not all(shape):
        return np.zeros(shape, _TYPES[kind]), kind == "BF16"
    return np.memmap(path, _TYPES[kind], "r", offset=8 + length + entry["data_offsets"][0], shape=shape), kind == "BF16"
