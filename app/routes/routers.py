"""Every router of the dashboard, in the order in which addresses are matched.

The first route that fits an address answers it, and names are free: `/s/{study}/{ensemble}` also fits `/s/mine/variants`, and
`/s/{study}/{ensemble}/{seed}/{feature}` also fits `/s/mine/topk/members/match`. Routers whose addresses hold fixed words
therefore stand before those whose addresses at the same place hold names: pages of a study, then of an ensemble, then of a
feature, the permalink last of these.
"""

from fastapi import APIRouter

from seedscope.app.routes import compare, home, jobs, manual, my_list, stability
from seedscope.app.routes.ensemble import (
    ablation,
    buckets,
    explanations,
    feature_list,
    function,
    map,
    members,
    overview,
    project_set,
    shared_spans,
    span_text,
    subspaces,
    table,
    trajectory,
    try_text,
)
from seedscope.app.routes.feature import (
    by_weights,
    exact_loss,
    neighbours,
    next_tokens,
    permalink,
    preview,
    project_feature,
    scored_contexts,
)
from seedscope.app.routes.study import pool, sources, starts, synthetic, variants

ROUTERS: tuple[APIRouter, ...] = (
    home.router,
    manual.router,
    jobs.router,
    compare.router,
    compare.asking_router,
    my_list.router,
    stability.router,
    # of a study: /s/{study}/..
    starts.router,
    sources.router,
    variants.router,
    synthetic.router,
    pool.router,
    # of an ensemble: /s/{study}/{ensemble}/..
    overview.router,
    ablation.router,
    buckets.router,
    explanations.router,
    members.asking_router,
    members.router,
    map.router,
    subspaces.router,
    shared_spans.router,
    function.router,
    project_set.router,
    span_text.router,
    table.router,
    feature_list.router,
    trajectory.router,
    try_text.router,
    # of a feature: /s/{study}/{ensemble}/{seed}/{feature}/..
    neighbours.router,
    exact_loss.router,
    next_tokens.router,
    project_feature.router,
    scored_contexts.router,
    preview.router,
    permalink.router,
    by_weights.router,
)
# Routes that ask the live engine (`app.live.asking`), and those that compute nothing; all others take turns (`app.turns`).
LIVE: tuple[APIRouter, ...] = (
    compare.asking_router,
    members.asking_router,
    project_set.router,
    span_text.router,
    try_text.router,
    neighbours.router,
    exact_loss.router,
    next_tokens.router,
    project_feature.router,
)
AT_ONCE: tuple[APIRouter, ...] = (jobs.router,)
