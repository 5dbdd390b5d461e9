"""Published studies -> frozen rows. All SQL of the dashboard stands in this package; DuckDB is opened read-only."""

from app.store.ceiling import Ceiling, ceiling
from app.store.compare import METRICS, Comparison, Scatter
from app.store.errors import BadValue, NotFound
from app.store.explanations import SCORE_KINDS, Agreement, ScoredContext, Scores, Told
from app.store.missing import NO_MODEL, Missing, missing, pool_missing
from app.store.pairs import PairRows, Pairs
from app.store.pools import Pools
from app.store.scores import BucketScores, ScorePoint, by_bucket, by_stability
from app.store.sets import FeatureSets, alike_in_density, feature_sets
from app.store.studies import Studies, analysis_of
from app.store.study import Sample, StudyStore
from app.store.table import SORTS, FeatureQuery, FeatureRow, FeatureTable, Place
from app.store.truth import DOWNLOADS as TRUTH_TABLES
from app.store.truth import Truth
from app.store.vocabulary import Contrast, WordLine

__all__ = [
    "METRICS", "NO_MODEL", "SCORE_KINDS", "SORTS", "TRUTH_TABLES", "Agreement", "BadValue", "BucketScores", "Ceiling",
    "Comparison", "Contrast", "FeatureQuery", "FeatureRow", "FeatureSets", "FeatureTable", "Missing", "NotFound",
    "PairRows", "Pairs", "Place", "Pools", "Sample", "Scatter", "ScorePoint", "ScoredContext", "Scores", "Studies", "StudyStore",
    "Told", "Truth", "WordLine", "alike_in_density", "analysis_of", "by_bucket", "by_stability", "ceiling", "feature_sets",
    "missing", "pool_missing",
]  # fmt: skip
