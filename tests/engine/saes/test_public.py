"""Public sets by name, from a folder laid out as the hub library's cache: snapshots of links into blobs, without a network."""

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from seedscope.engine.saes.importers import public
from seedscope.engine.saes.importers.ensemble import read_many
from seedscope.engine.store import catalogue
from support.commands import assert_one_line, run, run_alone
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


BUDGETS = "checkpoints/topk64-128-256_x16_tied_auxk"


@pytest.mark.parametrize("name", ["seed*_k64_tokens50000000.pt", "seed256_k64_tokens50000000.pt"])
def test_files_of_one_setting_are_the_seeds_of_a_name(cache, name):
    files = [
        f"{BUDGETS}/seed{s}_k{k}_tokens{t}.pt" for s in (1024, 42, 256) for k in (64, 128) for t in (50_000_000, 10**9)
    ]
    cache("deenais/sae-stability-pythia70m", *files)
    expected = [f"{BUDGETS}/seed{seed}_k64_tokens50000000.pt" for seed in (42, 256, 1024)]
    assert names(f"public:sae-stability-pythia70m/{BUDGETS}/{name}") == expected
    with pytest.raises(ValueError, match=r"matches no file of the repository"):
        public.resolved(f"public:sae-stability-pythia70m/{BUDGETS}/seed*_k32_tokens50000000.pt")
    with pytest.raises(ValueError, match=r"of several settings, .*seed\*_k64_tokens50000000\.pt"):
        public.resolved(f"public:sae-stability-pythia70m/{BUDGETS}")


def test_every_set_of_the_survey_is_listed():
    listed = {each.repository for each in public.SETS}
    assert listed == {
        "EleutherAI/sae_overlap", "nathandelisle/massive-saes-layers", "nathandelisle/massive-saes-archive",
        "menamerai/tinystories-sae-random-seed", "dwightware4/sae-pythia-160m-32k-3seeds", "deenais/sae-stability-pythia70m",
        "jakelipner/layer20-21-seed-robustness",
    }  # fmt: skip
    printed = run("public").stdout
    for each in public.SETS:
        for value in (
            each.name,
            each.repository,
            each.model,
            each.hookpoint,
            each.seeds,
            each.size,
            each.files,
            each.license,
        ):
            assert value in printed
    assert "no SAEs" in printed


def test_offline_in_a_process_of_its_own_the_cache_alone_is_read(tmp_path):
    """The environment variable as users set it, and files as the hub library keeps them: links into blobs."""
    repository = tmp_path / "hub" / "models--dwightware4--sae-pythia-160m-32k-3seeds"
    snapshot = repository / "snapshots" / HASH
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (4, 8), "b_enc": (8,), "W_dec": (8, 4), "b_dec": (4,)}
    for seed in (0, 1, 2):
        tensors = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
        write_sparsify(tmp_path / "written" / str(seed), {0: tensors}, 2)
        source = next((tmp_path / "written" / str(seed)).rglob("sae.safetensors")).parent
        (snapshot / f"seed{seed}").mkdir(parents=True)
        for file in source.iterdir():
            blob = repository / "blobs" / f"{seed}{file.name}".encode().hex()
            blob.parent.mkdir(exist_ok=True)
            file.rename(blob)
            (snapshot / f"seed{seed}" / file.name).symlink_to(Path("../../../blobs") / blob.name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(HASH)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HOME": str(tmp_path)}
    root = ("--root", tmp_path / "root", "--quiet")
    done = run_alone("import", "mine", "three", "public:sae-pythia-160m-32k-3seeds", *root, **offline)
    assert done.returncode == 0, done.stderr
    plan = catalogue.read(tmp_path / "root" / "mine")
    assert plan.ensemble("three").seeds == (0, 1, 2)
    assert all("blobs" not in member.source for member in plan.ensemble("three").members)
    done = run_alone("import", "mine", "b", "public:sae_overlap/a", *root, **offline)
    assert_one_line(done, "hf:EleutherAI/sae_overlap/a", "cannot be downloaded")


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
