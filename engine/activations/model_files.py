"""Check a model's folder before anything is loaded: which files there are, whether they are whole, how many parameters."""

import json
import math
import struct
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip


def local_folder(path: str) -> Path | None:
    """The model's folder, or None where `path` is a hub id; raises ValueError for a folder that holds no model."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"found no config.json in {path!r}, expected a folder written by save_pretrained; "
                "other formats (GGUF, a training checkpoint) must be converted first"
            )
        return folder
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1 or not path:
        raise ValueError(f"found no model folder at {path!r}, expected one written by save_pretrained, or a hub id")
    return None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, or [] where its weights are in PyTorch's own format.

    Raises ValueError where there are no weights, where one of several files is missing, and where one is cut short.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"{folder} lacks {len(missing)} of its {len(files)} weight files ({', '.join(missing[:3])}); copy it again"
            )
    elif any(folder.glob("pytorch_model*.bin")):
        return []
    else:
        raise ValueError(
            f"found no weights in {str(folder)!r}, expected model.safetensors, model.safetensors.index.json or "
            "pytorch_model.bin; copy the folder again"
        )
    for file in files:
        tensor_shapes(file)
    return files


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """{name: shape} of a safetensors file from its header alone; raises ValueError where the file is cut short."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        raw = opened.read(length) if 0 < length <= size - 8 else b""
    try:
        header = {name: entry for name, entry in json.loads(raw).items() if name != "__metadata__"}
        expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{file} is no safetensors file or is cut off within its header ({size:,} bytes); copy it again"
        ) from None
    if size != expected:
        raise ValueError(f"{file} has {size:,} bytes, its header promises {expected:,}: it is truncated; copy it again")
    return {name: entry["shape"] for name, entry in header.items()}


def n_parameters(files: list[Path]) -> int:
    """Parameters in safetensors files, from their headers."""
    return sum(math.prod(shape) for file in files for shape in tensor_shapes(file).values())
