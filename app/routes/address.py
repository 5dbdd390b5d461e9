"""What the pages read from an address: names, and how features are judged.

A query class says what a page understands, with every value that it needs. An address may leave theta and epsilon open: they
are then the ensemble's own. `judged` and `judged_feature` read an address, fill these in, and hand over the resolved query.
"""

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, Generic, Literal, NamedTuple, Self, TypeVar

from fastapi import Depends, Path, Query, Request
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    create_model,
    field_validator,
    model_validator,
)

from seedscope.app.lens import Epsilon, Theta
from seedscope.app.store.feature_query import FeatureQuery, Sort, default_sort
from seedscope.app.store.judging import rule_cosines, rule_partners, stability_of
from seedscope.app.store.search import Hit
from seedscope.app.store.studies import Studies
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.schema import LARGEST_SEED
from seedscope.engine.contract.stability import UNDEFINED, Stability
from seedscope.engine.contract.tables.features import Feature, Match
from seedscope.engine.contract.tables.study import Ensemble, Member

StudyName = Annotated[str, Path(description="study name")]
EnsembleName = Annotated[str, Path(description="ensemble name")]
MemberSeed = Annotated[str, Path(description="seed of a member")]  # text: what is no seed has no page, whatever it is
FeatureIndex = Annotated[str, Path(description="index of a feature of that seed")]
# As types what engine.contract.schema says as RULES and TRIGGERS; a test holds them together.
Rule = Literal["argmax", "live", "mutual", "hungarian", "both", "active"]
Trigger = Literal["single token", "family", "number", "punctuation", "substring", "position", "previous token", "other"]
DeadPolicy = Literal["exclude", "only", "count"]
SaeDigest = Annotated[str, Path(description="digest of an SAE's weights")]
MAX_INDEX = 2**31 - 1  # what the store's integer columns hold, but for those of seeds
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Index = Annotated[int, Field(ge=0, le=MAX_INDEX)]  # of a feature or a token
MAX_LISTED = 500
LISTED_FORM = f"an index such as 37, or up to {MAX_LISTED} of SEED/FEATURE with commas between, such as 3/37,0/40"


def read_ids(value: Any) -> Any:
    """One index as a number; a list of SEED/FEATURE and FEATURE as text, in its order and without repeats."""
    if not isinstance(value, str):
        return value
    entries = [
        re.fullmatch(r"(?:([0-9]{1,19})/)?([0-9]{1,10})", entry.strip()) for entry in value.split(",") if entry.strip()
    ]
    numbers = [tuple(int(part) for part in match.groups() if part) for match in entries if match]
    beyond = [each for each in numbers if each[-1] > MAX_INDEX or (len(each) == 2 and each[0] > LARGEST_SEED)]
    if not numbers or len(numbers) < len(entries) or beyond or len(numbers) > MAX_LISTED:
        raise ValueError(LISTED_FORM)
    if len(numbers) == 1 and len(numbers[0]) == 1:
        return numbers[0][0]
    return ",".join(dict.fromkeys("/".join(map(str, each)) for each in numbers))


RULE_SAYS = {
    "argmax": "the feature there with the largest cosine",
    "live": "the nearest one that fires",
    "mutual": "each is the other’s nearest",
    "hungarian": "its counterpart in the best one-to-one matching of all features",
    "both": "decoders and encoders are matched to the same counterpart",
    "active": "of the eight nearest, the one whose activations correlate most; θ cuts the correlation",
}


class Plain(BaseModel):
    """An address without a state of its own; what it does not know is for `app.parameters` to refuse, or for pages to show."""

    model_config = ConfigDict(extra="ignore")
    embed: bool = False


class Judgement(Plain):
    """How features are judged: what counts as a match, and from when on a feature is stable.

    Empty values of an address count as absent.
    """

    theta: Theta
    epsilon: Epsilon
    rule: Annotated[Rule, Field(description="how a counterpart is found")] = "argmax"
    dead: DeadPolicy | None = None
    _own: dict[str, float] = PrivateAttr(default_factory=dict)  # the ensemble's theta and epsilon: links leave them out

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v != ""} if isinstance(values, dict) else values

    @classmethod
    def resolved(cls, row: Ensemble, address: BaseModel | None = None) -> Self:
        """What a validated address asks for, with the ensemble's own theta and epsilon where it leaves them open."""
        own = {"theta": row.theta, "epsilon": row.epsilon}
        values = {name: value for name, value in address or () if value is not None}
        query = cls.model_construct(**own | values)
        query._own = own
        return query

    def query(self, ensemble: str) -> FeatureQuery:
        """The judgement as the store understands it."""
        return FeatureQuery(ensemble, self.theta, self.epsilon, self.rule, dead=self.dead)

    def parameters(self, **changes: Any) -> dict[str, Any]:
        """What a link must carry to mean this state with `changes`; defaults are left out."""
        state = self.model_dump(exclude={"v", "embed", "limit", "after", "before", "at", "counterparts"}) | changes
        defaults = {name: field.default for name, field in type(self).model_fields.items()} | self._own
        return {k: v for k, v in state.items() if v is not None and (k not in defaults or v != defaults[k])}

    def cosines(self, feature: Feature) -> list[float]:
        """A feature's cosines under the rule, one per comparison."""
        return rule_cosines(feature, self.rule)

    def partners(self, feature: Feature, match: Match) -> list[int | None]:
        """A feature's partners under the rule, one per comparison; None where it forms no pair."""
        return rule_partners(feature, match, self.rule)

    def score(self, feature: Feature) -> Stability | None:
        """A feature's stability under this judgement; None where there is no comparison."""
        return stability_of(
            feature, rule=self.rule, theta=self.theta, epsilon=self.epsilon, count_dead=self.dead == "count"
        )

    def bucket_of(self, feature: Feature) -> str | None:
        """A feature's bucket under this judgement; without comparisons `dead` or None."""
        if scored := self.score(feature):
            return scored.bucket
        return "dead" if feature.dead and self.dead != "count" else None

    def judged(self, *, activity: bool) -> str:
        """What is judged, in words: without activity nobody knows which features live."""
        if self.dead == "count":
            return "features, dead ones included" if activity else "features, those without a direction included"
        return "living features" if activity else "features"

    def judgement(self) -> dict[str, Any]:
        """The part of `parameters` that other pages of the ensemble understand."""
        shared = {"theta", "epsilon", "rule", "dead"}
        kept = {k: v for k, v in self.parameters().items() if k in shared}
        return kept if kept.get("dead") in (None, "count") else {k: v for k, v in kept.items() if k != "dead"}


class EnsembleJudgement(Judgement):
    """A judgement of all features of an ensemble, which leaves none out."""

    dead: Annotated[Literal["count"] | None, Field(description="count: judge dead features like all others")] = None


J = TypeVar("J", bound=Judgement)


class DensityRange(Plain):
    """A filter by density: shares in an address, `5%` too; forms send percent."""

    density_min: Share | None = None
    density_max: Share | None = None
    # As forms send them; an address holds them as shares, under the names above.
    density_min_percent: Annotated[Percent | None, Field(exclude=True)] = None
    density_max_percent: Annotated[Percent | None, Field(exclude=True)] = None

    @field_validator("density_min", "density_max", mode="before")
    @classmethod
    def _percent_sign(cls, value: Any) -> Any:
        """`5%` means 0.05."""
        if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value)):
            return float(match[1]) / 100
        return value

    @model_validator(mode="after")
    def _densities_as_shares(self) -> Self:
        for name in ("density_min", "density_max"):
            if (percent := getattr(self, f"{name}_percent")) is not None:
                setattr(self, name, percent / 100)
                setattr(self, f"{name}_percent", None)
        return self


class Filter(Judgement, DensityRange):
    """The feature table's state as it stands in the URL."""

    seed: Seed | None = None
    bucket: Literal["stable", "middle", "unstable", "dead"] | None = None
    stability_min: Share | None = None
    stability_max: Share | None = None
    id: Annotated[Index | str | None, BeforeValidator(read_ids), Field(description=LISTED_FORM)] = None
    trigger: Annotated[Trigger, Field(description="what sets a feature that fires off")] | None = None
    q: (
        Annotated[
            str,
            Field(
                max_length=100,
                description='part of a top token, "a token" in quotes, words of an explanation, or #index',
            ),
        ]
        | None
    ) = None
    score_min: Annotated[Share, Field(description="of the explanation that lists show")] | None = None
    cofire_min: (
        Annotated[
            float,
            Field(ge=-1, le=1, allow_inf_nan=False, description="of the mean correlation with the nearest features"),
        ]
        | None
    ) = None
    predicted_min: Annotated[Share, Field(description="of the p that a predictor tells of one SAE")] | None = None
    predicted_max: Annotated[Share, Field(description="of the same")] | None = None
    hit: Annotated[Hit | None, Field(description="in what alone q is searched")] = None
    sort: Annotated[
        Literal[Sort, "listed"] | None,
        Field(description="without it: relevance of a search, else stability; listed: in the order of id"),
    ] = None
    dir: Literal["asc", "desc"] | None = None
    view: Annotated[Literal["stacked", "snippet", "full"], Field(description="how a feature's contexts are shown")] = (
        "stacked"
    )
    v: Annotated[str, Field(pattern="^[0-9a-f]{4,16}$")] | None = None

    @model_validator(mode="after")
    def _id_in_search(self) -> "Filter":
        """`#117` in the search box means the feature of that index."""
        if self.q and (match := re.fullmatch(r"#\s*([0-9]{1,9})", self.q.strip())):
            index, self.q = int(match[1]), None
            kept = [entry for entry in self.listed or () if int(entry.rpartition("/")[2]) == index]
            self.id = ",".join(kept) if kept else index
        return self

    @model_validator(mode="after")
    def _relevance_to_a_search(self) -> "Filter":
        """What a search alone has a meaning for ends with it, and the order that is taken anyway need not be said."""
        if not self.q:
            self.hit = None
        if self.sort == self.usual_sort(self.q) or (self.sort == "relevance" and not self.q):
            self.sort = None
        return self

    @staticmethod
    def usual_sort(q: str | None) -> str:
        """What rows are sorted by where nothing is said."""
        return default_sort(q)

    @property
    def sorted_by(self) -> str:
        """What rows are sorted by."""
        return self.sort or self.usual_sort(self.q)

    @property
    def listed(self) -> tuple[str, ...] | None:
        """The entries of a list of features; None where `id` holds none."""
        return tuple(self.id.split(",")) if isinstance(self.id, str) else None

    @property
    def descending(self) -> bool:
        """Without `dir`: by index or as listed upwards, by anything else downwards."""
        return self.dir == "desc" if self.dir else self.sorted_by not in ("feature", "listed")

    def parameters(self, **changes: Any) -> dict[str, Any]:
        """As of any judgement; the order that is taken anyway is left out, and with a search what belongs to it alone."""
        parameters = super().parameters(**changes)
        if parameters.get("sort") == self.usual_sort(parameters.get("q")):
            del parameters["sort"]
        if not parameters.get("q"):
            parameters = {k: v for k, v in parameters.items() if k != "hit" and (k, v) != ("sort", "relevance")}
        return parameters

    def shown(self) -> dict[str, Any]:
        """The filter as JSON twins show it."""
        return self.model_dump(exclude={"v", "embed", "at", "counterparts"}) | {"sort": self.sorted_by}

    def query(self, ensemble: str) -> FeatureQuery:
        """The filter as the store understands it."""
        values = self.model_dump(include={f.name for f in fields(FeatureQuery)} - {"listed"}) | {"sort": self.sorted_by}
        if self.listed is not None:
            values["id"] = None
        return FeatureQuery(ensemble, descending=self.descending, listed=self.listed, **values)

    def opening(self) -> dict[str, Any]:
        """What links from a list to its features carry: there, previous and next walk this list in this order."""
        return self.parameters()


def open_ensemble(request: Request, study: str, ensemble: str) -> tuple[StudyStore, Ensemble]:
    """The study's store and the ensemble's row; raises NotFound."""
    studies: Studies = request.app.state.studies
    store = studies.get(study)
    request.state.ensemble = row = store.ensemble(ensemble)  # what is said on every page about it; see app.render
    return store, row


class JudgedEnsemble(NamedTuple, Generic[J]):
    """The ensemble of an address, and how its features are judged."""

    store: StudyStore
    row: Ensemble
    query: J


class JudgedFeature(NamedTuple, Generic[J]):
    """The feature of an address, with its member, its ensemble, and how features are judged."""

    store: StudyStore
    row: Ensemble
    query: J
    member: Member
    feature: Feature


def judged(model: type[J]) -> Callable[..., JudgedEnsemble[J]]:
    """The dependency that opens an address's ensemble and reads its query as `model`; raises NotFound."""
    read_address = address_reader(model)

    def read(
        request: Request, study: StudyName, ensemble: EnsembleName, address: Annotated[BaseModel, Depends(read_address)]
    ) -> JudgedEnsemble[J]:
        store, row = open_ensemble(request, study, ensemble)
        return JudgedEnsemble(store, row, model.resolved(row, address))

    return read


def judged_feature(model: type[J]) -> Callable[..., JudgedFeature[J]]:
    """As `judged`, and the feature that the address names with its member; raises NotFound."""
    read_ensemble = judged(model)

    def read(
        opened: Annotated[JudgedEnsemble[J], Depends(read_ensemble)], seed: MemberSeed, feature: FeatureIndex
    ) -> JudgedFeature[J]:
        store, row, query = opened
        member = store.member(row.ensemble, seed)
        return JudgedFeature(store, row, query, member, store.feature(row.ensemble, member.seed, feature))

    return read


def address_reader(model: type[J]) -> Callable[..., BaseModel]:
    """The dependency that validates an address's query as `model` with theta and epsilon left open."""
    left_open: dict[str, Any] = {"theta": (Theta | None, None), "epsilon": (Epsilon | None, None)}
    address_model = create_model(model.__name__, __base__=model, __doc__=model.__doc__, **left_open)

    def read(address: BaseModel) -> BaseModel:
        return address

    read.__annotations__["address"] = Annotated[address_model, Query()]  # FastAPI reads the class that is made here
    return read


def judged_shares(counts: list[tuple[int, str, int, int]]) -> dict[str, float | None]:
    """Shares of stable, middle and unstable among the features judged, from (seed, bucket, n_matched, features).

    None for one SAE alone.
    """
    if any(bucket == UNDEFINED for _, bucket, _, _ in counts):
        return dict.fromkeys(("stable", "middle", "unstable"))
    judged = sum(n for _, bucket, _, n in counts if bucket != "dead") or 1
    return {b: sum(n for _, bucket, _, n in counts if bucket == b) / judged for b in ("stable", "middle", "unstable")}
