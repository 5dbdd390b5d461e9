"""Published studies -> frozen rows. All SQL of the dashboard stands in this package; DuckDB is opened read-only."""

from app.store.errors import BadValue, NotFound
from app.store.pairs import PairRows, Pairs
from app.store.studies import Studies
from app.store.study import StudyStore
from app.store.table import SORTS, FeatureQuery, FeatureRow, FeatureTable, Place

__all__ = [
    "SORTS", "BadValue", "FeatureQuery", "FeatureRow", "FeatureTable", "NotFound", "PairRows", "Pairs", "Place", "Studies",
    "StudyStore",
]  # fmt: skip
