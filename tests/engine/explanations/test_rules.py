"""Rules in words, and where in a text tokens stand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedscope.engine.activations.harvest import TokenSet
from seedscope.engine.explanations.conditions import Reading
from seedscope.engine.explanations.rules import (
    BEFORE,
    CLASSES,
    HERE,
    PLACE,
    PLACES,
    Atom,
    conditions,
    fulfils,
    sentence,
    show,
)


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        ([(HERE, "token", " def")], 'the token " def"'),
        ([(HERE, "token", "a", "b", "\n        ")], 'the tokens "a", "b" or ⏎ with an indentation of 8 spaces'),
        ([(HERE, "family", "node")], '"node" in any form'),
        ([(HERE, "family", "(")], '"(" with or without a space'),
        ([(HERE, "suffix", "ing", "ed")], 'tokens that end in "ing" or "ed"'),
        ([(HERE, "prefix", "un"), (HERE, "suffix", "ed")], 'tokens that begin with "un" and end in "ed"'),
        ([(HERE, "suffix", "Error"), (HERE, "class", "capitalised")], 'a capitalised word that ends in "Error"'),
        ([(PLACE, "place", "brackets"), (HERE, "class", "number")], "a number inside brackets"),
        ([(BEFORE, "token", " import")], 'any token after " import"'),
        ([(BEFORE, "class", "number"), (PLACE, "place", "string")], "any token after a number and inside a string"),
        ([(HERE, "token", "("), (BEFORE, "token", '"')], 'the token "(" after \'"\''),
        ([(HERE, "token", "<b>&amp;")], 'the token "<b>&amp;"'),
    ],
)
def test_sentences(atoms, words):
    assert sentence(tuple(Atom(about, kind, tuple(what)) for about, kind, *what in atoms)) == words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" ", "one space"),
        ("    ", "4 spaces"),
        ("\n\n", "⏎⏎"),
        (")\n", '")⏎"'),
        ("\t", '"⇥"'),
        ("\x00", '"\\u0000"'),
        ("", '""'),
    ],
)
def test_white_space_and_control_characters_are_named(text, shown):
    assert show(text) == shown


@given(st.text())
def test_what_is_shown_of_a_token_is_one_printable_line_and_tells_visible_ones_apart(text):
    assert show(text).isprintable()
    if text.isprintable() and text.strip():
        assert show(text)[1:-1] == text


@given(st.text(max_size=12))
def test_a_token_fulfils_what_is_said_of_it(text):
    for kind, what in conditions(text):
        assert fulfils(Atom(HERE, kind, (what,)), text)
        if kind in ("prefix", "suffix", "substring"):
            assert {"prefix": text.strip().startswith, "suffix": text.strip().endswith, "substring": text.__contains__}[
                kind
            ](what)
    assert {what for kind, what in conditions(text) if kind == "class"} == {
        n for n, (_, is_one) in CLASSES.items() if is_one(text)
    }


def places(pieces: list[str], *, n_ctx: int | None = None, start: list[int] | None = None) -> dict[str, list[str]]:
    """{place: the tokens that stand there} of a text in pieces, without BOS."""
    n_ctx = n_ctx or len(pieces)
    texts = sorted(set(pieces))
    ids = np.array([texts.index(p) for p in pieces], np.int32).reshape(-1, n_ctx)
    begin = np.array(start or [n_ctx * i for i in range(len(ids))], np.int32)
    reading = Reading(TokenSet(ids, np.zeros(len(ids), np.int32), begin, ["doc"], None), texts)
    return {
        name: [p for p, at in zip(pieces, reading.place, strict=True) if at >> bit & 1]
        for bit, name in enumerate(PLACES)
    }


def test_places_in_code():
    found = places(
        ["def", " f", "(", "a", ",", " [", "b", "]", "):", "\n    ", '"""', "it", "'", "s", "\n    ", '"""', "\n    ", "print",
         "(", " f", "'", "x", ")", "'", ")", " #", " don", "'", "t", "\n", "y"]
    )  # fmt: skip
    assert found["window start"] == ["def"]
    assert found["line start"] == ['"""', '"""', "print", "y"]
    assert found["brackets"] == ["a", ",", " [", "b", "]", " f", "'", "x", ")", "'"]
    assert found["long string"] == ["it", "'", "s", "\n    "]
    assert found["string"] == ["it", "'", "s", "\n    ", "x", ")"]


def test_brackets_and_strings_go_on_in_the_next_window_of_a_document_alone():
    pieces = ["(", "a", "b", "c", ")", "d"]
    assert places(pieces, n_ctx=2)["brackets"] == ["a", "b", "c"]
    assert places(pieces, n_ctx=2, start=[0, 50, 52])["brackets"] == ["a"]


def test_words_go_on_in_pieces():
    assert places(["un", "fold", "ed", " it", "_", "x", "("])["continuation"] == ["fold", "ed", "_", "x"]


def test_escapes_and_line_ends_close_no_string_and_open_none():
    assert places(['"', "a", "\\", '"', "b", '"', "c"])["string"] == ["a", "\\", '"', "b"]
    assert places(['"', "a", "\n", "b", '"', "c"])["string"] == ["a", "c"]


def test_a_blank_line_closes_brackets():
    assert places(["(", "a", "\n\n", "b"])["brackets"] == ["a"]
