"""Matching, geometry and publishing of a study in the memory of few members, whatever their number."""

import weakref
from pathlib import Path

import numpy as np
import pytest

from seedscope.engine import machine
from seedscope.engine.geometry import row_sets
from seedscope.engine.matching import match
from seedscope.engine.saes import sae
from seedscope.engine.saes.stored import StoredMembers
from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import Part, Parts
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.publish import publish
from support.studies import members_that_agree

N = 6


@pytest.fixture
def study(tmp_path) -> Path:
    members = members_that_agree(members=N)
    members.save(tmp_path / "sae")
    plan = tuple(catalogue.MemberPlan(seed, members.digest(index)) for index, seed in enumerate(members.seeds))
    catalogue.write(
        catalogue.StudyPlan("many", ensembles=(catalogue.EnsemblePlan("e", "imported", "sae", plan),)), tmp_path
    )
    return tmp_path


def files_of(study: Path, analysis: str = "match") -> dict[str, bytes]:
    part = Parts(study, "e").find(analysis)
    return {f"{seed} {name}": array.tobytes() for seed in sorted(part.seeds) for name, array in part.read(seed).items()}


def refuse(*given):
    raise AssertionError("all members were loaded")


def test_matching_two_members_at_a_time_leaves_the_same_part_and_no_scratch(study, monkeypatch):
    analyse(study, only=["match"])
    together = files_of(study)
    Parts(study, "e").discard()
    monkeypatch.setattr(match, "HELD_SHARE", 0)
    monkeypatch.setattr(sae, "load", refuse)
    analyse(study, only=["match"])
    assert files_of(study) == together
    assert not (study / "scratch").exists()


@pytest.mark.slow
def test_geometry_that_holds_no_member_leaves_the_same_parts_and_no_scratch(study, monkeypatch):
    analyses = ["match", "subspaces", "shared_spans"]
    analyse(study, only=analyses)
    together = {name: files_of(study, name) for name in analyses}
    assert any("FeatureSpan.own" in name for name in together["subspaces"])
    Parts(study, "e").discard()
    monkeypatch.setattr(machine, "WORKING_SHARE", 0)
    monkeypatch.setattr(row_sets, "WORKING_SHARE", 0)
    monkeypatch.setattr(sae, "load", refuse)
    analyse(study, only=analyses)
    assert {name: files_of(study, name) for name in analyses} == together
    assert not (study / "scratch").exists()


def test_publishing_reads_one_member_after_the_other(study, monkeypatch):
    analyse(study, only=["match"])
    alive, most = [0, 0], [0, 0]  # decoders, parts

    def counted(read, which, array_of):
        def reading(*given):
            result = read(*given)
            alive[which] += 1
            most[which] = max(most[which], alive[which])
            weakref.finalize(array_of(result), lambda: alive.__setitem__(which, alive[which] - 1))
            return result

        return reading

    monkeypatch.setattr(sae, "load", refuse)
    monkeypatch.setattr(StoredMembers, "encoder_rows", refuse)
    monkeypatch.setattr(StoredMembers, "decoder_rows", counted(StoredMembers.decoder_rows, 0, lambda rows: rows))
    monkeypatch.setattr(Part, "read", counted(Part.read, 1, lambda arrays: next(iter(arrays.values()))))
    publish(study)
    assert most == [1, 1]
    assert alive == [0, 0]


def test_norms_of_one_member_are_those_of_all(study):
    members = sae.load(study / "sae", tuple(range(N)))
    stored = StoredMembers(study / "sae", members.seeds)
    together = members.W_dec.detach().norm(dim=-1).numpy()
    alone = np.stack([stored.decoder_rows(index).norm(dim=-1).numpy() for index in range(N)])
    assert alone.tobytes() == together.tobytes()
