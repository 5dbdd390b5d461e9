"""Import explanations that other tools made: read and check files as a whole, then keep them as parts of a study.

They belong to the SAEs alone, so they stay when tokens or model change, and need no activity.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from seedscope.engine.explanations import rule_search
from seedscope.engine.explanations.exchange import delphi, neuronpedia
from seedscope.engine.explanations.exchange.records import Explanations, Seeds, SeedsInNames
from seedscope.engine.explanations.explanation import FeatureExplanation
from seedscope.engine.explanations.of_study import IMPORTED, keep
from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import VERSION, Parts

FORMATS = ("auto", "neuronpedia", "delphi")
LONGEST = 2000  # characters of an explanation
_OWN = ("openai:", rule_search.NAME)  # how explainers are called that a study may have asked itself


class ImportedExplanations(NamedTuple):
    """What was imported from files."""

    format: str
    explainers: Counter[str]  # {explainer: explanations}
    n_features: int
    left_out: list[str]  # what was not imported, and why


def take_explanations(
    study: Path,
    ensemble: str,
    path: Path,
    *,
    format: str = "auto",
    seed: int | None = None,
    sources: Mapping[str, int] | None = None,
) -> ImportedExplanations:
    """Keep the explanations of a file or folder as parts of an ensemble, one per explainer; `publish` shows them.

    A file of one member is that of `seed`; where there are several, `sources` names the seed of each source (Neuronpedia) or
    hook point (delphi), or its name ends like `seed-3`. Raises ValueError, before anything is kept, for files that cannot be
    read, a source of no member and features that the SAEs do not have.
    """
    plan = catalogue.read(study)
    if plan is None:
        raise ValueError(f"found no {catalogue.FILE} in {study}; import SAEs into the study first: seedscope import")
    row = plan.ensemble(ensemble)
    parts, saes = Parts(study, row.name), [member.digest for member in row.members]
    match = parts.find("match", version=VERSION, saes=saes)
    if match is None:
        raise ValueError(
            f"ensemble {row.name} has no results yet to put explanations beside; compute them with: seedscope analyze "
            f"{plan.name}"
        )
    d_sae = len(match.read(row.seeds[0], "partner")["partner"])
    seeds = _seeds(row, seed, sources or {})
    format = _format(path, format)
    by_feature = (delphi.read if format == "delphi" else neuronpedia.read)(path, seeds, d_sae=d_sae)
    by_explainer, left_out = _by_explainer(by_feature)
    for explainer, members in by_explainer.items():
        keep(parts, explainer, {"saes": saes, "origin": IMPORTED}, members, replace=True)
    counts = Counter({name: sum(map(len, members.values())) for name, members in by_explainer.items()})
    return ImportedExplanations(format, counts, len(by_feature), left_out)


def _seeds(ensemble: catalogue.EnsemblePlan, seed: int | None, sources: Mapping[str, int]) -> Seeds:
    for name, each in (("--seed", seed), *((f"--source {name}", each) for name, each in sources.items())):
        if each is not None and each not in ensemble.seeds:
            members = ", ".join(map(str, ensemble.seeds))
            raise ValueError(f"{name} is {each}, expected a member of {ensemble.name}: {members}")
    if seed is not None and sources:
        raise ValueError("both --seed and --source were given, expected --seed for files of one member, else --source")
    if seed is None and not sources and len(ensemble.seeds) == 1:
        return ensemble.seeds[0]
    return SeedsInNames(ensemble.seeds, sources) if seed is None else seed


def _format(path: Path, format: str) -> str:
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    if not path.exists():
        raise ValueError(
            f"found no {path}, expected Neuronpedia's batch-*.jsonl or batch-*.jsonl.gz, or a folder of delphi's results"
        )
    if format != "auto":
        return format
    return "delphi" if path.is_dir() and any((path / "explanations").glob("*.txt")) else "neuronpedia"


def _by_explainer(by_feature: Explanations) -> tuple[dict[str, dict[int, list[FeatureExplanation]]], list[str]]:
    """{explainer: {seed: ascending features}}, one explanation each, and what is left out."""
    by_explainer: dict[str, dict[int, list[FeatureExplanation]]] = {}
    left_out = []
    for (seed, feature), explanations in sorted(by_feature.items()):
        kept: dict[str, str | None] = {}
        for each in explanations:
            name, where = _name(each.explainer), f"feature {feature} of seed {seed}"
            if each.text is not None and len(each.text) > LONGEST:
                left_out.append(f"{where}: {len(each.text):,} characters by {name}, at most {LONGEST:,} are kept")
            elif name not in kept:
                kept[name] = each.text
                by_explainer.setdefault(name, {}).setdefault(seed, []).append(each._replace(explainer=name))
            elif kept[name] != each.text:
                left_out.append(f"{where}: another one by {name}, the first is kept")
    return by_explainer, left_out


def _name(explainer: str) -> str:
    """Not to be taken for what this study found itself, where an export of SeedScope comes back."""
    return f"{explainer} ({IMPORTED})" if explainer.startswith(_OWN) and not explainer.endswith(")") else explainer
