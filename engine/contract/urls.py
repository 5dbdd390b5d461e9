"""Names of storage that fsspec reaches, `s3://bucket/folder`: which they are, and what they must not hold. Standard library only.

Such a name is kept in studies, logs and manifests, so one that holds a secret (`user:password@`, a signed query string) is refused
wherever it is read, and `hidden` takes secrets out of any text.
"""

import re
from pathlib import Path

# {scheme: the package that reaches it; None: fsspec itself}.
SCHEMES: dict[str, str | None] = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "memory": None}
FILE = "file://"  # of this machine: the path behind it is used as it is
HUBS = ("hf:", "public:", "saelens:")  # names of other kinds
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# As pathlib writes a URL: it takes two slashes for one.
_COLLAPSED = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)")
_USER = re.compile(r"(\w://)[^/\s@'\"]*@")
_QUERY = re.compile(r"(\w://[^\s?'\"]*\?)[^\s'\"]+")
EXPECTED = f"expected one of {', '.join(f'{scheme}://' for scheme in SCHEMES)} or {FILE}"


def url_in(given: Path | str) -> str | None:
    """The URL that a source is, without a slash at its end; None for paths of this machine and names on a hub.

    A path made of a URL counts as that URL. Raises ValueError for a scheme that is not read here, for a chain of URLs, for one
    that names no bucket, and, without repeating it, for one that holds a secret.
    """
    text = str(given)
    if isinstance(given, Path):
        text = _COLLAPSED.sub(r"\1://", text, count=1)
    scheme = _URL.match(text)
    if scheme is None or text.startswith((FILE, *HUBS)):
        return None
    if "::" in text:
        raise ValueError(f"{hidden(text)} chains URLs, expected one; fetch and unpack it, and name what is inside")
    if scheme[1] not in SCHEMES:
        raise ValueError(f"{hidden(text)} begins with {scheme[1]}://, {EXPECTED}")
    rest = text[scheme.end() :]
    if "@" in rest.split("/", 1)[0]:
        raise ValueError(
            f"{hidden(text)} holds a user or a password, which would stay in studies and logs; leave them out, and give them "
            f"where {SCHEMES[scheme[1]] or 'fsspec'} looks for credentials (environment, its own configuration)"
        )
    if "?" in rest:
        raise ValueError(
            f"{hidden(text)} holds a query string, which may be a signature and would stay in studies and logs; name the file "
            "alone, and give credentials in the environment (patterns are written with *)"
        )
    if not rest.strip("/"):
        raise ValueError(f"{text} names no bucket, expected such as {scheme[1]}://BUCKET/FOLDER")
    return text.rstrip("/")


def on_this_machine(given: Path | str) -> Path | str:
    """The path of a `file://` URL; anything else as it is."""
    text = str(given)
    return text.removeprefix(FILE) if not isinstance(given, Path) and text.startswith(FILE) else given


def whole_source(source: str, folder: Path) -> str:
    """A source of text or activations, to be found from anywhere: a relative path stands below the folder."""
    if url := url_in(source):
        return url
    path = str(on_this_machine(source))
    return path if path.startswith(("hf:", "/", "~")) else str(folder / path)


def hidden(text: str) -> str:
    """A text with what URLs in it could hold of secrets as `***`: user and password, and query strings."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))
