"""The README, the manual and the command line say what there is."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from seedscope.app.cli.main import app
from seedscope.app.routes.manual import heading_id
from support.paths import ROOT

COMMANDS = sorted(get_command(app).commands)
PROMISED = {  # to users; more may come, none may go
    "analyze", "anchor", "bench", "demo", "doctor", "explain", "export", "import", "match", "pool", "run", "serve", "synthetic",
}  # fmt: skip
MANUAL = ROOT / "templates" / "manual"
PAGES = sorted(MANUAL.glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *PAGES, ROOT / ".github" / "CONTRIBUTING.md", ROOT / ".github" / "SECURITY.md"]
ROOMS = sorted(path.parent.name for room in ("engine", "app") for path in ROOT.glob(f"{room}/*/__init__.py"))
LARGEST_README = 10_000  # bytes: about one screen, the manual has the rest


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def local_targets(path: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of every link and picture of a Markdown file that leads to a file of the checkout."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    parts = [target.partition("#") for target in targets if not re.match(r"[a-z]+:", target)]
    return [(path.parent / file if file else path, anchor) for file, _, anchor in parts]


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def commands() -> str:
    return (MANUAL / "commands.md").read_text()


def run_help(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "seedscope.app.cli", *arguments, "--help"]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def test_every_promised_command_is_there():
    assert set(COMMANDS) >= PROMISED


@pytest.mark.parametrize("command", COMMANDS)
def test_the_manual_names_every_command_with_every_option(commands, command):
    lines = [line for line in commands.splitlines() if re.match(f"\\| `seedscope {command}[ `]", line)]
    assert len(lines) == 1, f"commands.md has {len(lines)} rows for {command}"
    options = {o for p in get_command(app).commands[command].params for o in p.opts + p.secondary_opts}
    named = set(re.findall(r"--[a-z-]+", lines[0]))
    assert named <= options
    for parameter in get_command(app).commands[command].params:
        if parameter.param_type_name == "argument":
            assert parameter.name in lines[0].lower(), f"{parameter.name} is not in the manual"
        else:
            assert named & {*parameter.opts, *parameter.secondary_opts}, f"{parameter.opts} is not in the manual"


def test_the_manual_names_no_command_that_is_not_there(commands):
    assert {
        re.match(r"\| `seedscope (\w+)", line)[1] for line in commands.splitlines() if "| `seedscope" in line
    } == set(COMMANDS)


@pytest.mark.parametrize("command", ["make demo", "make test", "make check"])
def test_the_readme_names_the_set_up_commands_and_make_knows_them(readme, command):
    assert command in readme
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_readme_says_how_to_install_without_make_and_without_cuda(readme):
    assert "pip install -c constraints.txt ." in readme
    assert "PIP_ARGS" in readme


def test_the_readme_is_short(readme):
    assert len(readme.encode()) < LARGEST_README


@pytest.mark.parametrize("room", ROOMS)
def test_the_readmes_tree_names_every_room(readme, room):
    assert re.search(rf"^  {room}/ ", readme, re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_local_link_picture_and_anchor_exists(path):
    for target, anchor in local_targets(path):
        assert target.exists(), f"{target} is not there"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in map(heading_id, headings), f"{target.name} has no heading #{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_documents_hold_no_placeholder(path):
    assert path.read_text().startswith("# ")
    assert not re.findall(r"@@\w+|TODO|TBD|XXX", path.read_text())


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_code_that_documents_name_is_there(path):
    """Files in backticks, as a reader would open them from the top of the checkout."""
    named = re.findall(r"`((?:engine|app|templates|static|tests|\.ci|\.github)/[\w./-]*)`", path.read_text())
    assert [file for file in named if not (ROOT / file).exists() and "NAME" not in file] == []


def test_every_page_of_the_manual_is_reached_from_its_contents():
    reached, waiting = set(), [MANUAL / "index.md"]
    while waiting:
        page = waiting.pop()
        if page.parent.resolve() == MANUAL and page not in reached:
            reached.add(page)
            waiting += [target for target, _ in local_targets(page) if target.suffix == ".md"]
    assert reached == set(PAGES)
    listed = {target for target, _ in local_targets(MANUAL / "index.md")}
    assert listed == set(PAGES) - {MANUAL / "index.md"} | set(MANUAL.glob("*.ipynb"))


def test_the_readme_leads_to_the_manual(readme):
    linked = {target for target, _ in local_targets(ROOT / "README.md")}
    assert MANUAL / "index.md" in linked
    assert set(PAGES) <= linked


def test_the_citation_names_the_version_that_is_installed():
    citation = yaml.safe_load((ROOT / ".github" / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    assert (citation["title"], citation["version"], citation["license"]) == ("SeedScope", project["version"], "MIT")
    assert citation["version"] == version("seedscope"), "the environment holds another version; run: make check"
    assert citation["authors"] == project["authors"]


def test_the_changelog_says_of_this_version_what_was_added_changed_and_fixed():
    """What is not released yet stands above it, under a heading without a version."""
    text = (ROOT / "CHANGELOG.md").read_text()
    parts = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", text, re.MULTILINE))
    citation = yaml.safe_load((ROOT / ".github" / "CITATION.cff").read_text())
    this = f"{citation['version']} ({citation['date-released'].isoformat()})"
    assert next(head for head in parts if head != "Unreleased") == this
    assert re.findall(r"^### (.*)$", parts[this], re.MULTILINE) == ["Added", "Changed", "Fixed"]


def test_help_names_every_command():
    done = run_help()
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command):
    done = run_help(command)
    assert done.returncode == 0
    assert f"Example: seedscope {command}" in " ".join(done.stdout.split())
    assert not done.stderr


def test_compose_serves_beyond_loopback_with_a_token():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    beyond = [str(service) for service in services.values() if "0.0.0.0" in str(service)]
    assert beyond
    assert all("token" in service.lower() for service in beyond)
