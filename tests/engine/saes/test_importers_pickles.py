"""No pickle is ever executed, and none that was tampered with passes as an SAE."""

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from seedscope.engine.saes.importers.ensemble import read
from support.paths import CHECKPOINTS


class Payload:
    """Creates a file when unpickled by Python's own unpickler."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_the_payload_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("format", ["auto", "overcomplete", "dictionary_learning", "openai"])
@pytest.mark.parametrize("where", ["whole", "inside"])
def test_pickles_are_never_executed(where, format, tmp_path):
    target = tmp_path / "ran"
    state = torch.load(CHECKPOINTS / "dictionary_learning" / "topk" / "trainer_0" / "ae.pt", weights_only=True)
    torch.save(Payload(target) if where == "whole" else {**state, "extra": Payload(target)}, tmp_path / "sae.pt")
    with pytest.raises(ValueError, match=r"sae\.pt"):
        read(tmp_path / "sae.pt", format)
    assert not target.exists()


def test_a_module_with_a_payload_among_its_attributes_is_read_without_running_it(tmp_path):
    path, target = CHECKPOINTS / "overcomplete" / "topk_max_l2.pt", tmp_path / "ran"
    stream = b"cposix\nsystem\n" + pickle.dumps((f"touch {target}",), protocol=0).rstrip(b".") + b"R0"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "sae.pt", "w") as copy:
        for name in source.namelist():
            data = source.read(name)
            copy.writestr(name, data[:2] + stream + data[2:] if name.endswith("data.pkl") else data)
    assert read(tmp_path / "sae.pt").tensors["W_dec"].equal(read(path).tensors["W_dec"])
    assert not target.exists()


@pytest.mark.parametrize("stream", [b"", b"\x80\x02.", b"cos\nsystem\n(S'true'\ntRq\x00s.", b"\x80\x02N.", b"garbage"])
def test_streams_that_are_no_pickle_of_an_sae(stream, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", stream)
    with pytest.raises(ValueError, match=r"a\.pt"):
        read(tmp_path / "a.pt", "overcomplete")


def test_a_tensor_that_reaches_past_its_numbers_is_refused(tmp_path):
    file = tmp_path / "ae.pt"
    torch.save(OrderedDict({"encoder.weight": torch.zeros(4, 2), "decoder.weight": torch.zeros(2, 4)}), file)
    with zipfile.ZipFile(file) as source:
        held = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(file, "w") as copy:
        for name, data in held.items():
            copy.writestr(name, data[:4] if "/data/" in name else data)
    with pytest.raises(ValueError, match=r"ae\.pt is not a complete torch\.save file"):
        read(tmp_path)
