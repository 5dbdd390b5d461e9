"""`seedscope match`: two SAEs of any library, without a study; and what it refuses."""

import json

import jsonschema
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment

from support.commands import assert_one_line, run
from support.golden import unit_rows
from support.paths import CHECKPOINTS

SCHEMA = {
    "type": "object",
    "required": ["format", "version", "seedscope", "rule", "theta", "sign", "ties", "forced", "a", "b", "pw_mcc",
                 "remarks", "hungarian_distance", "gap", "a_to_b", "b_to_a"],
    "properties": {
        "format": {"const": "seedscope.match"},
        "version": {"const": 1},
        "a": {"required": ["path", "digest", "seed", "d_in", "d_sae", "n_undirected", "model", "hookpoint", "library",
                           "architecture", "variant", "convention", "remarks"]},
        "a_to_b": {"required": ["n_matched", "shared", "mmcs", "feature", "partner", "cosine", "runner_up_cosine", "mutual",
                                "encoder_cosine"]},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def files(study_root):
    """The small study's members."""
    (folder,) = (study_root / "small" / "sae" / "topk-96").iterdir()
    return [folder / f"seed-{seed}.safetensors" for seed in range(4)]


@pytest.fixture
def changed(files, tmp_path):
    """A copy of the first member with other tensors or metadata."""

    def make(name: str = "changed.safetensors", *, tensors=lambda held: held, **metadata: str):
        held = tensors(load_file(files[0]))
        with safe_open(files[0], "pt") as file:
            metadata = file.metadata() | metadata
        save_file({key: value.contiguous() for key, value in held.items()}, tmp_path / name, metadata)
        return tmp_path / name

    return make


def matched(*arguments: object, tmp_path) -> dict:
    done = run("match", *arguments, "--json", tmp_path / "pair.json", "--quiet")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "pair.json").read_text())
    jsonschema.validate(found, SCHEMA)
    return found


def test_the_complete_matching_is_that_of_the_decoder_matrices(files, ensemble_saes, tmp_path):
    found = matched(files[0], files[2], "--theta", "0.6", tmp_path=tmp_path)
    rows = unit_rows(ensemble_saes.W_dec.detach().double().numpy())
    cosines = rows[0] @ rows[2].T
    for way, matrix in (("a_to_b", cosines), ("b_to_a", cosines.T)):
        assert found[way]["partner"] == matrix.argmax(1).tolist()
        np.testing.assert_allclose(found[way]["cosine"], matrix.max(1), atol=1e-5)
        assert found[way]["n_matched"] == (matrix.max(1) >= 0.6).sum()
        assert found[way]["mmcs"] == pytest.approx(matrix.max(1).mean(), abs=1e-5)
    best = cosines[linear_sum_assignment(cosines, maximize=True)].mean()
    assert found["pw_mcc"] == pytest.approx(best, abs=1e-5)
    assert found["hungarian_distance"] == pytest.approx(1 - best, abs=1e-5)
    assert 0 <= found["gap"] <= 1e-5
    assert found["a"]["digest"] == ensemble_saes.digest(0)
    assert found["a"]["hookpoint"] == "blocks.2.hook_resid_post"
    assert [found[side]["seed"] for side in "ab"] == ["0", "2"]
    assert found["remarks"] == found["forced"] == []


@pytest.mark.parametrize("rule", ["hungarian", "both", "mutual"])
def test_one_to_one_rules_name_every_partner_once(files, rule, tmp_path):
    found = matched(files[1], files[3], "--rule", rule, tmp_path=tmp_path)
    partners = [p for p in found["a_to_b"]["partner"] if p is not None]
    assert len(set(partners)) == len(partners) > 0
    assert (len(partners) == 96) == (rule == "hungarian")


def test_absolute_matching_finds_what_a_sign_hides(files, changed, tmp_path):
    mirrored = changed(tensors=lambda held: held | {"W_dec": -held["W_dec"]})
    signed = matched(files[0], mirrored, tmp_path=tmp_path)
    absolute = matched(files[0], mirrored, "--absolute", "--rule", "hungarian", tmp_path=tmp_path)
    assert signed["a_to_b"]["shared"] < 0.5
    assert absolute["a_to_b"]["shared"] == 1
    assert absolute["a_to_b"]["partner"] == list(range(96))
    assert absolute["pw_mcc"] == pytest.approx(1, abs=1e-5)


def test_rows_without_a_direction_are_counted_and_left_out(files, changed, tmp_path):
    def spoil(held):
        held["W_dec"][3], held["W_dec"][5] = 0, float("nan")
        return held

    spoiled = changed(tensors=spoil)
    found = matched(spoiled, files[0], tmp_path=tmp_path)
    assert found["a"]["n_undirected"] == 2
    assert found["a_to_b"]["feature"] == [i for i in range(96) if i not in (3, 5)]
    assert found["a_to_b"]["shared"] == 1
    assert not {3, 5} & set(found["b_to_a"]["partner"])
    assert "2 rows without a direction left out" in run("match", spoiled, files[0]).stdout


def test_another_width_is_refused_even_by_force(files, changed):
    narrow = changed(
        tensors=lambda held: (
            held | {"W_enc": held["W_enc"][:64], "W_dec": held["W_dec"][:, :64], "b_dec": held["b_dec"][:64]}
        )
    )
    for force in ([], ["--force"]):
        assert_one_line(run("match", files[0], narrow, "--quiet", *force), "d_in 128", "64")


def test_another_model_or_hook_point_is_refused_with_both_named_and_forced_on_request(files, changed, tmp_path):
    other = changed(hookpoint="blocks.5.hook_mlp_out", model="0123456789abcdef")
    assert_one_line(
        run("match", files[0], other, "--quiet"), "blocks.2.hook_resid_post", "blocks.5.hook_mlp_out", "0123456789abcdef",
        "--force",
    )  # fmt: skip
    forced = matched(files[0], other, "--force", tmp_path=tmp_path)
    assert len(forced["forced"]) == 2
    assert run("match", files[0], other, "--quiet", "--force").stdout.count("forced: ") == 2


def test_what_is_not_an_sae_is_refused(files, changed, tmp_path):
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(files[0].read_bytes()[:5000])
    nothing = changed("nothing.safetensors", tensors=lambda held: {"weight": torch.zeros(2)})
    empty = changed("empty.safetensors", tensors=lambda held: held | {"W_dec": torch.zeros_like(held["W_dec"])})
    for path, words in (
        (tmp_path / "none.safetensors", ["found no file"]), (truncated, ["not a complete safetensors file"]),
        (nothing, ["found the tensors weight", "expected"]), (empty, ["all 96 decoder rows", "nothing can be matched"]),
    ):  # fmt: skip
        assert_one_line(run("match", path, files[0], "--quiet"), str(path), *words)


def test_a_matching_that_cannot_be_written_is_refused_before_it_is_made(files, tmp_path):
    done = run("match", files[0], files[1], "--json", tmp_path / "no" / "pair.json", "--quiet")
    assert_one_line(done, "found no folder")


@pytest.mark.parametrize("arguments", [["--rule", "nearest"], ["--theta", "1.5"], ["--theta", "x"]])
def test_wrong_arguments_exit_2_with_what_is_allowed(files, arguments):
    done = run("match", files[0], files[1], *arguments)
    assert done.returncode == 2


def test_the_terminal_says_where_both_come_from():
    one, other = CHECKPOINTS / "saelens" / "trained_batchtopk", CHECKPOINTS / "dictionary_learning/gated/trainer_0"
    lines = run("match", one, other, "--quiet").stdout.splitlines()
    assert lines[0].startswith(
        f"A: {one}: sae-lens 6.54.12, batchtopk, read as jumprelu, 24 features of 8 numbers, seed 8"
    )
    assert lines[1] == "A: trained with BatchTopK"
    assert lines[2].startswith(f"B: {other}: dictionary-learning, GatedAutoEncoder, read as gated")
    assert "model pythia-70m at blocks.2.hook_resid_post, digest " in lines[2]
    assert lines[-1].startswith("remark: architecture is jumprelu in ")


def test_an_ensembles_folder_is_refused_with_the_saes_it_holds(files):
    assert_one_line(
        run("match", files[0].parent, files[1], "--quiet"), "holds 4 SAEs", "seed-0", "expected one: name it"
    )
