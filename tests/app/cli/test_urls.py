"""Commands on URLs, as a user types them: what is kept is the URL, and no secret gets anywhere."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from safetensors.numpy import load_file, save_file

from seedscope.engine.store import catalogue
from seedscope.engine.studies.studyfile.read import read_study_file
from support.commands import assert_one_line, run
from support.paths import CHECKPOINTS
from support.remote import emptied_memory, put

MEMORY = fsspec.filesystem("memory")
SECRET = "sEcReT"
SIGNED = [f"s3://KEY:{SECRET}@bucket/runs", f"s3://bucket/runs?X-Amz-Signature={SECRET}"]


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path) -> Iterator[None]:
    with emptied_memory(tmp_path / "root"):
        yield


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three SAEs in folders of their seeds, here and behind memory://bucket/runs."""
    folder = tmp_path / "runs"
    for seed in range(3):
        weights = (
            Path(shutil.copytree(CHECKPOINTS / "saelens" / "topk", folder / f"seed{seed}")) / "sae_weights.safetensors"
        )
        save_file({name: tensor * (1 + seed) for name, tensor in load_file(weights).items()}, weights)
    put(folder, "memory://bucket/runs")
    return folder


def kept(root: Path) -> str:
    """All text that is kept below a root."""
    return "\n".join(
        path.read_text(errors="replace") for path in root.rglob("*") if path.is_file() and ".urls" not in path.parts
    )


def test_import_keeps_urls_and_the_digests_of_the_same_files(runs, tmp_path):
    root = tmp_path / "root"
    local = run("import", "here", "all", runs / "seed0", runs / "seed1", "--root", root, "--force", "--quiet")
    assert local.returncode == 0, local.stderr
    remote = run("import", "there", "all", "memory://bucket/runs/seed[01]", "--root", root, "--quiet")
    assert_one_line(remote, "found nothing at memory://bucket/runs/seed[01]")
    remote = run("import", "there", "all", "memory://bucket/runs/seed*", "--root", root, "--force", "--quiet")
    assert remote.returncode == 0, remote.stderr
    assert ".urls" not in remote.stdout + remote.stderr
    here, there = (catalogue.read(root / name).ensembles[0].members for name in ("here", "there"))
    assert [each.digest for each in there[:2]] == [each.digest for each in here]
    assert [each.source for each in there] == [f"memory://bucket/runs/seed{seed}" for seed in range(3)]
    assert ".urls" not in kept(root)


def test_inspect_match_and_diff_say_the_url(runs, tmp_path):
    a, b = "memory://bucket/runs/seed0", "memory://bucket/runs/seed1"
    environment = {"SEEDSCOPE_ROOT": str(tmp_path / "root")}
    inspected = run("inspect", a, "--json", tmp_path / "facts.json", **environment)
    assert inspected.returncode == 0, inspected.stderr
    assert inspected.stdout.startswith(f"{a}  (saelens)")
    assert json.loads((tmp_path / "facts.json").read_text())["members"][0]["path"] == a
    matched = run("match", a, b, "--force", "--quiet", "--json", tmp_path / "pair.json", **environment)
    assert matched.returncode == 0, matched.stderr
    local = run("match", runs / "seed0", runs / "seed1", "--force", "--quiet", **environment)
    assert matched.stdout.replace("memory://bucket/runs", str(runs)).startswith(local.stdout)
    assert json.loads((tmp_path / "pair.json").read_text())["a"]["path"] == a
    differ = run("diff", a, b, "--force", "--quiet", **environment)
    assert differ.returncode == 0, differ.stderr
    assert f"OLD: {a}" in differ.stdout
    assert ".urls" not in matched.stdout + differ.stdout


def test_a_study_file_names_urls_that_are_listed_and_not_fetched(runs, tmp_path):
    MEMORY.pipe_file("memory://bucket/corpus/a.txt", b"text")
    file = tmp_path / "study.toml"
    text = """
[study]
name = "mine"
[model]
path = "gpt2"
hookpoint = "blocks.0.hook_resid_post"
[tokens]
source = ["memory://bucket/corpus/*.txt"]
[[ensemble]]
name = "all"
import = ["memory://bucket/runs/seed*"]
"""
    file.write_text(text)
    read = read_study_file(file)
    assert read.tokens.source == ("memory://bucket/corpus/*.txt",)
    assert [path.name for path in read.ensembles[0].paths] == ["seed0", "seed1", "seed2"]
    assert not list(tmp_path.rglob(".urls"))
    file.write_text(text.replace("corpus/*.txt", "corpus/*.md"))
    assert_one_line(run("run", file, "--root", tmp_path / "root"), "found nothing at memory://bucket/corpus/*.md")


@pytest.mark.parametrize("url", SIGNED)
def test_a_secret_in_a_url_reaches_no_output_and_no_file(url, study_root, tmp_path):
    root, file = tmp_path / "root", tmp_path / "study.toml"
    file.write_text(
        f'[study]\nname = "mine"\n[activations]\nsource = "{url}"\n[[ensemble]]\nname = "all"\nimport = ["{url}"]\n'
    )
    sae = CHECKPOINTS / "saelens" / "topk"
    for command in (
        ["import", "mine", "all", url, url], ["import", "mine", url], ["import", "mine", "all", sae, "--tokens", url],
        ["import", "mine", "all", sae, "--activations", url], ["run", file],
        ["anchor", "mine", "all", url, "--model", "gpt2", "--tokens", "x.txt"],
        ["anchor", "mine", "all", sae, "--model", "gpt2", "--tokens", "x.txt", "--train-text", url],
        ["predict", url, "--from", "mine/all"], ["export", "mine", url],
    ):  # fmt: skip
        done = run(*command, "--root", root)
        assert done.returncode == 1, command
        assert SECRET not in done.stdout + done.stderr, command
        assert "***" in done.stderr, command
        assert SECRET not in kept(root), command
    for command in (["match", url, sae], ["diff", sae, url], ["inspect", url]):
        done = run(*command, SEEDSCOPE_ROOT=str(root))
        assert done.returncode == 1
        assert SECRET not in done.stdout + done.stderr


def test_export_and_import_by_url(study_root, tmp_path):
    put_there = run("export", "small", "memory://bucket/out", "--root", study_root, "--quiet")
    assert put_there.returncode == 0, put_there.stderr
    assert put_there.stdout.endswith("MB: memory://bucket/out\n")
    again = run("export", "small", "memory://bucket/out", "--root", study_root, "--quiet")
    assert_one_line(again, "memory://bucket/out has", "expected a new or empty folder")
    root = tmp_path / "root"
    shutil.rmtree(study_root / ".urls", ignore_errors=True)
    brought = run("import", "again", "memory://bucket/out", "--root", root, "--quiet")
    assert brought.returncode == 0, brought.stderr
    MEMORY.rm_file("memory://bucket/out/manifest.json")
    assert_one_line(run("import", "third", "memory://bucket/out", "--root", root), "found no manifest.json")
