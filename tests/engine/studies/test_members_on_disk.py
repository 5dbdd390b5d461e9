"""Ensembles whose members do not fit into memory together: read one at a time, they give the same numbers."""

from pathlib import Path

import numpy as np
import pytest

from seedscope.engine.features import ablation
from seedscope.engine.store import catalogue
from seedscope.engine.studies import ensemble_run
from seedscope.engine.studies.analyses import activity
from seedscope.engine.studies.publish import publish
from support.analyses import Kept, enrol_one, on_tokens, run
from support.studies import ask
from support.tiny_models import VOCABULARY, tiny

# What counterparts do is measured of all members together.
MEASURED = ("match", "activity", "ablate", "loss", "explain", "subspaces")


def analysed(folder: Path, words: Path) -> tuple[str, Kept]:
    """The digest of a study's results, and what its analysis said."""
    enrol_one(folder, "one")
    study = folder / "root" / "mine"
    plan = catalogue.read(study)
    catalogue.write(plan.__class__(**{**vars(plan), **on_tokens(words)}), study)
    progress = run(study, tiny("llama"), only=MEASURED)
    store = publish(study)
    assert ask(store, "SELECT count(*) FROM Feature WHERE worth_ev IS NULL OR density IS NULL") == [(0,)]
    return store.stem, progress


@pytest.mark.parametrize(
    "pair_numbers", [pytest.param(ablation.PAIR_NUMBERS, marks=pytest.mark.slow), 0], ids=["one pass", "a second pass"]
)
def test_no_number_depends_on_how_many_members_are_in_memory(tmp_path, monkeypatch, pair_numbers):
    words = tmp_path / "words.txt"
    words.write_text(" ".join(f"w{word}" for word in np.random.default_rng(5).integers(2, VOCABULARY, 700)))
    monkeypatch.setattr(activity, "PAIR_NUMBERS", pair_numbers)
    together, _ = analysed(tmp_path / "here", words)
    (tmp_path / "here").rename(tmp_path / "together")
    monkeypatch.setattr(ensemble_run, "HELD_SHARE", 0.0)
    alone, progress = analysed(tmp_path / "here", words)
    assert alone == together
    assert progress.stages.count("one: masks") == (0 if pair_numbers else 3)
