"""Attribution graphs: nodes gain what the store says, flow is that of all paths counted one by one, bad graphs are refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest

import seedscope
from seedscope.engine.contract.stability import BUCKETS
from seedscope.engine.contract.tables.shared_spans import SharedSpanFeature
from seedscope.engine.export.attribution_graph import FIELD, Layer, _place, annotate, cantor, flow_through
from support.commands import assert_one_line, run
from support.span_study import SPAN_ENSEMBLE, SPAN_STUDY

LAYER = 2  # of the study's hook point

# What readers of these graphs require, in this test's words: circuit-tracer's models and Neuronpedia's schema (draft 7).
NODE = {
    "node_id": {"type": "string"},
    "feature": {"type": ["integer", "null"]},
    "layer": {"type": ["string", "integer"]},
    "ctx_idx": {"type": "integer"},
    "feature_type": {"type": "string"},
    "jsNodeId": {"type": "string"},
    "clerp": {"type": "string"},
}
LINK = {"source": {"type": "string"}, "target": {"type": "string"}, "weight": {"type": "number"}}
METADATA = {"slug", "scan", "prompt_tokens", "prompt"}
SCHEMA = {
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {"type": "object", "required": sorted(METADATA)},
        "qParams": {"type": "object"},
        "nodes": {"type": "array", "items": {"type": "object", "required": list(NODE), "properties": NODE}},
        "links": {"type": "array", "items": {"type": "object", "required": list(LINK), "properties": LINK}},
    },
}


def node(name: str, kind: str = "cross layer transcoder", **more) -> dict:
    layer, index, position = name.split("_")
    feature = (
        cantor(int(layer), int(index)) if kind == "cross layer transcoder" else int(index)
    )  # as circuit-tracer has it
    return {"node_id": name, "feature": feature, "layer": layer, "ctx_idx": int(position), "feature_type": kind, "jsNodeId": name,
            "clerp": ""} | more  # fmt: skip


def graph(nodes: list[dict], links: list[tuple[str, str, float]]) -> dict:
    return {
        "metadata": {"slug": "one", "scan": "tiny", "prompt_tokens": ["a", "b"], "prompt": "ab"},
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": [{"source": source, "target": target, "weight": weight} for source, target, weight in links],
    }


EMBEDDING, ERROR = node("E_5_0", "embedding"), node("2_9999_1", "mlp reconstruction error")
LOGITS = [node("5_17_1", "logit", token_prob=0.6), node("5_18_1", "logit", token_prob=0.2)]


CIRCLE = [
    {"source": source, "target": target, "weight": 1}
    for source, target in (("E_5_0", f"{LAYER}_0_1"), (f"{LAYER}_0_1", "E_5_0"))
]


@pytest.fixture
def written(tmp_path):
    def write(content) -> Path:
        path = tmp_path / "graph.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture(scope="module")
def ensemble(span_root):
    return seedscope.open(span_root[0])[SPAN_STUDY][SPAN_ENSEMBLE]


def test_every_node_says_what_the_study_says_and_the_rest_stays(span_root, ensemble, written):
    features = [0, 7, 60, 79]
    nodes = [node(f"{LAYER}_{index}_1") for index in features] + [
        node("3_4_1"),
        node(f"{LAYER}_80_1"),
        EMBEDDING,
        *LOGITS,
    ]
    links = [("E_5_0", f"{LAYER}_{index}_1", 1.0) for index in features]
    before = graph(nodes, [*links, (f"{LAYER}_0_1", "5_17_1", 2.0)])
    found = annotate(span_root[0], SPAN_STUDY, written(before), seed=3)
    jsonschema.validate(found.graph, SCHEMA)
    kept = {row["span"] for row in ensemble.spans().to_pylist() if row["kept"]}
    spans = {
        row.feature: row.span for row in ensemble._store.rows(SharedSpanFeature, "seed = ?", [3]) if row.span in kept
    }
    assert spans
    for index, told in zip(features, found.graph["nodes"], strict=False):
        one = ensemble.feature(3, index)
        assert told[FIELD] == {
            "stability": one.stability, "stability_low": one.stability_low, "stability_high": one.stability_high,
            "n_matched": one.n_matched, "n_comparisons": one.n_comparisons, "bucket": one.bucket, "theta": one.theta,
            "epsilon": one.epsilon, "span": spans.get(index), "permalink": one.permalink,
        }  # fmt: skip
    assert (found.n_features, found.n_mapped) == (6, 4)
    assert found.unmapped == {"no ensemble of its layer": 1, "its index is beyond the SAE's features": 1}
    assert sum(found.nodes.values()) == 6
    for each in found.graph["nodes"]:
        each.pop(FIELD, None)
    says = found.graph["metadata"].pop(FIELD)
    assert found.graph == before
    assert says["members"][0]["seed"] == 3
    assert says["flow"] == found.flow


def paths(links: dict[str, dict[str, float]], at: str):
    """(nodes, share) of every path from a node to where links end."""
    whole = sum(abs(weight) for weight in links.get(at, {}).values())
    if not whole:
        yield [at], 1.0
        return
    for source, weight in links[at].items():
        for nodes, share in paths(links, source):
            yield [at, *nodes], share * abs(weight) / whole


def test_flow_is_the_share_of_paths_that_meet_a_kind():
    rng = np.random.default_rng(0)
    layers = [
        ["E_1_0", "2_9999_1"],
        *([f"{layer}_{i}_1" for i in range(3)] for layer in (1, 2, 3)),
        ["5_17_1", "5_18_1"],
    ]
    kind = {name: str(rng.choice([*BUCKETS, "unmapped"])) for layer in layers[1:-1] for name in layer}
    links = [
        (source, target, float(rng.normal()))
        for at, layer in enumerate(layers)
        for target in layer
        for before in layers[:at]
        for source in before
        if rng.random() < 0.6
    ]
    nodes = [EMBEDDING | {"node_id": "E_1_0"}, ERROR, *(node(name) for name in kind), *LOGITS]
    found = flow_through(graph(nodes, links), kind)
    incoming: dict[str, dict[str, float]] = {}
    for source, target, weight in links:
        incoming.setdefault(target, {})[source] = weight
    every = [
        (nodes, p * share) for name, p in (("5_17_1", 0.75), ("5_18_1", 0.25)) for nodes, share in paths(incoming, name)
    ]
    assert sum(share for _, share in every) == pytest.approx(1)
    kinds = kind | {"2_9999_1": "error"}
    for name in (*BUCKETS, "unmapped", "error"):
        expected = sum(share for nodes, share in every if name in {kinds.get(each) for each in nodes})
        assert found[name] == pytest.approx(expected)
    assert len({round(value, 6) for value in found.values()}) > 3


def test_without_logits_no_flow_is_told():
    assert flow_through(graph([EMBEDDING, node("1_0_1")], [("E_5_0", "1_0_1", 1.0)]), {"1_0_1": "stable"}) == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g: [], "is no attribution graph"),
        (lambda g: g | {"nodes": g["nodes"] * 2}, "node_id of their own"),
        (lambda g: g | {"links": [{"source": "x", "target": "E_5_0", "weight": 1}]}, "does not have"),
        (lambda g: g | {"links": [{"source": "E_5_0", "target": f"{LAYER}_0_1", "weight": "x"}]}, "has no weight"),
        (lambda g: g | {"links": CIRCLE}, "run in a circle"),
    ],
)  # fmt: skip
def test_what_is_no_graph_is_refused_in_one_line(span_root, written, change, says):
    sound = graph([EMBEDDING, node(f"{LAYER}_0_1"), *LOGITS], [])
    with pytest.raises(ValueError, match=says) as refused:
        annotate(span_root[0], SPAN_STUDY, written(change(sound)), seed=0)
    assert "\n" not in str(refused.value)


def test_a_seed_that_is_not_known_is_asked_for_never_guessed(span_root, written):
    path = written(graph([EMBEDDING], []))
    with pytest.raises(ValueError, match="does not say which of them was traced; name it with --seed"):
        annotate(span_root[0], SPAN_STUDY, path)
    with pytest.raises(ValueError, match="has no seed 9"):
        annotate(span_root[0], SPAN_STUDY, path, seed=9)
    with pytest.raises(ValueError, match="has no ensemble other"):
        annotate(span_root[0], SPAN_STUDY, path, ensembles=["other"], seed=0)


def test_the_command_writes_beside_the_graph_and_says_what_it_found(span_root, written):
    path = written(
        graph(
            [EMBEDDING, node(f"{LAYER}_0_1"), *LOGITS],
            [("E_5_0", f"{LAYER}_0_1", 1.0), (f"{LAYER}_0_1", "5_17_1", 1.0)],
        )
    )
    arguments = ("annotate", path, "--study", SPAN_STUDY, "--root", span_root[0], "--quiet")
    assert_one_line(run(*arguments), "name it with --seed")
    assert not path.with_name("graph-stability.json").exists()
    done = run(*arguments, "--seed", 1)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 feature nodes are known to planted" in done.stdout
    assert "75.0%" in done.stdout  # the one logit that the feature writes has three quarters of the probability
    told = json.loads(path.with_name("graph-stability.json").read_text())
    assert told["nodes"][1][FIELD]["n_comparisons"] == 4


def test_an_sae_alone_has_no_stability_and_its_nodes_say_so():
    alone = Layer(SimpleNamespace(n_comparisons=0, d_sae=80), SimpleNamespace(seed=0))
    assert _place(node(f"{LAYER}_0_1"), {LAYER: alone}) == "its SAE is one alone, whose stability is undefined"


def test_a_node_whose_name_and_feature_disagree_is_not_mapped(span_root, written):
    wrong = [
        node(f"{LAYER}_0_1") | {"feature": 5},
        node(f"{LAYER}_1_1") | {"layer": "7"},
        node(f"{LAYER}_2_1") | {"feature": 2},
    ]
    found = annotate(span_root[0], SPAN_STUDY, written(graph(wrong, [])), seed=0)
    assert found.n_mapped == 1  # some tools write the index itself
    assert found.unmapped == {"its name and its feature disagree": 1, "its name does not say layer and feature": 1}
