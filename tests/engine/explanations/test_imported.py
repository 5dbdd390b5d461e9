"""Explanations of others in a real study: exported and taken back through real files, refused whole, kept beside its own."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from seedscope.engine.contract.published import published
from seedscope.engine.explanations import rule_search
from seedscope.engine.explanations.explanation import FeatureExplanation, from_arrays
from seedscope.engine.explanations.imported import LONGEST, take_explanations
from seedscope.engine.explanations.of_study import explanations, part_name
from seedscope.engine.export.formats import export
from seedscope.engine.export.restore import restore
from seedscope.engine.store.parts import Parts
from seedscope.engine.studies.publish import publish
from support.studies import write_evaluation

ENSEMBLE = "topk-96"
COULD_NOT = "Explanation could not be parsed."
GPT = "gpt-4o-mini (oai_token-act-pair)"


@pytest.fixture
def study(study_root: Path, tmp_path: Path) -> Path:
    """The small study with everything that it was made from, for a test to change."""
    return Path(shutil.copytree(study_root / "small", tmp_path / "root" / "small"))


@pytest.fixture(scope="module")
def exported(study_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small study in a format."""
    folder = tmp_path_factory.mktemp("exported")

    def make(format: str) -> Path:
        if not (folder / format).exists():
            export(study_root, "small", folder / format, format=format)
        return folder / format

    return make


def stored(study: Path, sql: str) -> list[tuple]:
    config = {"enable_external_access": "false", "lock_configuration": "true"}
    with duckdb.connect(str(study / published(study)[0]), read_only=True, config=config) as connection:
        return connection.sql(sql).fetchall()


def said(study: Path, explainer: str) -> dict[tuple, tuple]:
    """{(seed, feature): (text, {kind: value, contexts of both kinds})} of the store; what failed has no text."""
    found = {
        (seed, feature): (text, {})
        for seed, feature, text in stored(
            study, f"SELECT seed, feature, text FROM Explanation WHERE explainer = '{explainer}'"
        )
    }
    for seed, feature, *score in stored(
        study,
        f"SELECT seed, feature, kind, round(value, 5), n_active, n_silent FROM Score WHERE explainer = '{explainer}'",
    ):
        if score[1] is not None:
            found[seed, feature][1][score[0]] = tuple(score[1:])
    return found


def line(feature: int, text: str, *, source: str = "2-a__seed-1", model: str | None = "gpt-4o-mini") -> dict:
    return {"modelId": "m", "layer": source, "index": str(feature), "description": text,
            "typeName": "oai_token-act-pair", "explanationModelName": model}  # fmt: skip


def write(path: Path, *lines: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(each) + "\n" for each in lines).encode()))
    return path


def held(study: Path, explainer: str) -> dict[int, list[FeatureExplanation]]:
    part = Parts(study, ENSEMBLE).find(part_name(explainer))
    return {seed: from_arrays(part.read(seed)) for seed in part.seeds} if part else {}


# -- there and back ------------------------------------------------------------------------------------------------


def test_what_neuronpedia_is_given_comes_back_beside_the_studys_own(study, exported):
    taken = take_explanations(study, ENSEMBLE, exported("neuronpedia"))
    assert taken.format == "neuronpedia"
    assert list(taken.explainers) == ["token rule (imported)"]
    assert taken.left_out == []
    publish(study)
    own = said(study, "token rule")
    n_failed = sum(text is None for text, _ in own.values())
    assert said(study, "token rule (imported)") == {key: each for key, each in own.items() if each[0] is not None}
    assert n_failed > 0  # which that layout cannot say
    told = json.loads((exported("neuronpedia") / "manifest.json").read_text())["left_out"]
    assert told["explanations that failed"].startswith(f"{n_failed}: ")


def test_contexts_for_neuronpedia_are_those_that_were_scored(study, exported):
    (path,) = exported("neuronpedia").glob("*/*__seed-2/explanations/batch-0.jsonl.gz")
    lines = [json.loads(each) for each in gzip.decompress(path.read_bytes()).decode().splitlines()]
    assert {each["layer"] for each in lines} == {path.parent.parent.name}
    texts = dict(stored(study, "SELECT id, text FROM Token"))
    windows = dict(stored(study, "SELECT id, token_ids FROM TokenWindow"))
    for each in lines[:: len(lines) // 5]:
        ((said, *places),) = stored(
            study, "SELECT said, kinds, windows, offsets, lengths, masks FROM Score JOIN Scored USING (ensemble, seed, "
            f"feature) WHERE seed = 2 AND feature = {each['index']} AND kind = 'detection'"
        )  # fmt: skip
        records = json.loads(each["scores"][0]["jsonDetails"]) if each["scores"] else []
        assert bool(records) == bool(each["scores"])
        for record, answer, kind, window, offset, length, mask in zip(records, said, *places, strict=bool(records)):
            ids = windows[window][offset : offset + length]
            assert record["str_tokens"] == [texts[i] for i in ids]
            assert record["activations"] == [float(mask >> i & 1) for i in range(length)]
            assert (record["activating"], record["prediction"]) == (kind == 0, answer == 1)


def test_delphis_folders_come_back_member_by_member(study, exported):
    folders = sorted((exported("delphi") / ENSEMBLE).glob("seed-*/token-rule"))
    assert len(folders) == 4
    for seed, folder in enumerate(folders):
        taken = take_explanations(study, ENSEMBLE, folder, seed=seed)
        assert (taken.format, list(taken.explainers)) == ("delphi", ["delphi:token rule"])
    publish(study)
    assert said(study, "delphi:token rule") == said(study, "token rule")
    failures = stored(
        study, "SELECT DISTINCT failure FROM Explanation WHERE explainer = 'delphi:token rule' AND text IS NULL"
    )
    assert failures == [(COULD_NOT,)]
    again = study.parent.parent / "again"
    export(study.parent, "small", again, format="delphi")
    for explainer in ("token-rule", "delphi-token-rule"):
        one, other = ({p.name: p.read_bytes() for p in (again / ENSEMBLE / "seed-1" / explainer / "explanations").iterdir()}
                      for explainer in (explainer, "token-rule"))  # fmt: skip
        assert one == other
    (run,) = (again / ENSEMBLE / "seed-1" / "delphi-token-rule").glob("run_config.json")
    assert json.loads(run.read_text()) == {"explainer_model": "token rule"}


def test_imported_explanations_survive_a_parquet_export(study, tmp_path):
    take_explanations(study, ENSEMBLE, write(tmp_path / "a.jsonl.gz", line(3, "cats"), line(5, "dogs")))
    publish(study)
    export(study.parent, "small", tmp_path / "out")
    restore(tmp_path / "out", tmp_path / "elsewhere")
    assert published(tmp_path / "elsewhere" / "small") == published(study)
    assert said(tmp_path / "elsewhere" / "small", GPT) == {(1, 3): ("cats", {}), (1, 5): ("dogs", {})}
    export(study.parent, "small", tmp_path / "json", format="json")
    _, *rows = map(json.loads, (tmp_path / "json" / "features" / f"{ENSEMBLE}.jsonl").read_text().splitlines())
    (row,) = (row for row in rows if (row["seed"], row["feature"]) == (1, 3))
    assert [each["explainer"] for each in row["explanations"]] == [GPT, "token rule"]
    assert row["explanations"][0] == {"explainer": GPT, "text": "cats", "failure": None, "scores": []}


def test_json_holds_every_explanation_with_its_scores(study, exported):
    _, *rows = map(json.loads, (exported("json") / "features" / f"{ENSEMBLE}.jsonl").read_text().splitlines())
    own = said(study, "token rule")
    for row in rows:
        found = row["explanations"]
        if (row["seed"], row["feature"]) not in own:
            assert (found, row["explanation"], row["score"]) == ([], None, None)
            continue
        text, scores = own[row["seed"], row["feature"]]
        assert [set(each) for each in found] == [{"explainer", "text", "failure", "scores"}]
        assert (found[0]["text"], row["explanation"], found[0]["explainer"]) == (text, text, "token rule")
        names = {"kind", "value", "shuffled", "shuffled_p95", "n_active", "n_silent", "failure"}
        assert all(set(score) == names for score in found[0]["scores"])
        told = {s["kind"]: (pytest.approx(s["value"], abs=1e-5), s["n_active"], s["n_silent"])
                for s in found[0]["scores"] if s["value"] is not None}  # fmt: skip
        assert told == scores


def test_they_need_no_activity_and_outlive_other_tokens(study, tmp_path):
    path = study / "parts" / "evaluation.json"
    write_evaluation(study, json.loads(path.read_text()) | {"token_digest": "others"})
    take_explanations(study, ENSEMBLE, write(tmp_path / "a.jsonl.gz", line(3, "cats")))
    publish(study)
    assert stored(study, "SELECT computed FROM Ensemble") == [(["match", "subspaces"],)]
    assert stored(study, "SELECT seed, feature, explainer, text FROM Explanation") == [(1, 3, GPT, "cats")]
    assert stored(study, "SELECT count(*) FROM Scored") == [(0,)]
    assert stored(study, "SELECT seed, feature FROM Word WHERE word = 'cats'") == [(1, 3)]


def test_seeds_are_taken_from_names_or_given(study, tmp_path):
    both = write(tmp_path / "a.jsonl.gz", line(3, "a", source="x-seed3"), line(3, "b", source="res_SEED_0"))
    take_explanations(study, ENSEMBLE, both)
    assert {seed: e.text for seed, (e,) in held(study, GPT).items()} == {0: "b", 3: "a"}
    other = write(tmp_path / "b.jsonl.gz", line(4, "c", source="6-res-jb"))
    take_explanations(study, ENSEMBLE, other, sources={"6-res-jb": 2})
    take_explanations(study, ENSEMBLE, other, seed=3)  # beside what is there
    assert {seed: [(e.feature, e.text) for e in found] for seed, found in held(study, GPT).items()} == {
        0: [(3, "b")], 2: [(4, "c")], 3: [(3, "a"), (4, "c")],
    }  # fmt: skip
    take_explanations(study, ENSEMBLE, write(tmp_path / "c.jsonl.gz", line(4, "better")), seed=3)
    assert [e.text for e in held(study, GPT)[3]] == ["a", "better"]


def test_what_cannot_stand_beside_another_is_left_out_and_named(study, tmp_path):
    lines = [
        line(3, "first"),
        line(3, "second"),
        line(3, "first"),
        line(3, "by another", model="m"),
        line(4, "x" * (LONGEST + 1)),
    ]
    taken = take_explanations(study, ENSEMBLE, write(tmp_path / "a.jsonl.gz", *lines))
    assert taken.explainers == {GPT: 1, "m (oai_token-act-pair)": 1}
    assert taken.left_out == [
        f"feature 3 of seed 1: another one by {GPT}, the first is kept",
        f"feature 4 of seed 1: 2,001 characters by {GPT}, at most 2,000 are kept",
    ]


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "options", "told"),
    [
        ([line(96, "x")], {}, "found feature 96, expected 0 to 95; these explain another SAE"),
        ([line(1, "x"), line(1, "x", source="6-res-jb")], {}, "found the source '6-res-jb', expected .*--source '6-res-jb'=SEED"),
        ([line(1, "x", source="a-seed-7")], {}, "found the source 'a-seed-7', expected"),
        ([line(1, "x", source="seed-1-seed-2")], {}, "found the source 'seed-1-seed-2'"),
        ([line(1, "x"), line(1, "x", source="seed-2")], {"seed": 0}, "expected one for seed 0; name the seed of each: --source"),
        ([line(1, "x")], {"seed": 9}, "--seed is 9, expected a member of topk-96: 0, 1, 2, 3"),
        ([line(1, "x")], {"sources": {"a": 9}}, "--source a is 9, expected a member"),
        ([line(1, "x")], {"sources": {"a": 1}, "seed": 1}, "both --seed and --source"),
        ([line(1, "x")], {"format": "delphi"}, "found no explanations in"),
        ([line(1, "x")], {"format": "csv"}, "expected one of auto, neuronpedia, delphi"),
        ([line(1, "x")], {"ensemble": "other"}, "study small has no ensemble 'other', it has topk-96"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_before_anything_is_kept(study, tmp_path, lines, options, told):
    path = write(tmp_path / "a.jsonl.gz", *lines)
    before = sorted(study.rglob("*"))
    with pytest.raises(ValueError, match=told):
        take_explanations(study, options.pop("ensemble", ENSEMBLE), path, **options)
    assert sorted(study.rglob("*")) == before
    assert [part.about["explainer"] for part in explanations(Parts(study, ENSEMBLE))] == [rule_search.NAME]


def test_a_path_that_is_not_there_and_a_study_without_matches_are_told(study, tmp_path):
    with pytest.raises(ValueError, match=r"found no .*nowhere, expected Neuronpedia's batch-\*.jsonl"):
        take_explanations(study, ENSEMBLE, tmp_path / "nowhere")
    shutil.rmtree(study / "parts")
    with pytest.raises(ValueError, match=r"ensemble topk-96 has no results yet .*seedscope analyze small"):
        take_explanations(study, ENSEMBLE, write(tmp_path / "a.jsonl.gz", line(1, "x")))


def test_without_explanations_there_is_nothing_for_delphi(study, tmp_path):
    shutil.rmtree(study / "parts" / ENSEMBLE / "explain")
    publish(study)
    with pytest.raises(ValueError, match=r"no feature of study small has an explanation.*seedscope explain small"):
        export(study.parent, "small", tmp_path / "out", format="delphi")
    export(study.parent, "small", tmp_path / "json", format="json")
    head, row, *_ = map(json.loads, (tmp_path / "json" / "features" / f"{ENSEMBLE}.jsonl").read_text().splitlines())
    assert {lack["field"]: lack["needs"] for lack in head["missing"]}[
        "explanations"
    ] == "seedscope analyze small --only explain"
    assert row["explanations"] is None
