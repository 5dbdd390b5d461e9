"""Explain features by token rules, without a network: the rule that best tells a feature's contexts from silent ones.

A rule is searched on the shown half. Its value there is the balanced accuracy of "fires somewhere in this context", where an
active context counts only if the rule fires on a token on which the feature does, plus MARKS times the F1 of the tokens it
fires on, minus its price: every word beyond the first must tell apart more than one further context, the second atom more
than two; beginnings and ends cost half a context, substrings a whole one. Its score is taken on the scored half.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from seedscope.engine.activations.tokens import TokenSet
from seedscope.engine.explanations.conditions import Reading
from seedscope.engine.explanations.explanation import FeatureExplanation
from seedscope.engine.explanations.rules import BEFORE, HERE, PLACE, PLACES, Atom, Rule, sentence
from seedscope.engine.explanations.scoring import score
from seedscope.engine.features.examples import HALVES, LENGTH, Examples

NAME = "token rule"
VERSION = 2  # of the language and the search: what older ones found is searched again
FEWEST = 5  # active and as many silent contexts, of either half: with fewer, any rule looks right
MARKS = 0.3
MOST_WORDS = 6  # in a set
N_ATOMS = 400  # of a feature that are looked at: those that hold on most tokens it fires on
N_WORDS = 24  # that sets are made of
N_PAIRED = 12  # of each sort that pairs are made of
PRICES = {"token": 0.0, "family": 0.1, "class": 0.1, "place": 0.1, "prefix": 0.5, "suffix": 0.5, "substring": 1.0}
IN_SETS = ("token", "family", "suffix")
_SORTS = ("token", "class", "prefix", "suffix", "substring", BEFORE, PLACE)  # token: families too
_PAIRS = (  # what says different things of one token, or something of different ones
    ("class", "prefix"), ("class", "suffix"), ("class", "substring"), ("prefix", "suffix"), (BEFORE, PLACE),
    *((here, other) for here in _SORTS[:5] for other in (BEFORE, PLACE)),
)  # fmt: skip


def explain_member(
    examples: Examples,
    tokens: TokenSet,
    texts: Sequence[str],
    n_features: int,
    *,
    reading: Reading | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[FeatureExplanation]:
    """Explain every feature of one member that ever fires, with its detection score; ascending features.

    `texts` are those of all token ids; a reading of the same tokens and texts saves the second it takes to make one.
    `report` is told (features done, all). A feature with fewer than FEWEST active or silent contexts in the shown half has no
    text, in the scored half no value, and the reason. The same examples give the same explanations.
    """
    reading = reading or Reading(tokens, texts)
    search = _Search(reading)
    borders = np.searchsorted(examples.feature, np.arange(n_features + 1))
    explanations = []
    for feature in range(n_features):
        mine = Examples(*(column[borders[feature] : borders[feature + 1]] for column in examples))
        if len(mine.feature):
            explanations.append(_explain(search, reading, feature, mine))
        if report:
            report(feature + 1, n_features)
    return explanations


def says(reading: Reading, rule: Rule, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(contexts,) uint16: bit i is set where the rule says that a feature fires on token i."""
    at = _positions(start, length)
    bits = np.full(len(start), 2**LENGTH - 1, np.uint16)
    for atom in rule:
        if atom.about == PLACE:
            fires = (reading.place[at.flat] >> list(PLACES).index(atom.what[0]) & 1).astype(bool)
        else:
            conditions = reading.here if atom.about == HERE else reading.before
            holds = np.zeros(reading.n_types + 1, bool)
            holds[conditions.fulfilling([conditions.number[(atom.kind, each)] for each in atom.what])] = True
            fires = holds[(reading.type if atom.about == HERE else reading.in_front)[at.flat]]
        bits &= _packed(fires & at.real)
    return bits


def _explain(search: "_Search", reading: Reading, feature: int, mine: Examples) -> FeatureExplanation:
    shown, scored = (Examples(*(column[mine.half == half] for column in mine)) for half in range(len(HALVES)))
    n_active = int((shown.kind == 0).sum())
    n_silent = len(shown.kind) - n_active
    if min(n_active, n_silent) < FEWEST:
        reason = f"{n_active} active and {n_silent} silent contexts to learn from, at least {FEWEST} of each are needed"
        return FeatureExplanation(feature, NAME, None, (), reason)
    rule = search.best(shown)
    said = (says(reading, rule, scored.start, scored.length) != 0).astype(np.int8)
    return FeatureExplanation(
        feature, NAME, sentence(rule), (score("detection", scored.kind == 0, said, seed=feature, fewest=FEWEST),)
    )


class _Positions(NamedTuple):
    flat: np.ndarray  # (contexts, LENGTH) into the token set, any where there is no token
    real: np.ndarray  # whether there is one


def _positions(start: np.ndarray, length: np.ndarray) -> _Positions:
    offset = np.arange(LENGTH)
    real = offset < length[:, None]
    return _Positions(start[:, None] + np.where(real, offset, 0), real)


def _packed(fires: np.ndarray) -> np.ndarray:
    """(..., LENGTH) bool -> (...) uint16, bit i for token i."""
    return np.packbits(fires, axis=-1, bitorder="little").view("<u2")[..., 0].astype(np.uint16, copy=False)


class _Candidates(NamedTuple):
    """Rules tried: where each fires, and what it costs in contexts."""

    rules: list[Rule]
    bits: np.ndarray  # (rules, contexts) uint16
    price: np.ndarray  # (rules,)

    def __add__(self, other: "_Candidates") -> "_Candidates":  # type: ignore[override]
        return _Candidates(
            self.rules + other.rules, np.concatenate([self.bits, other.bits]), np.r_[self.price, other.price]
        )


class _Contexts(NamedTuple):
    """What candidates are judged on: contexts, active ones first."""

    mask: np.ndarray  # (active,) uint16: tokens on which the feature fires
    n_silent: int
    n_firing: int  # tokens

    def worth(self, bits: np.ndarray, price: np.ndarray | float) -> np.ndarray:
        """(rules,) of rules that fire on these tokens, rounded so that equal ones tie."""
        n_active = len(self.mask)
        right = bits[:, :n_active] & self.mask
        hits, alarms = np.count_nonzero(right, 1), np.count_nonzero(bits[:, n_active:], 1)
        fired = np.bitwise_count(bits).sum(1, dtype=np.int64)
        f1 = 2 * np.bitwise_count(right).sum(1, dtype=np.int64) / (fired + self.n_firing)
        one = 0.5 / min(n_active, self.n_silent)
        return np.round((hits / n_active + 1 - alarms / self.n_silent) / 2 + MARKS * f1 - one * price, 9)

    def promise(self, bits: np.ndarray) -> np.ndarray:
        """(rules,) how good half of a pair each may make: missing active contexts cannot be mended, false alarms can."""
        n_active = len(self.mask)
        hits = np.count_nonzero(bits[:, :n_active] & self.mask, 1)
        return hits / n_active - np.count_nonzero(bits[:, n_active:], 1) / (2 * self.n_silent)


class _Search:
    """Searches rules feature by feature; about a millisecond each."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._slots = {HERE: np.full(len(reading.here.names), -1, np.int16)}
        self._slots[BEFORE] = np.full(len(reading.before.names), -1, np.int16)

    def best(self, shown: Examples) -> Rule:
        """The rule of the highest worth; of equal ones the shorter, then the one of the more frequent condition."""
        at = _positions(shown.start, shown.length)
        mask = shown.mask[shown.kind == 0]  # sorted by kind: active ones stand first
        contexts = _Contexts(mask, len(shown.kind) - len(mask), int(np.bitwise_count(mask).sum()))
        tried = self._atoms(at, mask)
        words = contexts.worth(tried.bits, tried.price)
        tried += _sets(tried, words, contexts)
        tried += _pairs(tried, contexts)
        return tried.rules[int(np.argmax(contexts.worth(tried.bits, tried.price)))]

    def _atoms(self, at: _Positions, mask: np.ndarray) -> _Candidates:
        """Single conditions that hold on some token on which the feature fires."""
        reading = self._reading
        firing = (mask[:, None] >> np.arange(LENGTH, dtype=np.uint16) & 1).astype(bool)
        least = max(1, len(mask) // 25)
        rules: list[Rule] = []
        bits = []
        sources = ((HERE, reading.here, reading.type), (BEFORE, reading.before, reading.in_front))
        for about, conditions, types_of in sources:
            types = np.where(at.real, types_of[at.flat], reading.n_types)
            columns, counts = np.unique(conditions.expand(types[: len(mask)][firing])[1], return_counts=True)
            order = np.argsort(-counts, kind="stable")[:N_ATOMS]
            columns = columns[order[counts[order] >= least]]
            slot = self._slots[about]
            slot[columns] = np.arange(len(columns))
            row, column = conditions.expand(types.ravel())
            place = slot[column]
            slot[columns] = -1
            holds = np.zeros((len(columns), *types.shape), bool)
            holds.reshape(len(columns), types.size)[place[place >= 0], row[place >= 0]] = True
            bits.append(_packed(holds))
            rules += [(Atom(about, kind, (what,)),) for kind, what in (conditions.names[c] for c in columns)]
        place = reading.place[at.flat]
        bits.append(_packed(np.stack([(place >> i & 1).astype(bool) & at.real for i in range(len(PLACES))])))
        rules += [(Atom(PLACE, "place", (name,)),) for name in PLACES]
        return _Candidates(rules, np.concatenate(bits), np.array([_price(rule[0]) for rule in rules]))


def _sets(singles: _Candidates, worth: np.ndarray, contexts: _Contexts) -> _Candidates:
    """Sets of tokens, of families or of ends, grown word by word while that pays."""
    rules: list[Rule] = []
    bits, prices = [np.zeros((0, singles.bits.shape[1]), np.uint16)], []
    groups: dict[tuple[str, str], list[int]] = {}
    for i, (atom,) in enumerate(singles.rules):
        if atom.kind in IN_SETS:
            groups.setdefault((atom.about, atom.kind), []).append(i)
    for (about, kind), group in groups.items():
        members = np.array(group)[np.argsort(-worth[group], kind="stable")[:N_WORDS]]
        chosen, set_bits, value = [0], singles.bits[members[0]], worth[members[0]]
        while len(chosen) < min(MOST_WORDS, len(members)):
            grown = singles.bits[members] | set_bits
            values = contexts.worth(grown, PRICES[kind] + len(chosen))
            best = int(np.argmax(values))
            if values[best] <= value:
                break
            chosen, set_bits, value = [*chosen, best], grown[best], values[best]
        if len(chosen) > 1:
            words = tuple(singles.rules[members[i]][0].what[0] for i in chosen)
            rules.append((Atom(about, kind, words),))
            bits.append(set_bits[None])
            prices.append(PRICES[kind] + len(chosen) - 1)
    return _Candidates(rules, np.concatenate(bits), np.array(prices))


def _pairs(singles: _Candidates, contexts: _Contexts) -> _Candidates:
    """Two conditions that hold together, of the most promising of each sort."""
    promise = contexts.promise(singles.bits)
    sort = np.array([_SORTS.index(_sort(atom)) for (atom,) in singles.rules])
    pool = [
        members[np.argsort(-promise[members], kind="stable")[:N_PAIRED]]
        for members in (np.flatnonzero(sort == each) for each in range(len(_SORTS)))
    ]
    pairs = [np.stack(np.meshgrid(pool[_SORTS.index(a)], pool[_SORTS.index(b)]), -1).reshape(-1, 2) for a, b in _PAIRS]
    places = pool[_SORTS.index("place")]
    pairs.append(places[np.stack(np.triu_indices(len(places), 1), -1)])
    first, second = np.concatenate(pairs).T
    bits = singles.bits[first] & singles.bits[second]
    rules = [singles.rules[i] + singles.rules[j] for i, j in zip(first.tolist(), second.tolist(), strict=True)]
    return _Candidates(rules, bits, singles.price[first] + singles.price[second] + 2)


def _price(atom: Atom) -> float:
    """Of an atom of one word, in contexts; of ends that hold alike "ing" says more than "ng"."""
    return PRICES[atom.kind] - (0.01 * len(atom.what[0]) if atom.kind in ("prefix", "suffix") else 0)


def _sort(atom: Atom) -> str:
    if atom.about == HERE:
        return "token" if atom.kind == "family" else atom.kind
    return atom.about
