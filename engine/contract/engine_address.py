"""Where a live engine listens for other machines, and what both sides agree on. Standard library only.

A question is one HTTP/1.1 request per connection: `POST /ask`, whose body is the query's line as it goes over the Unix socket; the
body of a good answer is what comes back over that. Headers say who asks: the token, what version speaks, and which store of the
study the asker shows.
"""

import hashlib
import ipaddress
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from typing import NamedTuple
from urllib.parse import urlsplit

from seedscope.engine.contract.queries import KINDS, LiveAnswer, LiveQuery

PATH = "/ask"
SPEAKS_HEADER = "x-seedscope-speaks"
STORE_HEADER = "x-seedscope-store"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
LONGEST_HEAD = 2**14  # bytes of a request's or an answer's head


class EngineUrl(NamedTuple):
    """The parts of an engine's address."""

    is_tls: bool
    host: str
    port: int

    def __str__(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{shown}:{self.port}"


def engine_url(text: str) -> EngineUrl:
    """The parts of an address such as http://gpu.example:8766; raises ValueError for anything else."""
    expected = "expected http://HOST:PORT or https://HOST:PORT, with nothing behind it"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"engine URL is {text!r:.200}, {expected}") from None
    is_bare = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_bare:
        raise ValueError(f"engine URL is {text!r:.200}, {expected}")
    is_tls = parts.scheme == "https"
    return EngineUrl(is_tls, parts.hostname, port or (443 if is_tls else 80))


@cache
def speaks() -> str:
    """The version of this installation and a digest of its queries and answers: equal on both sides, or nothing is asked."""
    shape = [KINDS, *((each.name, str(each.type)) for kind in (LiveQuery, LiveAnswer) for each in fields(kind))]
    return f"{version('seedscope')} {hashlib.sha256(repr(shape).encode()).hexdigest()[:8]}"


def host_name(header: str) -> str:
    """The name in a Host header, without its port; "" where it is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def is_served(name: str, names: frozenset[str], *, beyond_loopback: bool) -> bool:
    """Whether a Host header's name may be answered: a name that was allowed, or beyond loopback a literal address.

    A literal address cannot be rebound by DNS; names can.
    """
    if name in names:
        return True
    if not beyond_loopback:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
