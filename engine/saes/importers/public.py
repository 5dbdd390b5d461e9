"""Public sets of SAEs that differ by their seed, by name: `public:NAME/FOLDER` becomes the folders of its members on the hub."""

import re
from dataclasses import dataclass
from pathlib import Path

from natsort import natsorted

from seedscope.engine.saes.importers.hub import local, matching
from seedscope.engine.saes.importers.values import shown
from seedscope.engine.urls.cache import each_of

PREFIX = "public:"
_SEED_FILE = re.compile(
    r"(?<![^/])seed_?\d+_(?=[^/]*\.[a-z]+$)"
)  # of one file for each seed, with settings in the rest
_SEED = re.compile(r"seed_?\d+|.*\.s\d+")


@dataclass(frozen=True)
class PublicSet:
    """One repository of the hub, as its card, its file list or the code that wrote it describes it."""

    name: str
    repository: str
    model: str
    hookpoint: str
    seeds: str
    layout: str
    files: str
    """In which format they are, and whether it is read."""
    size: str = "not stated"
    license: str = "not stated"


_UNVERIFIED = "sae.pt with config.json, tensors only; how they encode is stated nowhere, so import lists what they hold"
SETS = (
    PublicSet("sae_overlap", "EleutherAI/sae_overlap", "Pythia-160m, and GPT-2, Llama, SmolLM", "layers.6.mlp, h.11.mlp",
              "nine for the 32k set, pairs for most others", "NAME[-seedN]/HOOKPOINT; twins NAME_wrong are skipped",
              "sparsify, TopK",
              "4k to 131k features"),
    PublicSet("massive-saes-layers", "nathandelisle/massive-saes-layers", "eight models", "every block", "5",
              "MODEL/topk/blockL/standard or bypass/seedK", _UNVERIFIED, "TopK, k 64"),
    PublicSet("massive-saes-archive", "nathandelisle/massive-saes-archive", "GPT-2, Llama-3.1-70B", "several",
              "10 in gpt2-ten-seed, 5 in llama-3.1-70b-five-seed", "gpt2-ten-seed, llama-3.1-70b-five-seed, objective-grid",
              _UNVERIFIED, "objective-grid: BatchTopK, ReLU + L1, Gated, JumpReLU"),
    PublicSet("tinystories-sae-random-seed", "menamerai/tinystories-sae-random-seed", "TinyStories", "blocks.0.hook_mlp_out",
              "5 (42 to 46)", "HOOKPOINT.sSEED", "SAELens"),
    PublicSet("sae-pythia-160m-32k-3seeds", "dwightware4/sae-pythia-160m-32k-3seeds", "Pythia-160m", "layers.5.mlp", "3 (0 to 2)",
              "seedK", "sparsify", "32k features"),
    PublicSet("sae-stability-pythia70m", "deenais/sae-stability-pythia70m", "pythia-70m-deduped", "blocks.3.hook_resid_post",
              "3 (42, 256, 1024) for each k (64, 128, 256) and budget (50M to 1B tokens)",
              "checkpoints/topk64-128-256_x16_tied_auxk/seed*_kK_tokensT.pt", "sae-stability, TopK; the optimizer is left out",
              "8,192 features, 101 MB each"),
    PublicSet("layer20-21-seed-robustness", "jakelipner/layer20-21-seed-robustness", "not stated", "layers 20 and 21",
              "3 for each layer", "not seen; name its folders", "JumpReLU; format not seen, recognised by its files or refused"),
)  # fmt: skip
# Sets of seeds that hold no SAEs.
NO_SAES = "PolyPythias (EleutherAI/pythia-*-seedN): nine seeds of each of five models, to train SAEs on; no SAEs"


def resolved(path: str) -> list[str]:
    """A path as it is, of a URL with `*` the URLs that match; or, of `public:NAME/FOLDER`, the members' folders by their seeds.

    Members are the folders `seed<k>` (or `..s<k>`) in FOLDER, else FOLDER and its siblings `FOLDER-seed<k>`; twins that end in
    `_wrong` are left out. A file `seed<k>_REST` stands for all of its seeds, and so does `seed*_REST`. Files are taken from the
    hub library's cache, or downloaded into it. Raises ValueError for a name that is not listed, and where there are no members.
    """
    if not path.startswith(PREFIX):
        return each_of(path)
    name, _, inside = path.removeprefix(PREFIX).strip("/").partition("/")
    known = {each.name: each for each in SETS}
    if name not in known:
        raise ValueError(f"found no public set {shown(name)}, expected one of {', '.join(known)}; see seedscope public")
    repository = f"hf:{known[name].repository}"
    if (file := _SEED_FILE.sub("seed*_", inside)) != inside or "*" in inside:
        return [str(each) for each in matching(f"{repository}/{file}") if not each.stem.endswith("_wrong")]
    folder = local(f"{repository}/{inside}" if inside else repository)
    within = (
        [each for each in folder.iterdir() if each.is_dir() and _SEED.fullmatch(each.name)] if folder.is_dir() else []
    )
    if files := _of_settings(folder):
        listed = ", ".join(files[:6]) + ", .." * (len(files) > 6)
        raise ValueError(f"{path} holds files of seeds of several settings, expected one setting: name {listed}")
    if len(within) < 2 and inside:
        within = _siblings(folder, repository, inside)
    members = [str(each) for each in natsorted(within, key=lambda each: each.name) if not each.name.endswith("_wrong")]
    if not members:
        holds = ", ".join(sorted(each.name for each in folder.iterdir())[:8]) if folder.is_dir() else "a file"
        raise ValueError(
            f"{path} holds no folders of seeds: found {holds}, expected {known[name].layout}; name one as {PREFIX}{name}/FOLDER"
        )
    return members


def _of_settings(folder: Path) -> list[str]:
    """Patterns such as `seed*_k64.pt` of the files in a folder that are named after a seed and further settings."""
    names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    return natsorted({pattern for name in names if (pattern := _SEED_FILE.sub("seed*_", name)) != name})


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
