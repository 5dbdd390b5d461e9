"""Answers on disk: what was written whole is there, wherever a stop came."""

import json
from pathlib import Path

import pytest

from seedscope.engine.explanations.answer_log import Answer, Answers, Usage


def make_answer(i: int, *, failure: str | None = None) -> Answer:
    text = None if failure else f"answer {i} é\n\ud800"
    return Answer(f"key{i}", "detection", i, "m", text, Usage(1, 10 * i, i, 0), failure)


def test_a_file_cut_at_any_byte_keeps_every_whole_line_and_takes_more(tmp_path):
    whole = tmp_path / "whole.jsonl"
    with Answers(whole) as answers:
        for i in range(3):
            answers.add(make_answer(i))
    content = whole.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    cut = tmp_path / "cut.jsonl"
    for size in range(len(content)):
        cut.write_bytes(content[:size])
        # A line that lacks nothing but its end is whole.
        n_whole = sum(end <= size + 1 for end in ends)
        with Answers(cut) as answers:
            assert [answers.find(f"key{i}") is not None for i in range(3)] == [i < n_whole for i in range(3)]
            assert answers.n_damaged == (size not in (0, *ends) and size + 1 not in ends)
            answers.add(make_answer(7))
        with Answers(cut) as answers:
            assert answers.find("key7") == make_answer(7).text
            assert len(answers) == n_whole + 1


def test_failures_are_told_but_never_found_and_an_answer_outweighs_them(tmp_path):
    with Answers(tmp_path / "a.jsonl") as answers:
        answers.add(make_answer(1, failure="HTTP 500"))
        answers.add(make_answer(2, failure="late"))
        answers.add(make_answer(2))
        answers.add(make_answer(2, failure="later"))
    with Answers(tmp_path / "a.jsonl") as answers:
        assert answers.find("key1") is None
        assert answers.find("key2") == make_answer(2).text
        assert [(a.key, a.failure) for a in answers.failures] == [("key1", "HTTP 500")]


def test_usage_adds_up_over_all_answers_the_failed_included(tmp_path):
    with Answers(tmp_path / "new" / "a.jsonl") as answers:
        for i in range(4):
            answers.add(make_answer(i, failure="unreadable" if i == 2 else None))
        assert answers.usage == Usage(4, 60, 6, 0)
    with Answers(tmp_path / "new" / "a.jsonl") as answers:
        assert answers.usage == Usage(4, 60, 6, 0)
        assert "4 answers, 60 tokens in, 6 out" in str(answers.usage)


def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("one\n[2]\nthree\n")
    with pytest.raises(ValueError, match=r"notes\.txt: found 3 lines of something else.*move it away"):
        Answers(path)
    assert path.read_text() == "one\n[2]\nthree\n"


def test_a_full_disk_is_an_error_at_once():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Answers(Path("/dev/full")) as answers, pytest.raises(OSError, match="No space left"):
        answers.add(make_answer(1))


def test_lines_are_json_objects_one_per_answer(tmp_path):
    with Answers(tmp_path / "a.jsonl") as answers:
        answers.add(make_answer(1))
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == make_answer(1).text
