"""Explanations of a real study's features: what is kept, asked again, counted and published, and what never leaves memory."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from seedscope.engine.contract.environment import KEY, OPENAI_KEY
from seedscope.engine.contract.names import words
from seedscope.engine.contract.published import published
from seedscope.engine.contract.schema import ANALYSES
from seedscope.engine.contract.stability import bucket_bounds
from seedscope.engine.explanations import rule_search
from seedscope.engine.explanations.chat import Prices, Refused, Server
from seedscope.engine.explanations.explanation import ExplanationScore, FeatureExplanation, from_arrays
from seedscope.engine.explanations.of_study import ANSWERS, Interpretation, Outcome, explanations, keep, part_name
from seedscope.engine.features.examples import KINDS
from seedscope.engine.progress import Progress
from seedscope.engine.store.parts import Parts
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.publish import publish
from support.chat_server import ChatServer
from support.studies import write_evaluation

ENSEMBLE = "topk-96"
SECRET = "sk-a-secret-0123456789"
QUIET = Progress(quiet=True)


@pytest.fixture
def study(study_root: Path, tmp_path: Path) -> Path:
    """The small study with everything that it was made from, for a test to change."""
    return Path(shutil.copytree(study_root / "small", tmp_path / "root" / "small"))


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in (KEY, OPENAI_KEY):
        monkeypatch.delenv(name, raising=False)


def server(chat: ChatServer, **settings: Any) -> Server:
    patience = {
        "retries": 0,
        "unreadable_retries": 0,
        "first_wait_s": 0.02,
        "longest_wait_s": 2.0,
        "give_up_after": 10**6,
    }
    return Server(**{"base_url": chat.url, "model": "rule"} | patience | settings)


def ask(study: Path, chat: ChatServer, limit: int = 6, **settings: Any) -> Outcome:
    return Interpretation(study, server(chat, **settings), limit=limit).run(QUIET)


def stored(study: Path, sql: str) -> list[tuple]:
    config = {"enable_external_access": "false", "lock_configuration": "true"}
    with duckdb.connect(str(study / published(study)[0]), read_only=True, config=config) as connection:
        return connection.sql(sql).fetchall()


def held(study: Path, explainer: str = "openai:rule") -> dict[tuple[int, int], FeatureExplanation]:
    """{(seed, feature): explanation} of an explainer's part."""
    part = Parts(study, ENSEMBLE).find(part_name(explainer))
    return {(seed, e.feature): e for seed in part.seeds for e in from_arrays(part.read(seed))} if part else {}


def stamps(study: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p): (p.stat().st_ino, p.stat().st_mtime_ns)
        for p in (study / "parts").glob("*/explain*/*/*")
        if p.name != "sums.json"
    }


# -- token rules ---------------------------------------------------------------------------------------------------


def test_token_rules_are_found_again_and_searched_again_in_another_version(study, corpus, monkeypatch):
    before = stamps(study)
    assert len(before) == 4 + 1
    analyse(study, only=("explain",), texts=corpus.held_out, progress=QUIET)
    assert stamps(study) == before
    first = held(study, rule_search.NAME)
    monkeypatch.setattr(rule_search, "VERSION", rule_search.VERSION + 1)
    analyse(study, only=("explain",), texts=corpus.held_out, progress=QUIET)
    assert not set(stamps(study).values()) & set(before.values())
    again = held(study, rule_search.NAME)
    assert {key: (e.text, [s.value for s in e.scores]) for key, e in first.items()} == {
        key: (e.text, [s.value for s in e.scores]) for key, e in again.items()
    }


def test_the_store_holds_every_living_feature_with_the_contexts_that_its_score_stands_on(study):
    living = {tuple(row) for row in stored(study, "SELECT seed, feature FROM Feature WHERE NOT dead")}
    rows = stored(
        study,
        "SELECT e.seed, e.feature, text, e.failure, value, n_active, n_silent, said, kinds, lengths, masks "
        "FROM Explanation e LEFT JOIN Score s USING (ensemble, seed, feature, explainer) "
        "LEFT JOIN Scored c USING (ensemble, seed, feature)",
    )
    assert {row[:2] for row in rows} == living
    n_scored = 0
    for *_, text, failure, value, n_active, n_silent, said, kinds, lengths, masks in rows:
        assert (text is None) == (failure is not None)
        if value is None:
            continue
        n_scored += 1
        said, active = np.array(said) == 1, np.array(kinds) == KINDS.index("active")
        assert value == pytest.approx((said[active].mean() + 1 - said[~active].mean()) / 2, abs=1e-6)
        assert (n_active, n_silent) == (active.sum(), (~active).sum())
        assert (np.array(masks) > 0).tolist() == active.tolist()
        assert all(mask < 2**length for mask, length in zip(masks, lengths, strict=True))
    assert n_scored > len(living) / 2


def test_lists_and_search_know_what_is_said(study):
    rows = stored(
        study, "SELECT seed, feature, explanation, explainer, score FROM Feature WHERE explanation IS NOT NULL"
    )
    said = {
        (seed, feature): (text, "token rule", value)
        for seed, feature, text, value in stored(
            study,
            "SELECT e.seed, e.feature, text, value FROM Explanation e "
            "LEFT JOIN Score s USING (ensemble, seed, feature, explainer) WHERE text IS NOT NULL",
        )
    }
    assert {row[:2]: row[2:] for row in rows} == said
    found = {(word, seed, feature) for word, seed, feature in stored(study, "SELECT word, seed, feature FROM Word")}
    assert found == {(word, *key) for key, (text, *_) in said.items() for word in words(text)}


# -- a language model ----------------------------------------------------------------------------------------------


def test_a_language_model_explains_beside_the_token_rules_and_comes_first_in_lists(study, chat):
    rules = held(study, rule_search.NAME)
    outcome = ask(study, chat)
    assert outcome == Outcome(6, 6 - outcome.n_bare, outcome.n_bare, Counter())
    assert outcome.n_explained >= 4
    found = held(study)
    assert len(found) == 6
    publish(study)
    rows = stored(
        study,
        "SELECT seed, feature, text, kind, value, said, kinds FROM Explanation JOIN Score USING (ensemble, seed, feature, "
        "explainer) JOIN Scored USING (ensemble, seed, feature) WHERE explainer = 'openai:rule'",
    )
    assert {row[:2] for row in rows} == set(found)
    for seed, feature, text, kind, value, said, kinds in rows:
        assert text == found[seed, feature].text
        assert text.startswith("the token [")
        if value is not None:
            said, active = np.array(said), np.array(kinds) == KINDS.index("active")
            expected = ((said[active] == 1).mean() + (said[~active & (said >= 0)] == 0).mean()) / 2
            assert value == pytest.approx(expected, abs=1e-6), kind
    shown = {row[:2]: row[2:] for row in stored(study, "SELECT seed, feature, explainer, explanation FROM Feature")}
    for key, explanation in rules.items():
        mine = (
            ("openai:rule", found[key].text) if key in found else (explanation.text and "token rule", explanation.text)
        )
        assert shown[key] == mine
    assert stored(study, "SELECT computed FROM Ensemble") == [(list(ANALYSES),)]


def test_a_larger_limit_adds_to_a_smaller_one_and_buckets_take_turns(study, chat):
    def chosen(limit: int | None) -> set[tuple[int, int]]:
        run = Interpretation(study, server(chat), limit=limit)
        (subject,) = run._subjects
        found = {(seed, feature) for seed, features in subject.chosen.items() for feature in features}
        assert len(found) == run.n_features
        return found

    bounds = bucket_bounds(3, 0.05)
    buckets, activity = {}, Parts(study, ENSEMBLE).find("activity")
    shown = {
        (seed, int(feature))
        for seed, arrays in ((seed, activity.read(seed)) for seed in range(4))
        for feature in arrays["example_feature"][(arrays["example_half"] == 0) & (arrays["example_kind"] == 0)]
    }
    for seed, feature, dead, cosines in stored(study, "SELECT seed, feature, dead, cosines FROM Feature"):
        n = sum(cosine >= np.float32(0.7) for cosine in cosines)
        if not dead:
            buckets[seed, feature] = (
                "stable" if n >= bounds.stable else "unstable" if n <= bounds.unstable else "middle"
            )
    available = Counter(bucket for key, bucket in buckets.items() if key in shown)
    before: set[tuple[int, int]] = set()
    for limit in (1, 2, 3, 7, 30, 80, None):
        found = chosen(limit)
        assert before <= found
        counts = Counter(buckets[key] for key in found & shown)
        assert all(counts[name] >= min(max(counts.values()) - 1, available[name]) for name in available)
        assert found <= shown or found >= shown
        before = found
    assert before == set(buckets)
    assert chat.requests() == []


def test_what_was_asked_costs_nothing_again_and_a_larger_limit_asks_the_new_ones_alone(study, chat):
    ask(study, chat, 3)
    n = len(chat.requests())
    first = held(study)
    run = Interpretation(study, server(chat), limit=5, prices=Prices(1.0, 2.0))
    told = run.estimate()
    assert told.answered == n
    assert told.cost == pytest.approx((told.prompt_tokens + 2 * told.completion_tokens) / 1e6)
    run.run(QUIET)
    assert len(chat.requests()) - n == told.requests
    assert {key: e.text for key, e in held(study).items() if key in first} == {key: e.text for key, e in first.items()}
    assert len(held(study)) == 5
    assert Interpretation(study, server(chat), limit=5).estimate()[:2] == (0, n + told.requests)
    shutil.rmtree(study / "parts" / ENSEMBLE / part_name("openai:rule"))
    n = len(chat.requests())
    ask(study, chat, 5)  # the part is made again from what was paid for
    assert len(chat.requests()) == n
    assert len(held(study)) == 5


def test_after_failures_the_next_run_asks_what_is_missing_alone(study, chat):
    chat.control(fault="500", when="always", of="fuzzing")
    failed = ask(study, chat)
    assert failed.n_failed + failed.n_bare == 6
    assert failed.n_explained == 0
    assert list(failed.failures) == ["HTTP 500: the GPU is lost"]
    n, texts = len(chat.requests()), {key: e.text for key, e in held(study).items()}
    assert all(texts.values())
    chat.control(fault=None)
    mended = ask(study, chat)
    assert (mended.n_failed, mended.n_explained) == (0, failed.n_failed)
    assert {line["kind"] for line in chat.requests()[n:]} == {"fuzzing"}
    assert {key: e.text for key, e in held(study).items()} == texts


@pytest.mark.parametrize("fault", ["malformed", "wrong-json", "not-json"])
def test_answers_that_cannot_be_read_are_failures_and_no_scores(study, chat, fault):
    chat.control(fault=fault, when="always", of="detection")
    outcome = ask(study, chat, 3)
    assert outcome.n_failed + outcome.n_bare == 3
    publish(study)
    rows = stored(study, "SELECT value, failure FROM Score WHERE explainer = 'openai:rule' AND kind = 'detection'")
    assert len(rows) == 3
    assert all(value is None and failure for value, failure in rows)
    assert stored(study, "SELECT count(score) FROM Feature WHERE explainer = 'openai:rule'") == [(0,)]


def test_a_success_is_never_replaced_by_a_failure(study, chat):
    ask(study, chat)
    before = {key: (e.text, [s.value for s in e.scores]) for key, e in held(study).items()}
    (study / ANSWERS).unlink()
    for fault in ("500", None):
        chat.control(fault=fault, when="always", of="fuzzing" if fault is None else None)
        chat.control(fault=fault or "malformed", when="always", of=None if fault else "fuzzing")
        assert ask(study, chat).n_explained == 0
        assert {key: (e.text, [s.value for s in e.scores]) for key, e in held(study).items()} == before


def test_of_two_explanations_the_one_that_holds_more_is_kept(tmp_path):
    parts, about = Parts(tmp_path, "e"), {"saes": ["a"]}
    value = ExplanationScore("detection", 0.9, 0.5, 0.6, 3, 3, np.ones(6, np.int8))
    none = value._replace(value=None, shuffled=None, shuffled_p95=None, failure="HTTP 500")

    def kept(text: str | None, *scores: ExplanationScore, failure: str | None = None, replace: bool = False) -> tuple:
        keep(parts, "x", about, {3: [FeatureExplanation(7, "x", text, scores, failure)]}, replace=replace)
        (found,) = from_arrays(parts.find(part_name("x"), **about).read(3))
        return found.text, found.failure, [score.value for score in found.scores]

    assert kept(None, failure="first") == (None, "first", [])
    assert kept(None, failure="second") == (None, "second", [])
    assert kept("a", none) == ("a", None, [None])
    assert kept("b", value) == ("b", None, [0.9])
    assert kept("c", none) == ("b", None, [0.9])
    assert kept(None, failure="third") == ("b", None, [0.9])
    assert kept("d", value) == ("d", None, [0.9])
    assert kept("e", replace=True) == ("e", None, [])
    keep(parts, "x", about, {1: [FeatureExplanation(2, "x", "other seed", ())]})
    assert parts.find(part_name("x")).seeds == {1, 3}
    keep(parts, "x", {"saes": ["b"]}, {1: [FeatureExplanation(2, "x", "other SAEs", ())]})
    assert parts.find(part_name("x"), saes=["b"]).seeds == {1}
    assert parts.find(part_name("x"), **about) is None


def test_another_language_model_stands_beside_the_first(study, chat):
    ask(study, chat, 4)
    ask(study, chat, 4, model="other/Model-7b")
    assert set(held(study)) == set(held(study, "openai:other/Model-7b"))
    publish(study)
    counts = dict(stored(study, "SELECT explainer, count(*) FROM Explanation GROUP BY explainer"))
    assert (counts["openai:rule"], counts["openai:other/Model-7b"]) == (4, 4)
    assert counts["token rule"] == len(held(study, rule_search.NAME))
    names = [part.about["explainer"] for part in explanations(Parts(study, ENSEMBLE))]
    assert names[0] == "token rule"
    assert set(names) == set(counts)


def test_parts_of_explainers_have_names_of_their_own():
    names = {
        part_name(name)
        for name in ("token rule", "openai:a", "openai:A", "openai:a ", "openai:" + "a" * 99, "../../x", "")
    }
    assert len(names) == 7
    assert not [name for name in names if "/" in name or "." in name or len(name) > 60]


def test_a_server_that_dies_keeps_what_was_said_and_the_next_run_goes_on(study, chat):
    chat.control(die_after=30)
    outcome = ask(study, chat, 12, give_up_after=3, concurrency=2)
    assert 0 < outcome.n_explained < 12
    assert outcome.n_explained + outcome.n_bare + outcome.n_failed == 12
    told = " ".join(outcome.failures)
    assert "no connection" in told or "not asked" in told
    answered = len(chat.requests())
    assert outcome.n_explained <= sum(e.text is not None for e in held(study).values()) < 12
    assert not [e for e in held(study).values() if (e.failure or "").startswith("not asked")]
    chat.start()
    mended = ask(study, chat, 12)
    assert mended.n_failed == 0
    assert len(held(study)) == 12
    digests = Counter(line["digest"] for line in chat.requests())
    assert max(digests.values()) <= 2
    assert sum(n == 2 for n in digests.values()) <= 3  # what was under way when it died
    assert len(chat.requests()) > answered


def test_where_no_question_can_succeed_what_was_answered_before_is_kept(study, chat):
    chat.control(fault="quota", when="always", of="fuzzing")
    with pytest.raises(Refused, match="no money"):
        ask(study, chat, 12, concurrency=1)
    (known,) = held(study).values()
    assert known.text is not None
    assert "not asked: the run was stopped" in {score.kind: score.failure for score in known.scores}["fuzzing"]
    chat.control(fault=None)
    assert ask(study, chat, 12).n_failed == 0


@pytest.mark.parametrize("fault", [None, "says-key", "400-echo"])
def test_the_key_is_sent_and_stands_nowhere_in_the_study(study, chat, monkeypatch, fault):
    monkeypatch.setenv(KEY, SECRET)
    chat.control(fault=fault, when="always")
    ask(study, chat, 3)
    publish(study)
    assert {line["key"] for line in chat.requests()} == {SECRET}
    files = [path for path in study.rglob("*") if path.is_file()]
    assert study / ANSWERS in files
    for path in files:
        content = path.read_bytes()
        assert not [form for form in ("utf-8", "utf-16-le", "utf-32-le") if SECRET.encode(form) in content], path
    texts = stored(study, "SELECT text FROM Explanation") + stored(study, "SELECT failure FROM Explanation")
    texts += stored(study, "SELECT failure FROM Score") + stored(study, "SELECT word FROM Word")
    assert not [text for (text,) in texts if text and ("secret" in text and "0123456789" in text)]


# -- what is refused -----------------------------------------------------------------------------------------------


def test_without_activity_on_the_present_tokens_nothing_is_asked(study, chat):
    path = study / "parts" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    write_evaluation(study, evaluation | {"outliers": 99.0})  # as after another --outliers that was not analysed yet
    with pytest.raises(ValueError, match=r"no ensemble of small has activity on its present tokens.*--only activity"):
        ask(study, chat)
    write_evaluation(study, evaluation | {"token_digest": "x"})
    with pytest.raises(ValueError, match="found no evaluation tokens"):
        ask(study, chat)
    path.unlink()
    with pytest.raises(ValueError, match="found no evaluation tokens"):
        ask(study, chat)
    assert chat.requests() == []
