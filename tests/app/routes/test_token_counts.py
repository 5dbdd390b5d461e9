"""Numbers of tokens beyond 32 bits, and a model without direct logits: from the catalogue to pages and exports."""

import pyarrow.parquet
import pytest
import torch

from support.commands import run
from support.reading import browse, text_of
from support.studies import members_that_agree, publish_study
from support.tiny_models import WIDTH, tiny


def test_training_lengths_beyond_32_bits_go_all_the_way(tmp_path):
    lengths = {"n_train_tokens": 7_000_000_001, "train_tokens": 8_000_000_003}
    publish_study(tmp_path, "long", {"topk": (members_that_agree(members=3), lengths)})
    with browse(tmp_path) as client:
        (ensemble,) = client.get("/s/long.json").json()["ensembles"]
        assert {name: ensemble["ensemble"][name] for name in lengths} == lengths
        assert client.get("/s/long").status_code == client.get("/s/long/topk").status_code == 200
    done = run("export", "long", tmp_path / "out", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    table = pyarrow.parquet.read_table(tmp_path / "out" / "ensembles.parquet")
    assert {name: table[name].to_pylist() for name in lengths} == {name: [n] for name, n in lengths.items()}
    done = run("import", "long", tmp_path / "out", "--root", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    with browse(tmp_path / "again") as client:
        (ensemble,) = client.get("/s/long.json").json()["ensembles"]
        assert {name: ensemble["ensemble"][name] for name in lengths} == lengths


@pytest.mark.parametrize("has_norm", [True, False])
def test_a_model_whose_head_reads_no_norm_has_a_remark_and_pages_say_so(has_norm, tmp_path):
    model = tiny("llama")
    if not has_norm:
        model.network.model.norm = torch.nn.Sequential(model.network.model.norm, torch.nn.Linear(WIDTH, WIDTH))
    members = members_that_agree(members=3, d_in=WIDTH, d_sae=24, shared=8)
    texts = [("a", torch.arange(2, 60).numpy())]
    publish_study(
        tmp_path, "heads", {"topk": (members, {"hookpoint": "blocks.1.hook_resid_post"})}, model=model, texts=texts,
        only=("match", "activity"),
    )  # fmt: skip
    with browse(tmp_path) as client:
        (ensemble,) = client.get("/s/heads.json").json()["ensembles"]
        missing = {lack["field"]: lack["needs"] for lack in client.get("/s/heads/topk/1/5.json").json()["missing"]}
        page = text_of(client.get("/s/heads").text)
    remarks = ensemble["ensemble"]["remarks"]
    reason = "no norm of llama gives what its head reads"
    assert [remark for remark in remarks if "direct logits" in remark] == (
        [] if has_norm else [f"no direct logits: {reason}"]
    )
    assert (reason in page) != has_norm
    assert ("positive_logits" in missing) != has_norm
    if not has_norm:
        assert reason in missing["positive_logits"]
