"""What importing recognised of each member, from the study's catalogue; the published store holds results alone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedscope.engine.contract.tables.study import Member

CATALOGUE = "study.json"
ASSUMED = "assumed"  # the source of what no file said, as engine.saes.importers.facts writes it


@dataclass(frozen=True)
class Fact:
    """What an SAE's numbers rest on, and where it was read: a file's key, a name, an option (`you`), or an assumption."""

    fact: str
    value: str
    source: str
    assumed: bool


@dataclass(frozen=True)
class RecognisedMember:
    """The facts of one imported SAE."""

    seed: int
    facts: list[Fact]


def recognised(folder: Path, ensemble: str, members: list[Member]) -> list[RecognisedMember]:
    """Members of an ensemble whose facts the catalogue in a study's folder holds; empty for older catalogues.

    A member of the catalogue that is not the one of the results, such as one imported since, is left out.
    """
    digests = {member.seed: member.sae_digest for member in members}
    try:
        content = json.loads((folder / CATALOGUE).read_text(encoding="utf-8"))
        return [
            RecognisedMember(each["seed"], list(_facts(each["facts"])))
            for plan in content["ensembles"]
            if plan["name"] == ensemble
            for each in plan["members"]
            if each.get("facts") and digests.get(each["seed"]) == each["digest"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, or damaged: commands say so
        return []


def _facts(facts: dict[str, Any]) -> Iterator[Fact]:
    for name, (value, source) in facts.items():
        yield Fact(name, value, source, source == ASSUMED)
