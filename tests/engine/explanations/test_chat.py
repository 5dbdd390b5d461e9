"""Servers and keys: which addresses and keys are taken, and what is read from a server's headers."""

import builtins
from email.utils import formatdate
from time import time

import pytest

from seedscope.engine.contract.environment import KEY, OPENAI_KEY
from seedscope.engine.explanations.answer_log import Answers
from seedscope.engine.explanations.chat import Asker, Prices, Question, Server, read_key, retry_after
from seedscope.engine.explanations.prompts import ask_detection, read_detection

HERE = "http://localhost:11434/v1"
OPENAI = "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"base_url": "localhost:11434"}, "expected one such as http://localhost:11434/v1"),
        ({"base_url": "file:///etc/passwd"}, "expected one such as"),
        ({"base_url": "https://me:hunter22@host/v1"}, f"holds a name, a password or a query.*{KEY}"),
        ({"base_url": "https://host/v1?api-key=hunter22"}, "holds a name, a password or a query"),
        ({"model": ""}, "found no name of a model"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"timeout_s": 0.0}, "expected timeouts and waits above zero"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_without_repeating_secrets(settings, told):
    with pytest.raises(ValueError, match=told) as refused:
        Server(**({"base_url": HERE, "model": "m"} | settings))
    assert "hunter22" not in str(refused.value)


@pytest.mark.parametrize(
    ("base_url", "environment", "expected"),
    [
        (HERE, {}, ""),
        (HERE, {KEY: " mine\n"}, "mine"),
        (HERE, {OPENAI_KEY: "theirs"}, ""),
        (OPENAI, {OPENAI_KEY: "theirs"}, "theirs"),
        (OPENAI, {OPENAI_KEY: "theirs", KEY: "mine"}, "mine"),
        (OPENAI, {OPENAI_KEY: "theirs", KEY: " "}, "theirs"),
        ("https://api.openai.com.evil.example/v1", {OPENAI_KEY: "theirs"}, ""),
        ("http://api.openai.com/v1", {OPENAI_KEY: "theirs"}, ""),
    ],
)
def test_a_key_goes_to_the_server_that_it_was_made_for(base_url, environment, expected):
    assert read_key(base_url, environment) == expected


@pytest.mark.parametrize("key", ["sk-hunter\n22", "sk hunter22", "sk-hünter22", "sk-hunter\x0022"])
def test_what_cannot_be_a_key_is_refused_without_repeating_it(key):
    with pytest.raises(ValueError, match=f"{KEY} holds blanks, line breaks or letters that no key has") as refused:
        read_key(HERE, {KEY: key})
    assert "unter" not in str(refused.value)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": formatdate(time() - 99, usegmt=True)}, 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, expected):
    assert retry_after(headers) == expected


def test_retry_after_is_read_as_a_date():
    assert 28 < retry_after({"retry-after": formatdate(time() + 30, usegmt=True)}) <= 30


def test_a_missing_library_names_the_extra(monkeypatch, tmp_path):
    found = builtins.__import__

    def without(name, *arguments, **more):
        if name == "openai":
            raise ModuleNotFoundError("No module named 'openai'")
        return found(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with (
        Answers(tmp_path / "a.jsonl") as answers,
        pytest.raises(ValueError, match=r"needs the openai library; install it with: pip install 'seedscope\[llm\]'"),
    ):
        Asker(Server(base_url=HERE, model="m"), answers)


def test_every_part_of_a_question_tells_it_from_others_and_patience_does_not():
    def key(about="a", contexts=("x",), **settings):
        question = Question("detection", 1, about, ask_detection("e", contexts), read_detection)
        return question.key(Server(**({"base_url": HERE, "model": "m"} | settings)))

    same = {key(), key(base_url=OPENAI), key(retries=1, timeout_s=1.0, concurrency=2)}
    assert len(same) == 1
    others = {key(about="b"), key(contexts=("y",)), key(model="n"), key(temperature=None)}
    assert len(others | same) == 5


def test_prices_are_per_million_tokens():
    assert Prices(2.0, 8.0).cost(500_000, 250_000) == pytest.approx(3.0)
