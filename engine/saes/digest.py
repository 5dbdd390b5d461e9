"""Digests of SAEs, and files that do not hold the SAE of a digest."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from seedscope.engine.saes.convention import Convention


class DamagedSAEError(ValueError):
    """A file that does not hold the SAE that a study names, or none that can be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is not the SAE that the study was given ({reason}): it is damaged, or was replaced. Put the former file back, "
            "import the ensemble again with --replace, or train it again"
        )


def digest_of(tensors: Mapping[str, Tensor], convention: Convention) -> str:
    """`SAE.digest` of one member's tensors, contiguous, by name."""
    sha = hashlib.sha256(json.dumps(convention.as_json(), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        sha.update(tensor.cpu().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


_CHECKED: set[tuple[str, int, int, str]] = set()  # (path, size, time of change, digest) of files that this process read


def require_digest(path: Path, digest: str, tensors: Mapping[str, Tensor], convention: Convention) -> None:
    """Raise DamagedSAEError where a file's tensors have another digest; a file that did not change since is not read again."""
    status = path.stat()
    key = str(path), status.st_size, status.st_mtime_ns, digest
    if key in _CHECKED:
        return
    if (found := digest_of(tensors, convention)) != digest:
        raise DamagedSAEError(path, f"digest {found}, expected {digest}")
    _CHECKED.add(key)
