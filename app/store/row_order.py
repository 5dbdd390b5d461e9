"""Orders of the rows that a query finds: the rows beyond a place, without sorting all of them.

A place is (value, row): the value that the list is sorted by, and the row of the feature, by which equal values are ordered in
either direction. Values that are missing stand last in both directions. `signed` values ascend along the list.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

_FIRST_CHUNK, _MOST_CHUNK = 4_096, 1 << 20
_AT_ONCE = 1 << 18  # rows that are compared with a number before the next ones


_KEY = re.compile(r"(-?(?:inf|[0-9]{1,18}(?:\.[0-9]{1,20})?(?:e-?[0-9]{1,3})?))_([0-9]{1,19})_([0-9]{1,9})")
_LARGEST_VALUE = 3.4028234663852886e38  # of float32, which some of the columns are that lists are sorted by


def read_key(key: str) -> tuple[float, int, int] | None:
    """(value, seed, feature) of a position VALUE_SEED_FEATURE; None for anything else, a value that no column has included."""
    match = _KEY.fullmatch(key)
    value = float(match[1]) if match else 0.0
    if match is None or (abs(value) > _LARGEST_VALUE and "inf" not in match[1]):
        return None
    return value, int(match[2]), int(match[3])


class ListPlace(NamedTuple):
    """Where a row stands in a list."""

    signed: float  # the value, negated where the list descends; infinity where it is missing
    row: float  # may lie between two rows


class RowOrder(Protocol):
    """The rows that are found, in the order of a list."""

    def after(self, place: ListPlace | None, limit: int) -> np.ndarray:
        """The first rows beyond a place, or of the list."""

    def before(self, place: ListPlace, limit: int) -> np.ndarray:
        """The last rows in front of a place, in the order of the list."""

    def count_before(self, place: ListPlace) -> int:
        """How many rows stand in front of a place."""

    def whole(self) -> np.ndarray:
        """All rows."""


class SortedRows:
    """Rows in ascending order and their values; only as many are sorted as are asked for."""

    def __init__(self, rows: np.ndarray, signed: np.ndarray) -> None:
        self._rows, self._signed = rows, signed

    def after(self, place: ListPlace | None, limit: int) -> np.ndarray:
        """See RowOrder."""
        at = np.arange(len(self._rows))
        if place is not None:
            on_it = (self._signed == place.signed) & (self._rows > place.row)
            at = np.flatnonzero((self._signed > place.signed) | on_it)
        return self._rows[self._lowest(at, limit)]

    def before(self, place: ListPlace, limit: int) -> np.ndarray:
        """See RowOrder."""
        at = np.flatnonzero(self._in_front(place))
        if len(at) > 4 * limit:  # from behind: the values negated, the rows reversed
            behind = SortedRows(np.arange(len(at)), -self._signed[at[::-1]])
            return self._rows[at[::-1][behind.after(None, limit)]][::-1]
        return self._rows[self._lowest(at, len(at))[-limit:]]

    def count_before(self, place: ListPlace) -> int:
        """See RowOrder."""
        return int(np.count_nonzero(self._in_front(place)))

    def whole(self) -> np.ndarray:
        """See RowOrder."""
        return self._rows[np.argsort(self._signed, kind="stable")]

    def _in_front(self, place: ListPlace) -> np.ndarray:
        on_it = (self._signed == place.signed) & (self._rows < place.row)
        return (self._signed < place.signed) | on_it

    def _lowest(self, at: np.ndarray, limit: int) -> np.ndarray:
        """The first of some positions by value, then by position."""
        signed = self._signed[at]
        if len(at) > 4 * limit:
            last = np.partition(signed, limit - 1)[limit - 1]  # the value of the last that is taken
            below, equal = np.flatnonzero(signed < last), np.flatnonzero(signed == last)
            at = at[np.sort(np.concatenate([below, equal[: limit - len(below)]]))]
            signed = self._signed[at]
        return at[np.argsort(signed, kind="stable")][:limit]


class StoredOrder:
    """A stored order of all rows, and which of them are found."""

    def __init__(
        self,
        rows: Callable[[int, int], np.ndarray],
        n_rows: int,
        signed: Callable[[int], float],
        found: np.ndarray | None,
    ) -> None:
        """`rows(begin, end)` are the rows at these positions, `signed(row)` a row's value."""
        self._rows, self._n, self._signed, self._found = rows, n_rows, signed, found

    def _at(self, place: ListPlace, *, beyond: bool) -> int:
        def key(position: int) -> tuple[float, float]:
            row = int(self._rows(position, position + 1)[0])
            return self._signed(row), row

        at = bisect_left(range(self._n), tuple(place), key=key)
        return at + 1 if beyond and at < self._n and key(at) == tuple(place) else at

    def _chunks(self, begin: int, end: int) -> Iterator[np.ndarray]:
        size = _FIRST_CHUNK
        while begin < end:
            rows = self._rows(begin, min(end, begin + size))
            yield rows if self._found is None else rows[self._found[rows]]
            begin, size = begin + size, min(2 * size, _MOST_CHUNK)

    def after(self, place: ListPlace | None, limit: int) -> np.ndarray:
        """See RowOrder."""
        begin = self._at(place, beyond=True) if place else 0
        return _first(self._chunks(begin, self._n), limit)

    def before(self, place: ListPlace, limit: int) -> np.ndarray:
        """See RowOrder."""
        end, size, parts, n = self._at(place, beyond=False), _FIRST_CHUNK, [], 0
        while end > 0 and n < limit:
            rows = self._rows(max(0, end - size), end)
            parts.append(rows if self._found is None else rows[self._found[rows]])
            n += len(parts[-1])
            end, size = end - size, min(2 * size, _MOST_CHUNK)
        return np.concatenate(parts[::-1])[-limit:] if parts else np.zeros(0, np.int64)

    def count_before(self, place: ListPlace) -> int:
        """See RowOrder."""
        at = self._at(place, beyond=False)
        return at if self._found is None else sum(len(rows) for rows in self._chunks(0, at))

    def whole(self) -> np.ndarray:
        """See RowOrder."""
        return _first(self._chunks(0, self._n), self._n)


class CountOrder:
    """Rows by a small whole number, such as X: equal numbers are found by comparison, the largest first or the smallest."""

    def __init__(self, numbers: np.ndarray, largest: int, found: np.ndarray | None, *, down: bool) -> None:
        self._numbers, self._found = numbers, found
        self._values = list(range(largest, -1, -1) if down else range(largest + 1))
        self._sign = -1 if down else 1

    def _equal(self, value: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Rows of a number from `begin` to before `end`, ascending."""
        rows = slice(begin, len(self._numbers) if end is None else end)
        equal = self._numbers[rows] == value
        if self._found is not None:
            equal &= self._found[rows]
        return np.flatnonzero(equal) + begin

    def _beyond(self, place: ListPlace | None) -> Iterator[np.ndarray]:
        n = len(self._numbers)
        for value in self._values:
            if place is not None and self._sign * value < place.signed:
                continue
            on_it = place is not None and self._sign * value == place.signed
            first = max(0, int(np.floor(place.row)) + 1) if place is not None and on_it else 0
            for begin in range(first, n, _AT_ONCE):
                yield self._equal(value, begin, min(n, begin + _AT_ONCE))

    def _in_front(self, place: ListPlace) -> Iterator[np.ndarray]:
        """The last rows first, some at a time, each time ascending."""
        n = len(self._numbers)
        for value in self._values[::-1]:
            if self._sign * value > place.signed:
                continue
            last = min(n, max(0, int(np.ceil(place.row)))) if self._sign * value == place.signed else n
            for end in range(last, 0, -_AT_ONCE):
                yield self._equal(value, max(0, end - _AT_ONCE), end)

    def after(self, place: ListPlace | None, limit: int) -> np.ndarray:
        """See RowOrder."""
        return _first(self._beyond(place), limit)

    def before(self, place: ListPlace, limit: int) -> np.ndarray:
        """See RowOrder."""
        parts: list[np.ndarray] = []
        n = 0
        for part in self._in_front(place):
            parts.append(part)
            n += len(part)
            if n >= limit:
                break
        return np.concatenate(parts[::-1])[-limit:] if parts else np.zeros(0, np.int64)

    def count_before(self, place: ListPlace) -> int:
        """See RowOrder."""
        value = self._sign * place.signed  # the number itself
        in_front = self._numbers > value if self._sign < 0 else self._numbers < value
        if self._found is not None:
            in_front = in_front & self._found
        on_it = self._equal(int(value), 0, max(0, int(np.ceil(place.row)))) if float(value).is_integer() else ()
        return int(np.count_nonzero(in_front)) + len(on_it)

    def whole(self) -> np.ndarray:
        """See RowOrder."""
        signed = self._numbers if self._sign > 0 else self._values[0] - self._numbers
        order = np.argsort(signed, kind="stable")
        return order if self._found is None else order[self._found[order]]


def _first(parts: Iterator[np.ndarray], limit: int) -> np.ndarray:
    """The first entries of arrays that are made one by one."""
    taken: list[np.ndarray] = []
    n = 0
    for part in parts:
        taken.append(part)
        n += len(part)
        if n >= limit:
            break
    return np.concatenate(taken)[:limit] if taken else np.zeros(0, np.int64)
