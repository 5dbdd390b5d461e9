"""A cache of arrays that is bounded by their bytes, shared by all of a study's ensembles and pages."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

LIMIT = 64 << 20  # bytes: the buckets of 3.1 million features at 20 settings


class ByteCache:
    """Arrays by key; what was used least recently leaves first. An array is computed once, whoever asks meanwhile waits."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._size = limit, 0
        self._arrays: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self._computing: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of a key; computed where there is none. It is read-only, for it is shared."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
            mine = self._computing.setdefault(key, threading.Lock())
        with mine:
            with self._lock:
                if key in self._arrays:
                    return self._arrays[key]
            array = compute()
            array.flags.writeable = False
            with self._lock:
                self._keep(key, array)
                self._computing.pop(key, None)
        return array

    def _keep(self, key: Hashable, array: np.ndarray) -> None:
        if array.nbytes > self._limit // 2:  # it would drive out all others
            return
        self._arrays[key] = array
        self._size += array.nbytes
        while self._size > self._limit:
            _, oldest = self._arrays.popitem(last=False)
            self._size -= oldest.nbytes
