"""Shared spans for other tools: their tables as Parquet, and per ensemble the orthonormal basis of every kept span.

`ENSEMBLE.safetensors` holds a tensor per kept span, named by the span's id: (rank, d_out) float32, orthonormal rows, the strongest
axis first, fitted on the members of all seeds. Its metadata say what the numbers are of. Candidates that were not kept are rows of
the tables; they have no basis.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from seedscope.engine.contract.tables.shared_spans import (
    SharedSpan,
    SharedSpanDirection,
    SharedSpanExplanation,
    SharedSpanFeature,
    SharedSpanPair,
    SharedSpanSeed,
    SharedSpanSummary,
)
from seedscope.engine.contract.tables.study import Ensemble
from seedscope.engine.export.open_study import Opened
from seedscope.engine.progress import Report

# {file: table, as the contract has it}.
SPAN_FILES: dict[str, type] = {
    "spans.parquet": SharedSpan,
    "members.parquet": SharedSpanFeature,
    "pairs.parquet": SharedSpanPair,
    "seeds.parquet": SharedSpanSeed,
    "summary.parquet": SharedSpanSummary,
    "explanations.parquet": SharedSpanExplanation,
}
ALL_SEEDS = -1  # SharedSpanDirection.basis of the members of all seeds together
DEFINITION = (
    "rows of a tensor are the principal directions of the unit decoder rows of a span's members, all seeds together: orthonormal, "
    "the strongest first, not centred, each with the sign that most members have"
)
_MODEL_SCALE = (
    "activations of the model at the hook point as the model computes them: no bias is subtracted and nothing is scaled"
)
# What an SAE does to its inputs before its decoder rows mean anything, by Convention.normalize.
_NORMALIZED = {
    "layer_norm": "the SAE reads each token less its mean, divided by its standard deviation",
    "constant_norm_rescale": "the SAE reads each token rescaled to the norm sqrt(d_in)",
    "centre": "the SAE reads each token less its mean",
}


def write(study: Opened, folder: Path, report: Report) -> dict[str, str]:
    """Write all files; raises ValueError where no ensemble was searched. Memory: the bases of one ensemble."""
    name = study.study.study
    searched = [row for row in study.ensembles if study.store.rows(SharedSpanSummary, ensemble=row.ensemble)]
    if not searched:
        raise ValueError(
            f"study {name} has no shared spans: no ensemble was searched for them; do it with: seedscope analyze {name} "
            "--only shared_spans"
        )
    for file, table in SPAN_FILES.items():
        pq.write_table(study.store.table(table), folder / file, compression="zstd")
    left_out = {"everything else": "--format parquet holds all"}
    for done, row in enumerate(study.ensembles):
        if row not in searched:
            left_out[f"{row.ensemble}.safetensors"] = f"not searched: seedscope analyze {name} --only shared_spans"
        elif bases := _bases(study, row):
            save_file(bases, folder / f"{row.ensemble}.safetensors", _metadata(study, row, bases))
        else:
            (summary,) = study.store.rows(SharedSpanSummary, ensemble=row.ensemble)
            why = summary.remark or f"none of {summary.n_candidates:,} candidates was kept"
            left_out[f"{row.ensemble}.safetensors"] = why
        report(done + 1, len(study.ensembles))
    return left_out


def _bases(study: Opened, row: Ensemble) -> dict[str, np.ndarray]:
    """{span: (rank, d_out) its basis over all seeds} of the kept spans."""
    axes = study.store.table(SharedSpanDirection, ["span", "vector"], ensemble=row.ensemble, basis=ALL_SEEDS)
    by_span: dict[str, list[np.ndarray]] = {}
    for span, vector in zip(axes["span"].to_pylist(), axes["vector"].to_pylist(), strict=True):
        by_span.setdefault(span, []).append(np.array(vector, np.float32))
    return {span: np.stack(vectors) for span, vectors in by_span.items()}


def _metadata(study: Opened, row: Ensemble, bases: dict[str, np.ndarray]) -> dict[str, str]:
    """What the tensors are of: every value a text, as the format has it."""
    convention = json.loads(row.convention)
    transcoder = bool(row.directions)
    scale = "what the transcoder predicts, as the model computes it" if transcoder else _MODEL_SCALE
    if not transcoder and convention.get("normalize", "none") in _NORMALIZED:
        scale += (
            f"; {_NORMALIZED[convention['normalize']]}, so that its own reconstruction lies there in these units alone"
        )
    spans = [row for row in study.store.rows(SharedSpan, ensemble=row.ensemble) if row.span in bases]
    about: dict[str, Any] = {
        "format": "seedscope.spans",
        "version": "1",
        "seedscope": version("seedscope"),
        "study": study.study.study,
        "store": study.store_name,
        "ensemble": row.ensemble,
        "digest": row.digest,
        "sae_digests": json.dumps({member.seed: member.sae_digest for member in study.members[row.ensemble]}),
        "model": study.study.model,
        "model_digest": study.study.model_digest,
        "hookpoint": row.hookpoint,
        "hookpoint_out": convention.get("hookpoint_out"),
        "directions": row.directions or "directions of what the SAE reads",
        "convention": row.convention,
        "definition": DEFINITION,
        "scale": scale,
        "spans": json.dumps(
            {each.span: {"number": each.number, "rank": each.rank, "energy": each.energy} for each in spans}
        ),
    }
    return {key: value for key, value in about.items() if value is not None}
