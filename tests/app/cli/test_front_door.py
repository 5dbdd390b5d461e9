"""`seedscope` as a user meets it: a real process, its exit status and what it prints."""

import fcntl
import re
import signal
import socket
import subprocess
from importlib.metadata import version

import httpx2
import pytest

from seedscope.engine.demo import stdlib
from support.commands import COMMAND, CWD, assert_one_line, run, run_alone
from support.serving import serving


def get(address: str, **options: object) -> httpx2.Response:
    with httpx2.Client(trust_env=False) as client:
        return client.get(address, timeout=20, **options)


def test_help_lists_the_commands_in_a_deliberate_order():
    listed = re.findall(r"^│ ([a-z]+) ", run("--help").stdout.split("Commands")[1], re.MULTILINE)
    assert listed == [
        "demo", "serve", "engine", "run", "plan", "public", "inspect", "import", "analyze", "anchor", "predict", "explain",
        "pool", "synthetic", "sources", "match", "diff", "lookup", "annotate", "export", "site", "mcp", "verify", "bench",
        "doctor",
    ]  # fmt: skip


def test_the_version_is_that_of_the_package():
    assert run("--version").stdout == f"seedscope {version('seedscope')}\n"


# -- arguments and failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["serve", "--colour"], "--colour"), (["publish"], "publish"), (["serve", "--port", "70000"], "--port"),
     (["demo", "--port", "http"], "--port")],
)  # fmt: skip
def test_wrong_arguments_end_with_status_2_and_name_the_argument(arguments, said):
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_serving_a_root_that_does_not_exist_says_what_to_do(tmp_path):
    assert_one_line(run("serve", "--root", tmp_path / "missing"), str(tmp_path / "missing"), "seedscope demo")


def test_the_root_is_taken_from_the_environment(tmp_path):
    assert_one_line(run("serve", SEEDSCOPE_ROOT=str(tmp_path / "elsewhere")), str(tmp_path / "elsewhere"))


def test_a_demo_that_cannot_write_says_where(tmp_path):
    (tmp_path / "file").touch()
    assert_one_line(run("demo", "--root", tmp_path / "file" / "sub"), str(tmp_path / "file" / "sub"), "--root")


def test_an_address_that_cannot_be_bound_is_named(study_root):
    assert_one_line(run("serve", "--root", study_root, "--host", "192.0.2.1", "--port", 0), "192.0.2.1", "--host")


def test_a_demo_that_is_already_built_is_not_built_again(tmp_path):
    folder = tmp_path / stdlib.STUDY.name
    folder.mkdir()
    (folder / "study-0.duckdb").touch()
    (folder / "CURRENT").write_text(f"study-0.duckdb\n{stdlib.built_from()}\n")
    done = run("demo", "--no-serve", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"seedscope serve --root {tmp_path}" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["CURRENT", "study-0.duckdb"]


def test_a_demo_that_another_process_is_building_says_so_without_a_traceback(tmp_path):
    (tmp_path / stdlib.STUDY.name).mkdir()
    with open(tmp_path / stdlib.STUDY.name / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_alone("demo", "--no-serve", "--root", tmp_path)
    assert done.returncode == 1
    assert "another process is building" in done.stderr
    assert "Traceback" not in done.stderr


# -- serving -----------------------------------------------------------------------------------------------------


def test_a_taken_port_gives_the_next_free_one_and_ctrl_c_ends_the_server(study_root):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving("--root", study_root, "--port", port) as (process, printed, address):
            assert f"port {port} is taken" in printed[0]
            assert int(address.rsplit(":", 1)[1].strip("/")) > port
            assert get(f"{address}healthz").json() == {"status": "ok", "studies": ["small"]}
            assert get(address).status_code == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(20) in (0, 130)
            assert "Traceback" not in process.stderr.read()


def test_beyond_loopback_a_token_is_made_and_asked_for(study_root):
    with serving("--root", study_root, "--host", "0.0.0.0", "--port", 0) as (_, _, address):
        site, _, token = address.partition("?token=")
        assert len(token) >= 24
        assert get(f"{site}healthz").status_code == 200
        assert get(site).status_code == 401
        assert get(address).status_code == 303
        assert get(site, headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_an_empty_token_does_not_open_the_door_beyond_loopback(study_root):
    refused = [*COMMAND, "serve", "--root", str(study_root), "--host", "0.0.0.0", "--port", "0", "--token", ""]
    with subprocess.Popen(refused, cwd=CWD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            if address := re.search(r"http://0\.0\.0\.0:\d+/", line):
                assert get(address[0].replace("0.0.0.0", "127.0.0.1")).status_code == 401
            else:
                assert process.wait(20) in (1, 2)
        finally:
            process.kill()
