"""The live engine's answer on a text, judged and put in order: what is active per token, and one feature's counterparts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from seedscope.app.routes.address import EnsembleJudgement, Index, Seed
from seedscope.app.routes.ensemble.text_lines import TextLine, aligned_lines
from seedscope.app.routes.ensemble.text_question import as_forms_send_it, why_cut
from seedscope.app.store.errors import BadValue
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.queries import LiveAnswer
from seedscope.engine.contract.stability import BUCKETS, is_match
from seedscope.engine.contract.tables.study import Ensemble

N_STRONGEST = 20  # features of the whole text
N_LISTED, N_LISTED_BESIDE = 100, 5  # features at a token: of the seed that is shown, and of every other


class TryQuery(EnsembleJudgement):
    """The text, whose features are shown on it, and at which of its tokens they are listed."""

    text: str = ""
    seed: Seed | None = None
    feature: Index | None = None
    at: Annotated[Index, Field(description="index of a token: what is active there is listed")] | None = None

    @field_validator("text")
    @classmethod
    def _as_forms_send_it(cls, value: str) -> str:
        return as_forms_send_it(value)


@dataclass(frozen=True)
class MemberActive:
    """All that is active in one member: three equally long columns, token after token, the strongest first."""

    seed: int
    token: list[int]
    feature: list[int]
    activation: list[float]


@dataclass(frozen=True)
class StrongFeature:
    """A feature of the seed that is shown, by its largest activation on the text."""

    feature: int
    bucket: str | None
    max_activation: float
    at: int  # token of that activation
    n_active: int  # tokens of the text
    cosines: list[float]  # under the rule, one per comparison


@dataclass(frozen=True)
class OnText:
    """The feature itself, or its counterpart in another seed, on the text."""

    seed: int
    feature: int | None  # None where the rule forms no pair
    cosine: float | None  # with the feature itself; None for itself and where there is no pair
    matched: bool | None
    bucket: str | None
    max_activation: float
    n_active: int
    activations: list[float]  # one per token


class LineToken(NamedTuple):
    """A token on the page, with the buckets of what is active on it in the seed that is shown."""

    shown: str
    counts: bool
    buckets: list[tuple[str, int, float]]  # (bucket, features, where its part of the bar ends in percent)
    strongest: list[tuple[int, float]]  # (feature, activation)


class Chip(NamedTuple):
    """A feature that is active at the token whose features are listed."""

    seed: int
    feature: int
    activation: float
    bucket: str | None


class Listed(NamedTuple):
    """What is active at one token, seed by seed, the one that is shown first."""

    at: int
    seeds: list[tuple[int, list[Chip], int]]  # (seed, the strongest, how many there are)


class MemberActivity(NamedTuple):
    """All that is active in one member, as the engine says it."""

    seed: int
    token: np.ndarray
    feature: np.ndarray
    activation: np.ndarray

    def of(self, feature: int | None, n_tokens: int) -> np.ndarray:
        """One feature's activations, one per token; zeros for None."""
        activations = np.zeros(n_tokens, np.float32)
        if feature is not None:
            mine = self.feature == feature
            activations[self.token[mine]] = self.activation[mine]
        return activations

    def as_columns(self) -> MemberActive:
        """The same as lists."""
        return MemberActive(self.seed, self.token.tolist(), self.feature.tolist(), self.activation.tolist())


class TextActivity:
    """The engine's answer, judged and put in order for the page."""

    def __init__(self, store: StudyStore, row: Ensemble, asked: TryQuery, seed: int, answer: LiveAnswer) -> None:
        self._store, self._row, self._asked, self._seed, self._answer = store, row, asked, seed, answer
        self.n_read, self.n_all = answer.arrays["extent"].tolist()
        self.n_tokens = len(answer.texts)
        seeds = [member.seed for member in store.members(row.ensemble)]
        self.members = list(_members(seeds, answer))
        self._shown = next(a for a in self.members if a.seed == seed)
        self._at = self._listed_token()
        self.on_text = None if asked.feature is None else self._rows_of(asked.feature)
        here = [(a.seed, f) for a in self.members for f in a.feature[a.token == self._at].tolist()]
        shown = [(seed, f) for f in np.unique(self._shown.feature).tolist()]
        self._buckets = store.features(asked.query(row.ensemble)).buckets_at([*here, *shown])

    def cut(self) -> str | None:
        """Why the model did not read all of the text; None if it did."""
        if self.n_read == self.n_all:
            return None
        return why_cut(self._store, self.n_tokens)

    def line(self) -> list[LineToken]:
        """The tokens of the text with what is active on them in the seed that is shown."""
        ends = np.searchsorted(self._shown.token, np.arange(self.n_tokens + 1))
        tokens = []
        for i, (text, counts) in enumerate(
            zip(self._answer.texts, self._answer.arrays["counts"].tolist(), strict=True)
        ):
            features = self._shown.feature[ends[i] : ends[i + 1]].tolist()
            buckets = [self._buckets[self._seed, feature] for feature in features]
            n = {bucket: buckets.count(bucket) for bucket in BUCKETS if bucket in buckets}
            stops = np.cumsum([100 * k / len(buckets) for k in n.values()])
            parts = [(bucket, k, float(stop)) for (bucket, k), stop in zip(n.items(), stops, strict=True)]
            first = self._shown.activation[ends[i] : ends[i] + 3].tolist()
            tokens.append(LineToken(text, counts, parts, list(zip(features, first, strict=False))))
        return tokens

    def _listed_token(self) -> int | None:
        """The token asked for, else that of the strongest activation; raises BadValue for one that is not there."""
        at = self._asked.at
        if at is not None and at >= self.n_tokens:
            raise BadValue("at", str(at), f"a token of the text, 0 to {self.n_tokens - 1}")
        if at is None and len(self._shown.token):
            return int(self._shown.token[self._shown.activation.argmax()])
        return at

    def listed(self) -> Listed | None:
        """What is active at one token in every seed."""
        if self._at is None:
            return None
        seeds = []
        for a in sorted(self.members, key=lambda a: a.seed != self._seed):
            active = np.flatnonzero(a.token == self._at)
            shown = active[: N_LISTED if a.seed == self._seed else N_LISTED_BESIDE]
            pairs = zip(a.feature[shown].tolist(), a.activation[shown].tolist(), strict=True)
            seeds.append((a.seed, [Chip(a.seed, f, v, self._buckets[a.seed, f]) for f, v in pairs], len(active)))
        return Listed(self._at, seeds)

    def strongest(self) -> list[StrongFeature]:
        """The features of the seed that is shown with the largest activations on the text."""
        order = np.argsort(-self._shown.activation, kind="stable")
        features, first, n_active = np.unique(self._shown.feature[order], return_index=True, return_counts=True)
        chosen = np.argsort(first)[:N_STRONGEST]
        rows = self._store.features_at(self._row.ensemble, [(self._seed, int(features[i])) for i in chosen])
        strongest = []
        for i in chosen:
            peak, feature = order[first[i]], int(features[i])
            strongest.append(
                StrongFeature(
                    feature=feature,
                    bucket=self._buckets[self._seed, feature],
                    max_activation=float(self._shown.activation[peak]),
                    at=int(self._shown.token[peak]),
                    n_active=int(n_active[i]),
                    cosines=self._asked.cosines(rows[self._seed, feature]),
                )
            )
        return strongest

    def _rows_of(self, feature: int) -> list[OnText]:
        """A feature and its partner in every other seed, each with its activations."""
        store, ensemble, asked = self._store, self._row.ensemble, self._asked
        row = store.feature(ensemble, self._seed, feature)
        cosines = asked.cosines(row)
        others = store.other_seeds(ensemble, self._seed)
        partners = asked.partners(row, store.matches(ensemble, self._seed, feature))
        reached = is_match(cosines, asked.theta).tolist()
        pairs = {
            seed: (partner, cosine, matched)
            for seed, partner, cosine, matched in zip(others, partners, cosines, reached, strict=True)
            if partner is not None
        }
        shown = {self._seed: feature} | {seed: partner for seed, (partner, *_) in pairs.items()}
        buckets = store.features(asked.query(ensemble)).buckets_at(list(shown.items()))
        rows = []
        for active in self.members:
            index = shown.get(active.seed)
            pair = pairs.get(active.seed)
            on = active.of(index, self.n_tokens)
            rows.append(
                OnText(
                    seed=active.seed,
                    feature=index,
                    cosine=pair[1] if pair else None,
                    matched=pair[2] if pair else None,
                    bucket=None if index is None else buckets[active.seed, index],
                    max_activation=float(on.max(initial=0)),
                    n_active=int((on > 0).sum()),
                    activations=on.tolist(),
                )
            )
        return sorted(rows, key=lambda one: one.seed != self._seed)

    def lines(self) -> Iterator[TextLine[OnText]]:
        """The text in lines, with the rows of the feature and its counterparts."""
        return aligned_lines(self._answer.texts, self.on_text or [])


def _members(seeds: list[int], answer: LiveAnswer) -> Iterator[MemberActivity]:
    count, start = answer.arrays["count"], 0
    for seed, counts in zip(seeds, count, strict=True):
        stop = start + int(counts.sum())
        token = np.repeat(np.arange(len(counts)), counts)
        yield MemberActivity(seed, token, answer.arrays["feature"][start:stop], answer.arrays["activation"][start:stop])
        start = stop
