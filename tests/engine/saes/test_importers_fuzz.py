"""Hypothesis damages the committed checkpoints of other libraries: bits of any file, and settings that become any JSON."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from seedscope.engine.saes.importers.ensemble import read
from support.paths import CHECKPOINTS

LONGEST_LINE = 2_000  # characters of a refusal
CONFIGS = ("config.json", "cfg.json")
FOLDERS = sorted(
    path.parent for name in CONFIGS for path in CHECKPOINTS.rglob(name) if any(path.parent.glob("*.safetensors"))
) + sorted(path.parent for path in CHECKPOINTS.rglob("ae.pt"))
FILES = sorted(CHECKPOINTS.glob("overcomplete/*.pt"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where a JSON value has settings, at every depth."""
    found = [at] if at else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [place for key, child in children for place in places(child, (*at, key))]


def flip(data: st.DataObject, path: Path) -> None:
    content = bytearray(path.read_bytes())
    # The beginning holds names, shapes and offsets: most of what a reader decides by.
    edge = st.integers(0, min(len(content), 600) - 1)
    for place in data.draw(st.lists(edge | st.integers(0, len(content) - 1), min_size=1, max_size=6), "bytes"):
        content[place] ^= 1 << data.draw(st.integers(0, 7), "bit")
    path.write_bytes(bytes(content))


def set_anything(data: st.DataObject, path: Path) -> None:
    config = json.loads(path.read_text())
    place = data.draw(st.sampled_from(places(config)), "setting")
    parent = config
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = data.draw(JSON, "value")
    path.write_text(json.dumps(config))


def damage(data: st.DataObject) -> None:
    """One damaged copy is read, or refused in one line."""
    source = data.draw(st.sampled_from(FOLDERS + FILES).map(str), "checkpoint")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / Path(source).name
        shutil.copytree(source, target) if Path(source).is_dir() else shutil.copy(source, target)
        files = sorted(path for path in ([target] if target.is_file() else target.rglob("*")) if path.is_file())
        path = data.draw(st.sampled_from([str(file.relative_to(folder)) for file in files]), "file")
        chosen = Path(folder) / path
        if chosen.suffix == ".json" and data.draw(st.booleans(), "as JSON"):
            set_anything(data, chosen)
        else:
            flip(data, chosen)
        refusal = ""
        try:
            read(target)
        except ValueError as error:
            refusal = str(error)
        note(refusal)
        assert "\n" not in refusal
        assert len(refusal) <= LONGEST_LINE


@settings(max_examples=40, deadline=10_000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_checkpoint_is_read_or_refused_in_one_line(data):
    damage(data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=5_000, deadline=10_000, suppress_health_check=list(HealthCheck), database=None)
@given(st.data())
def test_thousands_of_damaged_checkpoints_are_read_or_refused_in_one_line(data):
    damage(data)
