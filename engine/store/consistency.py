"""Whether the tables of a store agree with each other: names, keys, ranges, lengths of lists, and what was computed.

Pages and exports rely on what is checked here and do not check it again. A store that a Writer made of an analysis holds to it; one
that came from elsewhere may not. A rule is an SQL condition that is true of a wrong row; every table is scanned once.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import duckdb

from seedscope.engine.contract import schema
from seedscope.engine.contract.names import inside, name_problem
from seedscope.engine.contract.tables import function, pools, predictions, shared_spans, spans, synthetic, training
from seedscope.engine.contract.tables.explanations import Score, Scored
from seedscope.engine.contract.tables.features import Ablation, Context, Feature, Logit, Match, NullMatch, Pair
from seedscope.engine.contract.tables.study import Document, Ensemble, Member, Study, Token, TokenWindow

LONGEST_SHOWN = 60  # characters of a value in an error
NULLS = ("haar", "second_moment")
_DIGEST = "[0-9a-f]{16}"
_SHARE, _COSINE, _AT_MOST_1, _COUNT, _POSITIVE = (0.0, 1.0), (-1.0, 1.0), (-math.inf, 1.0), (0, math.inf), (1, math.inf)
_SLACK = 1e-3  # of ranges of real numbers: float32 rounds

# {range: columns of any table that lie in it, entries of lists as well}.
_RANGES: dict[tuple[float, float], str] = {
    _SHARE: "density trigger_share top_token_share score value shuffled shuffled_p95 largest_cluster f1 auroc own others "
    "energies overlaps rate_free rate_low rate found found_by_all found_by_none found_chance p_hat stable unstable chance "
    "energy span_overlap cross_overlap cross_energy living_energy random_energy free_found free_p low_found low_p mean_share "
    "shares shared deads gap auroc_low auroc_high auroc_stable own_auroc calibration_error own_calibration_error error_low "
    "error_high predicted observed observed_low observed_high covered width base_rate mean_predicted p p_low p_high "
    "jaccards jaccard jaccard_low jaccard_high raw_share raw_share_low raw_share_high scaled_share "
    "scaled_share_low scaled_share_high always_share beside_share residual living_mean living_high density_mean density_high "
    "rotated_mean rotated_high second_moment_mean second_moment_high living_energy density_energy rotated_energy "
    "second_moment_energy p_value p_living p_density p_rotated p_second_moment stability overlap energy_share "
    "activation_energy shared_low shared_high member_share chance_share level share",
    _COSINE: "theta cosines live_cosines mutual_cosines hungarian_cosines both_cosines runner_up_cosines encoder_cosines "
    "hungarian_encoder_cosines mean_cosine cosine free_cosine best_cosine best_cosine_low best_cosine_high "
    "centred_best_cosine random_best_cosine best_cosines active_correlations correlations cofiring correlation correlation_low "
    "correlation_high",
    _AT_MOST_1: "ev evs ev_control ev_whole",
    _COUNT: "n_ctx n_eval_tokens n_comparisons n_train_tokens train_tokens n_tokens n_outliers n_clusters seed l0 n_dead "
    "n_undirected n_loss_tokens n_active max_activation decoder_norm token_entropy histogram matched matched_living n_anchors "
    "n_living n_paired group rank document position peak n_masked ev_sd loss_sd n_pairs n_fitted spread split_spread angles "
    "n_stable n_unstable n_equal stable_values unstable_values random_values n_rows k n_silent windows offsets lengths masks "
    "start id n_scored scaled_substitutions n_free n_low noise n_samples n_evaluated n_map_members n_map_samples n_map_cells "
    "n_true n_latents n_free_latents n_low_latents step tokens n_features unique_by_holders halves fresh holders l0s token feature "
    "n_predicted n_outside bin n_edges n_kept n_candidates failure_counts n_sharing n_seeds found_again "
    "n_left_out left_out_rank n_measured norms raised lowered axis loss_control_sd active_from",
    _POSITIVE: "n_members d_in d_sae batch r n_draws",
}
_RANGE_OF = {name: limits for limits, names in _RANGES.items() for name in names.split()}
# Columns whose name means another thing in one table: (low, high) there, None where any value will do.
_OWN_RANGES: dict[tuple[type, str], tuple[float, float] | None] = {
    (Ensemble, "epsilon"): (0, 0.5),
    (training.TracePoint, "dead"): _SHARE,
    (synthetic.TrueFeature, "group"): None,
    (synthetic.TrueLatent, "group"): None,
    (synthetic.TrueGroup, "group"): None,
    (training.FeatureAlong, "worth_ev"): None,
    (spans.SpanResidual, "mean"): _COUNT,
    (function.SmallSet, "score"): _COUNT,
    (function.TransportPlan, "epsilon"): _COUNT,
    (function.TransportPlan, "marginal_gap"): (0, 2),
    (function.TransportPlan, "share"): _SHARE,
    **{(shared_spans.SharedSpanFeature, name): _COSINE for name in "xy"},
    (shared_spans.SharedSpanSeed, "n_members"): _COUNT,
    (shared_spans.SharedSpanSummary, "n_members"): _COUNT,
    (shared_spans.SharedSpanSummary, "n_draws"): _COUNT,
}
_WORDS: dict[tuple[type, str], tuple[str, ...]] = {
    (Ensemble, "origin"): ("trained", "imported"),
    (Ensemble, "shared_start"): ("yes", "no", "unknown"),
    (Ensemble, "data_order"): ("shared", "independent", "unknown"),
    (Ensemble, "computed"): schema.ANALYSES,
    (Feature, "trigger"): schema.TRIGGERS,
    (Pair, "rule"): schema.RULES,
    (NullMatch, "kind"): NULLS,
    (spans.SpanCurve, "curve"): spans.SPAN_CURVES,
    (spans.SpanPrediction, "setting"): spans.PREDICTION_SETTINGS,
    (training.AgreementPoint, "population"): training.POPULATIONS,
    (pools.PoolPoint, "curve"): pools.POOL_CURVES,
    (function.Substitute, "kind"): function.COUNTERPART_KINDS,
    (function.FunctionSummary, "kind"): function.SUMMARY_KINDS,
    (function.FunctionSummary, "bucket"): function.FUNCTION_BUCKETS,
    (function.SmallSet, "bucket"): function.FUNCTION_BUCKETS[:3],
    (synthetic.Synthetic, "verdict"): synthetic.VERDICTS,
    (synthetic.PhaseCell, "verdict"): synthetic.VERDICTS,
    (predictions.Predictor, "inputs"): predictions.INPUTS,
    (predictions.PredictorScore, "setting"): predictions.PREDICTOR_SETTINGS,
    (predictions.PredictorInput, "input"): predictions.INPUTS,
    (shared_spans.SharedSpan, "failed"): shared_spans.SPAN_FAILURES,
    (shared_spans.SharedSpanSummary, "failures"): shared_spans.SPAN_FAILURES,
}
# Tables whose `seed` is that of a generator, or of SAEs that were trained along with the members.
_NOT_OF_MEMBERS = {synthetic.Synthetic, training.TracePoint}
_TOKENS, _DOCUMENTS, _WINDOWS = (f"(SELECT count(*) FROM {table.__name__})" for table in (Token, Document, TokenWindow))
_SPAN = "[0-9a-f]{12}"
_SPANS = "SELECT c.span FROM SharedSpan c WHERE c.ensemble = t.ensemble"
_COMPARED = "e.n_comparisons"
_STEPS = "(SELECT count(*) FROM Checkpoint c WHERE c.ensemble = t.ensemble)"
# What else is wrong with a row of a table: (column, condition). `t` is the row, `e` its ensemble, `m` its member.
_CONDITIONS: dict[type, tuple[tuple[str, str], ...]] = {
    Study: (("schema_version", f"t.schema_version != {schema.SCHEMA_VERSION}"), ("n_ctx", "t.n_ctx > 2**24")),
    Ensemble: (
        ("epsilon", "t.epsilon >= 0.5"),
        ("n_members", "t.n_members != (SELECT count(*) FROM Member c WHERE c.ensemble = t.ensemble)"),
        ("n_comparisons", "t.n_comparisons != t.n_members - 1"),
        ("k", "t.k > t.d_sae"),
        (
            "anchor",
            "t.anchor NOT IN (SELECT seed FROM Member c WHERE c.ensemble = t.ensemble) AND t.anchor IS NOT NULL",
        ),
        ("control_of", "t.control_of IS NOT NULL AND t.control_of NOT IN (SELECT ensemble FROM Ensemble)"),
        ("digest", f"NOT regexp_full_match(t.digest, '{_DIGEST}')"),
        (
            "span_rank",
            "t.span_rank IS NOT NULL AND t.span_rank NOT IN (SELECT rank FROM SpanCurve c WHERE c.ensemble = t.ensemble)",
        ),
    ),
    Member: (
        ("n_dead", "t.n_dead > e.d_sae"),
        ("n_undirected", "t.n_undirected > e.d_sae"),
        ("sae_digest", f"NOT regexp_full_match(t.sae_digest, '{_DIGEST}')"),
        ("histogram_edges", "t.histogram_edges != list_sort(t.histogram_edges)"),
    ),
    Feature: (
        ("n_active", "t.n_active > t.n_tokens"),
        *((column, f"len(t.{column}) NOT IN (0, {_COMPARED})") for column in schema.RULE_COLUMN.values()),
        ("cosines", f"len(t.cosines) != {_COMPARED}"),
        ("histogram", "len(t.histogram) NOT IN (0, len(m.histogram_edges) - 1)"),
        ("top_token_counts", "len(t.top_token_counts) != len(t.top_token_ids)"),
        ("top_token_ids", f"list_max(t.top_token_ids) >= {_TOKENS} OR list_min(t.top_token_ids) < -1"),
    ),
    Match: (
        *(
            (column, f"list_max(t.{column}) >= e.d_sae OR list_min(t.{column}) < -1")
            for column in ("partners", "live_partners", "hungarian_partners", "encoder_partners", "active_partners")
        ),
        *((column, f"len(t.{column}) != {_COMPARED}") for column in ("partners", "runner_up_cosines", "mutuals")),
        *(
            (column, f"len(t.{column}) NOT IN (0, {_COMPARED})")
            for column in (
                "encoder_cosines", "live_partners", "hungarian_partners", "hungarian_encoder_cosines", "encoder_partners",
                "active_partners",
            )
        ),
    ),
    Pair: (
        ("other", "t.other = t.seed"),
        ("n_anchors", "t.n_anchors > e.d_sae OR t.n_living > t.n_anchors OR t.n_paired > t.n_anchors"),
        ("matched", f"len(t.matched) != {schema.N_THETAS} OR len(t.matched_living) != {schema.N_THETAS}"),
    ),
    NullMatch: (("cosines", f"len(t.cosines) != {_COMPARED}"),),
    Context: (
        ("group", "t.\"group\" > 6"),
        ("document", f"t.document >= {_DOCUMENTS}"),
        ("token_ids", f"list_max(t.token_ids) >= {_TOKENS} OR list_min(t.token_ids) < 0"),
        ("peak", "t.peak >= len(t.token_ids)"),
        ("activations", "len(t.activations) != len(t.token_ids)"),
    ),
    Ablation: (("n_masked", "t.n_masked > e.d_sae"),),
    Logit: (("sign", "t.sign NOT IN (-1, 1)"), ("token", f"t.token >= {_TOKENS}")),
    Score: (
        ("said", "list_max(t.said) > 1 OR list_min(t.said) < -1"),
        (
            "said",
            "len(t.said) NOT IN (0, coalesce((SELECT any_value(len(c.kinds)) FROM Scored c WHERE c.ensemble = t.ensemble AND "
            "c.seed = t.seed AND c.feature = t.feature), 0))",
        ),
    ),
    Scored: (
        ("kinds", "list_max(t.kinds) > 2 OR list_min(t.kinds) < 0"),
        ("windows", f"list_max(t.windows) >= {_WINDOWS}"),
        *(
            (column, f"len(t.{column}) != len(t.kinds)")
            for column in ("windows", "offsets", "lengths", "masks")
        ),
    ),
    TokenWindow: (
        ("document", f"t.document >= {_DOCUMENTS}"),
        ("token_ids", f"list_max(t.token_ids) >= {_TOKENS} OR list_min(t.token_ids) < 0"),
        ("token_ids", "len(t.token_ids) > (SELECT coalesce(max(n_ctx), 0) FROM Study)"),
    ),
    synthetic.TrueFeature: (
        ("latents", "len(t.latents) != e.n_members OR len(t.cosines) != e.n_members"),
        ("latents", "list_max(t.latents) >= e.d_sae OR list_min(t.latents) < -1"),
    ),
    synthetic.TrueLatent: (
        ("true", "t.\"true\" NOT BETWEEN 0 AND (SELECT count(*) FROM TrueFeature c WHERE c.ensemble = t.ensemble) - 1"),
    ),
    training.Checkpoint: (("evs", "len(t.evs) NOT IN (0, e.n_members)"),),
    training.FeatureAlong: tuple(
        (column, f"len(t.{column}) NOT IN (0, {_STEPS})") for column in ("matched", "best_cosines", "worth_ev", "n_active")
    ),
    function.Substitute: (
        ("partners", "list_max(t.partners) >= e.d_sae OR list_min(t.partners) < -1"),
        *((column, f"len(t.{column}) != {_COMPARED}") for column in ("partners", "cosines", "correlations", "jaccards")),
        *((column, f"len(t.{column}) NOT IN (0, {_COMPARED})") for column in ("substitutions", "scaled_substitutions")),
    ),
    function.SmallSet: (
        ("partners", "list_max(t.partners) >= e.d_sae OR list_min(t.partners) < 0"),
        ("scales", "len(t.scales) != len(t.partners)"),
        ("other", "t.other = t.seed"),
    ),
    function.TransportPlan: (("other", "t.other = t.seed"), ("n_passes", "t.n_passes < 1")),
    pools.FeaturePool: (("sae_digest", f"NOT regexp_full_match(t.sae_digest, '{_DIGEST}')"),),
    pools.PooledFeature: (("holders", "t.holders > e.n_members"),),
    predictions.Predictor: (
        ("kind", f"t.kind NOT IN ({', '.join(repr(each) for each in predictions.PREDICTOR_KINDS)})"),
        ("refused", "(t.refused IS NULL) != (t.kind IS NOT NULL)"),
        ("n_outside", "t.n_outside > t.n_predicted"),
    ),
    predictions.Prediction: (("p_low", "t.p_low > t.p_high"),),
    shared_spans.SharedSpan: (
        ("span", f"NOT regexp_full_match(t.span, '{_SPAN}')"),
        ("failed", "t.kept != (t.failed IS NULL)"),
        ("n_seeds", "t.n_seeds > e.n_members OR t.n_sharing > t.n_seeds OR t.found_again > t.n_left_out"),
    ),
    **{
        table: (("span", f"t.span NOT IN ({_SPANS})"), *extra)
        for table, extra in {
            shared_spans.SharedSpanSeed: (),
            shared_spans.SharedSpanPair: (("other", "t.other = t.seed"),),
            shared_spans.SharedSpanFeature: (),
            shared_spans.SharedSpanDirection: (
                ("basis", "t.basis NOT BETWEEN -1 AND e.n_members - 1"),
                ("raised", f"list_max(t.raised) >= {_TOKENS} OR list_max(t.lowered) >= {_TOKENS}"),
                ("raised_logits", "len(t.raised_logits) != len(t.raised) OR len(t.lowered_logits) != len(t.lowered)"),
            ),
            shared_spans.SharedSpanContext: (
                ("token_ids", f"list_max(t.token_ids) >= {_TOKENS} OR list_min(t.token_ids) < 0"),
                ("document", f"t.document >= {_DOCUMENTS}"),
                ("peak", "t.peak >= len(t.token_ids)"),
                ("norms", "len(t.norms) != len(t.token_ids)"),
            ),
            shared_spans.SharedSpanToken: (("token", f"t.token >= {_TOKENS}"),),
            shared_spans.SharedSpanExplanation: (("failure", "(t.text IS NULL OR t.value IS NULL) != (t.failure IS NOT NULL)"),),
        }.items()
    },
    shared_spans.SharedSpanSummary: (
        ("failure_counts", "len(t.failure_counts) != len(t.failures)"),
        ("n_kept", "t.n_kept > t.n_candidates"),
        ("shared", "t.shared_low > t.shared_high"),
    ),
}  # fmt: skip
# {analysis: what is true of a feature's row where it was computed}; without it, the column is None.
_OF_ANALYSIS = {"activity": "n_active", "ablate": "worth_ev", "loss": "worth_loss"}


class Contradiction(NamedTuple):
    """A table that contradicts itself or another one."""

    table: str
    column: str
    found: str

    def __str__(self) -> str:
        return f"table {self.table}, column {self.column}: {self.found}"


def require_consistent(connection: duckdb.DuckDBPyConnection) -> None:
    """Raise ValueError with the first contradiction of a store's tables."""
    for contradiction in contradictions(connection):
        raise ValueError(str(contradiction))


def contradictions(connection: duckdb.DuckDBPyConnection) -> Iterator[Contradiction]:
    """What is wrong, table by table; later ones may follow from earlier ones."""
    for table in schema.REQUIRED:
        if table not in (Pair, NullMatch) and not _value(connection, f"SELECT count(*) FROM {table.__name__}"):
            yield Contradiction(table.__name__, schema.SORT_KEYS[table][0], "no rows, expected some")
    if (n := _value(connection, "SELECT count(*) FROM Study")) != 1:
        yield Contradiction("Study", "study", f"{n} rows, expected one")
    yield from _names(connection)
    for table in (Token, Document, TokenWindow):
        sql = f"SELECT count(*) > 0 AND (min(id) != 0 OR max(id) != count(*) - 1) FROM {table.__name__}"
        if _value(connection, sql):
            yield Contradiction(table.__name__, "id", "found a gap, expected 0, 1, 2 and so on")
    for table in schema.TABLES:
        yield from _of_table(connection, table)
    yield from _computed(connection)


def _names(connection: duckdb.DuckDBPyConnection) -> Iterator[Contradiction]:
    """Names that are parts of addresses and paths, folders, and settings in JSON."""
    for table, column in (("Study", "study"), ("Ensemble", "ensemble")):
        for (name,) in connection.execute(f"SELECT {column} FROM {table}").fetchall():
            if problem := name_problem(name, exists=True):
                yield Contradiction(table, column, f"found {_shown(name)}, {problem}")
    for table in ("Ensemble", "FeaturePool"):
        for folder, recipe in connection.execute(f"SELECT folder, recipe FROM {table}").fetchall():
            try:
                inside(folder)
            except ValueError as error:
                yield Contradiction(table, "folder", str(error))
            if recipe is not None and not isinstance(_parsed(recipe), dict):
                yield Contradiction(table, "recipe", f"found {_shown(recipe)}, expected a JSON object")
    for (convention,) in connection.execute("SELECT convention FROM Ensemble").fetchall():
        if not isinstance(_parsed(convention), dict):
            yield Contradiction("Ensemble", "convention", f"found {_shown(convention)}, expected a JSON object")


def _of_table(connection: duckdb.DuckDBPyConnection, table: type) -> Iterator[Contradiction]:
    """Wrong rows of one table, found in one scan; then keys that two rows have."""
    names = schema.columns(table)
    source, rules = f"{table.__name__} t", [*_ranges(table), *_words(table), *_CONDITIONS.get(table, ())]
    if "ensemble" in names and table is not Ensemble:
        source += " LEFT JOIN Ensemble e ON e.ensemble = t.ensemble"
        rules.insert(0, ("ensemble", "e.ensemble IS NULL"))
        if "feature" in names:
            rules.append(("feature", "t.feature >= e.d_sae"))
        if "seed" in names and table not in _NOT_OF_MEMBERS:
            if table is not Member:
                source += " LEFT JOIN (SELECT DISTINCT ON (ensemble, seed) * FROM Member) m"
                source += " ON m.ensemble = t.ensemble AND m.seed = t.seed"
                rules.insert(1, ("seed", "m.seed IS NULL"))
            if "other" in names:
                rules.append(("other", "(t.ensemble, t.other) NOT IN (SELECT (ensemble, seed) FROM Member)"))
    counts = ", ".join(f"count_if({condition})" for _, condition in rules) or "0"
    (row,) = connection.execute(f"SELECT {counts} FROM {source}").fetchall()
    for (column, condition), n in zip(rules, row, strict=True) if rules else ():
        if n:
            example = _value(connection, f'SELECT t."{column}" FROM {source} WHERE {condition} LIMIT 1')
            rows = "row" if n == 1 else "rows"
            yield Contradiction(table.__name__, column, f"{n:,} {rows} with what cannot be, such as {_shown(example)}")
    keys = ", ".join(f'"{key}"' for key in schema.SORT_KEYS[table])
    twice = connection.execute(
        f"SELECT {keys} FROM {table.__name__} GROUP BY ALL HAVING count(*) > 1 LIMIT 1"
    ).fetchall()
    if twice:
        yield Contradiction(table.__name__, schema.SORT_KEYS[table][-1], f"two rows for {_shown(list(twice[0]))}")


def _ranges(table: type) -> Iterator[tuple[str, str]]:
    for name, (kind, is_list, _) in schema.columns(table).items():
        limits = _OWN_RANGES.get((table, name), _RANGE_OF.get(name))
        if limits is None or kind not in (int, float):
            continue
        low, high = limits if kind is int else (limits[0] - _SLACK, limits[1] + _SLACK)
        smallest, largest = (f't."{name}"',) * 2 if not is_list else (f'list_min(t."{name}")', f'list_max(t."{name}")')
        bounds = [f"{smallest} < {low}"] * (low > -math.inf) + [f"{largest} > {high}"] * (high < math.inf)
        yield name, " OR ".join(bounds)


def _words(table: type) -> Iterator[tuple[str, str]]:
    for (of, name), words in _WORDS.items():
        if of is table:
            known = ", ".join(f"'{word}'" for word in words)
            is_list = schema.columns(table)[name].is_list
            yield name, f"NOT list_has_all([{known}], t.{name})" if is_list else f"t.{name} NOT IN ({known})"


def _computed(connection: duckdb.DuckDBPyConnection) -> Iterator[Contradiction]:
    """Analyses that an ensemble is said to have, and columns that are filled where it has them."""
    for analysis, column in _OF_ANALYSIS.items():
        sql = (
            f"SELECT e.ensemble, list_contains(e.computed, '{analysis}'), count(f.{column}), count(*) FROM Ensemble e "
            "JOIN Feature f ON f.ensemble = e.ensemble GROUP BY ALL ORDER BY ALL"
        )
        for ensemble, is_computed, filled, n in connection.execute(sql).fetchall():
            if filled != (n if is_computed else 0):
                says = f"{ensemble} {'has' if is_computed else 'lacks'} {analysis}, and {filled:,} of {n:,} features have {column}"
                yield Contradiction("Ensemble", "computed", says)
    sql = "SELECT ensemble FROM Ensemble WHERE NOT list_contains(computed, 'match')"
    for (ensemble,) in connection.execute(sql).fetchall():
        yield Contradiction("Ensemble", "computed", f"{ensemble} lacks match, which every ensemble has")


def _value(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    return connection.execute(sql).fetchall()[0][0]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}.."
