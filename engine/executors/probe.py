"""Whether another machine can do this machine's units: the same code, and the same folder, before any work begins."""

import hashlib
import secrets
import socket
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from seedscope.engine.executors.unit import called

PACKAGE = "seedscope"


class Expected(NamedTuple):
    """What a node must have."""

    version: str
    code: str
    """`code_digest` of this machine's."""
    token: str
    """A file in the shared folder."""


@cache
def code_digest() -> str:
    """16 hex digits over the source of the engine: versions of one number may differ, and so may their results."""
    folder = Path(__file__).parent.parent
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        sha.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return sha.hexdigest()[:16]


def expected_in(root: Path) -> Expected:
    """What nodes must have, with a new token file in the root, which is the caller's to remove."""
    token = root.absolute() / f".shared-{secrets.token_hex(8)}"
    token.write_text("")
    return Expected(version(PACKAGE), code_digest(), str(token))


def asking() -> Callable[[str], dict[str, Any]]:
    """A function that says what a node has; cloudpickle sends it whole, as it stands in no module that a node could lack."""

    def facts(token: str) -> dict[str, Any]:
        import socket
        import sys
        from importlib.metadata import PackageNotFoundError, version
        from pathlib import Path

        found: dict[str, Any] = {"host": socket.gethostname(), "python": sys.executable, "version": None, "code": ""}
        try:
            found["version"] = version("seedscope")
            from seedscope.engine.executors.probe import code_digest

            found["code"] = code_digest()
        except PackageNotFoundError:
            pass
        except ImportError as error:  # from before there were executors, or not there but for its metadata
            found["version"] = None if error.name == "seedscope" else found["version"]
        return found | {"sees": Path(token).exists()}

    return facts


def problem(found: dict[str, Any], expected: Expected) -> str | None:
    """Why a node cannot take units, in one line; None where it can."""
    node = f"node {found['host']}"
    if found["version"] is None:
        return (
            f"{node} has no {PACKAGE} for {found['python']}, expected version {expected.version}; install it there, or start the "
            "node with an environment on a shared disk"
        )
    if found["version"] != expected.version:
        return f"{node} has {PACKAGE} {found['version']}, expected {expected.version} as on this machine; install the same on both"
    if found["code"] != expected.code:
        return (
            f"{node} has {PACKAGE} {found['version']} with other code than this machine's (digest {found['code'] or 'unknown'}, "
            f"expected {expected.code}); install the same on both"
        )
    if not found["sees"]:
        root = Path(expected.token).parent
        return (
            f"node {found['host']} does not see the files that this machine writes under {root}, expected a folder that all nodes "
            "share; choose one with --root DIR"
        )
    return None


class UnfitNodeError(ValueError):
    """A node cannot take units; the message says why."""


def called_on_node(expected: Expected, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call a unit where it may: nodes that joined after the probe are looked at here. Raises UnfitNodeError."""
    found = {
        "host": socket.gethostname(), "python": sys.executable, "version": version(PACKAGE), "code": code_digest(),
        "sees": Path(expected.token).exists(),
    }  # fmt: skip
    if reason := problem(found, expected):
        raise UnfitNodeError(reason)
    return called(threads, function, arguments)
