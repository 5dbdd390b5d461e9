"""The features that stand for all: the same as ever for small seeds, and some for every seed that 64 bits hold."""

import duckdb
import pytest

from seedscope.engine.contract.index.sampling import fixed_sample


def sample(seeds: list[int], kind: str) -> list[tuple[int, int]]:
    with duckdb.connect() as connection:
        columns = f"unnest($seeds::{kind}[]) AS seed, unnest(range(3))::INTEGER AS feature"
        connection.execute(f"CREATE TABLE t AS SELECT {columns}", {"seeds": seeds})
        return connection.execute(f"SELECT seed, feature FROM t {fixed_sample('n')}", {"n": 2}).fetchall()


@pytest.mark.parametrize("kind", ["INTEGER", "BIGINT"])
def test_small_seeds_are_ordered_by_the_hash_of_their_number(kind):
    with duckdb.connect() as connection:
        numbers = [(seed, seed) for seed in range(3)]
        hashes = {
            place: connection.execute(f"SELECT hash(({place[0]} * 1000003 + {place[1]})::INTEGER)").fetchone()
            for place in numbers
        }
    assert sample([0, 1, 2], kind) == sorted(numbers, key=hashes.__getitem__)[:2]


def test_any_seed_can_be_sampled():
    assert set(sample([5, 2**31, 2**63 - 1], "BIGINT")) < {(5, 0), (2**31, 1), (2**63 - 1, 2)}
    assert len(sample([2147, 42424, 2**31 - 1], "INTEGER")) == 2
