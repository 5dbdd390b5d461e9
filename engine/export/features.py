"""Columns of exports from rows of the store, named as the pages' JSON names them: per feature and per comparison."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seedscope.engine.contract.schema import RULE_COLUMN
from seedscope.engine.contract.stability import UNDEFINED, buckets, count_matches, is_match, score
from seedscope.engine.contract.tables import training
from seedscope.engine.contract.tables.features import Logit, NullMatch
from seedscope.engine.contract.tables.predictions import Prediction
from seedscope.engine.contract.tables.spans import FeatureSpan, SpanCurve, first_energies
from seedscope.engine.contract.tables.study import NO_LOGITS, NO_TOKENS, Ensemble
from seedscope.engine.export.explanations import is_explained
from seedscope.engine.export.open_study import FeatureBlock, Opened
from seedscope.engine.matching.match import NULL_KINDS

# Of one comparison: {name in the pages' JSON: column of Match or Feature}; partners below 0 are none.
PARTNERS = ("partner", "live_partner", "hungarian_partner", "encoder_partner", "active_partner")
COMPARISON = {
    "partner": "partners", "cosine": "cosines", "runner_up_cosine": "runner_up_cosines", "mutual": "mutuals",
    "encoder_cosine": "encoder_cosines", "live_partner": "live_partners", "live_cosine": "live_cosines",
    "hungarian_partner": "hungarian_partners", "hungarian_cosine": "hungarian_cosines",
    "hungarian_encoder_cosine": "hungarian_encoder_cosines", "encoder_partner": "encoder_partners",
    "active_partner": "active_partners", "active_correlation": "active_correlations",
}  # fmt: skip
_MEASURED = (
    "dead", "top_tokens", "density", "n_active", "n_tokens", "mean_activation", "max_activation", "quantiles", "trigger",
    "trigger_share", "trigger_what", "token_entropy", "top_token_share", "contexts", "histogram",
)  # fmt: skip
_OF_TOKENS = (
    "top_tokens", "trigger", "trigger_share", "trigger_what", "token_entropy", "top_token_share", "contexts",
)  # fmt: skip
_EXPLAINED = ("explanation", "explainer", "score", "explanations")


class ByChance(NamedTuple):
    """What the nulls of an ensemble find, by kind."""

    rate: dict[str, float]  # share of chance comparisons that reach the ensemble's theta
    p999: dict[str, float]  # 99.9th percentile of the best cosine


def by_chance(study: Opened, ensemble: Ensemble) -> ByChance:
    """Both figures of every null of an ensemble; one null's cosines are in memory at a time."""
    where = {"ensemble": ensemble.ensemble, "seed": study.members[ensemble.ensemble][0].seed}
    kinds = study.store.table(NullMatch, ["kind"], **where)["kind"].unique().to_pylist()
    rate, p999 = {}, {}
    for kind in sorted(kinds):
        nulls = study.store.table(NullMatch, ["cosines"], ensemble=ensemble.ensemble, kind=kind)
        cosines = matrix(nulls["cosines"])
        rate[kind] = float(is_match(cosines, ensemble.theta).mean())
        p999[kind] = float(np.quantile(cosines, 0.999))
    return ByChance(rate, p999)


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of equally long lists as (rows, entries)."""
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if len(values) else np.zeros((len(column), 0), values.dtype)


def feature_columns(study: Opened, part: FeatureBlock, chance: ByChance) -> dict[str, pa.Array]:
    """One row per feature: the scalars of the pages' JSON, judged by argmax and the ensemble's own theta and epsilon.

    And all else that the store has of it, but the cosines: those are in `comparison_columns`.
    """
    row, member, features = part.ensemble, part.member, part.features

    def same(value: Any, kind: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), len(features))

    n, epsilon = row.n_comparisons, row.epsilon
    n_matched = count_matches(matrix(features["cosines"]), row.theta)
    scores = [score(x, n, epsilon=epsilon) for x in range(n + 1)] if n else []
    judged = {
        name: pa.array(np.array([getattr(s, name) for s in scores])[n_matched]) if n else same(None, pa.float64())
        for name in ("p_hat", "low", "high", "p_stable", "p_unstable")
    }
    bucket = buckets(n_matched, n, pc.fill_null(features["dead"], False).to_numpy(), epsilon).astype(object)
    bucket[bucket == UNDEFINED] = None  # one SAE alone

    def struct(values: dict[str, float]) -> pa.Array:
        if not values:
            return pa.nulls(len(features), pa.struct([(kind, pa.float64()) for kind in NULL_KINDS]))
        return pa.StructArray.from_arrays([same(v, pa.float64()) for v in values.values()], list(values))

    text = pa.string()
    return {
        "study": same(study.study.study, text),
        "ensemble": features["ensemble"],
        "seed": features["seed"],
        "feature": features["feature"],
        "digest": same(row.digest, text),
        "sae_digest": same(member.sae_digest, text),
        "anchor": same(member.seed == row.anchor, pa.bool_()),
        "shared_start": same(row.shared_start, text),
        "data_order": same(row.data_order, text),
        "stability": judged["p_hat"],
        "stability_low": judged["low"],
        "stability_high": judged["high"],
        "p_stable": judged["p_stable"],
        "p_unstable": judged["p_unstable"],
        "n_matched": pa.array(n_matched, pa.int32()),
        "n_comparisons": same(n, pa.int32()),
        "bucket": pa.array(bucket, text),
        "theta": same(row.theta, pa.float64()),
        "epsilon": same(epsilon, pa.float64()),
        "null_rate": struct(chance.rate),
        "null_p999": struct(chance.p999),
        "top_tokens": _top_tokens(study, features["top_token_ids"]),
    } | {name: features[name] for name in features.column_names if name not in RULE_COLUMN.values()}


def _top_tokens(study: Opened, ids: pa.ChunkedArray) -> pa.Array:
    """The texts of the top tokens; places that are not filled are left out."""
    token_ids = matrix(ids)
    kept = token_ids >= 0
    offsets = np.concatenate([[0], kept.sum(1).cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), study.texts.take(pa.array(token_ids[kept], pa.int32())))


def comparison_columns(part: FeatureBlock) -> dict[str, pa.Array]:
    """One row per comparison; what was not computed is null, and so is a partner that does not exist."""
    shape = len(part.features), len(part.others)
    columns: dict[str, pa.Array] = {}
    for name, column in COMPARISON.items():
        lists = (part.features if column in part.features.column_names else part.matches)[column]
        values = matrix(lists)
        if values.shape == shape:
            flat = values.reshape(-1)
            columns[name] = pa.array(flat, lists.type.value_type, mask=flat < 0 if name in PARTNERS else None)
        else:
            columns[name] = pa.nulls(shape[0] * shape[1], lists.type.value_type)
        if name == "runner_up_cosine":
            columns["matched"] = pa.array(is_match(matrix(part.features["cosines"]), part.ensemble.theta).reshape(-1))
    return columns


def comparison_keys(part: FeatureBlock) -> dict[str, pa.Array]:
    """Ensemble, seed, feature and other seed of every row of `comparison_columns`."""
    n, others = len(part.features), part.others
    return {
        "ensemble": pa.repeat(pa.scalar(part.ensemble.ensemble), n * len(others)),
        "seed": pa.repeat(pa.scalar(part.member.seed, pa.int64()), n * len(others)),
        "feature": pa.array(np.repeat(np.array(part.numbers, np.int32), len(others))),
        "other_seed": pa.array(np.tile(others, n)),
    }


def logit_lists(study: Opened, part: FeatureBlock) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """{feature: its `positive_logits` and `negative_logits`, the strongest first}; features without any are left out."""
    where = {"ensemble": part.ensemble.ensemble, "seed": part.member.seed, "feature": part.numbers}
    logits = study.store.table(Logit, ["feature", "sign", "token", "logit"], **where)
    texts = study.texts.take(logits["token"].combine_chunks()).to_pylist()
    by_feature: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for row, text in zip(logits.to_pylist(), texts, strict=True):
        lists = by_feature.setdefault(row["feature"], {"positive_logits": [], "negative_logits": []})
        lists["positive_logits" if row["sign"] > 0 else "negative_logits"].append(
            {"token": text, "logit": row["logit"]}
        )
    return by_feature


def missing(study: Opened, ensemble: Ensemble) -> list[dict[str, str]]:
    """Which fields are null throughout an ensemble, and what computes them."""
    command, blind = f"seedscope analyze {study.study.study} --only", study.study.causal is False
    undefined = f"undefined: in {study.study.model} every token sees the tokens after it"
    if study.study.synthetic:
        blind, undefined = True, "undefined: samples of known true features are made, there is no language model"
    if study.study.recorded:
        blind, undefined = True, f"undefined: {NO_TOKENS}"
    needed: dict[str, str] = {}  # what each field needs
    if "activity" not in ensemble.computed:
        needed |= dict.fromkeys(_MEASURED, f"{command} activity")
    elif study.study.recorded:
        needed |= dict.fromkeys(_OF_TOKENS, undefined)
    if "ablate" not in ensemble.computed:
        either = "loss" in ensemble.computed
        needed |= dict.fromkeys(
            ("ablation.marginal_ev", "ablation.rank") if either else ("ablation",),
            ensemble.undefined or f"{command} ablate",
        )
    if not is_explained(study, ensemble):
        needed |= dict.fromkeys(_EXPLAINED, undefined if study.study.recorded else f"{command} explain")
    if "loss" not in ensemble.computed:
        needs = undefined if blind else ensemble.undefined or f"{command} loss"
        needed |= dict.fromkeys(("ablation.marginal_loss_nats", "ablation.loss_rank"), needs)
    if "subspaces" not in ensemble.computed:
        one = "undefined: spans are compared among members, and the ensemble has one"
        needed["subspace"] = f"{command} subspaces" if ensemble.n_members > 1 else one
    if ensemble.n_members == 1 and not study.store.table(Prediction, ["p"], ensemble=ensemble.ensemble).num_rows:
        needed["predicted"] = f"seedscope predict {study.study.study}/{ensemble.ensemble} --from STUDY/ENSEMBLE"
    if "trajectory" not in ensemble.computed:
        kept = study.store.table(training.Checkpoint, ["step"], ensemble=ensemble.ensemble).num_rows
        none = "undefined: no members were kept along its training, or it was trained elsewhere"
        needed["trajectory"] = f"{command} trajectory" if kept and ensemble.n_members > 1 else none
    if "function" not in ensemble.computed:
        alone = "undefined: counterparts are in other members, and the ensemble has one"
        needs = f"{command} function" if ensemble.n_members > 1 else alone
        needed |= dict.fromkeys(
            ("cofiring", "substitution", "matches.active_partner", "matches.active_correlation"), needs
        )
    first = study.members[ensemble.ensemble][0].seed
    if not study.store.table(Logit, ["rank"], ensemble=ensemble.ensemble, seed=first, feature=range(1)).num_rows:
        width = "the hook point does not have the residual stream's width"
        norm = [remark.removeprefix(NO_LOGITS) for remark in ensemble.remarks if remark.startswith(NO_LOGITS)]
        width = ensemble.undefined or (norm[0] if norm else width)
        needs = undefined if blind else f"{command} activity" if "activity" not in ensemble.computed else width
        needed |= dict.fromkeys(("positive_logits", "negative_logits"), needs)
    return [{"field": field, "needs": needs} for field, needs in needed.items()]


def subspace_rows(study: Opened, part: FeatureBlock) -> dict[int, dict[str, Any]]:
    """{feature: what the pages say of it in the spans of unstable features} of a part's living features."""
    ensemble = part.ensemble
    where: dict[str, Any] = {"ensemble": ensemble.ensemble, "seed": part.member.seed, "feature": part.numbers}
    lines = study.store.table(FeatureSpan, **where).to_pylist()
    if not lines:
        return {}
    ranks = sorted(set(study.store.table(SpanCurve, ["rank"], ensemble=ensemble.ensemble)["rank"].to_pylist()))
    random = [rank / ensemble.d_out for rank in ranks]
    by_feature = {}
    for line in lines:
        span = FeatureSpan(**line)
        rank, own, others = first_energies(span, ranks, ensemble.span_rank) or (None, None, None)
        curves = {"ranks": ranks, "own": span.own, "others": span.others, "random": random}
        first = {"rank": rank, "own_energy": own, "others_energy": others}
        by_feature[span.feature] = curves | first | {"x": span.x, "y": span.y}
    return by_feature


def predicted_rows(study: Opened, part: FeatureBlock) -> dict[int, dict[str, Any]]:
    """{feature: its Prediction} of a part's features; empty where nothing was predicted."""
    where: dict[str, Any] = {"ensemble": part.ensemble.ensemble, "seed": part.member.seed, "feature": part.numbers}
    return {row["feature"]: row for row in study.store.table(Prediction, **where).to_pylist()}


def trajectory_rows(study: Opened, part: FeatureBlock) -> dict[int, dict[str, Any]]:
    """{feature: what the pages say of it along training} of a part's features; empty where that was not measured."""
    where: dict[str, Any] = {"ensemble": part.ensemble.ensemble, "seed": part.member.seed, "feature": part.numbers}
    lines = study.store.table(training.FeatureAlong, **where).to_pylist()
    steps = study.store.rows(training.Checkpoint, ensemble=part.ensemble.ensemble) if lines else []
    n = steps[0].n_comparisons if steps else 0
    common = {"steps": [each.step for each in steps], "tokens": [each.tokens for each in steps], "n_comparisons": n}
    return {
        row["feature"]: common
        | {
            "matched": row["matched"],
            "stability": [x / n for x in row["matched"]],
            "best_cosines": row["best_cosines"],
            "worth_ev": row["worth_ev"] or None,
            "n_active": row["n_active"] or None,
            "n_tokens": steps[0].n_tokens,
        }
        for row in lines
    }
