"""Published studies -> frozen rows. All SQL of the dashboard stands in this package; DuckDB is opened read-only."""

from app.store.compare import METRICS, Comparison, Scatter
from app.store.errors import BadValue, NotFound
from app.store.missing import Missing, missing
from app.store.pairs import PairRows, Pairs
from app.store.studies import Studies, analysis_of
from app.store.study import Sample, StudyStore
from app.store.table import SORTS, FeatureQuery, FeatureRow, FeatureTable, Place

__all__ = [
    "METRICS", "SORTS", "BadValue", "Comparison", "FeatureQuery", "FeatureRow", "FeatureTable", "Missing", "NotFound",
    "PairRows", "Pairs", "Place", "Sample", "Scatter", "Studies", "StudyStore", "analysis_of", "missing",
]  # fmt: skip
