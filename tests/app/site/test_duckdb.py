"""What a site holds for DuckDB-WASM: the numbers of its lines as Parquet, and nothing but the package it was checked with."""

import io
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedscope.app.site.make import make_site
from seedscope.app.site.parquet_table import parquet_files
from seedscope.app.site.wasm import FILES, INTEGRITY, PACKAGE, VERSION, read_package
from support.studies import STUDY

REPOSITORY = Path(__file__).parents[3]
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
LINE = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**63).map(str), "feature": st.integers(0, 2**31 - 1), "density": NUMBERS, "score": NUMBERS,
        "bucket": st.sampled_from(["stable", "dead", None]), "explanation": st.none() | st.text(),
        "top_tokens": st.none() | st.lists(st.integers(0, 99), max_size=3),
        "top_token_counts": st.none() | st.lists(st.integers(0, 2**53), max_size=3),
    }
)  # fmt: skip


@given(st.lists(st.lists(LINE, min_size=1, max_size=4), min_size=1, max_size=3))
def test_parquet_holds_what_the_blocks_hold(lines: list[list[dict[str, object]]]) -> None:
    blocks = [{name: [line[name] for line in block] for name in block[0]} for block in lines]
    lacking = [
        {name: values for name, values in block.items() if any(v is not None for v in values)} for block in blocks
    ]
    files = {name: pq.read_table(io.BytesIO(content)).to_pylist() for name, content in parquet_files(lacking).items()}
    flat = [line for block in lines for line in block]
    for rows in files.values():
        assert [row["i"] for row in rows] == list(range(len(flat)))
    for line, row, texts in zip(flat, files["table.parquet"], files["search.parquet"], strict=True):
        held = row | texts
        assert {name: held[name] for name in line} == line
        assert all(held[name] is None for name in held.keys() - line.keys() - {"i"})


def test_another_package_is_refused_and_nothing_is_written(study_root: Path, tmp_path: Path) -> None:
    other = tmp_path / "duckdb.tgz"
    other.write_bytes(b"another one")
    for package, says in ((other, "expected YaswpEmxr1Sp.."), (tmp_path / "none.tgz", "is no file")):
        with pytest.raises(ValueError, match=re.escape(says)) as refused:
            make_site(study_root, STUDY, tmp_path / "out", duckdb_wasm=package)
        assert str(package) in str(refused.value)
        assert f"npm pack {PACKAGE}@{VERSION}" in str(refused.value)
    with pytest.raises(ValueError, match="SHA-512"):
        read_package(other)
    assert [each.name for each in tmp_path.iterdir()] == ["duckdb.tgz"]


def test_one_version_is_named_everywhere() -> None:
    wanted = json.loads((REPOSITORY / ".ci/duckdb/package.json").read_text())["dependencies"]
    assert wanted[PACKAGE] == VERSION
    script = (REPOSITORY / "static/duckdb.min.js").read_text()
    assert script.startswith(
        f"/* duckdb-wasm {VERSION}, its part for pages, with apache-arrow {wanted['apache-arrow']}."
    )
    for file in ("templates/manual/static-site.md", "app/cli/site.py"):
        assert f"{PACKAGE}@{VERSION}" in (REPOSITORY / file).read_text()
    assert len(INTEGRITY) == 88  # of 64 bytes
    assert all(name.startswith("duckdb-") for name in FILES)
