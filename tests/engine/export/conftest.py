"""The small study as an export, for tests that restore one."""

import shutil
from pathlib import Path

import pytest

from seedscope.engine.export.formats import export

STUDY = "small"


@pytest.fixture(scope="module")
def exported(study_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study as Parquet; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("exported") / "small"
    export(study_root, STUDY, folder)
    return folder


@pytest.fixture
def own(exported: Path, tmp_path: Path) -> Path:
    """A copy of the export that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "own"))
