"""What the summaries of counterparts say, in one sentence."""

from collections.abc import Sequence

from seedscope.app.formats import percent
from seedscope.engine.contract.tables.function import FunctionSummary


def function_sentence(rows: Sequence[FunctionSummary]) -> str:
    """Whether stable features' counterparts substitute, whether unstable ones' do, and what the controls reach."""
    of = {(row.bucket, row.kind): row for row in rows}

    def said(bucket: str, kind: str) -> str | None:
        row = of.get((bucket, kind))
        return None if row is None or row.scaled_share is None else percent(row.scaled_share)

    stable, unstable = said("stable", "argmax"), said("unstable", "argmax")
    parts = []
    if stable is not None:
        against = said("stable", "hard_negative")
        parts.append(
            f"The nearest feature of another seed does the work of a stable feature in {stable} of cases"
            + (f"; the nearest that is no match does in {against}" if against is not None else "")
        )
    if unstable is not None:
        parts.append(f"{'of' if parts else 'Of'} unstable features it does in {unstable}")
    small, control = said("unstable", "small_set"), said("unstable", "small_set_control")
    if small is not None:
        parts.append(
            f"{'a' if parts else 'A'} small set of another seed’s features replaces {small} of the unstable ones"
            + (f" (another feature’s set {control})" if control is not None else "")
        )
    return ", ".join(parts[:2]) + (f"; {parts[2]}" if len(parts) > 2 else "") + "." if parts else (
        "No bucket has a feature whose substitution is defined."
    )  # fmt: skip
