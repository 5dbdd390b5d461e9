"""Tokens left out for the length of their activations, against lengths taken from the model's own hidden states."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seedscope.engine.activations.documents import documents
from seedscope.engine.activations.harvest import LanguageModel, tokenize
from seedscope.engine.activations.outliers import Without, find_outliers
from seedscope.engine.activations.shards import Shards
from seedscope.engine.store import catalogue
from seedscope.engine.studies.publish import publish
from support.analyses import column, enrol_one, on_tokens, one, run
from support.tiny_models import VOCABULARY, tiny

LOUD = 7  # a token whose embedding is far longer than the others'


@pytest.fixture(scope="module")
def loud() -> LanguageModel:
    model = tiny("llama")
    with torch.no_grad():
        model.network.get_input_embeddings().weight[LOUD] *= 300
    return model


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of which one in twenty is loud."""
    rng = np.random.default_rng(3)
    words = rng.integers(LOUD + 1, VOCABULARY, 600)
    words[::20] = LOUD
    file = tmp_path_factory.mktemp("loud") / "text.txt"
    file.write_text(" ".join(f"w{word}" for word in words))
    return file


@pytest.fixture
def study(tmp_path: Path, text: Path) -> Path:
    enrol_one(tmp_path, "one")
    folder = tmp_path / "root" / "mine"
    catalogue.write(replace(catalogue.read(folder), **on_tokens(text)), folder)
    return folder


def told(study: Path, outliers: str) -> None:
    plan = catalogue.read(study)
    catalogue.write(replace(plan, tokens=replace(plan.tokens, outliers=outliers)), study)


def lengths(model: LanguageModel, text: Path) -> tuple[np.ndarray, np.ndarray]:
    """(ids, lengths of what leaves the second block) of all tokens but BOS and padding, window by window."""
    tokens = tokenize(documents([str(text)]), model, n_ctx=16)
    ids, found = [], []
    for window in tokens.ids:
        window = torch.from_numpy(window[window >= 0]).long()[None]
        with torch.no_grad():
            states = model.network(window, output_hidden_states=True).hidden_states[2]
        ids.append(window[0, 1:].numpy())
        found.append(states[0, 1:].norm(dim=-1).numpy())
    return np.concatenate(ids), np.concatenate(found)


def test_loud_tokens_are_left_out_unless_they_are_asked_for(study, loud, text):
    ids, length = lengths(loud, text)
    expected = length > 10 * np.median(length)
    assert 0 < expected.sum() < len(ids) / 10
    assert set(ids[expected]) == {tokenize([("", f"w{LOUD}")], loud).ids[0, 1]}
    said = run(study, loud).said
    assert any(f"{expected.sum()} of {len(ids)} tokens left out" in line for line in said)
    without = publish(study)
    assert one(without, "SELECT n_tokens, n_outliers FROM Ensemble") == (len(ids) - expected.sum(), expected.sum())
    assert "longer than 10 times the median excluded" in one(without, "SELECT token_policy FROM Study")[0]
    assert set(column(without, "n_tokens")) == {len(ids) - expected.sum()}
    n_quiet = column(without, "n_active").sum()
    told(study, "include")
    run(study, loud)
    within = publish(study)
    assert one(within, "SELECT n_tokens, n_outliers FROM Ensemble") == (len(ids), 0)
    assert "norm outliers counted" in one(within, "SELECT token_policy FROM Study")[0]
    # Three features are active on every token: what is gone are the firings on loud ones.
    assert column(within, "n_active").sum() - n_quiet == 3 * 3 * expected.sum()
    told(study, "exclude")
    run(study, loud)
    assert publish(study).name == without.name


def test_no_context_peaks_on_a_token_that_is_left_out(study, loud, text):
    run(study, loud)
    loud_id = int(tokenize([("", f"w{LOUD}")], loud).ids[0, 1])
    store = publish(study)
    sql = "SELECT count(*) FROM (SELECT unnest(token_ids) AS id, unnest(activations) AS a FROM Context) WHERE id = {} AND a > 0"
    assert one(store, sql.format(loud_id)) == (0,)
    assert one(store, f"SELECT count(*) > 0 FROM Context WHERE list_contains(token_ids, {loud_id})") == (True,)


@pytest.mark.slow
def test_the_loss_is_read_where_tokens_count(study, loud):
    run(study, loud)
    quiet = one(publish(study), "SELECT max(n_loss_tokens) FROM Member")[0]
    told(study, "include")
    run(study, loud)
    assert one(publish(study), "SELECT max(n_loss_tokens) FROM Member")[0] > quiet


@pytest.mark.parametrize("times", [1.5, 4.0])
def test_rows_in_files_and_rows_in_memory_have_the_same_outliers(times):
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(5000, 7)) * rng.exponential(size=(5000, 1))).astype(np.float32)
    length = np.linalg.norm(rows.astype(np.float64), axis=1)
    expected = np.flatnonzero(length > times * np.median(length))
    told = []
    np.testing.assert_array_equal(find_outliers(rows, times=times), expected)
    np.testing.assert_array_equal(
        find_outliers(Shards([rows[:1700], rows[1700:]]), times=times, report=lambda *at: told.append(at)), expected
    )
    assert told[-1] == (5000, 5000)
    kept = Without(Shards([rows[:1700], rows[1700:]]), expected)
    np.testing.assert_array_equal(kept[10:2000], np.delete(rows, expected, 0)[10:2000])
    assert len(kept) == 5000 - len(expected)
