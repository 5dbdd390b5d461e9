"""Who may import whom, and what each process may load."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from jinja2 import meta, nodes

from seedscope.app.render import templates as pages
from support.paths import ROOT

SOURCES = sorted([*ROOT.glob("engine/**/*.py"), *ROOT.glob("app/**/*.py")])
STORES = {
    Path("engine/contract/store_file.py"),
    Path("engine/store/consistency.py"),  # what must be true of the tables
    Path("engine/store/database.py"),
    Path("engine/contract/former_stores.py"),  # fills in what stores of former schemas lack, for both sides
    Path("engine/bench/peer_datasette.py"),  # writes what a peer serves
    *(path.relative_to(ROOT) for room in ("app/store", "engine/contract/index") for path in ROOT.glob(f"{room}/*.py")),
}


def names(paths: list[Path]) -> set[Path]:
    return {path.relative_to(ROOT) for path in paths}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()
    )


def imported(path: Path) -> set[str]:
    tree = ast.walk(ast.parse(path.read_text()))
    found = set()
    for node in tree:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_import_contracts_hold():
    subprocess.run(["bash", ".ci/link"], cwd=ROOT, check=True)
    command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": ".linked"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_web_process_loads_neither_torch_nor_transformers():
    loaded = loaded_by("import seedscope.app.main")
    assert "fastapi" in loaded
    assert not {"torch", "transformers", "tokenizers", "safetensors"} & loaded


def test_the_contract_loads_the_standard_library_alone():
    expected = loaded_by("import dataclasses, re, typing") | {"seedscope"}
    assert loaded_by("import seedscope.engine.contract.schema") <= expected


def test_help_of_the_command_line_loads_no_server_and_no_torch():
    assert not {"torch", "uvicorn", "fastapi", "duckdb"} & loaded_by("import seedscope.app.cli.main")


def test_no_file_is_named_for_holding_anything():
    assert not [p for p in SOURCES if p.stem in {"utils", "helpers", "common", "base", "manager", "factory"}]


def test_no_module_is_longer_than_a_chapter():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: n for name, n in lengths.items() if n > 450} == {}


def test_duckdb_is_imported_in_the_stores_alone():
    assert names([path for path in SOURCES if "duckdb" in imported(path)]) <= STORES


def test_sql_stands_in_the_stores_alone():
    sql = re.compile(r"\b(SELECT|INSERT INTO|CREATE TABLE|GROUP BY|ORDER BY|DELETE FROM|UPDATE \w+ SET)\s")
    assert names([path for path in SOURCES if sql.search(path.read_text())]) <= STORES


@pytest.mark.parametrize("pattern", [r"<(div|table|section|script)\b", r"\bstyle="])
def test_pages_are_written_in_templates(pattern):
    assert not names([path for path in SOURCES if re.search(pattern, path.read_text())])


def named(template: Path) -> str:
    return str(template.relative_to(ROOT / "templates"))


def needed_by(body: list[nodes.Node]) -> set[str]:
    """Names that a part of a template needs from around it, and those that the partials it includes need."""
    part = nodes.Template(body, lineno=1)
    part.set_environment(pages)
    needs = meta.find_undeclared_variables(part)
    for name in meta.find_referenced_templates(part):
        needs |= needed_by(pages.parse((ROOT / "templates" / name).read_text()).body)
    return needs


@pytest.mark.parametrize("template", sorted(ROOT.glob("templates/**/*.html")), ids=named)
def test_the_part_that_htmx_asks_for_needs_nothing_that_stands_outside_it(template):
    """Jinja renders a block alone without what its file sets or defines at the top; partials get what the block has."""
    body = pages.parse(template.read_text()).body
    outside = {each.name for each in body if isinstance(each, nodes.Macro)}
    outside |= {each.target.name for each in body if isinstance(each, nodes.Assign)}
    inside = {
        name
        for block in body
        if isinstance(block, nodes.Block) and block.name == "main"
        for each in block.body
        for name in names_bound_by(each)
    }
    for block in body:
        if isinstance(block, nodes.Block) and block.name == "main":
            assert not outside & (needed_by(block.body) - inside)


def names_bound_by(node: nodes.Node) -> set[str]:
    """What a statement defines for the rest of its block."""
    if isinstance(node, nodes.Macro):
        return {node.name}
    if isinstance(node, nodes.Assign):
        return {each.name for each in node.target.find_all(nodes.Name)} | (
            {node.target.name} if isinstance(node.target, nodes.Name) else set()
        )
    return set()


def test_every_partial_belongs_to_a_page():
    """A partial is included by a page or another partial, or its macros are imported there."""
    partials = {named(path) for path in ROOT.glob("templates/**/_*.html")}
    used = {
        name
        for path in ROOT.glob("templates/**/*.html")
        for name in meta.find_referenced_templates(pages.parse(path.read_text()))
    }
    assert partials <= used


def test_a_class_name_means_one_thing():
    homes: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    # A notebook's Study is the one of the tables, seen from outside: pages and notebooks share the words.
    outside = {name for name, paths in homes.items() if "app/client/notebook.py" in paths}
    assert {name: paths for name, paths in homes.items() if len(paths) > 1 and name not in outside} == {}


def test_the_code_is_imported_under_one_name():
    wrong = re.compile(r"^\s*(?:from|import) (?:app|engine)\b", re.MULTILINE)
    assert names([path for path in [*SOURCES, *ROOT.glob("tests/**/*.py")] if wrong.search(path.read_text())]) == set()


def test_the_package_of_a_room_holds_nothing_but_what_the_room_is_for():
    inits = [path for path in SOURCES if path.name == "__init__.py" and path.parent.name != "client"]
    for path in inits:
        (docstring,) = ast.parse(path.read_text()).body
        assert isinstance(docstring.value, ast.Constant), path


def test_modules_do_not_import_each_other_in_a_circle():
    imports = {}
    for path in SOURCES:
        if path.name != "__init__.py":
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(("seedscope", *(parts[2:] if parts[:2] == ("app", "client") else parts)))
            imports[module] = path
    graph = {module: set() for module in imports}
    for module, path in imports.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                targets = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                graph[module] |= targets & graph.keys() - {module}
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def test_shapes_are_checked_in_every_module_that_states_them():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    checked = tuple(
        f"{place.removeprefix('seedscope.').replace('.', '/')}" for place in options.split("=")[-1].split(",")
    )
    stating = [path.relative_to(ROOT).with_suffix("").as_posix() for path in SOURCES if "jaxtyping" in imported(path)]
    assert stating
    assert [path for path in stating if not path.startswith(checked)] == []
