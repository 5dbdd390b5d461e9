"""Attribution graphs of circuit-tracer and Neuronpedia, with the stability of every feature node that a study knows.

A node gains a field `seedscope` (stability with its interval, bucket, span, permalink), the graph's metadata one with what was
added and how attribution flows. Nothing else changes, so tools that read the graph go on reading it.

*Flow*: from the logit nodes, weighed by their probability, attribution is followed back along the links; each node passes what it
gets on to its sources in proportion to |weight|. Of all paths the share that meets at least one node of a bucket is told. Graphs
are pruned: it is the flow along the links that the file has. Definition of this project.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.contract.stability import BUCKETS
from seedscope.engine.contract.tables.features import Feature, Match
from seedscope.engine.contract.tables.shared_spans import SharedSpan, SharedSpanFeature
from seedscope.engine.contract.tables.study import Ensemble, Member
from seedscope.engine.export.features import ByChance, feature_columns
from seedscope.engine.export.open_study import FeatureBlock, Opened, opened
from seedscope.engine.progress import Report

FIELD = "seedscope"
FEATURE_TYPES = ("cross layer transcoder", "transcoder", "lorsa", "sae")  # of nodes that are features
LOGIT = "logit"
UNMAPPED, ERROR = "unmapped", "error"
_LAYER = re.compile(r"(?:^|\.)(?:blocks|layers|h)\.(\d+)(?:\.|$)")
_JUDGED = ("stability", "stability_low", "stability_high", "n_matched", "n_comparisons", "bucket", "theta", "epsilon")


class Layer(NamedTuple):
    """The SAE that a layer's feature nodes are of."""

    ensemble: Ensemble
    member: Member


class Annotated(NamedTuple):
    """A graph with what a study says of it."""

    graph: dict[str, Any]
    n_features: int  # feature nodes
    n_mapped: int
    unmapped: dict[str, int]  # {reason: nodes}
    nodes: dict[str, int]  # {bucket, `unmapped`: feature nodes}
    flow: dict[str, float]  # {bucket, `unmapped`, `error`: share of attribution through at least one such node, 0 to 1}


def annotate(
    root: Path,
    study: str,
    graph: Path,
    *,
    ensembles: Sequence[str] = (),
    seed: int | None = None,
    report: Report = lambda done, total: None,
) -> Annotated:
    """What a study says of a graph in a file; `ensembles` choose among several at one layer, `seed` the SAE that was traced.

    Without a seed it is the anchor's, the SAE that others were trained to judge. Raises ValueError for a file that is no such
    graph, for a layer that two ensembles fit, and where the SAE is not known.
    """
    content = _read(graph)
    with opened(root, study) as store:
        layers = layers_of(store, ensembles, seed)
        wanted: dict[int, set[int]] = defaultdict(set)
        places, reasons = {}, {}
        for node in _feature_nodes(content):
            found = _place(node, layers)
            if isinstance(found, str):
                reasons[node["node_id"]] = found
            else:
                places[node["node_id"]] = found
                wanted[found[0]].add(found[1])
        known: dict[tuple[int, int], dict[str, Any]] = {}
        for done, (layer, features) in enumerate(sorted(wanted.items()), 1):
            known |= {(layer, index): says for index, says in _judged(store, layers[layer], sorted(features))}
            report(done, len(wanted))
    for node in content["nodes"]:
        node.pop(FIELD, None)
        if (place := places.get(node["node_id"])) is not None:
            node[FIELD] = known[place]
    kind = {name: known[place]["bucket"] or UNMAPPED for name, place in places.items()} | dict.fromkeys(
        reasons, UNMAPPED
    )
    counted = Counter(kind.values())
    flow = flow_through(content, kind)
    unmapped = dict(Counter(reasons.values()))
    members = [
        {"layer": layer, "ensemble": each.ensemble.ensemble, "seed": each.member.seed, "sae_digest": each.member.sae_digest,
         "digest": each.ensemble.digest}
        for layer, each in sorted(layers.items()) if layer in wanted
    ]  # fmt: skip
    content["metadata"][FIELD] = {
        "study": study, "members": members, "n_features": len(kind), "n_mapped": len(places), "unmapped": unmapped,
        "nodes": dict(counted), "flow": flow,
    }  # fmt: skip
    return Annotated(content, len(kind), len(places), unmapped, dict(counted), flow)


def layers_of(study: Opened, ensembles: Sequence[str], seed: int | None) -> dict[int, Layer]:
    """{layer: the SAE that its nodes are of}; raises ValueError where that is not known."""
    names = [row.ensemble for row in study.ensembles]
    if missing := sorted(set(ensembles) - set(names)):
        raise ValueError(
            f"study {study.study.study} has no ensemble {', '.join(missing)}, expected some of {', '.join(names)}"
        )
    found: dict[int, Layer] = {}
    for row in study.ensembles:
        if row.control_of or (ensembles and row.ensemble not in ensembles):
            continue
        named = _LAYER.search(row.hookpoint or "")
        if named is None:
            continue
        layer = int(named[1])
        if layer in found:
            raise ValueError(
                f"ensembles {found[layer].ensemble.ensemble} and {row.ensemble} are both of layer {layer}; choose with --ensemble"
            )
        found[layer] = Layer(row, _traced(study, row, seed))
    if not found:
        raise ValueError(
            f"found no ensemble of study {study.study.study} whose hook point names a layer, expected one such as "
            "blocks.3.hook_mlp_out"
        )
    return found


def _traced(study: Opened, row: Ensemble, seed: int | None) -> Member:
    members = study.members[row.ensemble]
    seed = row.anchor if seed is None else seed
    seeds = [member.seed for member in members]
    if seed is None:
        raise ValueError(
            f"ensemble {row.ensemble} has the seeds {', '.join(map(str, seeds))}, and a graph does not say which of them was "
            "traced; name it with --seed"
        )
    for member in members:
        if member.seed == seed:
            return member
    raise ValueError(f"ensemble {row.ensemble} has no seed {seed}, expected one of {', '.join(map(str, seeds))}")


def _read(path: Path) -> dict[str, Any]:
    """The graph in a file; raises ValueError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}), expected an attribution graph") from None
    parts = {"metadata": dict, "nodes": list, "links": list}
    if not isinstance(content, dict) or any(not isinstance(content.get(name), kind) for name, kind in parts.items()):
        raise ValueError(
            f"{path} is no attribution graph: expected an object with metadata, nodes and links, as circuit-tracer writes them"
        )
    ids = [node.get("node_id") if isinstance(node, dict) else None for node in content["nodes"]]
    if not all(isinstance(name, str) for name in ids) or len(set(ids)) < len(ids):
        raise ValueError(f"{path}: nodes lack a node_id of their own, expected each to have one that no other has")
    known = set(ids)
    for link in content["links"]:
        if not isinstance(link, dict) or not {link.get("source"), link.get("target")} <= known:
            raise ValueError(f"{path}: link {link!r} names a node that the graph does not have")
        if not isinstance(link.get("weight"), int | float):
            raise ValueError(f"{path}: link {link!r} has no weight, expected a number")
    return content


def _feature_nodes(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    return (node for node in content["nodes"] if node.get("feature_type") in FEATURE_TYPES)


def _place(node: Mapping[str, Any], layers: Mapping[int, Layer]) -> tuple[int, int] | str:
    """(layer, feature index) of a node, or why it is of no SAE of the study."""
    named = re.fullmatch(r"(\d+)_(\d+)_\d+", node["node_id"])
    if named is None or str(node.get("layer")) != named[1]:
        return "its name does not say layer and feature"
    layer, index = int(named[1]), int(named[2])
    if node.get("feature") not in (index, cantor(layer, index)):
        return "its name and its feature disagree"
    if layer not in layers:
        return "no ensemble of its layer"
    if not layers[layer].ensemble.n_comparisons:
        return "its SAE is one alone, whose stability is undefined"
    if index >= layers[layer].ensemble.d_sae:
        return "its index is beyond the SAE's features"
    return layer, index


def cantor(x: int, y: int) -> int:
    """One number of two (Cantor's pairing), by which circuit-tracer names the features of all layers."""
    return (x + y) * (x + y + 1) // 2 + y


def _judged(study: Opened, layer: Layer, features: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index, what the study says of it) of some features of one SAE, judged as the exports judge them."""
    row, member = layer
    others = np.array([other.seed for other in study.members[row.ensemble] if other != member], np.int64)
    spans = _spans(study, row, member)
    for index in features:
        where: dict[str, Any] = {
            "ensemble": row.ensemble,
            "seed": member.seed,
            "feature": range(index, index + 1),
        }
        stored = (study.store.table(table, **where) for table in (Feature, Match))
        columns = feature_columns(study, FeatureBlock(row, member, others, *stored), ByChance({}, {}))
        says = {name: columns[name][0].as_py() for name in _JUDGED}
        says["span"] = spans.get(index)
        says["permalink"] = f"/s/{study.study.study}/{row.ensemble}/{member.seed}/{index}?v={row.digest}"
        yield index, says


def _spans(study: Opened, row: Ensemble, member: Member) -> dict[int, str]:
    """{feature: id of the kept span that it is in}."""
    kept = {span.span for span in study.store.rows(SharedSpan, ensemble=row.ensemble) if span.kept}
    members = study.store.rows(SharedSpanFeature, ensemble=row.ensemble, seed=member.seed)
    return {each.feature: each.span for each in members if each.span in kept}


def flow_through(content: Mapping[str, Any], kind: Mapping[str, str]) -> dict[str, float]:
    """{kind: share of the attribution to the logits that passes at least one node of it}; of error nodes, that ends in one.

    `kind` names that of every feature node. Raises ValueError for links that run in a circle. Empty without logit nodes.
    """
    nodes = {node["node_id"]: node for node in content["nodes"]}
    kinds = dict(kind)
    kinds |= {name: ERROR for name, node in nodes.items() if "error" in str(node.get("feature_type"))}
    incoming: dict[str, dict[str, float]] = {name: {} for name in nodes}
    for link in content["links"]:
        sources = incoming[link["target"]]
        sources[link["source"]] = sources.get(link["source"], 0.0) + abs(float(link["weight"]))
    try:
        from_sources = list(TopologicalSorter(incoming).static_order())
    except CycleError as error:
        raise ValueError(f"links run in a circle: {' > '.join(map(str, error.args[1][:6]))}") from None
    logits = {
        name: max(float(node.get("token_prob") or 0), 0.0)
        for name, node in nodes.items()
        if node.get("feature_type") == LOGIT
    }
    if not logits:
        return {}
    if not any(logits.values()):
        logits = dict.fromkeys(logits, 1.0)
    total = sum(logits.values())
    return {
        name: 1 - _without(name, from_sources[::-1], incoming, {at: p / total for at, p in logits.items()}, kinds)
        for name in (*BUCKETS, UNMAPPED, ERROR)
    }


def _without(
    avoided: str,
    to_sources: Sequence[str],
    incoming: Mapping[str, Mapping[str, float]],
    mass: dict[str, float],
    kinds: Mapping[str, str],
) -> float:
    """Share of the paths from the logits that meet no node of a kind."""
    ended = 0.0
    for name in to_sources:
        here = mass.get(name, 0.0)
        if not here or kinds.get(name) == avoided:
            continue
        sources = incoming[name]
        whole = sum(sources.values())
        if not whole:
            ended += here
            continue
        for source, weight in sources.items():
            mass[source] = mass.get(source, 0.0) + here * weight / whole
    return ended
