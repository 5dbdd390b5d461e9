"""`/stability/{sae_digest}[/{feature}]`: what every study says of an SAE's features, for programs, other sites and badges.

Found by the weights' digest, so that who has the weights needs to know no study. Nothing is judged anew: theta and epsilon are
those of each study; a permalink takes others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, WithJsonSchema
from starlette.convertors import StringConvertor, register_url_convertor

from seedscope.app import render
from seedscope.app.figures.badge import NO_OTHER_SEED, Badge, make_badge, written_seeds, written_share
from seedscope.app.freshness import kept_answer
from seedscope.app.routes.address import FeatureIndex, SaeDigest
from seedscope.app.store.errors import BadValue
from seedscope.app.store.lookup import (
    CHOSEN_BY,
    MOST_FEATURES,
    HeldFeature,
    HeldFeatures,
    SaeSummary,
    WeightsPlace,
    feature_at,
    features_at,
    places_of,
    summarise,
)

SVG = "image/svg+xml"
JSON = "application/json"


@dataclass(frozen=True)
class SaeStability:
    """`/stability/{sae_digest}`: an SAE in every place of it; badges show the first."""

    sae_digest: str
    chosen_by: str  # why the first is the first
    agree: bool | None  # whether all places with comparisons say the same; None of fewer than two
    holders: list[SaeSummary]


@dataclass(frozen=True)
class FeatureInAll:
    """`/stability/{sae_digest}/{feature}`: a feature in every place of it; badges show the first."""

    sae_digest: str
    feature: int
    chosen_by: str
    agree: bool | None
    holders: list[HeldFeature]


@dataclass(frozen=True)
class FeaturesInAll:
    """`POST /stability/{sae_digest}`: the features asked for in every place of the SAE."""

    sae_digest: str
    chosen_by: str
    holders: list[HeldFeatures]


class FeatureBatch(BaseModel):
    """Features of one SAE."""

    features: Annotated[
        list[Any],
        WithJsonSchema(
            {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": MOST_FEATURES,
             "description": "indices, answered in this order"}
        ),
    ]  # fmt: skip


def refuse_parameters(request: Request) -> None:
    """Raise BadValue for any: an ignored theta would pass for an answer at it."""
    for name in request.query_params:
        raise BadValue(name, "a parameter", "none: each study is asked by its own θ and ε; permalinks take others")


class _Undotted(StringConvertor):
    """A part of an address that is no other form of one: `x.svg` takes no POST, and must not say that it does."""

    regex = "[^/.]+"


register_url_convertor("undotted", _Undotted())
router = APIRouter(dependencies=[Depends(refuse_parameters)])
KEPT: dict[int | str, dict[str, Any]] = {
    304: {"description": "The copy that the request names by If-None-Match still holds"}
}
DRAWN = KEPT | {200: {"description": "A badge", "content": {SVG: {"schema": {"type": "string"}}}}}


@router.head("/stability/{sae_digest}.svg", include_in_schema=False)
@router.get("/stability/{sae_digest}.svg", name="sae badge", response_class=Response, responses=DRAWN)
def sae_badge(request: Request, sae_digest: SaeDigest) -> Response:
    """An SAE's mean stability and its number of other seeds, as a picture."""
    return _drawn(request, _badge_of_sae(_sae(request, sae_digest)))


@router.head("/stability/{sae_digest}", include_in_schema=False)
@router.get("/stability/{sae_digest}", name="sae stability", responses=KEPT)
# Registered first, or the other would swallow it.
@router.head("/stability/{sae_digest}.json", include_in_schema=False)
@router.get("/stability/{sae_digest}.json", name="sae stability.json", responses=KEPT)
def sae_stability(request: Request, sae_digest: SaeDigest) -> Response:
    """Every study that holds the weights: buckets, mean and median stability, how features are judged, chance beside it."""
    return kept_answer(request, bytes(render.as_json(_sae(request, sae_digest)).body), JSON)


@router.post(
    "/stability/{sae_digest:undotted}",
    name="stability of features",
    responses={400: {"description": "What is no JSON"}, 413: {"description": "A request too long"}},
)
def features_stability(request: Request, sae_digest: SaeDigest, question: FeatureBatch) -> Response:
    """The stability of up to 1,000 features in every study that holds the weights, in the order of the question."""
    features = _indices(question.features)
    places = places_of(request.app.state.studies, sae_digest)
    return render.as_json(FeaturesInAll(sae_digest, CHOSEN_BY, [features_at(place, features) for place in places]))


@router.head("/stability/{sae_digest}/{feature}.svg", include_in_schema=False)
@router.get("/stability/{sae_digest}/{feature}.svg", name="feature badge", response_class=Response, responses=DRAWN)
def feature_badge(request: Request, sae_digest: SaeDigest, feature: FeatureIndex) -> Response:
    """A feature's stability and its number of other seeds, as a picture in its bucket's colour."""
    return _drawn(request, _badge_of_feature(_feature(request, sae_digest, feature)))


@router.head("/stability/{sae_digest}/{feature}", include_in_schema=False)
@router.get("/stability/{sae_digest}/{feature}", name="feature stability", responses=KEPT)
# Registered first, or the other would swallow it.
@router.head("/stability/{sae_digest}/{feature}.json", include_in_schema=False)
@router.get("/stability/{sae_digest}/{feature}.json", name="feature stability.json", responses=KEPT)
def feature_stability(request: Request, sae_digest: SaeDigest, feature: FeatureIndex) -> Response:
    """One feature in every study that holds the weights: stability, interval, bucket, chance beside it, permalink."""
    return kept_answer(request, bytes(render.as_json(_feature(request, sae_digest, feature)).body), JSON)


def _sae(request: Request, sae_digest: str) -> SaeStability:
    holders = [summarise(place) for place in places_of(request.app.state.studies, sae_digest)]
    agree = _agree([(each.n_comparisons, each.counts, each.mean_stability) for each in holders])
    return SaeStability(sae_digest, CHOSEN_BY, agree, holders)


def _feature(request: Request, sae_digest: str, feature: str) -> FeatureInAll:
    holders = [feature_at(place, feature) for place in places_of(request.app.state.studies, sae_digest)]
    agree = _agree([(each.n_comparisons, each.stability, each.bucket) for each in holders])
    return FeatureInAll(sae_digest, holders[0].feature, CHOSEN_BY, agree, holders)


def _agree(answers: Sequence[tuple[Any, ...]]) -> bool | None:
    """Whether all say the same that compared it with other seeds: answers begin with how many. None of fewer than two."""
    compared = [answer for answer in answers if answer[0]]
    return None if len(compared) < 2 else all(answer == compared[0] for answer in compared)


def _indices(features: list[Any]) -> list[int]:
    """The features of a question; raises BadValue, once for all, for too many and for what is no index."""
    if len(features) > MOST_FEATURES:
        raise BadValue("features", f"{len(features):,} of them", f"up to {MOST_FEATURES:,}: ask several times")
    wrong = [each for each in features if type(each) is not int or each < 0]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise BadValue("features", ", ".join(f"{each!r:.40}" for each in wrong[:3]) + more, "indices such as 37")
    return features


# -- badges ------------------------------------------------------------------------------------------------------


def _drawn(request: Request, badge: Badge) -> Response:
    return kept_answer(request, render.templates.get_template("badge.svg").render(badge=badge).encode(), SVG)


def _badge_of_sae(sae: SaeStability) -> Badge:
    first = sae.holders[0]
    word = _word(first)
    seeds = written_seeds(first.n_comparisons)
    if not first.n_comparisons:
        value, says = NO_OTHER_SEED, "there is no other seed that its features could be looked for in"
    elif first.mean_stability is None:
        value, says = f"no living feature · {seeds}", "no feature of it is alive, and dead ones are not judged"
    else:
        value = f"{written_share(first.mean_stability)} · {seeds}"
        shares = ", ".join(f"{share:.0%} {name}" for name, share in first.shares.items() if share is not None)
        says = f"on average its {first.n_judged:,} features come back in that share of {first.n_comparisons} other seeds ({shares})"
    return _badge(f"mean {word}", value, says, sae.holders, sae.agree)


def _badge_of_feature(found: FeatureInAll) -> Badge:
    first = found.holders[0]
    seeds = written_seeds(first.n_comparisons)
    if not first.has_direction:
        value, says = "no direction", "its decoder row is zero or not finite, so no feature can match it"
    elif first.bucket == "dead":
        value, says = "dead", "it never fired on the evaluation tokens, so its direction was never tested"
    elif first.stability is None:
        value, says = NO_OTHER_SEED, "there is no other seed that it could be looked for in"
    else:
        value = f"{written_share(first.stability)} · {seeds}"
        says = (
            f"{first.n_matched} of {first.n_comparisons} other seeds match at θ = {first.theta:.2f}, "
            f"95 % interval {first.stability_low:.2f} to {first.stability_high:.2f}, {first.bucket}"
        )
    bucket = first.bucket if first.n_comparisons or first.bucket == "dead" else None
    return _badge(_word(first), value, says, found.holders, found.agree if first.has_direction else None, bucket)


def _badge(
    label: str, value: str, says: str, holders: Sequence[WeightsPlace], agree: bool | None, bucket: str | None = None
) -> Badge:
    """What the first place says, with its name; where others say something else, both texts tell that there are others."""
    first, n = holders[0], sum(each.n_comparisons > 0 for each in holders)
    title = f"{label} {value}: {says} (study {first.study}, {first.ensemble}, seed {first.seed})"
    if agree is False:
        value += f" · 1 of {n} results"
        title += f"; {n} results for these weights differ, and this one has {CHOSEN_BY}"
    if first.remark:
        title += f". {first.remark}"
    return make_badge(label, value, title, bucket)


def _word(place: WeightsPlace) -> str:
    """Seeds that began alike, or may have, agree for that alone."""
    return "stability" if place.shared_start == "no" else "agreement"
