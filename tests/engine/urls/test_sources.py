"""SAEs, texts and activations behind URLs give what the same files give from a folder; where they lay here stands nowhere."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from seedscope.engine.activations.documents import documents
from seedscope.engine.activations.recorded import open_recorded
from seedscope.engine.saes.importers.ensemble import located, read_recognised
from seedscope.engine.studies.import_ensemble import as_sae, described
from seedscope.engine.studies.open_evaluator import short_names
from support.remote import put
from support.specimens import SPECIMENS

EVERY = [
    pytest.param(write, id=f"{format}-{n}") for format, writers in SPECIMENS.items() for n, write in enumerate(writers)
]


def digests(path: object) -> list[str]:
    return [as_sae(_seeded(read_recognised(sae))).digest(0) for sae in located(path, "auto")]


def _seeded(member):
    return replace(member, seed=0) if member.seed is None else member


def said(member) -> str:
    """All that is kept of an SAE but its tensors."""
    return json.dumps([asdict(described(member)), member.source, member.settings], sort_keys=True, default=str)


@pytest.mark.parametrize("write", EVERY)
def test_an_sae_of_every_format_is_the_same_from_a_url(write, root, tmp_path):
    """With everything that its folder holds in the storage, named as it is named here: file or folder."""
    folder = tmp_path / "runs" / "seed3"
    folder.mkdir(parents=True)
    path = write(folder)
    put(tmp_path / "runs", "memory://bucket/runs")
    url = f"memory://bucket/runs/{path.relative_to(tmp_path / 'runs').as_posix()}"
    assert digests(url) == digests(path)
    for here, there in zip(located(path, "auto"), located(url, "auto"), strict=True):
        local, remote = _seeded(read_recognised(here)), _seeded(read_recognised(there))
        assert remote.source["path"] == local.source["path"].replace(str(tmp_path), "memory://bucket")
        assert str(root) not in said(remote)
        assert said(remote).replace("memory://bucket", str(tmp_path)) == said(local)


def test_texts_are_the_same_documents_under_their_urls(root, tmp_path):
    for name, text in (("b.txt", "second"), ("a.txt", "first"), ("c.jsonl", '{"text": "third"}\n')):
        (tmp_path / name).write_text(text)
        put(tmp_path / name, f"memory://bucket/corpus/{name}")
    local = list(documents([tmp_path / "*.txt", tmp_path / "c.jsonl#field=text"]))
    remote = list(documents(["memory://bucket/corpus/*.txt", "memory://bucket/corpus/c.jsonl#field=text"]))
    assert [content for _, content in remote] == [content for _, content in local]
    assert [name for name, _ in remote] == [name.replace(str(tmp_path), "memory://bucket/corpus") for name, _ in local]
    assert short_names([name for name, _ in remote]) == short_names([name for name, _ in local])


def test_token_ids_come_with_their_mask(root, tmp_path):
    np.save(tmp_path / "x.npy", np.array([[1, 2, 3], [4, 5, 0]]))
    np.save(tmp_path / "x_attention_mask.npy", np.array([[1, 1, 1], [1, 1, 0]]))
    put(tmp_path, "memory://bucket/ids")
    for pattern in ("x.npy", "*.npy"):
        found = [content.tolist() for _, content in documents(f"memory://bucket/ids/{pattern}")]
        assert found == [[1, 2, 3], [4, 5]]


def test_recorded_activations_have_the_same_digest(root, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "rows"
    folder.mkdir()
    for n in (2, 10):
        np.save(folder / f"shard-{n}.npy", rng.normal(size=(n, 6)).astype(np.float16))
    url = put(folder, "memory://bucket/rows")
    assert open_recorded(url).check() == open_recorded(folder).check() == open_recorded(f"file://{folder}").check()
