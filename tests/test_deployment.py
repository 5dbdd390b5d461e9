"""What the repository and the manual say of containers, services and proxies, checked by the tools that read it where they are."""

import re
import shutil
import subprocess
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import pytest
import yaml

from support.paths import ROOT

MANUAL = ROOT / "templates" / "manual" / "deployment.md"
SECRET = {"SEEDSCOPE_TOKEN": "a-secret", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def block(language: str) -> str:
    """The manual's only block of a language."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    return text


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=SECRET, check=False, capture_output=True, text=True, timeout=60
    )


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


@pytest.fixture(scope="module")
def services() -> dict[str, dict]:
    found: dict[str, dict] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return found


@pytest.mark.parametrize("service", ["serve", "demo", "gpu", "web-a", "web-b", "engine", "proxy"])
def test_every_container_is_bounded_and_has_no_rights(services, service):
    found = services[service]
    assert found["mem_limit"]
    assert found["pids_limit"]
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in found["security_opt"]


def test_the_host_listens_on_loopback_unless_told(services):
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("${SEEDSCOPE_ADDRESS:-127.0.0.1}:") for port in ports)


def test_the_server_waits_for_no_study_and_only_one_server_starts_by_itself(services):
    assert not any("depends_on" in service for service in services.values())
    servers = [name for name, service in services.items() if service.get("ports")]
    assert [name for name in servers if not services[name].get("profiles")] == ["serve"]
    assert services["gpu"]["profiles"] == ["gpu"]
    nodes = {name for name, service in services.items() if service.get("profiles") == ["nodes"]}
    assert nodes == {"web-a", "web-b", "engine", "proxy"}
    assert [name for name in nodes if services[name].get("ports")] == ["proxy"]
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_base_image_can_be_pinned_and_health_is_asked_where_no_token_is_needed(services):
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE=.*\nFROM \$\{BASE\}$", dockerfile, re.MULTILINE)
    assert all("BASE" in service["build"]["args"] for service in services.values() if "build" in service)
    assert "/healthz" in re.search(r"^HEALTHCHECK .*\n.*$", dockerfile, re.MULTILINE)[0]
    assert re.search(r"^USER seedscope$", dockerfile, re.MULTILINE)


def test_what_the_image_copies_is_let_through_and_nothing_else():
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == names
    assert all((ROOT / name).exists() for name in names)
    assert any(fnmatch("app/__pycache__", line) for line in ignored)


@needs("docker-compose")
def test_compose_reads_the_file_with_every_profile():
    read = run("docker-compose", "--profile", "gpu", "--profile", "nodes", "config")
    assert read.returncode == 0, read.stderr
    assert set(yaml.safe_load(read.stdout)["services"]) >= {"serve", "demo", "gpu", "web-a", "web-b", "engine", "proxy"}


@needs("docker-compose")
def test_compose_refuses_to_start_without_a_token():
    read = subprocess.run(
        ["docker-compose", "config"],
        cwd=ROOT,
        env={"PATH": SECRET["PATH"]},
        check=False,
        capture_output=True,
        text=True,
    )
    assert read.returncode != 0
    assert "SEEDSCOPE_TOKEN" in read.stderr


@needs("systemd-analyze")
def test_systemd_takes_the_unit(tmp_path):
    unit = tmp_path / "seedscope.service"
    command = tmp_path / "seedscope"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    unit.write_text(
        block("ini").replace("/opt/seedscope/bin/seedscope", str(command)).replace("User=seedscope", "User=root")
    )
    read = run("systemd-analyze", "verify", "--man=no", unit)
    assert (read.returncode, read.stderr) == (0, "")


def certificate(folder: Path) -> tuple[Path, Path]:
    key, pem = folder / "key.pem", folder / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=studies.example.org -keyout"
    assert run(*command.split(), key, "-out", pem).returncode == 0
    return key, pem


@needs("nginx")
@needs("openssl")
def test_nginx_takes_its_block(tmp_path):
    key, pem = certificate(tmp_path)
    server = re.sub(r"ssl_certificate_key \S+;", f"ssl_certificate_key {key};", block("nginx"))
    server = re.sub(r"ssl_certificate \S+;", f"ssl_certificate {pem};", server).replace("443", "8443")
    paths = "".join(
        f"{name}_temp_path {tmp_path / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    logs = f"access_log {tmp_path / 'access'};\nerror_log {tmp_path / 'error'};\n"
    config = tmp_path / "nginx.conf"
    config.write_text(f"pid {tmp_path / 'pid'};\nevents {{}}\nhttp {{\n{paths}{logs}{server}}}\n")
    read = run("nginx", "-t", "-c", config, "-p", tmp_path, "-e", tmp_path / "error")
    assert read.returncode == 0, read.stderr


def of_compose() -> str:
    """What the service `proxy` gives Caddy."""
    (command,) = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["proxy"]["command"]
    return command.split("<<END\n")[1].removesuffix("END\n")


@needs("caddy")
@pytest.mark.parametrize("made", [partial(block, "caddy"), of_compose], ids=["manual", "compose"])
def test_caddy_takes_its_block(tmp_path, made):
    config = tmp_path / "Caddyfile"
    config.write_text(made())
    read = subprocess.run(
        ["caddy", "validate", "--config", config, "--adapter", "caddyfile"],
        env=SECRET | {"HOME": str(tmp_path)}, check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert read.returncode == 0, read.stderr
