"""Token texts and explanations of a generated study: readable tokens in Zipf's order, and rules in the grammar of token rules.

All texts are put together from small vocabularies with Arrow, without a Python loop over features.
"""

from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seedscope.engine.contract.names import words
from seedscope.engine.contract.schema import TRIGGERS
from seedscope.engine.explanations.rules import show
from seedscope.engine.features.triggers import family

N_TOKENS = 50_257
N_DRAWN = 5  # top tokens of a feature, all different
# The most frequent tokens, as in code with English comments.
_COMMON = (
    "\n", " the", ",", ".", "(", ")", " of", " =", " to", " and", " a", " in", ":", " is", "self", "_", " return", "def",
    " if", " for", " import", "\"", "'", "[", "]", "{", "}", " not", " None", " True", " False", " class", " with", " as", "0",
    "1", "2", "10", " +", " -", " *", "==", "!=", "->", " else", " elif", " try", " except", " raise", " from", " or", " that",
    " it", " was", " be", " are", " this", " on", " by", " which", " value", " name", " type", " list", " dict", " str", " int",
    " len", " range", " print", " open", " file", " line", " error", " data", " index", " key", " args", " kwargs", " async",
    " await", " yield", " lambda", " global", "::", "//", "/*", "*/", ";", "<", ">", "@", "#", "$", "%", "&", "2024", "100",
)  # fmt: skip
_ONSETS = ("b", "br", "c", "ch", "d", "f", "g", "gr", "h", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "tr", "v")
_RIMES = ("a", "an", "ar", "e", "en", "er", "es", "i", "in", "ion", "o", "on", "or", "u", "ul", "ing")
_FORMS = (" {}", "{}", " {}", "{}")  # of a generated word: in lower case, then capitalised

# Rules by trigger: literal text and slots. A slot is what it shows of a token (`quoted`, `family`, `substring`, `prefix`,
# `suffix`) and which token it is: one of the feature's top tokens by place, or `before`, the token in front.
_RULES: dict[str, tuple[tuple[str | tuple[str, int | str], ...], ...]] = {
    "single token": (
        ("the token ", ("quoted", 0), " after ", ("quoted", "before"), " and inside brackets"),
        ("the tokens ", ("quoted", 0), " and ", ("quoted", 1), " inside a string"),
        ("the token ", ("quoted", 0), " that goes on a word"),
    ),
    "family": (
        (("quoted_family", 0), " in any form after ", ("quoted", "before")),
        (("quoted_family", 0), " or ", ("quoted_family", 1), " in any form at the start of a line"),
    ),
    "number": (("a number after ", ("quoted", "before"), " and inside brackets"),),
    "punctuation": (("punctuation after ", ("quoted", "before"), " and at the start of a line"),),
    "substring": (
        ("tokens that contain ", ("quoted_substring", 0), " and begin with ", ("quoted_prefix", 0)),
        ("tokens that end in ", ("quoted_suffix", 0), " after ", ("quoted", "before")),
    ),
    "position": (("any token at the start of a window",),),
    "previous token": (
        ("any token after ", ("quoted", "before")),
        ("a lower-case word after ", ("quoted", "before"), " and inside brackets"),
    ),
    "other": (
        ("the tokens ", ("quoted", 0), ", ", ("quoted", 1), ", ", ("quoted", 2), " and ", ("quoted", 3)),
        ("an identifier after ", ("quoted", "before"), " and inside brackets"),
        ("a lower-case word inside a string of several lines",),
    ),
}
RULES = tuple((trigger, parts) for trigger in TRIGGERS for parts in _RULES[trigger])
N_RULES_OF = np.array([len(_RULES[trigger]) for trigger in TRIGGERS])
FIRST_RULE_OF = np.r_[0, N_RULES_OF.cumsum()[:-1]]


class _Slot(NamedTuple):
    """What rules show of every token."""

    texts: pa.Array  # (tokens,)
    words: np.ndarray  # (tokens,) index of the one word in it, -1 for none


class TokenVocabulary:
    """Texts of N_TOKENS token ids, the most frequent first; the same in every generated study."""

    def __init__(self) -> None:
        self.texts = _token_texts()
        self.array = pa.array(self.texts)
        families = [family(text) for text in self.texts]
        pieces = [text.strip() for text in self.texts]
        shown = {
            "quoted": self.texts,
            "quoted_family": families,
            "quoted_substring": [piece[1:4] if len(piece) > 3 else piece for piece in pieces],
            "quoted_prefix": [piece[:2] for piece in pieces],
            "quoted_suffix": [piece[-3:] for piece in pieces],
        }
        self._plain = {"family": pa.array(families), "substring": pa.array(shown["quoted_substring"])}
        quoted = {name: [show(text) for text in texts] for name, texts in shown.items()}
        in_rules = {word for _, parts in RULES for part in parts if isinstance(part, str) for word in words(part)}
        in_tokens = {word for texts in quoted.values() for text in texts for word in words(text)}
        self.words = sorted(in_rules | in_tokens)
        self._number = {word: number for number, word in enumerate(self.words)}
        self._slots = {name: _Slot(pa.array(texts), self._numbers(texts)) for name, texts in quoted.items()}

    def _numbers(self, texts: list[str]) -> np.ndarray:
        single = [sorted(words(text)) for text in texts]
        if max(map(len, single)) > 1:
            raise ValueError("a token holds two words, expected one at most")
        return np.array([self._number[found[0]] if found else -1 for found in single])

    @cached_property
    def word_array(self) -> pa.Array:
        """The words that explanations can have, sorted."""
        return pa.array(self.words)

    def trigger_texts(self, trigger: np.ndarray, top: np.ndarray, before: np.ndarray) -> pa.Array:
        """What each feature's trigger is, as Feature.trigger_what: (features,) indices into TRIGGERS, top and previous token."""
        index = {name: number for number, name in enumerate(TRIGGERS)}
        token = np.where(trigger == index["previous token"], before, top)
        empty = pa.scalar("")
        is_token = np.isin(trigger, [index["single token"], index["previous token"]])
        what = pc.if_else(pa.array(is_token), self.array.take(pa.array(token)), empty)
        for name, texts in self._plain.items():
            what = pc.if_else(pa.array(trigger == index[name]), texts.take(pa.array(top)), what)
        return what

    def explain(self, rule: np.ndarray, top: np.ndarray, before: np.ndarray) -> pa.Array:
        """Sentences: `rule` (features,) indices into RULES, `top` (features, N_DRAWN) and `before` (features,) token ids."""
        texts, order = [], []
        for number, (_, parts) in enumerate(RULES):
            rows = np.flatnonzero(rule == number)
            if not len(rows):
                continue
            pieces = [
                pa.scalar(part)
                if isinstance(part, str)
                else self._slots[part[0]].texts.take(pa.array(_tokens(part, rows, top, before)))
                for part in parts
            ]
            joined = pc.binary_join_element_wise(*pieces, "")
            texts.append(joined if isinstance(joined, pa.Array) else pa.repeat(joined, len(rows)))
            order.append(rows)
        place = np.argsort(np.concatenate(order), kind="stable")
        return pa.concat_arrays(texts).take(pa.array(place))

    def words_of(self, rule: np.ndarray, top: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(word, row) of every word of these explanations once, sorted; words are indices into `words`."""
        n = len(rule)
        keys = []
        for number, (_, parts) in enumerate(RULES):
            rows = np.flatnonzero(rule == number)
            for part in parts:
                if isinstance(part, str):
                    keys += [self._number[word] * n + rows for word in words(part)]
                else:
                    word = self._slots[part[0]].words[_tokens(part, rows, top, before)]
                    keys.append((word * n + rows)[word >= 0])
        distinct = np.unique(np.concatenate(keys))
        return distinct // n, distinct % n


@cache
def token_vocabulary() -> TokenVocabulary:
    """The vocabulary, which takes a second to make."""
    return TokenVocabulary()


def draw_tokens(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, N_DRAWN) different token ids per row: about 1 / rank, as Zipf says."""
    group = zipf(rng, (n, N_DRAWN), N_TOKENS // N_DRAWN)
    place = rng.random((n, N_DRAWN), np.float32).argsort(1)
    return (group * N_DRAWN + place).astype(np.int32)


def zipf(rng: np.random.Generator, shape: tuple[int, ...], n: int) -> np.ndarray:
    """Indices 0 .. n - 1 with probabilities about 1 / (index + 1)."""
    return np.minimum(np.exp(rng.random(shape) * np.log(n + 1)).astype(np.int64), n) - 1


def _tokens(part: tuple[str, int | str], rows: np.ndarray, top: np.ndarray, before: np.ndarray) -> np.ndarray:
    return before[rows] if part[1] == "before" else top[rows, int(part[1])]


def _token_texts() -> list[str]:
    """_COMMON first, then generated words, each with and without a space, in lower case and capitalised."""
    syllables = [onset + rime for onset in _ONSETS for rime in _RIMES]
    pairs = np.random.default_rng(0).permutation(len(syllables) ** 2)
    texts = dict.fromkeys(_COMMON)
    for pair in pairs:
        word = syllables[pair // len(syllables)] + syllables[pair % len(syllables)]
        for number, form in enumerate(_FORMS):
            texts.setdefault(form.format(word.capitalize() if number > 1 else word))
        if len(texts) >= N_TOKENS:
            break
    return list(texts)[:N_TOKENS]
