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
    no_match = said("stable", "hard_negative")
    row = of.get(("unstable", "argmax"))
    repair = ""
    if row and row.beside_share is not None:
        share = percent(row.beside_share)
        repair = f" (in {share} it gains as much while the feature stays: it mends the SAE and replaces nothing)"
    sentences = []
    if stable is not None:
        beside = f" (the nearest that is no match: {no_match})" if no_match is not None else ""
        against = f", an unstable one’s in {unstable}{repair}" if unstable is not None else ""
        sentences.append(
            f"The nearest feature of another seed can take a stable feature’s place in {stable} of cases{beside}{against}."
        )
    elif unstable is not None:
        sentences.append(
            f"The nearest feature of another seed can take an unstable feature’s place in {unstable} of cases{repair}."
        )
    small, control = said("unstable", "small_set"), said("unstable", "small_set_control")
    if small is not None:
        beside = f" (another feature’s set: {control})" if control is not None else ""
        sentences.append(
            f"At most eight features of another seed together take the place of {small} of unstable ones{beside}."
        )
    return " ".join(sentences) or "No bucket has a feature whose substitution is defined."
