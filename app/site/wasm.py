"""DuckDB-WASM for sites: the files that pages start it from, taken from npm's own package, which is checked first."""

import base64
import hashlib
import tarfile
from pathlib import Path

PACKAGE, VERSION = (
    "@duckdb/duckdb-wasm",
    "1.28.0",
)  # as .ci/duckdb/package.json, which static/duckdb.min.js is built from
INTEGRITY = (
    "YaswpEmxr1Sp20/FZbWR7bZBJqj6xQXX2m4LLzYBnA02g4K1yrpxsBWmkxQyMbrH6AHKhcUUqAlaXfA2Rvaa3w=="  # sha512, base 64
)
FILES = ("duckdb-eh.wasm", "duckdb-browser-eh.worker.js")
SCRIPTS = ("duckdb.min.js", "site-query.js")  # of static/


def read_package(package: Path) -> dict[str, bytes]:
    """{name: content} of DuckDB's files in npm's package; raises ValueError for another file than exactly this version's."""
    way_out = f"get it with: npm pack {PACKAGE}@{VERSION}"
    if not package.is_file():
        raise ValueError(f"{package} is no file, expected the package of {PACKAGE} {VERSION}; {way_out}")
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if digest != INTEGRITY:
        raise ValueError(
            f"{package} has the SHA-512 {digest[:12]}.., expected {INTEGRITY[:12]}.., that of {PACKAGE} {VERSION}; {way_out}"
        )
    with tarfile.open(package) as archive:
        files = {name: archive.extractfile(f"package/dist/{name}") for name in FILES}
        return {name: file.read() for name, file in files.items() if file is not None}
