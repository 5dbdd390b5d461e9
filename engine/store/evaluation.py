"""The evaluation of a study: the model and tokens that activity is measured on, kept as JSON beside the study's parts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedscope.engine.contract.checksums import damaged_file
from seedscope.engine.store import catalogue

EVALUATION = "evaluation.json"
MEASURED_VERSION = 4  # of parts that are measured on tokens; matches have a version of their own


@dataclass(frozen=True)
class Evaluation:
    """The model and the tokens that activity is measured on, and the texts to show them."""

    model: str | None  # None for a synthetic study, whose activations are samples of known true features
    model_digest: str
    control_digest: str | None  # of the same model with random weights, where an ensemble is a control
    causal: bool  # False: every token sees all others, so there is no next-token loss
    n_ctx: int  # tokens per window, BOS included
    policy: str  # which tokens count, in words
    token_digest: str
    n_tokens: int  # that count
    remark: str  # what text they are from, in words
    texts: tuple[str, ...]  # of every token id
    documents: tuple[str, ...]  # names
    # Tokens whose activation has at least this many times the median norm are left out; None: they count.
    outliers: float | None = None


def read_evaluation(study: Path) -> Evaluation | None:
    """The evaluation that the parts of a study were measured on, None where nothing was measured.

    Raises ValueError for a damaged file, which analysing the study writes anew.
    """
    path = study / "parts" / EVALUATION
    try:
        if path.exists() and damaged_file(study / "parts", beginning=EVALUATION):
            raise ValueError("its checksum is another one")
        content = json.loads(path.read_text())
        return Evaluation(**content | {name: tuple(content[name]) for name in ("texts", "documents")})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {str(error)[:100]}); write it anew with: seedscope analyze {study.name}"
        ) from None


def measured_from(ensemble: catalogue.EnsemblePlan, evaluation: Evaluation) -> dict[str, Any]:
    """What an ensemble's activity, and every analysis that follows from it, is computed from.

    Kept as `about` of these parts; a part whose `about` differs is computed again.
    """
    predicted = {"hookpoint_out": ensemble.hookpoint_out} if ensemble.transcoder else {}
    return predicted | {
        "version": MEASURED_VERSION,
        "saes": [member.digest for member in ensemble.members],
        "tokens": evaluation.token_digest,
        "outliers": evaluation.outliers,
        "hookpoint": ensemble.hookpoint,
        "model": evaluation.control_digest if ensemble.control_of else evaluation.model_digest,
    }
