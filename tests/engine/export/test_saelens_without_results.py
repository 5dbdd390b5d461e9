"""`export --format saelens` right after `import`: checkpoints are converted without any analysis."""

import json

import pytest
import torch

from seedscope.engine.export.formats import export
from seedscope.engine.saes.importers import ensemble
from seedscope.engine.store import catalogue
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.import_ensemble import enrol
from seedscope.engine.studies.publish import publish
from support.commands import run
from support.studies import members_that_agree


@pytest.fixture
def imported(tmp_path):
    """A root with a study of three members that nothing was computed on, and the SAEs themselves."""
    saes = members_that_agree(members=3)
    saes.save(tmp_path / "files", provenance={"model": "gpt2"})
    enrol(tmp_path / "root", "mine", "topk", [tmp_path / "files"], hookpoint="blocks.1.hook_resid_post")
    return tmp_path / "root", saes


def test_imported_members_are_written_as_they_are(imported, tmp_path):
    root, saes = imported
    done = run("export", "mine", tmp_path / "out", "--format", "saelens", "--root", root, "--quiet")
    assert done.returncode == 0, done.stderr
    members = ensemble.read_many([tmp_path / "out"])
    assert [member.seed for member in members] == [0, 1, 2]
    for i, member in enumerate(members):
        assert all(torch.equal(member.tensors[name], tensor) for name, tensor in saes.member_tensors(i).items())
    metadata = json.loads((tmp_path / "out/topk/seed-1/cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == "gpt2"
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"


def test_ensembles_that_wait_for_their_analysis_are_written_beside_those_with_results(imported, tmp_path):
    root, _ = imported
    analyse(root / "mine", only=("match",), device="cpu")
    publish(root / "mine")
    members_that_agree(members=2, seed=7).save(tmp_path / "later")
    enrol(root, "mine", "waiting", [tmp_path / "later"])
    export(root, "mine", tmp_path / "out", format="saelens")
    folders = {str(path.parent.relative_to(tmp_path / "out")) for path in (tmp_path / "out").glob("*/*/cfg.json")}
    assert folders == {"topk/seed-0", "topk/seed-1", "topk/seed-2", "waiting/seed-0", "waiting/seed-1"}


def test_other_formats_still_need_results_and_damaged_files_are_refused(imported, tmp_path):
    root, _ = imported
    with pytest.raises(ValueError, match=r"no results yet.*--format saelens needs none"):
        export(root, "mine", tmp_path / "out")
    plan = catalogue.read(root / "mine")
    file = root / "mine" / plan.ensembles[0].folder / "seed-1.safetensors"
    file.write_bytes((file.parent / "seed-0.safetensors").read_bytes())
    with pytest.raises(ValueError, match="has the digest"):
        export(root, "mine", tmp_path / "out", format="saelens")
    assert not (tmp_path / "out").exists()
