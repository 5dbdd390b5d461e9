"""Kept shared spans on a text, from the live engine's answer."""

from dataclasses import dataclass

from seedscope.engine.contract.queries import LiveAnswer, span_id
from seedscope.engine.contract.tables.shared_spans import SharedSpan

N_SPANS_DRAWN = 5  # on the text; the table lists all of the answer


@dataclass(frozen=True)
class SpanOnText:
    """A kept span in the seed that is shown: per token the norm of what its members write inside it, in units of activation."""

    span: str
    number: int
    rank: int
    n_sharing: int  # seeds whose own test passes every null
    n_left_out: int  # seeds that were tested
    max_strength: float
    at: int | None  # token of the largest strength; None where it is silent
    n_active: int  # tokens of the text
    max_strengths: list[float]  # of every seed, in the order of the members
    activations: list[float]  # strength at every token


def spans_on_text(
    answer: LiveAnswer, kept: list[SharedSpan] | None, seeds: list[int], seed: int
) -> list[SpanOnText] | None:
    """The spans of an answer in one seed, the strongest on the text there first; None where the ensemble was not searched."""
    if kept is None:
        return None
    by_id, index, found = {row.span: row for row in kept}, seeds.index(seed), []
    for number, strength in zip(answer.arrays.get("span", ()), answer.arrays.get("strength", ()), strict=True):
        row = by_id.get(span_id(int(number)))
        if row is None:  # published anew while the engine computed
            continue
        shown = strength[index]
        found.append(
            SpanOnText(
                span=row.span,
                number=row.number,
                rank=row.rank,
                n_sharing=row.n_sharing,
                n_left_out=row.n_left_out,
                max_strength=float(shown.max(initial=0)),
                at=int(shown.argmax()) if shown.any() else None,
                n_active=int((shown > 0).sum()),
                max_strengths=strength.max(1).tolist(),
                activations=shown.tolist(),
            )
        )
    return sorted(found, key=lambda one: (-one.max_strength, one.number))
