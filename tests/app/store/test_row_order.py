"""Orders of rows against a list that Python sorts: all three kinds give the same rows beyond any place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedscope.app.store.row_order import CountOrder, ListPlace, SortedRows, StoredOrder

N = 60


@st.composite
def lists(draw):
    """Numbers of N rows, which rows are found, the direction, and a place that may lie between rows."""
    numbers = np.array(draw(st.lists(st.integers(0, 5), min_size=N, max_size=N)), np.uint8)
    found = np.array(draw(st.lists(st.booleans(), min_size=N, max_size=N)))
    down = draw(st.booleans())
    value = draw(st.integers(-1, 6))
    row = draw(st.integers(0, 2 * N)) / 2 - 0.5
    return numbers, found, down, ListPlace(-value if down else value, row)


def orders(numbers, found, down):
    signed = -numbers.astype(float) if down else numbers.astype(float)
    rows = np.flatnonzero(found)
    every = np.lexsort((np.arange(N), signed))
    return [
        SortedRows(rows, signed[rows]),
        StoredOrder(lambda begin, end: every[begin:end], N, lambda row: float(signed[row]), found),
        CountOrder(numbers, 5, found, down=down),
    ]


@settings(max_examples=150, deadline=None)
@given(drawn=lists(), limit=st.integers(1, 70))
def test_rows_beyond_and_in_front_of_a_place(drawn, limit):
    numbers, found, down, place = drawn
    keys = sorted((-int(numbers[row]) if down else int(numbers[row]), row) for row in range(N) if found[row])
    beyond = [row for key, row in keys if (key, row) > tuple(place)]
    in_front = [row for key, row in keys if (key, row) < tuple(place)]
    for order in orders(numbers, found, down):
        assert order.after(place, limit).tolist() == beyond[:limit]
        assert order.before(place, limit).tolist() == in_front[-limit:]
        assert order.count_before(place) == len(in_front)
        assert order.after(None, limit).tolist() == [row for _, row in keys][:limit]
        assert order.whole().tolist() == [row for _, row in keys]


@pytest.mark.parametrize("down", [True, False])
def test_all_rows_are_found_without_a_filter(down):
    numbers = np.arange(N, dtype=np.uint8) % 4
    every = np.lexsort((np.arange(N), -numbers.astype(int) if down else numbers))
    counted = CountOrder(numbers, 3, None, down=down)
    stored = StoredOrder(
        lambda begin, end: every[begin:end], N, lambda row: float(numbers[row]) * (-1 if down else 1), None
    )
    assert counted.whole().tolist() == stored.whole().tolist() == every.tolist()
    assert counted.after(None, 7).tolist() == stored.after(None, 7).tolist() == every[:7].tolist()
