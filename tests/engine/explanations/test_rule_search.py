"""Token rules: what is planted is found, in words, and holds on documents that were not shown; chance stays chance."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedscope.engine.activations.harvest import PADDING, TokenSet
from seedscope.engine.explanations.conditions import Reading
from seedscope.engine.explanations.rule_search import FEWEST, NAME, explain_member, says
from seedscope.engine.explanations.rules import BEFORE, HERE, Atom, fulfils
from seedscope.engine.explanations.scoring import score
from seedscope.engine.features.examples import ContextGrid

SIGNS = ["(", ")", "[", "]", '"', ",", ".", " =", " +", ":", "\n", "\n    ", "</b><script>"]
WORDS = [
    "def",
    " def",
    "Def",
    "defs",
    " class",
    " import",
    " from",
    "alpha",
    " beta",
    "gamma",
    " delta",
    "Kappa",
    "LOUD",
]
WORDS += [
    "running",
    " singing",
    "rings",
    "making",
    "unfold",
    "untie",
    "unwell",
    "xerrx",
    "merry",
    " ferry",
    "snake_case",
]
WORDS += ["12", "7", " 99", "3", *(f"w{a}{b}" for a in "qvz" for b in "kjy"), " é"]
TEXTS = ["<bos>", *SIGNS, *WORDS]
ID = {text: i for i, text in enumerate(TEXTS)}
N_CTX, N_WINDOWS = 65, 360


@pytest.fixture(scope="module")
def tokens() -> TokenSet:
    """Random text of twelve documents in which brackets and strings are closed, one after the other."""
    rng = np.random.default_rng(0)
    plain = [ID[text] for text in TEXTS[1:] if text not in '()[]"']
    rows = []
    for _ in range(N_WINDOWS):
        row: list[int] = []
        while len(row) < N_CTX:
            n = int(rng.integers(3, 9))
            words = rng.choice(plain, n).tolist()
            inside = [w for w in words if "\n" not in TEXTS[w]]
            kind = rng.integers(0, 8)
            row += [ID["("], *inside, ID[")"]] if kind == 0 else [ID['"'], *inside, ID['"']] if kind == 1 else words
        rows.append([0, *row[: N_CTX - 1]])
    ids = np.array(rows, np.int32)
    ids[30::30, 50:] = PADDING
    document, start = np.repeat(np.arange(12), 30).astype(np.int32), np.arange(N_WINDOWS).astype(np.int32) * 1000
    return TokenSet(ids, document, start, [f"doc{i}" for i in range(12)], 0)


def texts_around(tokens) -> tuple[list[str], list[str]]:
    """(text of each token, of the one in front of it), by walking; empty where there is none."""
    here, before = [], []
    for window in tokens.ids:
        for place, token in enumerate(window):
            here.append(TEXTS[token] if token > 0 else "")
            before.append(TEXTS[window[place - 1]] if place > 1 else "")
    return here, before


def inside(tokens, opening: str, closing: str) -> np.ndarray:
    """Tokens between an opening and a closing sign of one window."""
    found = np.zeros(tokens.ids.shape, bool)
    for row, window in enumerate(tokens.ids):
        is_open = False
        for place, token in enumerate(window):
            text = TEXTS[token] if token > 0 else ""
            if text == closing and is_open:
                is_open = False
            elif is_open:
                found[row, place] = text != ""
            elif text == opening:
                is_open = True
    return found.ravel()


def planted(tokens) -> dict[str, np.ndarray]:
    """{words: where the feature fires}."""
    here, before = (np.array(texts, object) for texts in texts_around(tokens))

    def where(texts, test) -> np.ndarray:
        return np.array([bool(text) and bool(test(text)) for text in texts])

    window = np.zeros(tokens.ids.shape, bool)
    window[:, 1] = True
    number = where(here, lambda t: t.strip().isdigit())
    string = np.zeros(tokens.ids.shape, bool)
    for row, ids in enumerate(tokens.ids):
        n_quotes = 0
        for place, token in enumerate(ids):
            n_quotes = 0 if token > 0 and "\n" in TEXTS[token] else n_quotes + (TEXTS[token] == '"' and token > 0)
            string[row, place] = n_quotes % 2 == 1 and TEXTS[token] != '"' and token > 0
    return {
        'the token " class"': here == " class",
        'the tokens "gamma" or "12"': where(here, lambda t: t in ("gamma", "12")),
        '"def" in any form': where(here, lambda t: t.strip().lower() in ("def", "defs")),
        'tokens that begin with "un"': where(here, lambda t: t.strip().startswith("un")),
        'tokens that end in "ing"': where(here, lambda t: t.endswith("ing")),
        'tokens that contain "err"': where(here, lambda t: "err" in t),
        "a number": number,
        "a line break": where(here, lambda t: "\n" in t),
        'the token "</b><script>"': here == "</b><script>",
        'any token after " import"': (before == " import") & (here != ""),
        'any token after " import" or " from"': where(before, lambda t: t in (" import", " from")) & (here != ""),
        "any token after a number": where(before, lambda t: t.strip().isdigit()) & (here != ""),
        "any token at the start of a window": window.ravel(),
        "any token at the start of a line": where(before, lambda t: "\n" in t) & where(here, lambda t: "\n" not in t),
        "any token inside brackets": inside(tokens, "(", ")"),
        "any token inside a string": string.ravel(),
        "a number inside brackets": number & inside(tokens, "(", ")"),
        "a number after punctuation": number & where(before, lambda t: not re.search(r"[^\W_]", t) and t.strip()),
    }  # fmt: skip


def explained(tokens, firing: list[np.ndarray], **options):
    """(examples, explanations) of features that fire where these say."""
    value = np.stack(firing) * np.float32(1.5)
    feature, position = np.nonzero(value * tokens.counted.ravel())
    examples = ContextGrid(tokens, TEXTS).draw(feature, position.astype(np.int32), value[feature, position])
    return examples, explain_member(examples, tokens, TEXTS, len(firing), **options)


def same_words(text: str, other: str) -> bool:
    """Whether two sentences name the same things, in whatever order."""
    return sorted(re.split(r", | or ", text.replace("the tokens ", ""))) == sorted(
        re.split(r", | or ", other.replace("the tokens ", ""))
    )


def test_every_kind_of_rule_is_found_and_holds_on_unseen_documents(tokens):
    wanted = planted(tokens)
    _, found = explained(tokens, list(wanted.values()))
    assert [each.feature for each in found] == list(range(len(wanted)))
    for words, each in zip(wanted, found, strict=True):
        assert each.text == words or same_words(each.text.replace("after ", ""), words.replace("after ", "")), words
        assert each.scores[0].value > 0.95, (words, each.scores[0])
        assert (each.explainer, each.failure, each.scores[0].kind) == (NAME, None, "detection")


def test_random_firing_scores_like_shuffled_labels(tokens):
    rng = np.random.default_rng(3)
    firing = [rng.random(tokens.ids.size) < rate for rate in np.repeat([0.002, 0.01, 0.05], 20)]
    examples, found = explained(tokens, firing)
    values = np.array([each.scores[0].value for each in found])
    assert abs(values.mean() - 0.5) < 0.03
    for each in found:
        score = each.scores[0]
        active = examples.kind[(examples.feature == each.feature) & (examples.half == 1)] == 0
        said = score.said.astype(bool)
        drawn = []
        for _ in range(200):
            labels = rng.permutation(active)
            drawn.append((said[labels].mean() + (~said)[~labels].mean()) / 2)
        assert score.shuffled == pytest.approx(np.mean(drawn), abs=5 * np.std(drawn) / 10 + 1e-9)
        assert score.shuffled == pytest.approx(0.5, abs=0.05)


def test_scores_are_the_balanced_accuracy_of_what_was_said(tokens):
    examples, found = explained(tokens, [np.random.default_rng(5).random(tokens.ids.size) < 0.02])
    scored = examples.half == 1
    active, score = examples.kind[scored] == 0, found[0].scores[0]
    assert len(score.said) == scored.sum()
    assert (score.n_active, score.n_silent) == (active.sum(), (~active).sum())
    assert score.value == pytest.approx(((score.said[active] == 1).mean() + (score.said[~active] == 0).mean()) / 2)


def test_too_few_contexts_are_a_failure_with_a_reason_and_a_dead_feature_has_no_explanation(tokens):
    examples, _ = explained(tokens, [np.arange(tokens.ids.size) % 97 == 5])
    by_half = [np.unique(examples.start[(examples.half == h) & (examples.kind == 0)]) for h in (0, 1)]
    firing = np.zeros((4, tokens.ids.size), bool)
    firing[1, np.r_[by_half[0][: FEWEST - 1], by_half[1]]] = True
    firing[2, np.r_[by_half[0], by_half[1][: FEWEST - 1]]] = True
    firing[3] = tokens.counted.ravel()
    _, found = explained(tokens, list(firing))
    assert [each.feature for each in found] == [1, 2, 3]
    assert (found[0].text, found[0].scores) == (None, ())
    assert f"{FEWEST - 1} active and 50 silent contexts to learn from" in found[0].failure
    assert found[1].text
    assert (found[1].failure, found[1].scores[0].value, found[1].scores[0].shuffled) == (None, None, None)
    assert f"{FEWEST - 1} active" in found[1].scores[0].failure
    assert found[2].text is None
    assert "0 silent" in found[2].failure


def test_the_same_examples_give_the_same_explanations(tokens):
    rng = np.random.default_rng(7)
    firing = [rng.random(tokens.ids.size) < 0.02 for _ in range(6)]
    told = []
    _, first = explained(tokens, firing, report=lambda done, total: told.append((done, total)))
    _, second = explained(tokens, firing, reading=Reading(tokens, TEXTS))
    assert [each.text for each in first] == [each.text for each in second]
    assert [each.scores[0][:5] for each in first] == [each.scores[0][:5] for each in second]
    assert told == [(i + 1, 6) for i in range(6)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_a_rule_says_of_a_token_is_what_its_text_and_place_say(tokens, data):
    reading = _reading(tokens)
    here, before = texts_around(tokens)
    atoms = []
    for about, conditions_ in ((HERE, reading.here), (BEFORE, reading.before)):
        kind, what = data.draw(st.sampled_from(sorted(conditions_.names)))
        atoms.append(Atom(about, kind, (what,)))
    rule = tuple(data.draw(st.lists(st.sampled_from(atoms), min_size=1, max_size=2, unique=True)))
    window = data.draw(st.integers(0, N_WINDOWS - 1))
    start = np.array([window * N_CTX + 1, window * N_CTX + 17])
    length = np.array([16, 9])
    bits = says(reading, rule, start, length)
    for each, first, n in zip(bits, start, length, strict=True):
        for i in range(16):
            wanted = i < n and all(
                bool(text) and fulfils(atom, text)
                for atom in rule
                for text in [(here if atom.about == HERE else before)[first + i]]
            )
            assert bool(each >> i & 1) == wanted


_READINGS: dict[int, Reading] = {}


def _reading(tokens) -> Reading:
    return _READINGS.setdefault(id(tokens), Reading(tokens, TEXTS))


@given(st.integers(0, 40), st.integers(0, 40), st.data())
def test_detection_lies_between_0_and_1_and_saying_one_thing_of_all_scores_a_half(n_active, n_silent, data):
    active = np.arange(n_active + n_silent) < n_active
    said = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(active), max_size=len(active))), np.int8)
    found = score("detection", active, said, fewest=FEWEST)
    if min(n_active, n_silent) < FEWEST:
        assert found.value is None
        assert found.failure
        return
    assert 0 <= found.value <= 1
    if said.min() == said.max():
        assert found.value == found.shuffled == found.shuffled_p95 == 0.5
