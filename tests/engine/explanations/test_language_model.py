"""Explanations by a server: a real one in a process of its own, with everything that goes wrong with servers."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from seedscope.engine.contract.environment import KEY, OPENAI_KEY
from seedscope.engine.explanations.answer_log import Answers, Usage
from seedscope.engine.explanations.chat import Prices, Refused, Server
from seedscope.engine.explanations.explanation import FeatureExplanation
from seedscope.engine.explanations.language_model import AskPlan, estimate, explain_with
from seedscope.engine.progress import Progress
from support.chat_server import ChatServer
from support.contexts import BLIND, CAT, DEAD, DOG, SECOND, TEXTS, make_examples, make_tokens
from support.paths import ROOT

PATIENCE = {"retries": 3, "first_wait_s": 0.02, "longest_wait_s": 2.0, "timeout_s": 10.0}
TOKENS = make_tokens()
EXAMPLES = make_examples(TOKENS)
ALIVE = [CAT, DOG, BLIND, SECOND]


@pytest.fixture
def chat(tmp_path):
    with ChatServer(tmp_path) as chat:
        yield chat


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in (KEY, OPENAI_KEY):
        monkeypatch.delenv(name, raising=False)


def ask(
    chat: ChatServer, folder: Path, features: list[int], *, server: dict | None = None, digest: str = "sae", **more
) -> list[FeatureExplanation]:
    """One run over a study's folder."""
    settings = Server(**({"base_url": chat.url, "model": "rule"} | PATIENCE | (server or {})))
    with Answers(folder / "answers.jsonl") as cache:
        return explain_with(
            settings, EXAMPLES, TOKENS, TEXTS, features, digest=digest, cache=cache,
            progress=more.pop("progress", Progress(quiet=True)), **more,
        )  # fmt: skip


def values(explanation: FeatureExplanation) -> dict[str, float | None]:
    return {score.kind: score.value for score in explanation.scores}


def contexts_of(feature: int) -> list[tuple[str, bool]]:
    """(text, is active) of the scored contexts, in the order of Examples."""
    ids = TOKENS.ids.reshape(-1)
    rows = np.flatnonzero((EXAMPLES.feature == feature) & (EXAMPLES.half == 1))
    texts = ["".join(TEXTS[i] for i in ids[EXAMPLES.start[row] :][: EXAMPLES.length[row]]) for row in rows]
    return list(zip(texts, EXAMPLES.kind[rows] == 0, strict=True))


def test_a_feature_of_one_token_is_explained_and_scores_are_those_of_its_contexts(chat, tmp_path):
    found = {e.feature: e for e in ask(chat, tmp_path, ALIVE)}
    assert found[CAT].text == "the token [cat]"
    assert found[CAT].explainer == "openai:rule"
    assert values(found[CAT]) == {"detection": 1.0, "fuzzing": 1.0}
    assert 0.2 < values(found[BLIND])["detection"] < 0.8
    # The rule says dog; half of the silent contexts hold one, and the right mark is on a dog all the same.
    detection, fuzzing = found[SECOND].scores
    truth = contexts_of(SECOND)
    says = ["dog" in text for text, _ in truth]
    assert detection.said.tolist() == says
    active = np.array([is_active for _, is_active in truth])
    expected = (np.mean(np.array(says)[active]) + np.mean(~np.array(says)[~active])) / 2
    assert detection.value == pytest.approx(expected)
    assert detection.value < 0.8 < fuzzing.value
    assert (detection.n_active, detection.n_silent) == (active.sum(), (~active).sum())
    for explanation in found.values():
        for score in explanation.scores:
            assert score.shuffled == pytest.approx(0.5, abs=0.05)
            assert score.failure is None


def test_it_runs_where_a_loop_runs_already_as_in_a_notebook(chat, tmp_path):
    async def in_a_notebook() -> list[FeatureExplanation]:
        return ask(chat, tmp_path, [CAT])

    with ThreadPoolExecutor(1) as thread:
        (found,) = thread.submit(asyncio.run, in_a_notebook()).result()
    assert values(found) == {"detection": 1.0, "fuzzing": 1.0}


def test_the_explainer_sees_shown_contexts_alone_marked_and_strongest_first(chat, tmp_path):
    ask(chat, tmp_path, [DOG], plan=AskPlan(n_active=7))
    first, *rest = chat.requests()
    assert [line["kind"] for line in rest].count("explain") == 0
    active, silent = first["asked"]["messages"][1]["content"].split("\n\nSilent:\n")
    active = active.splitlines()[1:]
    assert len(active) == 7
    assert all("<<" in context and "dog" in context for context in active)
    assert not any("<<" in context for context in silent.splitlines())
    ids, shown = TOKENS.ids.reshape(-1), {}
    for row in np.flatnonzero((EXAMPLES.feature == DOG) & (EXAMPLES.kind == 0)):
        text = "".join(TEXTS[i] for i in ids[EXAMPLES.start[row] :][:16]).replace("\n", "⏎").split()
        shown["".join(text).replace("<<", "‹‹").replace(">>", "››")] = (EXAMPLES.half[row], EXAMPLES.peak[row])
    plain = ["".join(c.split(". ", 1)[1].replace("<<", "").replace(">>", "").split()) for c in active]
    assert {shown[text][0] for text in plain} == {0}
    assert all(a >= b for a, b in pairwise(shown[text][1] for text in plain))


def test_a_batch_mixes_both_kinds_and_silent_contexts_are_marked_too_when_fuzzing(chat, tmp_path):
    ask(chat, tmp_path, [CAT], plan=AskPlan(scores=("fuzzing",)))
    batches = [r["asked"]["messages"][1]["content"] for r in chat.requests() if r["kind"] == "fuzzing"]
    assert len(batches) == 4
    for batch in batches:
        contexts = batch.split("\n\n")[1].splitlines()
        assert len(contexts) == 10
        assert all("<<" in context for context in contexts)
        assert 0 < sum("<< cat" in context for context in contexts) < 10


def test_a_feature_without_contexts_fails_with_the_reason_and_nothing_is_asked(chat, tmp_path):
    (found,) = ask(chat, tmp_path, [DEAD])
    assert found == FeatureExplanation(DEAD, "openai:rule", None, (), found.failure)
    assert "no active context" in found.failure
    assert chat.requests() == []


def test_what_was_answered_is_never_asked_again(chat, tmp_path):
    first = ask(chat, tmp_path, ALIVE)
    n = len(chat.requests())
    again = ask(chat, tmp_path, ALIVE)
    assert len(chat.requests()) == n
    assert n == 4 * 9
    for a, b in zip(first, again, strict=True):
        assert a.text == b.text
        assert values(a) == values(b)
        assert all((x.said == y.said).all() for x, y in zip(a.scores, b.scores, strict=True))
    ask(chat, tmp_path, [CAT], server={"model": "another"})
    n_other = len(chat.requests()) - n
    assert n_other == 9  # another model: 1 + 2 x 40 contexts / 10
    ask(chat, tmp_path, [CAT], digest="another sae")
    assert len(chat.requests()) - n - n_other == 9


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "HTTP 500: the GPU is lost"),
        ("429", "HTTP 429: too fast"),
        ("not-json", "expected a chat completion as JSON"),
        ("no-choices", "found no choices in the answer"),
        ("malformed", "expected a JSON object with"),
        ("wrong-json", "expected"),
        ("cut", "the answer was cut at max_tokens = 1000"),
    ],
)
def test_a_fault_that_passes_costs_a_retry_and_one_that_stays_is_a_failure_never_a_low_score(
    chat, tmp_path, fault, reason
):
    chat.control(fault=fault, when="first")
    (found,) = ask(chat, tmp_path, [CAT])
    assert values(found) == {"detection": 1.0, "fuzzing": 1.0}
    n = len(chat.requests())
    assert n == 18  # every question twice
    chat.control(fault=fault, when="always", of="fuzzing")
    settings = {"retries": 1, "unreadable_retries": 1}
    (failed,) = ask(chat, tmp_path, [DOG], server=settings)
    assert failed.text == "the token [dog]"
    detection, fuzzing = failed.scores
    assert detection.value == 1.0
    assert (fuzzing.value, fuzzing.shuffled) == (None, None)
    assert set(fuzzing.said) == {-1}
    assert reason in fuzzing.failure
    asked = chat.requests()[n:]
    assert Counter(line["kind"] for line in asked) == {"explain": 1, "detection": 4, "fuzzing": 8}
    chat.control(fault=None)
    n = len(chat.requests())
    (mended,) = ask(chat, tmp_path, [DOG], server=settings)
    assert values(mended) == {"detection": 1.0, "fuzzing": 1.0}
    assert Counter(line["kind"] for line in chat.requests()[n:]) == {"fuzzing": 4}  # what had failed, and only that


def test_an_explanation_that_fails_has_no_scores_and_is_asked_again(chat, tmp_path):
    chat.control(fault="malformed", when="always", of="explain")
    found = ask(chat, tmp_path, [CAT, DOG], server={"unreadable_retries": 1})
    assert [(e.text, e.scores) for e in found] == [(None, ()), (None, ())]
    assert all("unreadable 2 times, the last time: found" in e.failure for e in found)
    with Answers(tmp_path / "answers.jsonl") as cache:
        assert {(a.kind, a.feature) for a in cache.failures} == {("explain", CAT), ("explain", DOG)}
        assert cache.usage.answers == 4  # paid for all the same
    chat.control(fault=None)
    assert [e.text for e in ask(chat, tmp_path, [CAT, DOG])] == ["the token [cat]", "the token [dog]"]


def test_a_slow_answer_is_a_failure_after_the_timeout(chat, tmp_path):
    chat.control(fault="slow", of="explain")
    began = time.perf_counter()
    (found,) = ask(chat, tmp_path, [CAT], server={"timeout_s": 0.2, "retries": 1})
    assert found.failure == "no answer within 0.2 s"
    assert len(chat.requests()) == 2
    assert 0.4 < time.perf_counter() - began < 2


def test_what_the_server_asks_to_wait_is_waited_and_no_more_than_the_longest(chat, tmp_path):
    chat.control(fault="429", when="first", of="explain")
    began = time.perf_counter()
    (found,) = ask(chat, tmp_path, [CAT])
    assert found.failure is None
    assert time.perf_counter() - began > 0.3
    chat.control(fault="429-late")
    n = len(chat.requests())
    (found,) = ask(chat, tmp_path, [DOG])
    assert found.failure == "HTTP 429: come back tomorrow; the server asks to wait 86,400 s, more than 2 s"
    assert len(chat.requests()) == n + 1


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_no_more_requests_are_under_way_than_allowed(chat, tmp_path, concurrency):
    chat.control(delay_s=0.05)
    ask(chat, tmp_path, ALIVE, server={"concurrency": concurrency})
    assert chat.most_at_once() == concurrency


def test_a_server_that_dies_leaves_failures_and_the_next_run_asks_what_is_missing(chat, tmp_path):
    chat.control(die_after=12, delay_s=0.03)
    settings = {"concurrency": 3, "retries": 1, "give_up_after": 3}
    found = ask(chat, tmp_path, ALIVE, server=settings)
    answered = len(chat.requests())
    reasons = [s.failure for e in found for s in e.scores] + [e.failure for e in found]
    assert any(f"no connection to {chat.url}" in (reason or "") for reason in reasons)
    assert any("not asked: 3 questions in a row had no answer" in (reason or "") for reason in reasons)
    assert all(score.value is None for e in found for score in e.scores if score.failure)
    with Answers(tmp_path / "answers.jsonl") as cache:
        held = len(cache)
    assert 12 - 1 - 3 <= held <= answered
    chat.start()
    mended = ask(chat, tmp_path, ALIVE, server=settings)
    assert all(e.failure is None and all(s.failure is None for s in e.scores) for e in mended)
    assert len(chat.requests()) - answered == 4 * 9 - held


SCRIPT = """
import sys
from support.contexts import *
from seedscope.engine.explanations.answer_log import Answers
from seedscope.engine.explanations.language_model import explain_with
from seedscope.engine.explanations.chat import Server
from seedscope.engine.progress import Progress
tokens = make_tokens()
with Answers(__import__("pathlib").Path(sys.argv[2])) as cache:
    server = Server(base_url=sys.argv[1], model="rule", concurrency=4)
    told = {"digest": "sae", "cache": cache, "progress": Progress(quiet=True)}
    explain_with(server, make_examples(tokens), tokens, TEXTS, [0, 1, 2, 3], **told)
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_client_that_is_stopped_has_kept_every_answer(chat, tmp_path, stop):
    chat.control(delay_s=0.1)
    path = tmp_path / "answers.jsonl"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    client = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, chat.url, path],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        stderr=subprocess.PIPE,
    )
    while not path.exists() or len(path.read_bytes().splitlines()) < 10:
        time.sleep(0.01)
        assert client.poll() is None
    client.send_signal(stop)
    _, said = client.communicate()
    assert client.returncode != 0
    with Answers(path) as cache:
        held = len(cache)
        assert not cache.failures
    asked = len(chat.requests())
    if stop == signal.SIGINT:  # it waited for what was under way
        assert b"KeyboardInterrupt" in said
        assert held == asked
    assert asked - 4 <= held < 36
    chat.control(delay_s=0.0)
    found = ask(chat, tmp_path, ALIVE)
    assert all(e.failure is None and all(s.failure is None for s in e.scores) for e in found)
    assert len(chat.requests()) == asked + 36 - held


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("401", "refuses to answer"),
        ("404", "cannot answer as 'rule'"),
        ("quota", r"cannot answer as 'rule' \(HTTP 429: no money"),
    ],
)
def test_a_server_that_takes_no_question_at_all_ends_the_run(chat, tmp_path, fault, told):
    chat.control(fault=fault, when="always")
    with pytest.raises(Refused, match=told):
        ask(chat, tmp_path, ALIVE, server={"concurrency": 2})
    assert len(chat.requests()) <= 2


SECRET = "sk-a-secret-0123456789"


@pytest.mark.parametrize("fault", [None, "401", "400-echo", "says-key"])
def test_the_key_is_sent_and_written_nowhere(chat, tmp_path, monkeypatch, capfd, caplog, fault):
    monkeypatch.setenv(KEY, SECRET)
    caplog.set_level("DEBUG")
    chat.control(fault=fault)
    found = error = ""
    try:
        found = ask(chat, tmp_path, [CAT], progress=Progress())
    except Refused as refused:
        error = str(refused)
    assert {line["key"] for line in chat.requests()} == {SECRET}
    if fault == "says-key":
        assert found[0].text == "the token [cat] [key]"
    elif fault == "400-echo":
        assert found[0].failure == "HTTP 400: too long for [key]"
    written = [str(found), repr(error), *capfd.readouterr(), caplog.text, (tmp_path / "answers.jsonl").read_text()]
    assert not any(SECRET in text for text in written)
    assert not any("secret" in repr(o) for o in (Server(base_url=chat.url, model="m"),))


def test_a_server_of_ones_own_gets_no_key_that_is_another_servers(chat, tmp_path, monkeypatch):
    monkeypatch.setenv(OPENAI_KEY, SECRET)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    ask(chat, tmp_path, [CAT], plan=AskPlan(scores=()))
    (line,) = chat.requests()
    assert not {"authorization", "openai-organization"} & set(line["headers"])


def test_the_estimate_is_what_is_then_asked_and_what_is_left_of_it(chat, tmp_path):
    server = Server(base_url=chat.url, model="rule", **PATIENCE)
    prices = Prices(2.0, 8.0)
    with Answers(tmp_path / "answers.jsonl") as cache:

        def expect() -> tuple:
            return estimate(server, EXAMPLES, TOKENS, TEXTS, ALIVE, digest="sae", cache=cache, prices=prices)

        before = expect()
        assert chat.requests() == []
        assert (before.requests, before.answered) == (36, 0)
        assert before.cost == pytest.approx((2 * before.prompt_tokens + 8 * before.completion_tokens) / 1e6)
        explain_with(server, EXAMPLES, TOKENS, TEXTS, ALIVE, digest="sae", cache=cache, progress=Progress(quiet=True))
        asked = [line["asked"]["messages"] for line in chat.requests()]
        characters = sum(len(message["content"]) for messages in asked for message in messages)
        assert before.prompt_tokens == pytest.approx(characters / 4, rel=0.1)  # explanations come out shorter
        assert cache.usage.completion_tokens < before.completion_tokens < 4 * cache.usage.completion_tokens
        after = expect()
        assert after[:4] == (0, 36, 0, 0)
        words = estimate(
            server, EXAMPLES, TOKENS, TEXTS, [CAT], digest="other", cache=cache, count=lambda text: len(text.split())
        )
        assert "tokenizer given" in str(words)


def test_what_was_used_is_said_during_the_run_and_after_it(chat, tmp_path, capfd):
    chat.control(fault="no-usage", of="explain")
    ask(chat, tmp_path, ALIVE, progress=Progress(), prices=Prices(1.0, 1.0), server={"concurrency": 1})
    said = capfd.readouterr().err
    with Answers(tmp_path / "answers.jsonl") as cache:
        used = cache.usage
    assert used == replace(used, answers=36, uncounted=4)
    assert "36 requests to ask (0 answered before)" in said
    assert "18 of 36 requests; so far 18 answers" in said
    assert f"36 answers, {used.prompt_tokens:,} tokens in, {used.completion_tokens:,} out (4 answers came" in said
    sent = [line for line in chat.requests() if line["kind"] != "explain"]
    # The server counts a quarter of a request's bytes.
    assert used.prompt_tokens == sum(
        len(json.dumps(line["asked"], separators=(",", ":"), ensure_ascii=False).encode()) // 4 for line in sent
    )
    assert cache.usage != Usage()
