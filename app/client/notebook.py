"""What `seedscope.open` gives: studies, their ensembles and features, as tables, rows and arrays.

Everything is read from the published store by the same statements as the pages, so that numbers agree; `theta`, `epsilon`,
`rule` and `dead` mean what they mean in an address, and default to the ensemble's own.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from safetensors import safe_open

from seedscope.app.settings import default_root
from seedscope.app.store.download import feature_download
from seedscope.app.store.errors import BadValue, NotFound
from seedscope.app.store.feature_query import SORTS, FeatureQuery
from seedscope.app.store.judging import rule_cosines, rule_partners, stability_of
from seedscope.app.store.kept_spans import candidates_table, span_basis, span_explanations
from seedscope.app.store.lookup import SaeSummary, places_of, summarise
from seedscope.app.store.search import HITS
from seedscope.app.store.studies import Studies as StudyStores
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.schema import RULES, TRIGGERS
from seedscope.engine.contract.stability import BUCKETS, is_match
from seedscope.engine.contract.tables.features import Feature as FeatureRow
from seedscope.engine.contract.tables.features import Match as MatchRow
from seedscope.engine.contract.tables.shared_spans import SharedSpanExplanation
from seedscope.engine.contract.tables.study import Ensemble as EnsembleRow

if TYPE_CHECKING:
    from seedscope.widget import FeatureTableWidget

_FILTERS = {each.name for each in fields(FeatureQuery)} - {"ensemble", "theta", "epsilon", "rule", "dead"}
_CHOICES = {"dead": ("exclude", "only", "count"), "bucket": BUCKETS, "trigger": TRIGGERS, "sort": SORTS, "hit": HITS}


@dataclass(frozen=True)
class Match:
    """A feature's counterpart in one other seed, under the rule asked for."""

    seed: int
    partner: int | None
    """Index of the counterpart; None where the rule forms no pair."""
    cosine: float | None
    """Of the two decoder rows (`both`: the smaller of decoder and encoder cosine; `active`: the correlation of activations).

    None without a partner."""
    matched: bool
    """Whether it reaches theta."""
    runner_up_cosine: float
    """Of the second nearest feature there."""
    mutual: bool
    """Whether each is the other's nearest."""
    encoder_cosine: float
    """Of the two encoder columns, at the nearest feature."""


@dataclass(frozen=True)
class Context:
    """A window of evaluation tokens."""

    group: int
    """0: strongest activations; 1 to 5: drawn from that fifth of (0, max], the strongest fifth first; 6: not active."""
    tokens: list[str]
    activations: list[float]
    """One per token, times the decoder row's norm."""
    document: str
    position: int
    """Of the peak, in tokens from the document's start."""


@dataclass(frozen=True)
class Feature:
    """One feature, judged by theta, epsilon and rule; what was not computed is None."""

    study: str
    ensemble: str
    seed: int
    index: int
    stability: float | None
    """p = n_matched / n_comparisons; this and the next five are None for one SAE alone, whose stability is undefined."""
    stability_low: float | None
    """95 % Clopper-Pearson interval for p, lower end."""
    stability_high: float | None
    p_stable: float | None
    """P(p >= 1 - epsilon), with a Jeffreys prior."""
    p_unstable: float | None
    """P(p <= epsilon)."""
    n_matched: int
    n_comparisons: int
    bucket: str | None
    """stable, middle, unstable or dead; of one SAE alone, dead or None."""
    theta: float
    epsilon: float
    rule: str
    row: FeatureRow
    """Every stored column: density, activation statistics, trigger, worth, explanation, score."""
    matches: list[Match]
    """One per other seed, ascending."""
    contexts: list[Context] | None
    permalink: str
    """Path of its page, with the digest that pins SAEs and matching settings."""
    chance: dict[str, float] = field(default_factory=dict)
    """Share of chance comparisons that match under the rule, by null: in random directions, in ones of this SAE's spread."""
    shared_start: str = "unknown"
    """yes, no or unknown: only where it is no, agreement is stability."""
    directions: str | None = None
    """What decoder rows are where they are not directions of what is read."""

    def _repr_html_(self) -> str:
        from seedscope.display import feature_html

        return feature_html(self)


class Ensemble:
    """SAEs that differ only in their seed."""

    def __init__(self, store: StudyStore, row: EnsembleRow) -> None:
        self._store, self.row = store, row

    @property
    def name(self) -> str:
        """As addresses have it."""
        return self.row.ensemble

    @property
    def seeds(self) -> list[int]:
        """Seeds of the members, ascending."""
        return [member.seed for member in self._store.members(self.name)]

    @property
    def directions(self) -> str | None:
        """What decoder rows are where they are not directions of what is read: "output directions" of transcoders."""
        return self.row.directions

    def features(
        self,
        *,
        theta: float | None = None,
        epsilon: float | None = None,
        rule: str = "argmax",
        dead: str | None = None,
        **filters: Any,
    ) -> pa.Table:
        """All features that a filter finds, one row each: the columns of the feature table's download.

        `filters` are those of the feature table's address: seed, bucket, stability_min, stability_max, density_min,
        density_max, id, trigger, q, hit, score_min, cofire_min, predicted_min, predicted_max;
        `sort` and `descending` order the rows. `dead` is exclude, only or count.
        Raises ValueError for a filter or value that there is not, or that needs what was not computed.
        """
        self._check_filters(filters)
        query = self._query(theta, epsilon, rule, dead=dead, **filters)
        with _refusals():
            table = feature_download(self._store, query).table()
        if self.directions:
            table = table.append_column("directions", pa.array([self.directions] * len(table)))
        return table

    def feature(
        self,
        seed: int,
        index: int,
        *,
        theta: float | None = None,
        epsilon: float | None = None,
        rule: str = "argmax",
        dead: str | None = None,
    ) -> Feature:
        """One feature with its matches and contexts. Raises KeyError for a seed or index that there is not."""
        query = self._query(theta, epsilon, rule, dead=dead)
        with _refusals():
            self._store.check_rule(self.name, rule)
            member = self._store.member(self.name, seed)
            row: FeatureRow = self._store.feature(self.name, member.seed, index)
            match = self._store.matches(self.name, member.seed, index)
        matches = _matches(row, match, self._store.other_seeds(self.name, member.seed), query)
        n_matched = sum(each.matched for each in matches)
        count_dead = dead == "count"
        judged = stability_of(row, rule=rule, theta=query.theta, epsilon=query.epsilon, count_dead=count_dead)
        return Feature(
            study=self._store.study.study,
            ensemble=self.name,
            seed=member.seed,
            index=index,
            stability=judged.p_hat if judged else None,
            stability_low=judged.low if judged else None,
            stability_high=judged.high if judged else None,
            p_stable=judged.p_stable if judged else None,
            p_unstable=judged.p_unstable if judged else None,
            n_matched=n_matched,
            n_comparisons=len(matches),
            bucket=judged.bucket if judged else "dead" if row.dead is True and not count_dead else None,
            theta=query.theta,
            epsilon=query.epsilon,
            rule=rule,
            row=row,
            matches=matches,
            contexts=self._contexts(member.seed, index) if self._store.has_tokens(self.name) else None,
            permalink=f"/s/{self._store.study.study}/{self.name}/{member.seed}/{index}?v={self.row.digest}",
            chance=self._chance(query),
            shared_start=self.row.shared_start,
            directions=self.row.directions,
        )

    def table(
        self,
        *,
        theta: float | None = None,
        epsilon: float | None = None,
        rule: str = "argmax",
        dead: str | None = None,
        page_size: int = 20,
        **filters: Any,
    ) -> "FeatureTableWidget":
        """The features as a widget to look through: buckets to choose, sort, pages; arguments as of `features`.

        Raises ImportError without anywidget, ValueError as `features`.
        """
        try:
            from seedscope.widget import FeatureTableWidget
        except ImportError as error:
            if error.name not in ("anywidget", "traitlets"):
                raise
            raise ImportError("the table needs anywidget; install it with: pip install 'seedscope[notebook]'") from None
        if page_size < 1:
            raise ValueError(f"page_size is {page_size}, expected at least 1")
        self._check_filters(filters)
        title = f"{self._store.study.study} / {self.name}"
        with _refusals():
            return FeatureTableWidget(
                self._store, self._query(theta, epsilon, rule, dead=dead, **filters), title=title, page_size=page_size
            )

    def decoder(self, seed: int) -> np.ndarray:
        """(d_sae, d_in) decoder rows as the SAE's file holds them, not normalised; (d_sae, d_out) of transcoders.

        Raises KeyError for a seed that there is not, FileNotFoundError where the study's folder lacks the file.
        """
        with _refusals():
            member = self._store.member(self.name, seed)
        path = self._store.path.parent / self.row.folder / f"seed-{member.seed}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"found no file {path}, where the study keeps this SAE; import it again")
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor("W_dec")

    def spans(self) -> pa.Table:
        """All candidates for small spans that unstable features share over seeds, kept ones first, one row each.

        The columns of SharedSpan (engine.contract.tables.shared_spans), such as `span` (its id), `number`, `kept`, `rank`, `energy`
        and what each null captures. Raises ValueError where the ensemble was not searched.
        """
        with _refusals():
            return candidates_table(self._store, self.name)

    def span_explanations(self) -> list[SharedSpanExplanation]:
        """What explainers say of every kept span as a whole, by span: `text` with its score `value`, or why there is none.

        Empty where spans were not followed on tokens. Raises ValueError where the ensemble was not searched.
        """
        with _refusals():
            return span_explanations(self._store, self.name)

    def span_basis(self, span: str) -> np.ndarray:
        """(rank, d_in) orthonormal rows of a kept span, the strongest direction first, float32; (rank, d_out) of transcoders.

        `x @ basis.T` are the coordinates of activations in the span. Fitted on the members of all seeds together. Raises KeyError
        for an id that no kept span has.
        """
        with _refusals():
            return span_basis(self._store, self.name, span)

    def in_short(self) -> tuple[EnsembleRow, dict[str, int], dict[str, float]]:
        """(row, {bucket: features}, {null: share of chance comparisons that match}) at its own theta and epsilon."""
        query = self._query(None, None, "argmax")
        with _refusals():
            return self.row, self._store.features(query).facets()["bucket"], self._chance(query)

    def _chance(self, query: FeatureQuery) -> dict[str, float]:
        return self._store.null_rates(self.name, query.theta, query.rule) if self.row.n_comparisons else {}

    def _check_filters(self, filters: Mapping[str, Any]) -> None:
        if unknown := set(filters) - _FILTERS:
            raise ValueError(
                f"filters are {', '.join(sorted(unknown))}, expected some of {', '.join(sorted(_FILTERS))}"
            )

    def _query(self, theta: float | None, epsilon: float | None, rule: str, **filters: Any) -> FeatureQuery:
        if rule not in RULES:
            raise ValueError(f"rule is {rule!r}, expected one of {', '.join(RULES)}")
        for name, choices in _CHOICES.items():
            if filters.get(name) is not None and filters[name] not in choices:
                raise ValueError(f"{name} is {filters[name]!r}, expected one of {', '.join(choices)}")
        theta = self.row.theta if theta is None else theta
        epsilon = self.row.epsilon if epsilon is None else epsilon
        if not -1 <= theta <= 1:
            raise ValueError(f"theta is {theta}, expected a cosine from -1 to 1")
        if not 0 <= epsilon < 0.5:
            raise ValueError(f"epsilon is {epsilon}, expected 0 <= epsilon < 0.5")
        return FeatureQuery(self.name, theta, epsilon, rule, **filters)

    def _contexts(self, seed: int, index: int) -> list[Context]:
        tokens, documents = self._store.tokens, self._store.documents
        return [
            Context(
                row.group,
                [tokens[token] for token in row.token_ids],
                row.activations,
                documents[row.document],
                row.position,
            )
            for row in self._store.contexts(self.name, seed, index)
        ]

    def __repr__(self) -> str:
        row = self.row
        matched = f", {row.directions}, d_out {row.d_out}" if row.directions else ""
        return f"<seedscope ensemble {self.name}: {row.n_members} x {row.d_sae:,} features, d_in {row.d_in}{matched}>"

    def _repr_html_(self) -> str:
        from seedscope.display import ensembles_html

        return ensembles_html(self.name, f"study {self._store.study.study}", [self.in_short()])


class Study(Mapping[str, Ensemble]):
    """A published study: its ensembles by name."""

    def __init__(self, store: StudyStore) -> None:
        self._store = store
        self.row = store.study

    def __getitem__(self, name: str) -> Ensemble:
        with _refusals():
            return Ensemble(self._store, self._store.ensemble(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.ensembles)

    def __len__(self) -> int:
        return len(self._store.ensembles)

    def __repr__(self) -> str:
        return f"<seedscope study {self.row.study}: {', '.join(self)}>"

    def _repr_html_(self) -> str:
        from seedscope.display import ensembles_html

        subtitle = f"study, {f'model {self.row.model}' if self.row.model else 'no model'}"
        return ensembles_html(self.row.study, subtitle, [ensemble.in_short() for ensemble in self.values()])


class Studies(Mapping[str, Study]):
    """The published studies under a folder, by name; a newly published one is seen at the next look."""

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(default_root() if root is None else root)
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"found no folder {self.root}, expected a root of studies; `seedscope demo` makes one"
            )
        self._stores = StudyStores(self.root)

    def __getitem__(self, name: str) -> Study:
        with _refusals():
            return Study(self._stores.get(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._stores.names())

    def __len__(self) -> int:
        return len(self._stores.names())

    def __repr__(self) -> str:
        return f"<seedscope studies under {self.root}: {', '.join(self) or 'none'}>"


def look_up(sae_digest: str, root: str | os.PathLike[str] | None) -> list[SaeSummary]:
    """What each study under a folder says of an SAE; see `seedscope.lookup`."""
    studies = Studies(root)
    try:
        return [summarise(place) for place in places_of(studies._stores, sae_digest)]
    except NotFound:
        return []


@contextmanager
def _refusals() -> Iterator[None]:
    """What the store refuses, as the exceptions that a notebook expects."""
    try:
        yield
    except NotFound as error:
        raise KeyError(f"no {error.what} {error.found!r}, expected {error.expected}") from None
    except BadValue as error:
        raise ValueError(f"{error.name} is {error.found}, expected {error.expected}") from None


def _matches(row: FeatureRow, match: MatchRow, seeds: list[int], query: FeatureQuery) -> list[Match]:
    """The feature's counterparts under the query's rule, in the order of the other seeds."""
    cosines, partners = rule_cosines(row, query.rule), rule_partners(row, match, query.rule)
    matched = is_match(cosines, query.theta)
    return [
        Match(
            seed=seed,
            partner=partners[i],
            cosine=None if partners[i] is None else cosines[i],
            matched=bool(matched[i]),
            runner_up_cosine=match.runner_up_cosines[i],
            mutual=match.mutuals[i],
            encoder_cosine=match.encoder_cosines[i],
        )
        for i, seed in enumerate(seeds)
    ]
