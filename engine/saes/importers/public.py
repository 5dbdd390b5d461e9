"""Public sets of SAEs that differ by their seed, by name: `public:NAME/FOLDER` becomes the folders of its members on the hub."""

import re
from dataclasses import dataclass
from pathlib import Path

from natsort import natsorted

from seedscope.engine.saes.importers.hub import local

PREFIX = "public:"
_SEED = re.compile(r"seed_?\d+|.*\.s\d+")


@dataclass(frozen=True)
class PublicSet:
    """One repository of the hub, as its card and file list describe it."""

    name: str
    repository: str
    model: str
    hookpoint: str
    seeds: str
    layout: str
    license: str = "not stated"


SETS = (
    PublicSet("sae_overlap", "EleutherAI/sae_overlap", "Pythia-160m, and others", "layers.6.mlp, h.11.mlp",
              "nine for the 32k set, pairs for most others", "NAME[-seedN]/HOOKPOINT"),
    PublicSet("massive-saes-layers", "nathandelisle/massive-saes-layers", "eight models", "every block", "5",
              "MODEL/topk/blockL/standard or bypass/seedK"),
    PublicSet("massive-saes-archive", "nathandelisle/massive-saes-archive", "GPT-2, Llama-3.1-70B", "several", "10 and 5",
              "folders of seeds"),
    PublicSet("tinystories-sae-random-seed", "menamerai/tinystories-sae-random-seed", "TinyStories", "blocks.0.hook_mlp_out",
              "5 (42 to 46)", "HOOKPOINT.sSEED"),
    PublicSet("sae-pythia-160m-32k-3seeds", "dwightware4/sae-pythia-160m-32k-3seeds", "Pythia-160m", "layers.5.mlp", "3",
              "seedK"),
    PublicSet("sae-stability-pythia70m", "deenais/sae-stability-pythia70m", "Pythia-70m", "not stated", "3 for each k and budget",
              "checkpoints/../seedS_kK_tokensT.pt"),
)  # fmt: skip


def resolved(path: str) -> list[str]:
    """A path as it is; or, of `public:NAME/FOLDER`, the folders of the set's members in order of their seeds.

    Members are the folders `seed<k>` (or `..s<k>`) in FOLDER, else FOLDER and its siblings `FOLDER-seed<k>`; twins that end in
    `_wrong` are left out. Files are taken from the hub library's cache, or downloaded into it. Raises ValueError for a name
    that is not listed, and where there are no members.
    """
    if not path.startswith(PREFIX):
        return [path]
    name, _, inside = path.removeprefix(PREFIX).strip("/").partition("/")
    known = {each.name: each for each in SETS}
    if name not in known:
        raise ValueError(f"found no public set {name!r}, expected one of {', '.join(known)}; see seedscope public")
    repository = f"hf:{known[name].repository}"
    folder = local(f"{repository}/{inside}" if inside else repository)
    within = (
        [each for each in folder.iterdir() if each.is_dir() and _SEED.fullmatch(each.name)] if folder.is_dir() else []
    )
    if len(within) < 2 and inside:
        within = _siblings(folder, repository, inside)
    members = [str(each) for each in natsorted(within, key=lambda each: each.name) if not each.name.endswith("_wrong")]
    if not members:
        holds = ", ".join(sorted(each.name for each in folder.iterdir())[:8]) if folder.is_dir() else "a file"
        raise ValueError(
            f"{path} holds no folders of seeds: found {holds}, expected {known[name].layout}; name one as {PREFIX}{name}/FOLDER"
        )
    return members


def _siblings(folder: Path, repository: str, inside: str) -> list[Path]:
    """A folder and those beside it whose names go on with `-seed<k>`; the hub is asked for each by its name."""
    members = [folder]
    for seed in range(2, 100):
        try:
            members.append(local(f"{repository}/{inside}-seed{seed}"))
        except ValueError as error:
            if "holds no" not in str(error):  # not the end of the list, but a failed download
                raise
            break
    return members
