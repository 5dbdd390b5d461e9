"""What activity was measured on: model, tokens and what counts, as kept beside a study's parts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedscope.engine.store import catalogue
from seedscope.engine.store.parts import VERSION

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """What activity was measured on: the model, and the tokens as they are shown."""

    model: str | None  # None for samples of known true features: no model made them
    model_digest: str
    control_digest: str | None  # of the same model with random weights, where an ensemble is a control
    causal: bool
    n_ctx: int
    policy: str
    token_digest: str
    n_tokens: int
    remark: str
    texts: tuple[str, ...]  # of every token id
    documents: tuple[str, ...]
    outliers: float | None = None  # times the median length from which on tokens are left out; None: they count


def read_evaluation(study: Path) -> Evaluation | None:
    """The evaluation that the parts of a study were measured on, None where there was none."""
    try:
        held = json.loads((study / "parts" / EVALUATION).read_text())
    except FileNotFoundError:
        return None
    return Evaluation(**held | {name: tuple(held[name]) for name in ("texts", "documents")})


def measured_from(ensemble: catalogue.EnsemblePlan, evaluation: Evaluation) -> dict[str, Any]:
    """What the parts of an ensemble's activity, and all that follows from it, say that they were computed from."""
    return {
        "version": VERSION,
        "saes": [member.digest for member in ensemble.members],
        "tokens": evaluation.token_digest,
        "outliers": evaluation.outliers,
        "hookpoint": ensemble.hookpoint,
        "model": evaluation.control_digest if ensemble.control_of else evaluation.model_digest,
    }
