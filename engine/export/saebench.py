"""Results in the layout of SAEBench: `seed_stability/STUDY_ENSEMBLE_seed-N_eval_results.json`, one per SAE.

Each file is what SAEBench calls an eval output, of the type `seed_stability`: it has the fields of `BaseEvalOutput` of sae-bench
0.6.0, metrics without nesting in categories, and details with an entry per feature. What is not known is null.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
from scipy.special import stdtrit

from seedscope.engine.contract.files import write_whole
from seedscope.engine.contract.schema import RULE_COLUMN
from seedscope.engine.contract.stability import ALONE, buckets, count_matches, is_match, score
from seedscope.engine.contract.tables.features import Feature, NullMatch, Pair
from seedscope.engine.contract.tables.study import Ensemble, Member
from seedscope.engine.export.features import matrix
from seedscope.engine.export.manifest import matching
from seedscope.engine.export.open_study import Opened
from seedscope.engine.export.saelens import convention_of
from seedscope.engine.matching.match import NULL_KINDS
from seedscope.engine.progress import Report
from seedscope.engine.saes.saelens import refusal, settings

EVAL_TYPE = "seed_stability"
# A text is required, and SAEBench did not run.
NO_SAEBENCH = "none: seedscope {version} made these results, not SAEBench"
_COLUMNS = (
    "feature", "dead", "density", "n_active", "n_tokens", "decoder_norm", "worth_ev", RULE_COLUMN["argmax"],
)  # fmt: skip


def write(study: Opened, folder: Path, report: Report) -> dict[str, str]:
    """Write a file per SAE; raises ValueError where no ensemble has comparisons. Memory: the features of one member."""
    compared = [row for row in study.ensembles if row.n_comparisons]
    if not compared:
        raise ValueError(f"study {study.folder.name} has no stability to export: {ALONE}")
    members = [(row, member) for row in compared for member in study.members[row.ensemble]]
    (folder / EVAL_TYPE).mkdir()
    for done, (row, member) in enumerate(members):
        name = f"{study.folder.name}_{row.ensemble}_seed-{member.seed}_eval_results.json"
        write_whole(folder / EVAL_TYPE / name, json.dumps(_eval_output(study, row, member), allow_nan=False))
        report(done + 1, len(members))
    left_out = {"everything else": "SAEBench has no place for it; --format parquet holds all"}
    return left_out | {row.ensemble: ALONE for row in study.ensembles if row not in compared}


def _eval_output(study: Opened, row: Ensemble, member: Member) -> dict[str, Any]:
    """One SAE's results; `eval_id` is made of what they are of, so that the same results have the same id."""
    where: dict[str, Any] = {"ensemble": row.ensemble, "seed": member.seed}
    features = study.store.table(Feature, list(_COLUMNS), **where).sort_by("feature")
    columns = {name: features[name].to_pylist() for name in _COLUMNS if name != RULE_COLUMN["argmax"]}
    cosines = matrix(features[RULE_COLUMN["argmax"]])
    dead = np.array([each is True for each in columns["dead"]])
    bucket = buckets(count_matches(cosines, row.theta), row.n_comparisons, dead, row.epsilon)
    about = f"seedscope:{study.store_name}:{row.ensemble}:{row.digest}:{member.sae_digest}"
    return {
        "eval_type_id": EVAL_TYPE,
        "eval_config": _config(study, row, member),
        "eval_id": str(uuid5(NAMESPACE_URL, about)),
        "datetime_epoch_millis": int((study.folder / study.store_name).stat().st_mtime * 1000),  # when it was published
        "eval_result_metrics": {
            "stability": _stability(study, row, member, cosines, bucket),
            "chance": _chance(study, row, member),
        },
        "eval_result_details": _details(row, columns, cosines, bucket),
        "sae_bench_commit_hash": NO_SAEBENCH.format(version=version("seedscope")),
        "sae_lens_id": None,
        "sae_lens_release_id": None,
        "sae_lens_version": None,
        "sae_cfg_dict": _sae_config(study, row, member, has_zero_rows=0 in columns["decoder_norm"]),
        "eval_result_unstructured": None,
    }


def _config(study: Opened, row: Ensemble, member: Member) -> dict[str, Any]:
    """How stability was measured; `comparison_seeds` are in the order of every list of cosines."""
    others = [each.seed for each in study.members[row.ensemble] if each != member]
    return {
        "study": study.folder.name,
        "ensemble": row.ensemble,
        "seed": member.seed,
        "comparison_seeds": others,
        "n_comparisons": row.n_comparisons,
        **{name: value for name, value in matching(row).items() if name != "directions"},
        "interval": "95 %: of features Clopper-Pearson; of the mean Student's t over comparisons, this SAE as it is",
        "shared_start": row.shared_start,
        "data_order": row.data_order,
        "model_name": study.study.model,
        "hook_name": row.hookpoint,
        "n_eval_tokens": row.n_tokens,
        "eval_token_digest": study.study.eval_token_digest,
        "sae_digest": member.sae_digest,
        "ensemble_digest": row.digest,
        "seedscope_version": version("seedscope"),
    }


def _stability(
    study: Opened, row: Ensemble, member: Member, cosines: np.ndarray, bucket: np.ndarray
) -> dict[str, float | int | str | None]:
    """Metrics over the features that are not known to be dead."""
    living = bucket != "dead"
    matched = is_match(cosines[living], row.theta)
    n = int(living.sum())
    mean, low, high = mean_over_comparisons(matched)
    shares = {name: float((bucket[living] == name).mean()) if n else None for name in ("stable", "middle", "unstable")}
    one_to_one = study.store.rows(Pair, ensemble=row.ensemble, rule="hungarian", seed=member.seed)
    return {
        "n_features": len(bucket),
        "n_judged": n,
        "n_dead": int((~living).sum()) if "activity" in row.computed else None,
        "n_without_direction": member.n_undirected,
        "n_comparisons": row.n_comparisons,
        "mean_stability": mean,
        "mean_stability_low": low,
        "mean_stability_high": high,
        **{f"{name}_share": share for name, share in shares.items()},
        **{f"n_{name}": int((bucket == name).sum()) for name in shares},
        "mean_best_cosine": float(cosines[living].mean()) if n else None,
        "mean_one_to_one_cosine": float(np.mean([pair.mean_cosine for pair in one_to_one])) if one_to_one else None,
    }


def mean_over_comparisons(matched: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """(mean stability, lower, upper end of a 95 % interval) of features with `matched` (features, comparisons), 0 to 1.

    The interval is Student's t over the comparisons' shares of matched features: how far the mean would move with other
    comparisons, for this SAE [definition of this project]. None without features, the ends with fewer than two comparisons.
    """
    n = matched.shape[1]
    if not matched.size:
        return None, None, None
    shares = matched.mean(0)
    mean = float(shares.mean())
    if n < 2:
        return mean, None, None
    half = float(stdtrit(n - 1, 0.975) * shares.std(ddof=1) / np.sqrt(n))
    return mean, max(mean - half, 0.0), min(mean + half, 1.0)


def _chance(study: Opened, row: Ensemble, member: Member) -> dict[str, float | int | None]:
    """What the same search finds in random dictionaries, for a sample of this SAE's features; null where it was not made."""
    metrics: dict[str, float | int | None] = {}
    for kind in NULL_KINDS:
        where: dict[str, Any] = {"ensemble": row.ensemble, "seed": member.seed, "kind": kind}
        cosines = matrix(study.store.table(NullMatch, ["cosines"], **where)["cosines"])
        found = len(cosines) > 0
        n_matched = count_matches(cosines, row.theta)
        bucket = buckets(n_matched, row.n_comparisons, np.zeros(len(cosines), bool), row.epsilon)
        metrics |= {
            f"n_features_{kind}": len(cosines) if found else None,
            f"mean_stability_{kind}": float(is_match(cosines, row.theta).mean()) if found else None,
            f"stable_share_{kind}": float((bucket == "stable").mean()) if found else None,
            f"unstable_share_{kind}": float((bucket == "unstable").mean()) if found else None,
            f"best_cosine_p999_{kind}": float(np.quantile(cosines, 0.999)) if found else None,
        }
    return metrics


def _details(
    row: Ensemble, columns: dict[str, list[Any]], cosines: np.ndarray, bucket: np.ndarray
) -> list[dict[str, Any]]:
    """An entry per feature; dead features have matches too, and no place in the metrics."""
    scores = [score(x, row.n_comparisons, epsilon=row.epsilon) for x in range(row.n_comparisons + 1)]
    details = []
    for i, n_matched in enumerate(count_matches(cosines, row.theta).tolist()):
        judged = scores[n_matched]
        details.append(
            {name: values[i] for name, values in columns.items()}
            | {
                "stability": judged.p_hat,
                "stability_low": judged.low,
                "stability_high": judged.high,
                "p_stable": judged.p_stable,
                "p_unstable": judged.p_unstable,
                "n_matched": n_matched,
                "n_comparisons": row.n_comparisons,
                "bucket": str(bucket[i]),
                "best_cosines": cosines[i].tolist(),
            }
        )
    return details


def _sae_config(study: Opened, row: Ensemble, member: Member, *, has_zero_rows: bool) -> dict[str, Any] | None:
    """The SAE's config as `--format saelens` writes it; None where SAELens cannot express the SAE."""
    convention = convention_of(row)
    if refusal(convention):
        return None
    metadata = {"model_name": study.study.model, "hook_name": row.hookpoint, "seedscope_digest": member.sae_digest}
    return settings(convention, has_zero_rows=has_zero_rows) | {
        "d_in": row.d_in,
        "d_sae": row.d_sae,
        "dtype": "float32",
        "metadata": metadata,
    }
