"""Contexts of a feature as pages and JSON show them, and the groups that they were chosen in."""

from dataclasses import dataclass

from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.tables.features import Context

SILENT = 6  # Context.group of windows where the feature is not active


@dataclass(frozen=True)
class ShownContext:
    """A context as pages and JSON show it."""

    group: int
    tokens: list[str]
    activations: list[float]
    document: str
    position: int
    peak: int


@dataclass(frozen=True)
class ContextGroup:
    """Contexts that were chosen in the same way."""

    title: str
    how: str
    contexts: list[ShownContext]


def show_context(store: StudyStore, context: Context) -> ShownContext:
    """A stored context with its tokens as text and its document by name."""
    texts = [store.tokens[i] for i in context.token_ids]
    document = store.documents[context.document]
    return ShownContext(context.group, texts, context.activations, document, context.position, context.peak)


def group_contexts(contexts: list[ShownContext]) -> list[ContextGroup]:
    """Contexts as a page lists them: the strongest, each fifth of the activations, then where the feature is silent."""
    titles = {0: ("Strongest", "its highest activations, one per window")}
    titles |= {
        g: (f"Interval {6 - g} of 5", "drawn at random from this fifth of 0 to the maximum") for g in range(1, 6)
    }
    titles[SILENT] = ("Where it is not active", "drawn at random from windows in which it never fires")
    by_group = {group: [c for c in contexts if c.group == group] for group in titles}
    return [ContextGroup(*titles[group], shown) for group, shown in by_group.items() if shown]
