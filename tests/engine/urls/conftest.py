"""What tests of storage share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.remote import emptied_memory


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A root that this process fetches below, and an empty store behind `memory://`."""
    with emptied_memory(tmp_path / "root") as folder:
        yield folder
