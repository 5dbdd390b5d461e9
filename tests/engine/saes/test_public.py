"""Public sets by name, from a folder laid out as the hub library's cache: snapshots of links into blobs, without a network."""

import numpy as np
import pytest
from huggingface_hub import constants

from seedscope.engine.saes.importers import public
from seedscope.engine.saes.importers.ensemble import read_many
from support.layouts import write_sparsify

HASH = "0" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Writes a repository into a cache that alone is asked."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def write(repository: str, *files: str) -> None:
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        for kind in ("blobs", "refs", f"snapshots/{HASH}"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(HASH)
        for i, name in enumerate(files):
            blob = folder / "blobs" / str(i)
            blob.write_text(name)
            link = folder / "snapshots" / HASH / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)

    return write


def names(path: str) -> list[str]:
    return [each.rsplit(f"{HASH}/", 1)[1] for each in public.resolved(path)]


def test_siblings_of_a_name_are_its_seeds_without_wrong_twins(cache):
    folders = ("a", "a-seed2", "a-seed3", "a-seed2_wrong", "a-long", "a_wrong")
    cache("EleutherAI/sae_overlap", *(f"{name}/layers.6.mlp/cfg.json" for name in folders))
    assert names("public:sae_overlap/a") == ["a", "a-seed2", "a-seed3"]


def test_folders_of_seeds_are_members_in_their_order(cache):
    inside = "gpt2/topk/block6/standard"
    cache("nathandelisle/massive-saes-layers", *(f"{inside}/seed{seed}/sae.pt" for seed in (10, 2, 0)))
    assert names(f"public:massive-saes-layers/{inside}") == [f"{inside}/seed{seed}" for seed in (0, 2, 10)]
    cache("menamerai/tinystories-sae-random-seed", *(f"blocks.0.hook_mlp_out.s{seed}/cfg.json" for seed in (43, 42)))
    assert names("public:tinystories-sae-random-seed") == [f"blocks.0.hook_mlp_out.s{seed}" for seed in (42, 43)]


def test_names_that_are_not_there_are_refused(cache):
    with pytest.raises(ValueError, match=r"no public set 'other'.*sae_overlap"):
        public.resolved("public:other")
    cache("EleutherAI/sae_overlap", "a/layers.6.mlp/cfg.json")
    with pytest.raises(ValueError, match=r"holds no folders of seeds: found a, expected NAME"):
        public.resolved("public:sae_overlap")
    assert public.resolved("runs/seed0") == ["runs/seed0"]


@pytest.mark.parametrize(
    ("folders", "seeds"),
    [
        (("32k", "32k-seed2", "32k-seed10"), [1, 2, 10]),  # as the set's card counts them
        (("b_seed4", "b_seed3"), [4, 3]),
        (("32k", "32k-long"), [0, 1]),  # other words: no seeds, which is marked as assumed
    ],
)
def test_siblings_get_the_seeds_of_their_names(folders, seeds, tmp_path):
    rng = np.random.default_rng(0)
    for name in folders:
        tensors = {"W_enc": (4, 8), "b_enc": (8,), "W_dec": (8, 4), "b_dec": (4,)}
        write_sparsify(
            tmp_path / name / "run", {0: {n: rng.normal(size=s).astype("f4") for n, s in tensors.items()}}, 2
        )
    paths = [next((tmp_path / name).rglob("sae.safetensors")).parent for name in folders]
    for path in paths:  # as the public set has it: NAME/HOOKPOINT/{cfg.json, sae.safetensors}
        path.rename(tmp_path / path.relative_to(tmp_path).parts[0] / "layers.6.mlp")
    members = read_many([tmp_path / name for name in folders])
    assert [member.seed for member in members] == seeds
    origin = {member.facts["seed"][1] for member in members}
    assert origin == ({"assumed"} if seeds == [0, 1] else {"number in the name"})
