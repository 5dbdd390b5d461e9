"""Pages of transcoders say wherever a number stands that output directions were matched, and what is undefined."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

import seedscope
from seedscope.engine.contract.directions import NO_OUTPUT, OUTPUT_DIRECTIONS, SENTENCE
from seedscope.engine.export.formats import export
from seedscope.engine.export.restore import restore
from seedscope.engine.saes import sae
from seedscope.engine.saes.convention import Convention
from support.reading import answered, browse, text_of
from support.studies import members_that_agree, publish_study

D_IN, D_OUT = 16, 128
HOOKS = {"hookpoint": "blocks.2.attn.hook_z", "hookpoint_out": "blocks.2.hook_mlp_out"}
PAGES = (
    "", "/features", "/features?bucket=stable", "/1/5", "/1/5?theta=0.5", "/members", "/members?a=0&b=2", "/buckets", "/ablation",
    "/subspaces", "/explanations", "/trajectory",
)  # fmt: skip


def transcoders(*, d_in: int = D_IN, seed: int = 0) -> sae.SAE:
    """Members whose decoder rows agree in part and are of another length than what they read."""
    rows = members_that_agree(d_in=D_OUT, members=3, seed=seed).W_dec.detach()
    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randn(3, d_in, rows.shape[1], generator=generator)
    skip = {"W_skip": 0.1 * torch.randn(3, d_in, D_OUT, generator=generator)}
    convention = Convention("topk", k=4, subtract_b_dec=False, transcoder=True, skip=True)
    biases = torch.zeros(3, rows.shape[1]), torch.zeros(3, D_OUT)
    return sae.SAE(encoder, biases[0], rows, biases[1], seeds=(0, 1, 2), convention=convention, more=skip)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoders alone: transcoders that say what they predict, some that do not, and SAEs."""
    folder = tmp_path_factory.mktemp("transcoders")
    known, unknown = HOOKS | {"transcoder": True}, {"hookpoint": HOOKS["hookpoint"], "transcoder": True}
    publish_study(
        folder, "mine",
        {"known": (transcoders(), known), "unknown": (transcoders(seed=1), unknown), "sae": (members_that_agree(members=3), {})},
        only=("match", "subspaces"),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def pages(root):
    with browse(root) as client:
        yield client


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("ensemble", ["known", "unknown"])
def test_every_page_and_twin_says_what_was_matched(page, ensemble, pages):
    path, _, query = page.partition("?")
    shown = answered(pages, f"/s/mine/{ensemble}{page}")
    data = answered(pages, f"/s/mine/{ensemble}{path}.json?{query}").json()
    assert (OUTPUT_DIRECTIONS in shown.text, SENTENCE in text_of(shown.text)) == (True, True)
    assert data["directions"] == OUTPUT_DIRECTIONS
    assert (NO_OUTPUT in shown.text) == (ensemble == "unknown")
    assert (data.get("undefined") == NO_OUTPUT) == (ensemble == "unknown")


@pytest.mark.parametrize("page", PAGES)
def test_pages_of_saes_say_nothing_of_it(page, pages):
    shown = answered(pages, f"/s/mine/sae{page}")
    assert OUTPUT_DIRECTIONS not in shown.text
    path, _, query = page.partition("?")
    assert "directions" not in answered(pages, f"/s/mine/sae{path}.json?{query}").json()


def test_the_study_names_both_hook_points_and_what_was_matched(pages):
    text = answered(pages, "/s/mine").text
    assert text.count(f"{OUTPUT_DIRECTIONS}</span>") == 2
    assert f"{HOOKS['hookpoint']} → {HOOKS['hookpoint_out']}" in text
    assert f"{HOOKS['hookpoint']} → output hook point unknown" in text
    assert f"in {D_IN} dimensions to {D_OUT}" in text_of(text)


def test_subspaces_are_of_the_outputs_width(pages):
    text = text_of(answered(pages, "/s/mine/known/subspaces").text)
    assert f"of {D_OUT}" in text
    assert f"of {D_IN}," not in text


def test_downloads_and_notebooks_say_it_too(root, pages):
    for ensemble, expected in (("known", True), ("sae", False)):
        content = BytesIO(pages.get(f"/s/mine/{ensemble}/features.csv").content)
        assert ("directions" in pyarrow.csv.read_csv(content).column_names) == expected
    content = BytesIO(pages.get("/s/mine/known/features.parquet").content)
    table = pyarrow.parquet.read_table(content)
    assert set(table["directions"].to_pylist()) == {OUTPUT_DIRECTIONS}
    ensemble = seedscope.open(root)["mine"]["known"]
    assert ensemble.directions == OUTPUT_DIRECTIONS
    assert OUTPUT_DIRECTIONS in repr(ensemble)
    assert ensemble.features().equals(table)
    assert ensemble.decoder(0).shape == (48, D_OUT)
    assert seedscope.open(root)["mine"]["sae"].directions is None


def test_neighbours_by_encoder_have_the_inputs_width(pages):
    for by in ("decoder", "encoder"):
        found = answered(pages, f"/s/mine/known/0/5/neighbours.json?by={by}").json()
        assert found["directions"] == OUTPUT_DIRECTIONS


def test_exports_say_it_and_come_back(root, tmp_path):
    for format in ("parquet", "json"):
        export(root, "mine", tmp_path / format, format=format)
        text = (tmp_path / format / "manifest.json").read_text()
        assert text.count(OUTPUT_DIRECTIONS) == 2
        assert HOOKS["hookpoint_out"] in text
    with pytest.raises(ValueError, match="it is a transcoder"):
        export(root, "mine", tmp_path / "saelens", format="saelens")
    restored = restore(tmp_path / "parquet", tmp_path / "again", "mine")
    assert restored.is_file()
    again = seedscope.open(tmp_path / "again")["mine"]["known"]
    assert (again.directions, again.row.hookpoint_out, again.row.d_out) == (
        OUTPUT_DIRECTIONS, HOOKS["hookpoint_out"], D_OUT,
    )  # fmt: skip
    np.testing.assert_array_equal(again.decoder(1), seedscope.open(root)["mine"]["known"].decoder(1))


def test_with_a_model_what_is_undefined_names_the_way_out(tmp_path, language_model, corpus):
    unknown = {"hookpoint": "blocks.2.hook_resid_mid", "transcoder": True}
    members = transcoders(d_in=D_OUT)
    publish_study(
        tmp_path, "measured", {"unknown": (members, unknown)}, model=language_model, texts=corpus.held_out,
        only=("match", "activity", "ablate", "loss"),
    )  # fmt: skip
    with browse(tmp_path) as pages:
        data = answered(pages, "/s/measured/unknown.json").json()
        lacks = {each["result"].split(":")[0]: each for each in data["missing"]}
        for result in ("ablation", "next-token loss", "logits"):
            assert lacks[result]["reason"] == NO_OUTPUT
            assert lacks[result]["command"] == "seedscope analyze measured --hookpoint-out NAME"
        assert data["members"][0]["ev"] is None
        assert data["members"][0]["l0"] == pytest.approx(4, abs=0.5)
        assert NO_OUTPUT in answered(pages, "/s/measured/unknown/ablation").text
        feature = answered(pages, "/s/measured/unknown/1/5.json").json()
        assert feature["directions"] == OUTPUT_DIRECTIONS
        refused = pages.get("/s/measured/unknown/1/5/loss")
        assert refused.status_code >= 400
        assert NO_OUTPUT in refused.text
