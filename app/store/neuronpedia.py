"""Pages of features on Neuronpedia, where importing learned under which model and source an SAE is found there."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, urlencode

from seedscope.app.store.recognised import recognised
from seedscope.engine.contract.tables.study import Member

SITE = "https://www.neuronpedia.org"
FACT = "neuronpedia"  # as engine.saes.importers.facts writes it


def sources(folder: Path, ensemble: str, members: list[Member]) -> dict[int, str]:
    """{seed: MODEL/SOURCE} of the members that have pages there; `folder` is the study's."""
    found = {}
    for member in recognised(folder, ensemble, members):
        for fact in member.facts:
            if fact.fact == FACT and re.fullmatch(r"[\w.-]+/[\w.-]+", fact.value):
                found[member.seed] = fact.value
    return found


def feature_address(source: str, feature: int) -> str:
    """The page of a feature of MODEL/SOURCE."""
    return f"{SITE}/{source}/{feature}"


def quick_list(name: str, features: Iterable[tuple[str, int, str]]) -> str:
    """The address of a list there, of (MODEL/SOURCE, feature, description)."""
    entries = [
        dict(zip(("modelId", "layer"), source.split("/"), strict=True))
        | {"index": str(feature), "description": description}
        for source, feature, description in features
    ]
    return f"{SITE}/quick-list/?" + urlencode({"name": name, "features": json.dumps(entries)}, quote_via=quote)
