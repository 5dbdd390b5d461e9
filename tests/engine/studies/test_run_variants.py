"""A study file with variants: trained, measured, published, exported to SAELens and back; its traces and its stops."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.app.store.studies import Studies
from seedscope.engine.contract.recipe import VARIANTS
from seedscope.engine.demo import stdlib
from seedscope.engine.export.formats import export
from seedscope.engine.progress import Progress, Report
from seedscope.engine.saes import sae
from seedscope.engine.saes.importers import ensemble
from seedscope.engine.store import catalogue
from seedscope.engine.studies.run import run_file
from seedscope.engine.studies.studyfile.read import read_study_file
from seedscope.engine.training import trace
from seedscope.engine.training.ensemble import train_ensemble

pytestmark = pytest.mark.slow

HEAD = f"""[study]
name = "several"
[model]
path = "{stdlib.MODEL_DIR}"
hookpoint = "blocks.2.hook_resid_post"
[tokens]
source = "texts/*.txt"
n_ctx = 32
eval = 300
"""
ENSEMBLE = """[[ensemble]]
name = "{variant}"
train = {{ variant = "{variant}", d_sae = 36, seeds = 2, tokens = 2048, batch = 256 }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus) -> Path:
    folder = tmp_path_factory.mktemp("file")
    (folder / "texts").mkdir()
    for i, (_, text) in enumerate(corpus.train[:12]):
        (folder / "texts" / f"{i}.txt").write_text(text)
    (folder / "study.toml").write_text(HEAD + "".join(ENSEMBLE.format(variant=variant) for variant in VARIANTS))
    return folder


@pytest.fixture(scope="module")
def root(folder, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("root")
    run_file(read_study_file(folder / "study.toml"), root, device="cpu", progress=Progress(quiet=True))
    return root


def test_every_variant_of_a_study_file_is_trained_measured_and_published(root):
    store = Studies(root).get("several")
    assert {name: row.variant for name, row in store.ensembles.items()} == {variant: variant for variant in VARIANTS}
    assert all(set(row.computed) >= {"match", "activity", "ablate"} for row in store.ensembles.values())
    starts = {each.name: each.shared_start for each in catalogue.read(root / "several").ensembles}
    assert {name for name, shared in starts.items() if shared == "yes"} == {"archetypal", "relaxed-archetypal"}


def test_pages_show_every_variant(root):
    with TestClient(create_app(Settings(root)), base_url="http://127.0.0.1") as client:
        for variant in VARIANTS:
            for page in ("", "/features", "/0/0", "/members", "/ablation"):
                assert client.get(f"/s/several/{variant}{page}").status_code == 200, page
        text = client.get("/s/several").text
        assert "Matryoshka BatchTopK" in text
        assert "Relaxed archetypal TopK" in text


def test_every_ensemble_keeps_its_trace_and_no_checkpoints(root):
    for each in catalogue.read(root / "several").ensembles:
        points = trace.read(root / "several" / each.folder)
        assert (points[0].step, points[-1].step) == (0, 8)
        assert points[-1].seeds == each.seeds
    assert not (root / "several" / "checkpoints").exists()


@pytest.mark.parametrize("variant", VARIANTS)
def test_saelens_files_of_every_variant_compute_the_same(root, tmp_path, variant):
    export(root, "several", tmp_path / "out", format="saelens")
    entry = catalogue.read(root / "several").ensemble(variant)
    own = sae.load(root / "several" / entry.folder, entry.seeds)
    x = torch.randn(50, own.d_in, generator=torch.Generator().manual_seed(0))
    for member, seed in enumerate(entry.seeds):
        read = ensemble.read(tmp_path / "out" / variant / f"seed-{seed}")
        there = sae.assemble({k: t[None] for k, t in read.tensors.items()}, read.convention, (0,))
        torch.testing.assert_close(there(x)[:, 0], own(x)[:, member], rtol=1e-5, atol=1e-5)


class StopsIn(Progress):
    """Raises when a stage has come so far; remembers how far that was each time."""

    def __init__(self, stage: str, share: float) -> None:
        super().__init__(quiet=True)
        self._stage, self._share, self.shares = stage, share, []

    @contextmanager
    def stage(self, name: str, unit: str) -> Iterator[Report]:
        with super().stage(name, unit) as report:

            def told(done: int, total: int) -> None:
                report(done, total)
                if name.startswith(self._stage):
                    self.shares.append(done / total)
                    if done >= self._share * total:
                        raise KeyboardInterrupt

            yield told


def test_a_stopped_run_goes_on_inside_a_training_and_ends_with_the_same_members(folder, root, tmp_path, monkeypatch):
    monkeypatch.setattr("seedscope.engine.studies.train.train_ensemble", partial(train_ensemble, every_s=0.0))
    file = folder / "one.toml"
    file.write_text(HEAD + ENSEMBLE.format(variant="batchtopk"))
    with pytest.raises(KeyboardInterrupt):
        run_file(read_study_file(file), tmp_path, device="cpu", progress=StopsIn("batchtopk: 2 SAEs", 0.6))
    shutil.rmtree(tmp_path / "several" / "scratch")  # as an analysis of other ensembles does
    resumed = StopsIn("batchtopk: 2 SAEs", 2)
    run_file(read_study_file(file), tmp_path, device="cpu", progress=resumed)
    assert min(resumed.shares) > 0.5
    digests = [
        [member.digest for member in catalogue.read(where / "several").ensemble("batchtopk").members]
        for where in (root, tmp_path)
    ]
    assert digests[0] == digests[1]
    (points,) = (trace.read(path.parent) for path in tmp_path.rglob(trace.FILE))
    assert [point.step for point in points] == list(range(9))
