"""What queries find, against plain NumPy over the columns of the exported tables."""

import itertools

import numpy as np
import pytest

from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.studies import Studies
from seedscope.engine.contract.schema import RULE_COLUMN
from seedscope.engine.contract.tables.features import Feature
from seedscope.engine.store.database import StoreReader
from support.studies import ENSEMBLE, STUDY


@pytest.fixture(scope="module")
def store(study_root):
    return Studies(study_root).get(STUDY)


@pytest.fixture(scope="module")
def columns(store):
    """Columns of the Feature table, read by the engine's reader: lists as matrices."""
    with StoreReader(store.path) as reader:
        table = reader.table(Feature, ensemble=ENSEMBLE)
    values = {name: table[name].to_pylist() for name in table.column_names}
    lists = {column: np.array(values[column], np.float32) for column in RULE_COLUMN.values()}
    return {name: np.array(value, object) for name, value in values.items() if name not in lists} | lists


def bucket_of(x, n, dead, epsilon):
    if dead:
        return "dead"
    p = x / n
    return "stable" if p >= 1 - epsilon - 1e-9 else "unstable" if p <= epsilon + 1e-9 else "middle"


@pytest.mark.parametrize(("theta", "epsilon"), [(0.7, 0.05), (0.305, 0.2), (0.9, 0.4)])
@pytest.mark.parametrize("rule", RULE_COLUMN)
def test_buckets_and_facets_are_those_of_the_exported_columns(store, columns, rule, theta, epsilon):
    if rule not in store.rules(ENSEMBLE):
        pytest.skip("not computed")
    cosines = columns[RULE_COLUMN[rule]]
    x = (cosines >= np.float32(theta)).sum(1)
    buckets = [bucket_of(a, cosines.shape[1], d, epsilon) for a, d in zip(x, columns["dead"], strict=True)]
    facets = store.features(FeatureQuery(ENSEMBLE, theta, epsilon, rule)).facets()
    assert facets["bucket"] == {name: buckets.count(name) for name in set(buckets)}
    counted = store.features(FeatureQuery(ENSEMBLE, theta, epsilon, rule)).matched_counts()
    expected = {}
    for key in zip(columns["seed"].tolist(), buckets, x.tolist(), strict=True):
        expected[key] = expected.get(key, 0) + 1
    assert {entry[:3]: entry[3] for entry in counted} == expected


@pytest.mark.parametrize("sort", ["stability", "density", "max", "worth", "feature"])
@pytest.mark.parametrize("descending", [True, False])
def test_every_page_of_a_filtered_list_is_in_order_and_whole(store, columns, sort, descending):
    """Forwards and backwards by the pages' own keys; no feature is lost or repeated."""
    query = FeatureQuery(ENSEMBLE, 0.7, 0.05, density_min=1e-4, dead="exclude", sort=sort, descending=descending)
    names = {"density": "n_active", "max": "max_activation", "worth": "worth_ev", "feature": "feature"}
    values = columns[names[sort]] if sort in names else (columns["cosines"] >= np.float32(0.7)).sum(1)
    rows = [
        (v, seed, feature)
        for v, seed, feature, density, dead in zip(
            values, columns["seed"], columns["feature"], columns["density"], columns["dead"], strict=True
        )
        if density is not None and density >= 1e-4 and not dead
    ]
    expected = [row[1:] for row in sorted(rows, key=lambda row: (-row[0] if descending else row[0], row[1], row[2]))]
    table = store.features(query)
    assert table.count() == len(expected)
    seen, after, last = [], None, None
    for _ in itertools.count():
        page = table.page(limit=37, after=after)
        if not page:
            break
        seen += [(row.seed, row.feature) for row in page]
        after, last = table.key(page[-1]), page
    assert seen == expected
    before = table.page(limit=37, before=table.key(last[0]))
    assert [(row.seed, row.feature) for row in before] == expected[-len(last) - 37 : -len(last)]
    middle = expected[len(expected) // 2]
    place = table.place(*middle)
    assert place is not None
    assert (place.position, place.total) == (len(expected) // 2 + 1, len(expected))
    assert place.next == expected[len(expected) // 2 + 1]


def test_off_the_grid_the_same_matches_are_counted(store, columns):
    index = store.index(ENSEMBLE)
    for theta in (0.7000001, 0.6543, -0.2, 1.0001):
        expected = (columns["cosines"] >= np.float32(theta)).sum(1)
        assert (index.matched("argmax", theta) == expected).all()
        rows = np.array([3, 0, index.n_rows - 1])
        assert (index.matched_at("argmax", theta, rows) == expected[rows]).all()


def test_an_index_that_was_removed_is_made_again_and_says_the_same(store, study_root):
    from seedscope.engine.contract.index.build import build_index
    from seedscope.engine.contract.index.layout import index_folder

    kept = {
        path.relative_to(index_folder(store.path)): path.read_bytes() for path in index_folder(store.path).rglob("*.*")
    }
    rebuilt = build_index(store.path, index_folder(store.path).with_name("again.index"))
    assert {path.relative_to(rebuilt): path.read_bytes() for path in rebuilt.rglob("*.*")} == kept
