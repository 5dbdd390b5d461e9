"""Seeds of up to 64 bits, from import to pages, links and exports."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.engine.saes.importers.ensemble import read_many
from support.commands import run
from support.paths import CHECKPOINTS

LOCAL = "http://127.0.0.1"
SEEDS = (3, 20250101123456, 2**63 - 1)


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for at, seed in enumerate(SEEDS):
        run_folder = folder / f"run_{at}"
        shutil.copytree(CHECKPOINTS / "saelens" / "standard", run_folder)
        tensors = load_file(run_folder / "sae_weights.safetensors")
        save_file(tensors | {"W_dec": tensors["W_dec"].roll(at, 0)}, run_folder / "sae_weights.safetensors")
        (run_folder / "runner_cfg.json").write_text(json.dumps({"seed": seed}))
    return folder


def test_large_seeds_go_all_the_way(members, tmp_path):
    root = tmp_path / "root"
    for command in (("import", "big", "seeds", members), ("analyze", "big"), ("export", "big", tmp_path / "out")):
        done = run(*command, "--root", root)
        assert done.returncode == 0, done.stderr
    with TestClient(create_app(Settings(root)), base_url=LOCAL) as client:
        base = "/s/big/seeds"
        for seed in SEEDS:
            for page in (
                f"{base}/{seed}/5",
                f"{base}/features?seed={seed}&limit=10",
                f"{base}/subspaces/map?seed={seed}",
            ):
                answer = client.get(page)
                assert answer.status_code == 200, (page, answer.text)
        page = client.get(f"{base}/features?seed={SEEDS[-1]}&limit=10").text
        (following,) = set(re.findall(r'href="([^"]*after=[^"]*)"', page))
        assert client.get(following.replace("&amp;", "&")).status_code == 200
        table = pq.read_table(_saved(tmp_path / "features.parquet", client.get(f"{base}/features.parquet").content))
    assert np.unique(table["seed"].to_numpy()).tolist() == list(SEEDS)
    for file in (tmp_path / "out").rglob("*.parquet"):
        columns = pq.read_table(file)
        for name in ("seed", "other_seed"):
            if name in columns.column_names and len(columns):
                assert set(columns[name].to_pylist()) <= set(SEEDS)


def _saved(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_seed_that_64_bits_do_not_hold_is_refused_with_the_way_out(members, tmp_path):
    shutil.copytree(members, tmp_path / "runs")
    (tmp_path / "runs" / "run_1" / "runner_cfg.json").write_text(json.dumps({"seed": 2**64 - 1}))
    with pytest.raises(ValueError, match=rf"the seed of .*run_1 is {2**64 - 1}, expected at most {2**63 - 1}.*--seeds"):
        read_many([tmp_path / "runs"])
    assert [member.seed for member in read_many([tmp_path / "runs"], seeds=[0, 1, 2])] == [0, 1, 2]
