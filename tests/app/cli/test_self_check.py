"""`seedscope import` looks at EV and L0 before hours are spent: nothing against SAEs that are read right, a remark otherwise."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from seedscope.engine.demo import stdlib
from seedscope.engine.store import catalogue
from support.commands import run
from support.golden import explained_variance, topk_codes
from support.layouts import HOOKPOINT, write_saelens

SEEDS, K = (0, 1), 2


@pytest.fixture(scope="module")
def text(corpus, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text("\n".join(text for _, text in corpus.held_out))
    return path


@pytest.fixture
def folder(ensemble_saes, tmp_path) -> Path:
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    tensors = {name: getattr(ensemble_saes, name).detach().numpy() for name in names}
    folder = tmp_path / "runs"
    write_saelens(folder, {seed: {name: array[seed] for name, array in tensors.items()} for seed in SEEDS}, K)
    return folder


def bring(folder: Path, text: Path, *more: object, hookpoint: str = HOOKPOINT) -> tuple[str, list[str]]:
    """What an import printed, and the remarks of its self-check."""
    root = folder.parent / "root"
    done = run(
        "import", "mine", "one", folder, "--root", root, "--model", stdlib.MODEL_DIR, "--hookpoint", hookpoint,
        "--tokens", text, "--n-ctx", 64, "--quiet", "--replace", *more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (root / "mine" / "scratch").exists() or not any((root / "mine" / "scratch").iterdir())
    members = catalogue.read(root / "mine").ensemble("one").members
    return done.stdout, [remark for member in members for remark in member.remarks if remark.startswith("self-check")]


def record_l0(folder: Path, l0: float) -> None:
    for path in folder.glob("*/cfg.json"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"metadata": config.get("metadata", {}) | {"l0": l0}}))


def test_saes_that_are_read_right_get_no_remark_and_their_figures(folder, text, language_model, ensemble_saes):
    said, remarks = bring(folder, text)
    assert remarks == []
    line = next(line for line in said.splitlines() if line.startswith("self-check on "))
    n_tokens = int(line.split()[2].replace(",", ""))
    ids = language_model.tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    rows: list[torch.Tensor] = []
    for start in range(0, len(ids), 63):
        window = torch.tensor([[language_model.tokenizer.bos_token_id, *ids[start : start + 63]]])
        with torch.no_grad():
            rows.append(language_model.network(window, output_hidden_states=True).hidden_states[3][0, 1:])
    x = torch.cat(rows).double().numpy()[:n_tokens]
    norms = np.linalg.norm(x, axis=1)
    x = x[norms <= 10 * np.median(norms)]
    evs, l0s = [], []
    for seed in SEEDS:
        w = {n: getattr(ensemble_saes, n)[seed].detach().double().numpy() for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
        codes = topk_codes(x, w["W_enc"], w["b_enc"], w["b_dec"], K)
        evs.append(explained_variance(x, codes @ w["W_dec"] + w["b_dec"]))
        l0s.append((codes > 0).sum(1).mean())
    low, high = (float(word) for word in line.split("EV ")[1].split(",")[0].split(" to "))
    assert (low, high) == pytest.approx((min(evs), max(evs)), abs=2e-3)
    assert float(line.split("L0 ")[1].split(" ")[0]) == pytest.approx(min(l0s), abs=0.06)


def test_another_place_in_the_model_is_seen(folder, text):
    _, remarks = bring(folder, text, "--force", hookpoint="blocks.1.hook_attn_out")
    assert len(remarks) == 2
    assert all(
        "worse than the mean activation" in remark and "another model or hook point" in remark for remark in remarks
    )


def test_a_scale_that_the_files_do_not_record_is_seen(folder, text):
    for path in folder.glob("*/sae_weights.safetensors"):
        tensors = load_file(path)
        save_file(tensors | {"W_dec": tensors["W_dec"] * 30}, path)
    _, remarks = bring(folder, text)
    assert len(remarks) == 2
    assert all("scale or normalisation" in remark for remark in remarks)


@pytest.mark.parametrize(("recorded", "n"), [(2.0, 0), (3.9, 0), (41.0, 2), (0.5, 2)])
def test_l0_is_compared_with_what_the_files_record(folder, text, recorded, n):
    record_l0(folder, recorded)
    _, remarks = bring(folder, text)
    assert len(remarks) == n
    assert all(f"its files record {recorded:g}" in remark for remark in remarks)


def test_the_look_can_be_left_out_and_what_prevents_it_is_no_error(folder, text, tmp_path):
    said, remarks = bring(folder, text, "--no-check")
    assert "self-check" not in said
    assert remarks == []
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    said, remarks = bring(folder, empty)
    assert "self-check left out: " in said
    assert remarks == []
