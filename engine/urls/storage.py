"""One storage behind a URL: opened, listed and asked, with every way in which that fails as one clear ValueError."""

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

import fsspec

from seedscope.engine.contract.names import inside
from seedscope.engine.contract.urls import SCHEMES, hidden

# What storages call a checksum of a file's content, and when it was written.
_CHECKSUMS = ("ETag", "etag", "md5Hash", "crc32c", "generation")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
_LONGEST = 200  # characters of what a package says
_REFUSALS = ("credential", "forbidden", "accessdenied", "unauthorized", "invalidaccesskey", "signature", "token")


class RemoteFile(NamedTuple):
    """One file of a storage."""

    url: str
    size: int  # bytes
    stamp: str | None  # another one where the content is another; None where the storage says nothing
    changed: float | None  # Unix seconds


@contextmanager
def storage(url: str) -> Iterator[fsspec.AbstractFileSystem]:
    """The file system that reaches a URL; whatever fails inside is a ValueError that names the URL and the way out.

    Raises ValueError at once where the package for its scheme is not installed. Listings are never taken from a cache.
    """
    scheme = url.split("://", 1)[0]
    package = SCHEMES[scheme]
    if package is not None:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(
                f"{url} needs the {package} package ({hidden(str(error))}); install it with: pip install {package}"
            ) from None
    try:
        system = fsspec.filesystem(scheme)
        system.invalidate_cache()
        yield system
    except ValueError:  # already in words
        raise
    except FileNotFoundError:
        raise ValueError(f"found nothing at {url}; check bucket and path") from None
    except Exception as error:  # each package raises errors of its own, of no common kind
        raise ValueError(_refusal(url, package, error)) from None


def _refusal(url: str, package: str | None, error: Exception) -> str:
    """Why a storage did not answer, in words."""
    says = hidden(" ".join(str(error).split()))[:_LONGEST] or "no more is said"
    kind = type(error).__name__
    if isinstance(error, PermissionError) or any(word in f"{kind} {says}".lower() for word in _REFUSALS):
        return (
            f"{url}: access is refused ({kind}: {says}); give {package or 'its package'} credentials that may do this, in the "
            "environment or in its own configuration"
        )
    return f"{url} cannot be reached ({kind}: {says}); check the network and the settings of {package or 'its package'}"


def listed(system: fsspec.AbstractFileSystem, url: str) -> dict[str, RemoteFile]:
    """{URL: file} of all files at a URL, which may be one file, a folder or a pattern; empty where there is none.

    In a pattern `*` stands within one name, `**` for any folders, and folders that it matches are left out.
    """
    system.invalidate_cache()
    found = system.glob(_escaped(url), detail=True) if is_pattern(url) else system.find(url, detail=True)
    return _files(system, url, found)


def beside(system: fsspec.AbstractFileSystem, url: str) -> dict[str, RemoteFile]:
    """{URL: file} of the files in one folder, without those in folders below it."""
    return _files(system, url, {entry["name"]: entry for entry in system.ls(url, detail=True)})


def one(system: fsspec.AbstractFileSystem, url: str) -> RemoteFile | None:
    """One file; None where it is not there or may not be seen, which storages do not tell apart for those who may not list."""
    try:
        found = _files(system, url, {url: system.info(url)})
    except (FileNotFoundError, PermissionError):
        return None
    return found.get(url)


def folders_matching(system: fsspec.AbstractFileSystem, pattern: str) -> list[str]:
    """URLs of the files and folders that a pattern matches, in no order."""
    return [_url(pattern, name) for name in system.glob(_escaped(pattern))]


def is_pattern(url: str) -> bool:
    """Whether a URL stands for all that match it."""
    return "*" in url


def _escaped(pattern: str) -> str:
    """A pattern in which brackets are characters of names."""
    return pattern.replace("[", "[[]")


def _files(
    system: fsspec.AbstractFileSystem, url: str, found: Mapping[str, Mapping[str, Any]]
) -> dict[str, RemoteFile]:
    files = {}
    for name, entry in found.items():
        about = entry or system.info(name)  # some say nothing of a single file
        if about.get("type") == "directory" or name.endswith("/"):  # a marker that stands for a folder
            continue
        path = _url(url, about.get("name") or name)
        inside(path.split("://", 1)[1])
        size = about.get("size")
        if size is None:
            raise ValueError(f"{path} has no size that its storage knows, expected a file")
        files[path] = RemoteFile(path, int(size), _stamp(about), _changed(about))
    return files


def _url(like: str, name: str) -> str:
    """The URL of a name that a storage gave, under the scheme of another."""
    return f"{like.split('://', 1)[0]}://{name.split('://', 1)[-1].lstrip('/')}"


def _stamp(about: Mapping[str, Any]) -> str | None:
    """What tells a file's content from another one: its checksum and size, else its time and size."""
    sums = [[name, str(about[name]).strip('"')] for name in _CHECKSUMS if about.get(name)]
    if sums:
        return json.dumps([*sums, about["size"]])
    changed = _changed(about)
    return None if changed is None else json.dumps([changed, about["size"]])


def _changed(about: Mapping[str, Any]) -> float | None:
    for name in _TIMES:
        value = about.get(name)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None
