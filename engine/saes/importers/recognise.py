"""Which SAEs are at a path, and in which format, told by file names and, where these do not suffice, by their content."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natsort import natsorted

from seedscope.engine.saes.importers import (
    bare,
    code_bases,
    dictionary_learning,
    overcomplete,
    published,
    released,
    saelens,
    sparsify,
    unpickle,
)
from seedscope.engine.saes.importers.contents import SUFFIXES, WAY_OUT, first_tensors, tensors_in
from seedscope.engine.saes.importers.imported import INDEX, Imported, as_given, peek_safetensors
from seedscope.engine.saes.importers.registry import RegistryEntry

READERS: dict[str, Callable[[Path], Imported]] = {
    "seedscope": bare.read,
    "safetensors": bare.read,
    "saelens": saelens.read,
    "sparsify": sparsify.read,
    "dictionary_learning": dictionary_learning.read,
    "overcomplete": overcomplete.read,
    "gemma_scope": published.read_gemma_scope,
    "openai": published.read_openai,
    "batch_topk": released.read_batch_topk,
    "llama_scope": released.read_llama_scope,
    "goodfire": released.read_goodfire,
    "sae_stability": code_bases.read_sae_stability,
    "connor_rob": code_bases.read_connor_rob,
}
# A folder that holds one of these files is one SAE.
_FOLDERS = {
    saelens.WEIGHTS: "saelens",
    sparsify.WEIGHTS: "sparsify",
    dictionary_learning.WEIGHTS: "dictionary_learning",
    published.GEMMA_SCOPE: "gemma_scope",
    published.GEMMA_SCOPE_2: "gemma_scope",
    released.BATCH_TOPK: "batch_topk",
    released.LLAMA_SCOPE: "llama_scope",
}
_DEPTH = 6  # levels of folders that are searched; <runs>/<run>/<hookpoint>/<seed> takes four
_TRAINING_STATE = re.compile(r"(optimizer(_\d+)?|(lr_)?scheduler(_\d+)?|rank_\d+_state|(trainer_)?state)\.(pt|pth)")
_NOT_A_SEED = re.compile(r"(layers?|blocks?|h|average_l0|width|final|steps?|ae|l0)?[._-]?\d+")


@dataclass(frozen=True)
class RecognisedSAE:
    """An SAE on disk: its folder or file, its format, and the name whose trailing number may be its seed."""

    path: Path
    format: str
    name: str = ""
    names: tuple[str, ...] = ()  # of the folders that lead to it, as they were given, and its own
    entry: RegistryEntry | None = None  # where it was named by SAELens' registry

    @property
    def number(self) -> int | None:
        """The trailing number of `name`; None where there is none, or where it numbers something else, such as a layer."""
        match = re.search(r"(\d+)$", self.name)
        return int(match[1]) if match and not _NOT_A_SEED.fullmatch(self.name) else None


def recognise(path: Path | str) -> list[RecognisedSAE]:
    """The SAEs at a path (a file, a folder, a folder of such folders), in natural order of their names: seed2 before seed10.

    Raises ValueError where there is none, and where a file that could hold one is truncated.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"found no file or folder {path}, expected an SAE or a folder of SAEs")
    saes = list(_folder(path, _DEPTH)) if path.is_dir() else [sae for sae in [_file(path)] if sae]
    if not saes:
        raise ValueError(
            f"{path} holds no SAE: {_contents(path)}; expected one of {', '.join(_FOLDERS)}, a .pt or .safetensors file of "
            f"an SAE, or folders of them (formats: {', '.join(READERS)})"
        )
    return saes


def _contents(path: Path) -> str:
    """A few words for an error on what is at a path instead of an SAE."""
    if path.suffix == ".safetensors":
        tensors = sorted(peek_safetensors(path)[0])
        return (
            f"found the tensors {', '.join(tensors[:8])}{', ..' if len(tensors) > 8 else ''}"
            if tensors
            else "found no tensor"
        )
    if path.is_file() and path.suffix in SUFFIXES and (described := tensors_in(path)):
        return f"found {described}. {WAY_OUT}"
    if path.is_file():
        return f"found a {path.suffix or 'plain'} file of {path.stat().st_size} bytes"
    if path.is_dir() and (described := first_tensors(path)):
        return f"{described}. {WAY_OUT}"
    names = sorted(entry.name for entry in path.iterdir())
    return f"found {', '.join(names[:8])}{', ..' if len(names) > 8 else ''}" if names else "found an empty folder"


def _folder(folder: Path, depth: int, above: tuple[Path, ...] = ()) -> Iterator[RecognisedSAE]:
    real = folder.resolve()
    if real in above:  # a link that leads back
        return
    here = of_folder(folder)
    if here:
        yield here
        return
    visible = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    entries = natsorted(visible, key=lambda entry: entry.name)  # seed2 before seed10
    folders = [entry for entry in entries if entry.is_dir()]
    # sparsify keeps a second copy of each hookpoint's best state.
    best = [entry for entry in folders if entry.name == "best" and (folder / "config.json").is_file()]
    # SeedScope keeps snapshots of its members along their training in a folder beside them.
    along = [entry for entry in folders if entry.name == "along" and next(folder.glob("seed-*.safetensors"), None)]
    for entry in entries:
        if entry.is_dir():
            if depth and entry not in along and (entry not in best or len(folders) == 1):
                yield from _folder(entry, depth - 1, (*above, real))
        elif sae := _file(entry):
            yield sae


def of_folder(folder: Path) -> RecognisedSAE | None:
    """The SAE whose files are in this folder itself, None if there is none."""
    for weights, format in _FOLDERS.items():
        if (folder / weights).is_file() or (folder / f"{weights}{INDEX}").is_file():
            if format in released.CONFIRMED and not released.CONFIRMED[format](folder):
                continue
            if format == "sparsify" and _is_bare(folder):
                continue
            return RecognisedSAE(folder, format, _name(folder, format))
    return None


def _is_bare(folder: Path) -> bool:
    """Whether a file of the name that sparsify uses has its settings in a JSON file of that name instead of sparsify's."""
    return (folder / sparsify.WEIGHTS).with_suffix(".json").is_file() and not (folder / sparsify.CONFIG).is_file()


def is_main(path: Path) -> bool:
    """Whether a file's name says that its folder is one SAE."""
    return path.name in _FOLDERS


def _name(folder: Path, format: str) -> str:
    """The name that may end in the seed of an SAE in a folder, "" where no name does."""
    folder = as_given(folder)
    if format == "sparsify":  # the folder is named after its hookpoint, whose number is a layer
        return folder.parent.name
    trainer = format == "saelens" and (folder / saelens.SCALER).exists()  # named after its number of samples
    return "" if trainer or format == "gemma_scope" else folder.name


def _file(path: Path) -> RecognisedSAE | None:
    if is_main(path) and (here := of_folder(path.parent)):
        return here
    if path.suffix == ".npz":
        return RecognisedSAE(path, "gemma_scope") if path.name.endswith(published.GEMMA_SCOPE) else None
    if path.suffix == ".safetensors":
        kind = bare.kind(path)
        return RecognisedSAE(path, kind, path.stem) if kind else None
    if path.suffix in (".pt", ".pth", ".bin", ".pkl") and not _TRAINING_STATE.fullmatch(path.name):
        kind = _of_pickle(path, unpickle.peek(path))
        # Goodfire's file is named after its layer.
        return RecognisedSAE(path, kind, "" if kind == "goodfire" else path.stem) if kind else None
    return None


def _of_pickle(path: Path, value: Any) -> str:
    if isinstance(value, Mapping) and published.is_openai(value):
        return "openai"
    if released.is_goodfire(value):
        return "goodfire"
    if code_bases.is_sae_stability(value):
        return "sae_stability"
    if code_bases.is_connor_rob(path, value):
        return "connor_rob"
    if overcomplete.is_state(value):
        return "overcomplete"
    return "dictionary_learning" if dictionary_learning.is_state(value) else ""
