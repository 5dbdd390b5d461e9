"""What one client may ask of the live engine: so many questions under way at once, and so many a second.

A client is the address that a request comes from; behind a proxy that is the proxy's, unless `serve` is told to trust it. IPv6
gives everybody a whole network, which counts as one client.
"""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MOST_AT_ONCE = 48
PER_S = 20.0
BURST = 120.0  # at once by a client that was quiet
MOST_CLIENTS = 4096  # remembered; the longest quiet one is forgotten first


class GreedyError(Exception):
    """A client asks more than its share; `retry_s`: when to ask again."""

    def __init__(self, found: str, retry_s: int) -> None:
        super().__init__(found)
        self.retry_s = retry_s


@dataclass
class _Client:
    under_way: int
    left: float  # questions that it may ask now
    seen: float  # when that was so


class Shares:
    """The shares of all clients of one process. Used in the event loop alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients: OrderedDict[str, _Client] = OrderedDict()  # by network, the longest quiet first

    @contextmanager
    def one(self, host: str) -> Iterator[None]:
        """A question of a client for the length of the block; raises GreedyError."""
        client = self._client(host)
        if client.under_way >= MOST_AT_ONCE:
            raise GreedyError(f"{client.under_way} questions under way from your address", 1)
        if client.left < 1:
            raise GreedyError(f"more than {PER_S:g} questions a second", math.ceil((1 - client.left) / PER_S))
        client.left -= 1
        client.under_way += 1
        try:
            yield
        finally:
            client.under_way -= 1

    def _client(self, host: str) -> _Client:
        name, now = _network(host), self._clock()
        client = self._clients.setdefault(name, _Client(0, BURST, now))
        client.left = min(client.left + PER_S * (now - client.seen), BURST)
        client.seen = now
        self._clients.move_to_end(name)
        while len(self._clients) > MOST_CLIENTS:
            self._clients.popitem(last=False)
        return client


def _network(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a test's client, or a socket without an address
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host
