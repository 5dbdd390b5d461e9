"""Trigger classes: each holds for a feature made for it, and for none that chance explains."""

import numpy as np
import pytest

from seedscope.engine.features.triggers import CLASSES, TokenClasses, Triggers, count_pairs, family

TEXTS = ["def", " def", "Defs", "class", "12", "7", "(", ")", "running", " sing", "ring", "x", "foo", "bar"]
ID = {text: i for i, text in enumerate(TEXTS)}
EVERY = np.repeat(np.arange(len(TEXTS)), 10)


def classify(firings: list[str], *, previous: list[str] | None = None, place: list[int] | None = None, tokens=EVERY):
    """(class, covered, what) of a feature that fires on these tokens, beside one that never fires."""
    n = len(firings)
    spread = [TEXTS[(3 * i) % len(TEXTS)] for i in range(n)]
    found = TokenClasses(TEXTS, tokens).classify(
        np.zeros(n, int),
        count_pairs(np.zeros(n, int), np.array([ID[text] for text in firings], int), (2, len(TEXTS))),
        np.array([ID[text] for text in previous or spread], int),
        np.array(place or [10] * n, int),
        2,
        0.02,
    )
    assert isinstance(found, Triggers)
    assert (CLASSES[found.trigger[1]], found.covered[1], found.entropy[1]) == ("other", 0, 0)
    return CLASSES[found.trigger[0]], round(float(found.covered[0]), 3), found.what[0]


@pytest.mark.parametrize(
    ("firings", "expected"),
    [
        (["def", "def", "def", "class"], ("single token", 0.75, "def")),
        (["def", " def", "Defs", "class"], ("family", 0.75, "def")),
        (["12", "7", "12", "7", "class", "x"], ("number", 0.667, "")),
        (["(", ")", "(", ")", "x", "foo"], ("punctuation", 0.667, "")),
        (["running", " sing", "ring", "foo"], ("substring", 0.75, "ing")),
        (["x", "foo", "bar", "class"], ("other", 0.25, "")),
    ],
)
def test_a_feature_made_for_a_class_is_put_there(firings, expected):
    if expected[0] in ("number", "punctuation"):  # no single token covers half
        assert max(firings.count(text) for text in firings) < len(firings) / 2
    assert classify(firings) == expected


def test_place_and_the_token_in_front_count_where_the_token_itself_says_nothing():
    assert classify(["x", "foo", "bar", "class"], place=[0, 1, 0, 9]) == ("position", 0.75, "")
    assert classify(["x", "foo", "bar", "class"], previous=["(", "(", "(", "7"]) == ("previous token", 0.75, "(")


def test_what_all_tokens_do_is_no_trigger():
    mostly_brackets = np.repeat([ID["("], ID[")"], ID["x"]], [45, 45, 10])
    assert classify(["(", ")", "(", ")", "x", "foo"], tokens=mostly_brackets)[0] == "other"


def test_entropy_and_top_share_are_those_of_the_token_types():
    found = TokenClasses(TEXTS, EVERY).classify(
        np.zeros(4, int),
        count_pairs(np.zeros(4, int), np.array([0, 0, 1, 2]), (1, 3)),
        np.full(4, -1),
        np.full(4, 9),
        1,
        0.02,
    )
    assert found.entropy[0] == pytest.approx(1.5)
    assert found.top_share[0] == 0.5


def test_families_ignore_case_space_and_a_plural():
    assert {family(text) for text in ("Node", " node", "nodes", "NODE ")} == {"node"}
    assert [family(text) for text in ("is", "Class", "x1s")] == ["is", "class", "x1s"]


@pytest.mark.parametrize("n_columns", [7, 90_000])
def test_pairs_are_counted_as_one_by_one(n_columns):
    rng = np.random.default_rng(1)
    row, column = rng.integers(0, 5, 400), rng.integers(0, min(n_columns, 30), 400)
    found = count_pairs(row, column, (6, n_columns))
    expected = np.zeros((6, 30), int)
    np.add.at(expected, (row, column), 1)
    np.testing.assert_array_equal(found[:, : min(n_columns, 30)].todense(), expected[:, : min(n_columns, 30)])
    assert found.has_canonical_format
    assert count_pairs(row[:0], column[:0], (6, n_columns)).nnz == 0
