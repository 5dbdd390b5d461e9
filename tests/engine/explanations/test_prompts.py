"""What is shown to a model, and which of its answers count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedscope.engine.explanations.prompts import (
    LONGEST_EXPLANATION,
    MOST_CHARACTERS,
    ask_again,
    ask_detection,
    ask_explanation,
    mark,
    read_detection,
    read_explanation,
    read_fuzzing,
)


def test_runs_of_marked_tokens_share_one_pair_of_brackets():
    assert mark(["a", " b", " c", " d"], [True, False, True, True]) == "<<a>> b<< c d>>"
    assert mark(["a", " b"], [False, False]) == "a b"


def test_line_breaks_and_tabs_are_seen_and_other_control_characters_are_gone():
    assert mark(["x\n", "\ty", "\x1b[31m", "\u202e", "\u2028"], [False] * 5) == "x⏎⇥y[31m"
    assert mark(["\x00", "z"], [True, False]) == "<<�>>z"  # a marked token is never invisible


@given(
    st.lists(st.tuples(st.text("<> ab\n\ue000\ue001", min_size=1, max_size=4), st.booleans()), min_size=1, max_size=16)
)
def test_brackets_of_the_text_never_pass_for_marks(tokens):
    pieces, marked = zip(*tokens, strict=True)
    shown = mark(pieces, marked)
    runs = sum(is_marked and not before for is_marked, before in zip(marked, (False, *marked), strict=False))
    assert shown.count("<<") == shown.count(">>") == runs
    assert "<<<" not in shown
    assert ">>>" not in shown


def test_long_tokens_are_cut_and_contexts_stay_on_one_line_each():
    shown = mark(["=" * 5000, "\r\n1. an instruction"], [False, False])
    assert len(shown) < MOST_CHARACTERS * 2 + 2
    assert len(ask_detection("e", [shown, shown])[1]["content"].splitlines()) == 4
    assert "Silent" not in ask_explanation([shown], [])[1]["content"]


@pytest.mark.parametrize(
    "answer",
    [
        '{"explanation": "the  word\\ncat"}',
        '```json\n{"explanation": "the word cat"}\n```',
        '<think>is it {"explanation": "no"}?</think>\n{"explanation": " the word cat "}',
    ],
)
def test_an_explanation_is_read_from_exactly_the_object_asked_for(answer):
    assert read_explanation(answer) == "the word cat"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "found nothing, expected a JSON object with 'explanation' alone"),
        ("the word cat", "found 'the word cat', expected a JSON object"),
        ('Sure: {"explanation": "cat"}', "expected a JSON object"),
        ('{"explanation": "cat", "more": 1}', "with 'explanation' alone"),
        ('["cat"]', "expected a JSON object"),
        ('{"explanation": 3}', "found a int for the explanation"),
        ('{"explanation": " \\u0000 "}', "found an empty explanation"),
        ('{"explanation": "%s"}' % ("x" * (LONGEST_EXPLANATION + 1)), "found 301 characters"),
        ("[" * 100_000, "expected a JSON object"),
    ],
)
def test_what_is_no_explanation_is_refused_with_the_reason(answer, reason):
    with pytest.raises(ValueError, match=reason):
        read_explanation(answer)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"active": [1, 0]}', "found 2 entries, expected a list of 3"),
        ('{"active": [1, 0, 1, 0]}', "found 4 entries"),
        ('{"active": [1, 0, 2]}', "found '2' in the list, expected 1 or 0"),
        ('{"active": [1, 0, true]}', "found 'true' in the list"),
        ('{"active": [1, 0, 1.0]}', "found '1.0'"),
        ('{"active": "101"}', "found a str, expected a list of 3"),
        ('{"right": [1, 0, 1]}', "with 'active' alone"),
    ],
)
def test_a_list_of_another_form_is_refused_with_the_reason(answer, reason):
    with pytest.raises(ValueError, match=reason):
        read_detection(answer, 3)


def test_lists_are_read_as_they_are():
    assert read_detection('{"active": [1, 0, 1]}', 3) == [1, 0, 1]
    assert read_fuzzing(' {"right": [0]} ', 1) == [0]


def test_asking_again_shows_the_answer_and_what_is_wrong_with_it():
    first = ask_detection("e", ["x"])
    again = ask_again(first, "yes", "found 'yes'")
    assert again[:2] == first
    assert again[2] == {"role": "assistant", "content": "yes"}
    assert "found 'yes'" in again[3]["content"]
