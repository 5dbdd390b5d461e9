"""What is installed: one import name, every package of it, and nothing that collides with others' code."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from support.paths import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built without network from a copy of its files."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and name.split("/")[0] not in ("tests", ".ci"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, folder], cwd=source, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_every_folder_with_code_is_a_package_that_the_distribution_names():
    folders = {path.parent.relative_to(ROOT) for top in ("app", "engine") for path in (ROOT / top).rglob("*.py")}
    names = {f"seedscope.{'.'.join(folder.parts)}" for folder in folders if folder.parts[:2] != ("app", "client")}
    assert names | {"seedscope", "seedscope.static", "seedscope.templates"} == set(SETTINGS["packages"])
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []


def test_the_wheel_holds_seedscope_alone_and_all_of_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"seedscope", f"seedscope-{wheel.name.split('-')[1]}.dist-info"}
    for top, target in (("app", "seedscope/app"), ("engine", "seedscope/engine"), ("templates", "seedscope/templates"),
                        ("static", "seedscope/static")):  # fmt: skip
        shipped = {
            f"{target}/{path.relative_to(ROOT / top)}"
            for path in (ROOT / top).rglob("*")
            if path.is_file()
            and "__pycache__" not in path.parts
            and path.relative_to(ROOT).parts[:2] != ("app", "client")
        }
        assert shipped - set(names) == set()
    client = {"__init__.py", "notebook.py", "py.typed", "feature_table.js", "feature_table.css"}
    assert {f"seedscope/{name}" for name in client} <= set(names)


def test_it_works_beside_packages_called_app_and_engine(wheel, tmp_path, study_root):
    """Installed by pip in front of everything else, beside somebody's own app and engine."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    for name in ("app", "engine"):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(f"mine = {name!r}\n")
    code = (
        "import app, engine, seedscope, seedscope.app.main, seedscope.app.settings as settings\n"
        "assert (app.mine, engine.mine) == ('app', 'engine')\n"
        "assert 'site' in seedscope.__file__ and 'site' in str(settings.TEMPLATES), seedscope.__file__\n"
        "assert (settings.TEMPLATES / 'base.html').is_file() and (settings.STATIC / 'app.css').is_file()\n"
        "import seedscope.engine.demo.stdlib as stdlib\n"
        "assert stdlib.CORPUS_LIST.is_file() and (stdlib.MODEL_DIR / 'config.json').is_file()\n"
        f"print(*seedscope.open({str(study_root)!r}))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["small"]
    command = [sys.executable, "-m", "seedscope.app.cli", "doctor", "--root", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
