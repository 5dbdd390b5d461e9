"""The README and the command line say what there is."""

import re
import subprocess
import sys

import pytest
import yaml
from typer.main import get_command

from seedscope.app.cli.main import app
from support.paths import ROOT

COMMANDS = sorted(get_command(app).commands)


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


def run_help(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "seedscope.app.cli", *arguments, "--help"]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def test_there_are_commands():
    assert {"demo", "serve"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_names_every_command_with_every_option(readme, command):
    assert f"seedscope {command}" in readme
    line = next(line for line in readme.splitlines() if line.startswith(f"| `seedscope {command}"))
    options = {o for p in get_command(app).commands[command].params for o in p.opts + p.secondary_opts}
    named = set(re.findall(r"--[a-z-]+", line))
    assert named <= options
    for parameter in get_command(app).commands[command].params:
        if parameter.param_type_name == "argument":
            assert parameter.name in line.lower(), f"{parameter.name} is not in the README"
        else:
            assert named & {*parameter.opts, *parameter.secondary_opts}, f"{parameter.opts} is not in the README"


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_names_the_set_up_commands_and_make_knows_them(readme, command):
    assert command in readme
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_local_link_and_picture_of_the_readme_exists(readme):
    targets = re.findall(r"\]\(([^)\s]+)\)", readme) + re.findall(r"(?:src|href)=\"([^\"]+)\"", readme)
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_the_readme_holds_no_placeholder(readme):
    assert readme.startswith("# SeedScope")
    assert not re.findall(r"@@\w+|TODO|TBD|XXX", readme)


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
