"""Balanced accuracy: what it is by hand, and what knowing nothing gives."""

import numpy as np
import pytest

from seedscope.engine.explanations.scoring import score


def test_each_class_weighs_the_same_and_contexts_without_answer_do_not_count():
    labels = np.array([1, 1, 1, 1, 0, 0, 0])
    found = score("detection", labels, np.array([1, 1, 0, -1, 0, 1, -1]))
    assert found.value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert (found.n_active, found.n_silent, found.failure) == (3, 2, None)
    assert found.said.tolist() == [1, 1, 0, -1, 0, 1, -1]


@pytest.mark.parametrize("n_silent", [5, 50, 500])
def test_shuffled_labels_score_a_half_whatever_is_said(n_silent):
    labels = np.r_[np.ones(50, int), np.zeros(n_silent, int)]
    found = score("fuzzing", labels, labels)
    assert found.value == 1.0
    assert found.shuffled == pytest.approx(0.5, abs=0.03)
    assert score("fuzzing", labels, np.ones_like(labels)).value == 0.5


def test_one_class_alone_is_a_failure():
    found = score("detection", np.ones(3), np.array([1, 1, 1]))
    assert (found.value, found.shuffled, found.shuffled_p95) == (None, None, None)
    assert found.failure == "3 active and 0 silent contexts to score on, at least 1 of each are needed"
