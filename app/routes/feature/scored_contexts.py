"""The contexts that a feature's explanation was scored on: hits, misses and false alarms."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request

from seedscope.app import render
from seedscope.app.routes.address import EnsembleName, FeatureIndex, MemberSeed, Plain, StudyName, open_ensemble
from seedscope.app.store.errors import BadValue
from seedscope.app.store.explanations import ScoredContext
from seedscope.app.store.study import StudyStore

router = APIRouter()
ACTIVE, NEAR_MISS = 0, 1  # ScoredContext.kind; all others are silent
# (active, what was said): a group's name and what it means
GROUPS = {
    (True, 1): ("hits", "the feature is active, and so it was said"),
    (True, 0): ("missed", "the feature is active, but it was said to be silent"),
    (False, 1): ("false alarms", "the feature is silent, but it was said to be active"),
    (False, 0): ("rightly silent", "the feature is silent, and so it was said"),
    (True, -1): ("active, no answer", "the answer could not be read; these do not count"),
    (False, -1): ("silent, no answer", "the answer could not be read; these do not count"),
    (True, None): ("active", "what was said of these contexts is not known"),
    (False, None): ("silent", "what was said of these contexts is not known"),
}


class ScoredQuery(Plain):
    """Whose explanation and which kind of score; empty: the one that lists show, and its first kind."""

    explainer: str | None = None
    kind: str | None = None


@dataclass(frozen=True)
class ScoredWindow:
    """One context: its tokens, those on which the feature is active, and whether it was drawn as a near miss."""

    tokens: list[str]
    active: list[bool]
    near_miss: bool
    document: str


@dataclass(frozen=True)
class ScoredGroup:
    """Contexts of which the same was said."""

    name: str
    means: str
    contexts: list[ScoredWindow]


@dataclass(frozen=True)
class ScoredPage:
    """`/s/{study}/{ensemble}/{seed}/{feature}/scored`: one explanation's contexts, in groups by what was said of them."""

    study: str
    ensemble: str
    seed: int
    feature: int
    explainer: str | None  # None where the feature has no scored explanation; the contexts are then only drawn
    kind: str | None
    kinds: list[str]
    text: str | None
    groups: list[ScoredGroup]


@render.page(router, "/s/{study}/{ensemble}/{seed}/{feature}/scored", "feature/scored_contexts.html", "scored")
def scored(
    request: Request,
    study: StudyName,
    ensemble: EnsembleName,
    seed: MemberSeed,
    feature: FeatureIndex,
    asked: Annotated[ScoredQuery, Query()],
) -> ScoredPage:
    """The contexts that a feature's explanation was scored on, as hits and misses."""
    store, _ = open_ensemble(request, study, ensemble)
    member = store.member(ensemble, seed)
    row = store.feature(ensemble, member.seed, feature)
    by_explainer = {each.explainer: each for each in store.explanations.of(row)}
    explainer = asked.explainer or next(
        (name for name, each in by_explainer.items() if each.scores), next(iter(by_explainer), None)
    )
    if explainer is not None and explainer not in by_explainer:
        raise BadValue("explainer", repr(explainer), ", ".join(by_explainer) or "this feature has no explanation")
    kinds = [score.kind for score in by_explainer[explainer].scores] if explainer else []
    kind = asked.kind or next(iter(kinds), None)
    if kind is not None and kind not in kinds:
        raise BadValue("kind", repr(kind), ", ".join(kinds) or "this explanation was not scored")
    contexts = store.explanations.contexts(row)
    said = store.explanations.said(row, explainer, kind) if explainer and kind else []
    return ScoredPage(
        study=study,
        ensemble=ensemble,
        seed=member.seed,
        feature=row.feature,
        explainer=explainer,
        kind=kind,
        kinds=kinds,
        text=by_explainer[explainer].text if explainer else None,
        groups=_groups(store, contexts, said),
    )


def _groups(store: StudyStore, contexts: list[ScoredContext], said: list[int]) -> list[ScoredGroup]:
    """Contexts by what was said of them, near misses first among the silent ones; empty groups are left out."""
    answers: list[int | None] = list(said) if len(said) == len(contexts) else [None] * len(contexts)
    by_group: dict[tuple[bool, int | None], list[ScoredWindow]] = {}
    for context, answer in zip(contexts, answers, strict=True):
        texts = [store.tokens[i] for i in context.token_ids]
        shown = ScoredWindow(texts, context.active, context.kind == NEAR_MISS, store.documents[context.document])
        by_group.setdefault((context.kind == ACTIVE, answer), []).append(shown)
    return [ScoredGroup(*named, by_group[group]) for group, named in GROUPS.items() if group in by_group]
