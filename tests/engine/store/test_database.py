"""The Writer: refuses what is not whole, publishes all or nothing, names a store by its content."""

from dataclasses import fields
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seedscope.engine.contract import schema
from seedscope.engine.contract.index.layout import index_folder
from seedscope.engine.contract.published import published
from seedscope.engine.contract.tables.features import Context, Feature
from seedscope.engine.contract.tables.study import Ensemble, Member, Study, Token
from seedscope.engine.store.database import StoreReader, Writer, _digest

N = 5


def values(table: type, name: str) -> object:
    """Distinct values for a column of N rows; lists hold three entries each."""
    kind, is_list, _ = schema.columns(table)[name]
    one = np.arange(N * 3).reshape(N, 3) if is_list else np.arange(N)
    if kind is str:
        return [[f"text {i}" for i in row] if is_list else f"text {row}" for row in one]
    return {int: one, float: one / 4, bool: one % 2 == 0}[kind]


def content(table: type) -> dict[str, object]:
    """N ensembles of one SAE with one feature each, for the index of features must find all of them."""
    whole = {
        Study: {"schema_version": np.full(N, schema.SCHEMA_VERSION)},
        Ensemble: {"d_sae": np.ones(N, int), "n_comparisons": np.full(N, 3)},
        Feature: {"trigger": list(schema.TRIGGERS[:N])},
    }
    columns = {f.name: values(table, f.name) for f in fields(table)} | whole.get(table, {})
    return columns | ({"feature": np.zeros(N, int)} if {"ensemble", "feature"} <= set(columns) else {})


def publish(folder: Path, *, order=range(N), built_from: str = "x", **changes: object) -> Path:
    """Publish N rows of every table in the given order; `changes` are Table__column = values."""
    folder.mkdir(exist_ok=True)
    writer = Writer(folder)
    for table in schema.TABLES:
        columns = content(table)
        columns |= {key.split("__")[1]: v for key, v in changes.items() if key.split("__")[0] == table.__name__}
        for part in np.array_split(np.array(order), 2):
            writer.add(table, {name: [column[i] for i in part] for name, column in columns.items()})
    return writer.publish(built_from=built_from)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- what is refused ---------------------------------------------------------------------------------------------


def test_missing_and_unknown_columns_are_both_named(tmp_path):
    columns = content(Member)
    columns["evil"] = columns.pop("ev")
    with pytest.raises(ValueError, match=r"table Member: missing columns \['ev'\], unknown columns \['evil'\]"):
        Writer(tmp_path).add(Member, columns)


def test_columns_of_unequal_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match="table Token: columns of unequal length"):
        Writer(tmp_path).add(Token, {"id": [0, 1, 2], "text": ["a", "b"]})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("table", "column"), [(Member, "ev"), (Feature, "cosines")])
def test_a_number_that_is_not_finite_is_refused_by_its_column(tmp_path, table, column, bad):
    columns = content(table)
    columns[column][1, ...] = bad
    with pytest.raises(ValueError, match=f"table {table.__name__}, column {column}: found a value that is not finite"):
        Writer(tmp_path).add(table, columns)


def test_a_table_without_rows_keeps_everything_from_being_published(tmp_path):
    writer = Writer(tmp_path)
    writer.add(Token, content(Token))
    with pytest.raises(ValueError, match="has no rows; nothing is published"):
        writer.publish(built_from="x")
    assert files(tmp_path) == set()


def test_a_writer_that_is_left_takes_its_rows_along(tmp_path):
    with Writer(tmp_path) as writer:
        writer.add(Token, content(Token))
    assert files(tmp_path) == set()


def test_lists_that_are_counted_have_one_length(tmp_path):
    columns = content(Feature) | {"cosines": [[0.5] * (i + 1) for i in range(N)]}
    with Writer(tmp_path) as writer, pytest.raises(ValueError, match="column cosines: lists of unequal length"):
        writer.add(Feature, columns)


# -- what is written ---------------------------------------------------------------------------------------------


def test_every_table_is_read_back_as_it_was_added(tmp_path):
    ragged = [np.arange(i + 1) for i in range(N)]
    path = publish(tmp_path, Context__token_ids=ragged, order=[3, 0, 4, 1, 2])
    with duckdb.connect(str(path), read_only=True) as connection:
        for table in schema.TABLES:
            wanted = content(table) | ({"token_ids": ragged} if table is Context else {})
            names = ", ".join(f'"{name}"' for name in wanted)
            keys = ", ".join(f'"{key}"' for key in schema.SORT_KEYS[table])
            read = connection.sql(f"SELECT {names} FROM {table.__name__} ORDER BY {keys}").fetchall()
            assert read == [
                tuple(v.tolist() if isinstance(v, np.ndarray | np.generic) else v for v in row)
                for row in zip(*wanted.values(), strict=True)
            ]


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(N)))
def test_the_order_in_which_rows_are_added_does_not_change_the_name(tmp_path, order):
    assert publish(tmp_path / "other", order=order).name == publish(tmp_path / "sorted").name


@pytest.mark.parametrize(
    "changes",
    [
        {"Study__token_policy": [f"text {i}" for i in (0, 1, 2, 3, 9)]},
        {"Feature__n_active": [0, 1, 2, 3, 5]},
        {"Feature__dead": [True, False, True, False, False]},
        {"Ablation__ev": [0, 0.25, 0.5, 0.75, np.nextafter(1.0, 2)]},
        {"Match__partners": [*np.arange(12).reshape(4, 3), [12, 14, 13]]},
        {"Context__token_ids": [[0, 1], [2, 3, 4, 5], *np.arange(6, 15).reshape(3, 3)]},
        {"Token__text": ["text 0t", "ext 1", "text 2", "text 3", "text 4"]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_any_changed_value_changes_the_name(tmp_path, changes):
    assert publish(tmp_path / "a", **changes).name != publish(tmp_path / "b").name


def test_what_a_store_was_built_from_is_noted_but_not_part_of_its_name(tmp_path):
    assert publish(tmp_path / "a", built_from="1").name == publish(tmp_path / "b", built_from="2").name
    assert published(tmp_path / "b")[1] == "2"


# -- publishing --------------------------------------------------------------------------------------------------


def test_publishing_points_current_at_the_store_and_leaves_nothing_else(tmp_path):
    path = publish(tmp_path, built_from="here")
    assert published(tmp_path) == (path.name, "here")
    assert files(tmp_path) == {"CURRENT", path.name, index_folder(path).name}


def test_the_previous_store_is_kept_and_older_ones_are_removed(tmp_path):
    paths = [publish(tmp_path, Feature__n_active=[i, 1, 2, 3, 4]) for i in range(3)]
    assert files(tmp_path) == {"CURRENT", *(each.name for path in paths[1:] for each in (path, index_folder(path)))}
    assert published(tmp_path)[0] == paths[2].name


@pytest.mark.parametrize("fails", ["study-", "CURRENT"])
def test_a_publish_that_dies_before_either_rename_changes_nothing_for_readers(tmp_path, monkeypatch, fails):
    old = publish(tmp_path)
    before = old.read_bytes()
    replace = Path.replace

    def die(self: Path, target: Path) -> Path:
        if Path(target).name.startswith(fails):
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path, Feature__n_active=[9, 1, 2, 3, 4])
    assert published(tmp_path) == (old.name, "x")
    assert old.read_bytes() == before
    new = publish(tmp_path, Feature__n_active=[9, 1, 2, 3, 4])
    assert files(tmp_path) == {"CURRENT", *(each.name for path in (old, new) for each in (path, index_folder(path)))}


@pytest.mark.parametrize("text", [None, b"", b"one line\n", b"\xff\xfe\n\xff\n", b"study-0.duckdb\nx\n", b"a\nb\nc\n"])
def test_a_current_file_that_names_no_store_publishes_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "CURRENT").write_bytes(text)
    assert published(tmp_path) is None
    assert published(tmp_path / "no folder") is None


def test_a_reader_of_the_previous_store_keeps_its_data(tmp_path):
    old = publish(tmp_path)
    with duckdb.connect(str(old), read_only=True) as connection:
        publish(tmp_path, Feature__n_active=[9, 1, 2, 3, 4])
        assert connection.sql("SELECT sum(n_active) FROM Feature").fetchall() == [(10,)]


# -- seeds of 64 bits ----------------------------------------------------------------------------------------------


def test_a_stores_name_does_not_depend_on_the_width_of_its_seeds_and_numbers_of_tokens(tmp_path):
    """Stores that were written with 32 bits keep their names."""
    path = publish(tmp_path / "a", Study__schema_version=[schema.SCHEMA_VERSION] * N)
    with duckdb.connect(str(path)) as connection:
        for table in schema.TABLES:
            for name, (kind, is_list, _) in schema.columns(table).items():
                if kind is int and name in schema.WIDE_COLUMNS:
                    (stored,) = connection.execute(f'SELECT typeof("{name}") FROM {table.__name__} LIMIT 1').fetchone()
                    assert stored == "BIGINT" + "[]" * is_list
                    connection.execute(f'ALTER TABLE {table.__name__} ALTER "{name}" TYPE INTEGER{"[]" * is_list}')
        assert path.stem == f"study-{_digest(connection)}"
    with StoreReader(path) as reader:
        assert [row.seed for row in reader.rows(Member)] == list(range(N))


@pytest.mark.parametrize("n", [2**31, 5_000_000_000, 2**62])
def test_numbers_of_tokens_beyond_32_bits_are_stored_as_they_are(n, tmp_path):
    version = [schema.SCHEMA_VERSION] * N
    columns = {f"Ensemble__{name}": [n] * N for name in ("n_train_tokens", "train_tokens", "n_tokens", "n_outliers")}
    columns |= {"Study__n_eval_tokens": [n] * N, "Member__n_loss_tokens": [n] * N, "Feature__n_active": [n] * N}
    path = publish(tmp_path, Study__schema_version=version, **columns)
    with StoreReader(path) as reader:
        ensemble = reader.rows(Ensemble)[0]
        assert {ensemble.n_train_tokens, ensemble.train_tokens, ensemble.n_tokens, ensemble.n_outliers} == {n}
        assert [row.n_loss_tokens for row in reader.rows(Member)] == [n] * N
        assert reader.rows(Feature)[0].n_active == n


def test_every_column_that_counts_tokens_is_wide():
    """By what the tables say of their columns: a new one must not overflow at 2^31."""
    counts = {"tokens", "n_tokens"}
    for table in schema.TABLES:
        for name, column in schema.columns(table).items():
            if column.kind is int and (name in counts or name.endswith("_tokens")):
                assert name in schema.WIDE_COLUMNS, (table.__name__, name)


@pytest.mark.parametrize("seed", [2**31, 2**32 - 1, 20250101123456, 2**63 - 1])
def test_seeds_up_to_64_bits_are_stored_as_they_are(seed, tmp_path):
    seeds = [*range(N - 1), seed]
    version = [schema.SCHEMA_VERSION] * N
    of_seed = {f"{table}__seed": seeds for table in ("Member", "Feature", "Word", "Context")}
    path = publish(tmp_path / "a", Study__schema_version=version, Ensemble__anchor=seeds, **of_seed)
    with StoreReader(path) as reader:
        assert [row.seed for row in reader.rows(Member)] == seeds
        assert [row.seed for row in reader.rows(Feature, seed=seed)] == [seed]
    assert path.name != publish(tmp_path / "b", Member__seed=[*range(N - 1), seed - 1]).name
