"""SAEs as SAELens 6 loads them: `ENSEMBLE/seed-N/cfg.json`, `sae_weights.safetensors`, and the seed in `runner_cfg.json`.

SAELens knows no scale of the inputs, no groups and no other comparison with a threshold than `>`; what it does not know is
folded into the weights where that is exact, and refused otherwise. Where numbers are folded, float32 rounds them once.
"""

import json
from pathlib import Path

from seedscope.engine.export.open_study import Opened
from seedscope.engine.progress import Report
from seedscope.engine.saes.convention import Convention
from seedscope.engine.saes.saelens import refusal, save


def write(study: Opened, folder: Path, report: Report) -> dict[str, str]:
    """Write every SAE of the store; raises ValueError, before anything is written, where SAELens cannot express one."""
    for row in study.ensembles:
        if reason := refusal(Convention(**json.loads(row.convention))):
            raise ValueError(
                f"ensemble {row.ensemble} cannot be exported to SAELens: {reason}; --format parquet keeps the SAEs as they are"
            )
    members = [(row, one) for row in study.ensembles for one in study.saes(row)]
    for done, (row, one) in enumerate(members):
        metadata = {
            "model_name": study.study.model,
            "hook_name": row.hookpoint,
            "context_size": study.study.n_ctx,
            "training_architecture": row.variant,
            "seed": one.seed,
            "seedscope_digest": one.digest,
        }
        save(study.read_sae(one), folder / one.ensemble / f"seed-{one.seed}", metadata)
        report(done + 1, len(members))
    return {"results": "SAELens has no place for them; --format parquet holds all"}
