"""`/f/{sae_digest}/{feature}`: a feature found by its weights' digest, in whichever study they are."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response

from seedscope.app import render
from seedscope.app.freshness import check_kept
from seedscope.app.routes.address import FeatureIndex, Plain, SaeDigest
from seedscope.app.store.lookup import places_of
from seedscope.app.store.studies import Studies

router = APIRouter()


@dataclass(frozen=True)
class Holder:
    """One place where the weights stand."""

    study: str
    ensemble: str
    seed: int
    feature: int
    digest: str  # of the ensemble: its other members and its matching settings
    n_comparisons: int
    hookpoint: str | None
    address: str  # the permalink


@dataclass(frozen=True)
class WeightsPage:
    """`/f/{sae_digest}/{feature}`: where one decoder row stands, if in several places."""

    sae_digest: str
    feature: int
    holders: list[Holder]


KEPT = [Depends(check_kept)]
FOUND: dict[int | str, dict[str, Any]] = {
    200: {"description": "Every place of it, where there are several"},
    307: {"description": "To its only place"},
}


@router.get(
    "/f/{sae_digest}/{feature}",
    name="weights",
    response_class=Response,
    dependencies=KEPT,
    responses=FOUND | {200: FOUND[200] | {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
# Registered first, or the other would swallow it.
@router.get("/f/{sae_digest}/{feature}.json", name="weights.json", dependencies=KEPT, responses=FOUND)
def weights(
    request: Request, sae_digest: SaeDigest, feature: FeatureIndex, address: Annotated[Plain, Query()]
) -> Response:
    """One decoder row of one SAE, wherever it stands: a redirect to its permalink, a list where there are several."""
    context = WeightsPage(sae_digest, *_find(request.app.state.studies, sae_digest, feature))
    twin = request.url.path.endswith(".json")
    if len(context.holders) == 1:
        (one,) = context.holders
        page = one.address.replace("?", ".json?", 1) if twin else one.address
        return RedirectResponse(page + ("&embed=true" if address.embed else ""), 307)
    return render.as_json(context, request) if twin else render.respond(request, "feature/by_weights.html", context)


def _find(studies: Studies, sae_digest: str, feature: str) -> tuple[int, list[Holder]]:
    """(feature, every place of it); raises NotFound for weights that no study holds and an index out of range."""
    places = places_of(studies, sae_digest)
    first = places[0]  # a digest covers the shape: the index is one for all
    index = first.store.feature(first.row.ensemble, first.member.seed, feature).feature
    holders = [
        Holder(
            study=place.store.study.study,
            ensemble=place.row.ensemble,
            seed=place.member.seed,
            feature=index,
            digest=place.row.digest,
            n_comparisons=place.row.n_comparisons,
            hookpoint=place.row.hookpoint,
            address=f"/s/{place.store.study.study}/{place.row.ensemble}/{place.member.seed}/{index}?v={place.row.digest}",
        )
        for place in places
    ]
    return index, holders
