"""What is installed: one import name, every package of it, and nothing that collides with others' code."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import seedscope
from seedscope.app.cli.main import COMMANDS
from seedscope.engine.demo import stdlib
from support.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETTINGS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
EXTRAS = set(PROJECT["optional-dependencies"]) - {"test", "audit", "release"}
DISTRIBUTIONS = {
    "PIL": "pillow", "faiss": "faiss-cpu", "markdown_it": "markdown-it-py", "sklearn": "scikit-learn",
    "sknetwork": "scikit-network",
}  # fmt: skip
PEERS = {  # used where they are installed, to measure against or to read from; types alone; a part of PyTorch's CUDA build
    "_typeshed", "delphi", "dictionary_learning", "ot", "overcomplete", "sae_dashboard", "sae_lens", "transformer_lens", "triton",
    "sparsify", "flex_sae",
}  # fmt: skip
EPOCH = "1767225600"  # 2026-01-01: stands in every file of a wheel, so that two builds are the same bytes


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of this checkout's files, with the time that releases are stamped with."""
    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def built(kind: str, source: Path, folder: Path) -> Path:
    """The `wheel` or `sdist` that setuptools makes of a source tree, without network."""
    code = f"from setuptools import build_meta; import sys; build_meta.build_{kind}(sys.argv[1])"
    command = [sys.executable, "-W", "ignore", "-c", code, folder]
    subprocess.run(command, cwd=source, check=True, capture_output=True, env=os.environ | {"SOURCE_DATE_EPOCH": EPOCH})
    (file,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return file


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory) -> Path:
    return built("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return built("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_every_folder_with_code_is_a_package_that_the_distribution_names():
    folders = {path.parent.relative_to(ROOT) for top in ("app", "engine") for path in (ROOT / top).rglob("*.py")}
    names = {f"seedscope.{'.'.join(folder.parts)}" for folder in folders if folder.parts[:2] != ("app", "client")}
    assert names | {"seedscope", "seedscope.static", "seedscope.templates"} == set(SETTINGS["packages"])
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []


def test_every_library_that_is_imported_is_declared_here_not_only_by_another_library():
    texts = [path.read_text() for top in ("app", "engine") for path in (ROOT / top).rglob("*.py")]
    statement = re.compile(r"^ *(?:from (\w[\w.]*) import .+|import (\w[\w.]*)(?: as \w+)?(?: *#.*)?)$", re.MULTILINE)
    modules = {module for text in texts for pair in statement.findall(text) for module in pair if module}
    names = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"seedscope"} - PEERS
    extras = [text for extra in EXTRAS for text in PROJECT["optional-dependencies"][extra]]
    declared = {canonicalize_name(Requirement(text).name) for text in [*PROJECT["dependencies"], *extras]}
    assert {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in names} == declared


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
    assert not [name for name in names if {"tests", "__pycache__"} & set(name.split("/"))]


def test_the_source_distribution_has_no_tests_and_builds_the_same_wheel_byte_for_byte(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert unpacked.name == f"seedscope-{PROJECT['version']}"
    top = {path.name for path in unpacked.iterdir()}
    assert top >= {"LICENSE", "README.md", "CHANGELOG.md", "constraints.txt", "pyproject.toml", ".github"}
    assert not {"tests", ".ci", "Dockerfile"} & top
    (tmp_path / "again").mkdir()
    assert built("wheel", unpacked, tmp_path / "again").read_bytes() == wheel.read_bytes()


def test_the_metadata_is_valid_and_says_licence_authors_and_what_is_needed(wheel):
    """Read by the library that installers and inventories of software read it with."""
    inside = zipfile.ZipFile(wheel)
    head = f"seedscope-{PROJECT['version']}.dist-info"
    told = Metadata.from_email(inside.read(f"{head}/METADATA"), validate=True)
    assert (told.name, str(told.version), told.license_expression) == ("seedscope", PROJECT["version"], "MIT")
    assert [inside.read(f"{head}/licenses/{name}") for name in told.license_files or []] == [
        (ROOT / "LICENSE").read_bytes()
    ]
    assert not [line for line in told.classifiers or [] if line.startswith("License")]  # as PEP 639 has it
    assert (told.summary, told.author, str(told.requires_python)) == (
        PROJECT["description"], PROJECT["authors"][0]["name"], PROJECT["requires-python"],
    )  # fmt: skip
    assert told.keywords == PROJECT["keywords"]
    assert set(told.provides_extra or []) == set(PROJECT["optional-dependencies"])
    always = {str(need) for need in told.requires_dist or [] if not (need.marker and "extra" in str(need.marker))}
    assert always == {str(Requirement(text)) for text in PROJECT["dependencies"]}


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


# -- in environments of their own, by the installers that users have: from the package index, minutes ----------------------


def run(*command: object, cwd: Path, **variables: str) -> str:
    """What a command prints; it sees nothing of the environment that runs the tests."""
    outside = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "UV_"))
    }
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=outside | variables, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def new_environment(folder: Path) -> Path:
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder / "bin"


@pytest.fixture(scope="module")
def pins(tmp_path_factory) -> Path:
    """What is installed here, as constraints: other environments get the tested versions, and the same build of PyTorch."""
    installed = {found.metadata["Name"]: found.version for found in distributions()}
    file = tmp_path_factory.mktemp("pins") / "constraints.txt"
    file.write_text("".join(f"{name}=={number}\n" for name, number in installed.items() if name != "seedscope"))
    return file


@pytest.fixture(scope="module")
def bare(wheel, pins, tmp_path_factory) -> Iterator[Path]:
    """The programs of an environment that holds the wheel and what pip brings with it, nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    programs = new_environment(folder / "environment")
    run(programs / "python", "-m", "pip", "install", "--quiet", "-c", pins, wheel, cwd=folder)
    yield programs
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> Iterator[Path]:
    """The programs of an environment with uv and with what makes inventories of software."""
    folder = tmp_path_factory.mktemp("tools")
    programs = new_environment(folder / "environment")
    run(programs / "python", "-m", "pip", "install", "--quiet", "uv", "cyclonedx-bom", cwd=folder)
    yield programs
    shutil.rmtree(folder)


IMPORT_ALL = """
import importlib, pkgutil, seedscope
lacking = set()
for module in pkgutil.walk_packages(seedscope.__path__, "seedscope."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            lacking.add(error.name)
print(*lacking)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_bare_environment_has_all_that_modules_and_commands_need_but_for_extras(bare, tmp_path):
    run(bare / "python", "-m", "pip", "check", cwd=tmp_path)
    lacking = set(run(bare / "python", "-c", IMPORT_ALL, cwd=tmp_path).split())
    assert lacking <= {"anywidget", "faiss", "mcp", "ray", "submitit", "triton"}
    assert PROJECT["version"] in run(bare / "seedscope", "doctor", "--root", tmp_path / "root", cwd=tmp_path)
    for command in COMMANDS:
        assert f"seedscope {command}" in run(bare / "seedscope", command, "--help", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pip_builds_and_installs_the_source_distribution(bare, sdist, tmp_path):
    install = [bare / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall"]
    run(*install, sdist, cwd=tmp_path)
    assert PROJECT["version"] in run(bare / "seedscope", "doctor", "--root", tmp_path / "root", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_inventory_of_the_bare_environment_is_valid_and_names_our_licence_and_needs(bare, tools, tmp_path):
    file = tmp_path / "inventory.json"
    make = [tools / "cyclonedx-py", "environment", "--validate", "--of", "JSON", "-o", file, bare / "python"]
    run(*make, cwd=tmp_path)
    inventory = json.loads(file.read_text())
    (ours,) = [component for component in inventory["components"] if component["name"] == "seedscope"]
    assert ours["version"] == PROJECT["version"]
    assert ours["licenses"] == [{"license": {"id": "MIT", "acknowledgement": "declared"}}]
    (needs,) = [entry["dependsOn"] for entry in inventory["dependencies"] if entry["ref"] == ours["bom-ref"]]
    names = {
        canonicalize_name(component["name"]) for component in inventory["components"] if component["bom-ref"] in needs
    }
    always = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    extras = {
        canonicalize_name(Requirement(text).name) for of in PROJECT["optional-dependencies"].values() for text in of
    }
    assert always <= names <= always | extras  # an extra's package that another one brought is told as well


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_uvx_runs_the_demo_from_the_wheel(wheel, pins, tools, tmp_path):
    """uv does not read pip's settings: where pip looks for files beside the index, it is told to look as well."""
    places = os.environ.get("PIP_FIND_LINKS", "").split()
    uvx = [tools / "uvx", "--no-config", "--python", sys.executable, "--constraints", pins, "--from", wheel]
    uvx += [f"--find-links={place}" for place in places]
    cache = str(tmp_path / "cache")
    root = tmp_path / "root"
    try:
        told = run(*uvx, "seedscope", "demo", "--no-serve", "--quiet", "--root", root, cwd=tmp_path, UV_CACHE_DIR=cache)
        verified = run(*uvx, "seedscope", "verify", "--root", root, cwd=tmp_path, UV_CACHE_DIR=cache)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    assert stdlib.STUDY.name in told
    assert stdlib.STUDY.name in verified
    ensemble = seedscope.open(root)[stdlib.STUDY.name][stdlib.STUDY.ensemble]
    assert tuple(ensemble.seeds) == stdlib.STUDY.train.seeds
    assert ensemble.decoder(seed=0).shape[0] == stdlib.STUDY.train.d_sae
