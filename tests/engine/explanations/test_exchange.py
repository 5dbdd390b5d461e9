"""Explanations of others: read as they wrote them, refused whole where a file is bad, and written so that they come back."""

import gzip
import json
import re

import numpy as np
import pytest

from seedscope.engine.explanations.exchange import delphi, neuronpedia
from seedscope.engine.explanations.exchange.records import ScoredExamples
from seedscope.engine.explanations.explanation import FeatureExplanation
from seedscope.engine.explanations.scoring import score
from support.contexts import CAT, DOG, SECOND, TEXTS, make_examples, make_tokens

TOKENS = make_tokens()
EXAMPLES = make_examples(TOKENS)
SCORED = ScoredExamples(EXAMPLES, TOKENS, TEXTS)
# As the bulk export writes them: indices are strings in the order of strings, several explanations per feature.
LINES = [
    {"id": "a", "modelId": "gpt2-small", "layer": "6-res-jb", "index": "10", "authorId": "x", "description": " cats ",
     "embedding": "[0.1,0.2]", "typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini", "umap_x": 0.5},
    {"modelId": "gpt2-small", "layer": "6-res-jb", "index": "10", "description": "felines", "typeName": "np_max-act",
     "explanationModelName": None},
    {"modelId": "gpt2-small", "layer": "6-res-jb", "index": "2", "description": "dogs\u2028", "typeName": None},
]  # fmt: skip


def make_explanations(explainer: str = "openai:rule") -> list[FeatureExplanation]:
    """One that scores well, one that does not, one with a failed score, one that failed."""
    found = []
    for feature, wrong in ((CAT, 0.0), (DOG, 0.3)):
        rows = (EXAMPLES.feature == feature) & (EXAMPLES.half == 1)
        labels = EXAMPLES.kind[rows] == 0
        said = np.where(np.random.default_rng(feature).random(len(labels)) < wrong, ~labels, labels).astype(np.int8)
        scores = tuple(score(kind, labels, said) for kind in ("detection", "fuzzing"))
        found.append(FeatureExplanation(feature, explainer, f"the word {feature}", scores))
    failed = found[0].scores[0]._replace(value=None, shuffled=None, said=np.full(40, -1, np.int8), failure="HTTP 500")
    found[1] = found[1]._replace(scores=(found[1].scores[0], failed._replace(kind="fuzzing")))
    return [*found, FeatureExplanation(SECOND, explainer, None, (), "HTTP 500")]


def write_lines(path, lines) -> None:
    content = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["batch-0.jsonl", "batch-0.jsonl.gz"])
def test_a_bulk_export_is_read_with_all_explanations_of_a_feature(tmp_path, name):
    write_lines(tmp_path / "explanations" / name, [*LINES, ""])
    write_lines(tmp_path / "features" / name, [{"index": "1"}])
    found = neuronpedia.read(tmp_path, 3, d_sae=11)
    assert found == neuronpedia.read(tmp_path / "explanations" / name, {"6-res-jb": 3}, d_sae=11)
    assert {key: [(e.explainer, e.text, e.scores) for e in held] for key, held in found.items()} == {
        (3, 10): [("gpt-4o-mini (oai_token-act-pair)", "cats", ()), ("unknown (np_max-act)", "felines", ())],
        (3, 2): [("unknown (unknown)", "dogs", ())],
    }


def test_batches_are_read_in_the_order_of_their_numbers(tmp_path):
    for i in (10, 2, 0):
        write_lines(tmp_path / f"batch-{i}.jsonl", [LINES[0] | {"description": f"from {i}"}])
    found = neuronpedia.read(tmp_path, 0, d_sae=11)
    assert [e.text for e in found[0, 10]] == ["from 0", "from 2", "from 10"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", r"line 2: found '\{\\n', expected a JSON object"),
        ([1], "line 2: found a JSON list, expected an object"),
        (LINES[0] | {"index": "x1"}, "line 2: found the index 'x1', expected a feature's number"),
        (LINES[0] | {"index": "11"}, r"line 2: found feature 11, expected 0 to 10; these explain another SAE"),
        (LINES[0] | {"description": None}, "line 2: found description null, expected text"),
        ({k: v for k, v in LINES[0].items() if k != "layer"}, "line 2: found no layer, expected text"),
        (LINES[0] | {"layer": "7-res-jb"}, "line 2: found the sources 6-res-jb and 7-res-jb, expected one for seed 0"),
        (LINES[0] | {"typeName": 3}, "line 2: found typeName 3, expected text or none"),
        (LINES[0] | {"scores": "0.9"}, "line 2: found scores"),
        (
            LINES[0] | {"scores": [{"explanationScoreTypeName": "eleuther_fuzz", "jsonDetails": "["}]},
            "line 2: found jsonDetails",
        ),
    ],
)
def test_a_bad_line_is_told_with_file_and_line_and_nothing_is_read(tmp_path, line, told):
    write_lines(tmp_path / "batch-0.jsonl", [LINES[0], line, LINES[1]])
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "batch-0.jsonl")) + ", " + told):
        neuronpedia.read(tmp_path, 0, d_sae=11)


def test_damaged_and_empty_files_are_told(tmp_path):
    write_lines(tmp_path / "batch-0.jsonl.gz", LINES * 500)
    whole = (tmp_path / "batch-0.jsonl.gz").read_bytes()
    (tmp_path / "batch-0.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"batch-0.jsonl.gz, after line \d+: found the end of a damaged gzip file"):
        neuronpedia.read(tmp_path, 0, d_sae=11)
    (tmp_path / "batch-0.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="damaged gzip file"):
        neuronpedia.read(tmp_path, 0, d_sae=11)
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: found bytes that are no UTF-8"):
        neuronpedia.read(tmp_path / "a.jsonl", 0, d_sae=11)
    (tmp_path / "a.jsonl").write_bytes(b"\n")
    with pytest.raises(ValueError, match="found no explanation, expected a JSON object per line"):
        neuronpedia.read(tmp_path / "a.jsonl", 0, d_sae=11)
    with pytest.raises(ValueError, match=r"found no explanations in .*expected batch-\*.jsonl"):
        neuronpedia.read(tmp_path / "nowhere", 0, d_sae=11)


def same(a: FeatureExplanation, b: FeatureExplanation) -> bool:
    """Equal in all that a file can say: imported scores are those of contexts that are not here."""
    told = [(s.kind, s.value, s.n_active, s.n_silent) for s in a.scores if s.value is not None]
    return (a.feature, a.text) == (b.feature, b.text) and told == [
        (s.kind, s.value, s.n_active, s.n_silent) for s in b.scores if s.value is not None
    ]


@pytest.mark.parametrize("explainer", ["openai:rule", "token rule", "gpt-4o-mini (oai_token-act-pair)"])
def test_what_is_written_for_neuronpedia_comes_back(tmp_path, explainer):
    own = {(5, e.feature): [e] for e in make_explanations(explainer)}
    own[5, 2000] = [FeatureExplanation(2000, explainer, "far away", ())]
    n_failed = neuronpedia.write(tmp_path, own, model_id="m", sources={5: "6-mine__seed-5"}, scored={5: SCORED})
    assert n_failed == 1
    assert sorted(p.name for p in (tmp_path / "m" / "6-mine__seed-5" / "explanations").iterdir()) == [
        "batch-0.jsonl.gz", "batch-1.jsonl.gz",
    ]  # fmt: skip
    found = neuronpedia.read(tmp_path, {"6-mine__seed-5": 5}, d_sae=2048)
    assert set(found) == {(5, CAT), (5, DOG), (5, 2000)}
    for key, (explanation,) in found.items():
        assert explanation.explainer == explainer
        assert same(explanation, own[key][0])
        assert all(len(s.said) == 0 for s in explanation.scores)
    first = (tmp_path / "m" / "6-mine__seed-5" / "explanations" / "batch-0.jsonl.gz").read_bytes()
    neuronpedia.write(tmp_path, own, model_id="m", sources={5: "6-mine__seed-5"}, scored={5: SCORED})
    assert (tmp_path / "m" / "6-mine__seed-5" / "explanations" / "batch-0.jsonl.gz").read_bytes() == first


def write_delphi(folder, *, label: str = "activating", name: str = "model.layers.6_latent7") -> None:
    """A results folder as delphi writes it, with a latent of which one answer could not be read."""
    record = {"str_tokens": ["a"], "activations": [1.0], "distance": 1, "probability": None}
    said = [(True, True), (True, False), (True, None), (False, False), (False, False), (False, True), (False, 0)]
    records = [record | {label: a, "prediction": p, "correct": None if p is None else a == bool(p)} for a, p in said]
    for path, content in {
        "explanations": "about cats",
        "scores/detection": records,
        "scores/embedding": [{"x": 1}],
    }.items():
        (folder / path).mkdir(parents=True, exist_ok=True)
        (folder / path / f"{name}.txt").write_text(json.dumps(content))
    (folder / "explanations" / "model.layers.6_latent9.txt").write_text('"Explanation could not be parsed."')


@pytest.mark.parametrize(
    ("label", "name"), [("activating", "model.layers.6_latent7"), ("ground_truth", "model.layers.6_feature7")]
)
def test_a_delphi_folder_is_read_and_its_failures_are_failures(tmp_path, label, name):
    write_delphi(tmp_path, label=label, name=name)
    found = delphi.read(tmp_path, 1, d_sae=16)
    (seven,), (nine,) = found[1, 7], found[1, 9]
    assert (seven.explainer, seven.text) == ("delphi", "about cats")
    (detection,) = seven.scores
    assert (detection.kind, detection.n_active, detection.n_silent) == ("detection", 2, 4)
    assert detection.value == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert (nine.text, nine.failure) == (None, "Explanation could not be parsed.")


@pytest.mark.parametrize(
    ("path", "content", "told"),
    [
        ("explanations/model.layers.6_latent7.txt", '"cats', "_latent7.txt, line 1: found something that is no JSON"),
        ("explanations/model.layers.6_latent7.txt", "[]", r"_latent7.txt: found \[\], expected an explanation"),
        ("explanations/notes.txt", '"x"', "notes.txt: found this name, expected one such as"),
        ("explanations/model.layers.6_latent16.txt", '"x"', "_latent16.txt: found feature 16, expected 0 to 15"),
        (
            "explanations/model.layers.8_latent1.txt",
            '"x"',
            "found the sources model.layers.6 and model.layers.8, expected one",
        ),
        ("scores/fuzz/model.layers.6_latent3.txt", "[]", "found scores of latent 3, expected its explanation"),
        ("scores/fuzz/model.layers.6_latent7.txt", "[]", "_latent7.txt: found an empty list"),
        ("scores/fuzz/model.layers.6_latent7.txt", "[1]", "record 1: found a JSON int, expected an object"),
        (
            "scores/fuzz/model.layers.6_latent7.txt",
            '[{"prediction": true}]',
            "record 1: found the fields prediction, expected",
        ),
        (
            "scores/fuzz/model.layers.6_latent7.txt",
            '[{"activating": true, "prediction": "y"}]',
            "record 1: found the prediction 'y'",
        ),
    ],
)
def test_a_bad_file_of_delphi_is_told_by_name_and_nothing_is_read(tmp_path, path, content, told):
    write_delphi(tmp_path)
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(content)
    with pytest.raises(ValueError, match=told):
        delphi.read(tmp_path, 1, d_sae=16)


def test_what_is_written_for_delphi_comes_back(tmp_path):
    own = {e.feature: e for e in make_explanations()}
    delphi.write(tmp_path, list(own.values()), hookpoint="blocks/2", scored=SCORED)
    assert (tmp_path / "explanations" / f"blocks--2_latent{CAT}.txt").read_text() == f'"the word {CAT}"'
    found = delphi.read(tmp_path, {"blocks--2": 4}, d_sae=16)
    assert set(found) == {(4, feature) for feature in own}
    for (_, feature), (explanation,) in found.items():
        assert same(explanation, own[feature])
        assert explanation.explainer == "delphi:openai:rule"
    (failed,) = [s for s in found[4, DOG][0].scores if s.kind == "fuzzing"]
    assert (failed.value, failed.failure) == (None, "no answer could be read")
    records = json.loads((tmp_path / "scores" / "detection" / f"blocks--2_latent{CAT}.txt").read_text())
    for record in records:
        assert record["activating"] == any(a > 0 for a in record["activations"])
        assert [t == " cat" for t in record["str_tokens"]] == [a > 0 for a in record["activations"]]


def test_two_explainers_do_not_share_a_folder_of_delphi_and_other_contexts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected one explainer and one explanation per feature"):
        delphi.write(tmp_path, [*make_explanations(), *make_explanations("token rule")], hookpoint="h")
    other = ScoredExamples(make_examples(TOKENS, most=6), TOKENS, TEXTS)
    with pytest.raises(ValueError, match="these scores were taken on other contexts"):
        delphi.write(tmp_path, make_explanations(), hookpoint="h", scored=other)
