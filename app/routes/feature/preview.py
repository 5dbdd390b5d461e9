"""The picture that sites show for a shared feature (Open Graph), drawn under the judgement of the address."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from seedscope.app import render
from seedscope.app.figures.preview import SharedFeature, draw_preview
from seedscope.app.formats import shown_on_one_line
from seedscope.app.freshness import check_kept
from seedscope.app.routes.address import EnsembleName, Filter, JudgedFeature, StudyName, judged_feature
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.stability import is_match
from seedscope.engine.contract.tables.features import Feature

router = APIRouter()
N_TOKENS = 5


@router.get(
    "/s/{study}/{ensemble}/{seed}/{feature}/preview.png",
    name="preview",
    response_class=Response,
    dependencies=[Depends(check_kept)],
)
def preview(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    opened: Annotated[JudgedFeature[Filter], Depends(judged_feature(Filter))],
) -> Response:
    """A feature's strip, bucket, matches and explanation or top tokens as a PNG of 1200 x 630 pixels."""
    store, row, query, member, feature = opened
    cosines = query.cosines(feature)
    matched = int(is_match(cosines, query.theta).sum())
    shared = SharedFeature(
        title=f"Feature #{feature.feature}",
        where=f"seed {member.seed} · {row.ensemble} · {study}",
        bucket=query.bucket_of(feature),
        cosines=cosines,
        theta=query.theta,
        sentence=f"{matched} of {row.n_comparisons} other seeds match at θ = {query.theta:.2f}"
        if row.n_comparisons
        else "one SAE alone: stability is undefined",
        about=about(store, feature),
    )
    return Response(
        draw_preview(shared), media_type="image/png", headers={"Cache-Control": "no-cache"} | render.etag(request, 200)
    )


def about(store: StudyStore, feature: Feature) -> str | None:
    """Its explanation in quotes of its explainer, else its top tokens; None where nothing is known of its activity."""
    if feature.explanation:
        return feature.explanation
    if not store.has_tokens(feature.ensemble):
        return None
    # -1 fills the places of features that fire on fewer tokens.
    tokens = [shown_on_one_line(store.tokens[i]) for i in feature.top_token_ids if i >= 0][:N_TOKENS]
    return "fires most on " + "  ".join(f"“{token}”" for token in tokens) if tokens else None
