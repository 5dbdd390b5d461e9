"""`seedscope lookup` and `seedscope.lookup`: which studies know an SAE's weights, here and on a real server."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import seedscope
from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from support.commands import assert_one_line, run
from support.imports import make_run
from support.layouts import LAYOUTS, write_saelens
from support.server_here import served_here

TOKEN, K = "a-long-secret", 4


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of SAELens, and a root with what was imported from them; one row is not finite."""
    folder = tmp_path_factory.mktemp("lookup")
    saes = make_run()
    saes[1]["W_dec"][3] = np.nan
    write_saelens(folder / "lens", saes, K)
    publish(folder, "lens")
    return folder


def publish(folder: Path, name: str) -> None:
    """Bring files in by the commands, as an ensemble of their folder's name."""
    done = run("import", "mine", name, folder / name, "--root", folder / "root", "--quiet")
    assert done.returncode == 0, done.stderr
    assert run("analyze", "mine", "--root", folder / "root", "--quiet").returncode == 0


def holders_of(folder: Path, sae: object, *options: object) -> list[dict]:
    """Every holder of every SAE that a lookup finds, in its order."""
    done = run("lookup", sae, "--json", folder / "out.json", *options)
    assert done.returncode == 0, done.stderr
    saes = json.loads((folder / "out.json").read_text())["saes"]
    return [held | {"sae_digest": each["sae_digest"]} for each in saes for held in each["holders"]]


def test_the_files_that_were_imported_are_known_by_their_weights(imported):
    held = holders_of(imported, imported / "lens", "--root", imported / "root")
    assert [(each["study"], each["ensemble"], each["seed"]) for each in held] == [
        ("mine", "lens", s) for s in (0, 1, 3)
    ]
    for each in held:
        (here,) = seedscope.lookup(each["sae_digest"], imported / "root")
        assert asdict(here) | {"sae_digest": each["sae_digest"]} == each
        assert holders_of(imported, each["sae_digest"], "--root", imported / "root") == [each]
    assert [each["n_undirected"] for each in held] == [0, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_files_of_every_library_are_known_by_their_weights(tmp_path, layout):
    layout.write(tmp_path / "files", make_run(), K)
    publish(tmp_path, "files")
    held = holders_of(tmp_path, tmp_path / "files", "--root", tmp_path / "root")
    assert [each["ensemble"] for each in held] == ["files"] * 3


def test_it_prints_places_buckets_and_addresses(imported):
    (first, *_) = holders_of(imported, imported / "lens", "--root", imported / "root")
    done = run("lookup", first["sae_digest"], "--root", imported / "root")
    said = done.stdout
    assert f"SAE {first['sae_digest']}" in said
    assert "mine/lens seed 0" in said
    for name, n in first["counts"].items():
        assert f"{n} {name}" in said
    assert f"mean agreement (start unknown) {first['mean_stability']:.3f}" in said
    assert "by chance: haar" in said
    assert "not known: activity" in said
    assert first["address"] in said
    printed = run("lookup", first["sae_digest"], "--root", imported / "root", "--json", "-")
    assert json.loads(printed.stdout)["saes"][0]["holders"][0]["seed"] == 0


def test_weights_that_no_study_knows_end_with_another_status(imported, tmp_path):
    write_saelens(tmp_path / "other", make_run(seeds=(9,)), K)
    for sae in ("0" * 16, tmp_path / "other"):
        done = run("lookup", sae, "--root", imported / "root")
        assert (done.returncode, done.stderr) == (3, "")
        assert "no study knows these weights" in done.stdout
    assert seedscope.lookup("0" * 16, imported / "root") == []


def test_a_damaged_study_is_named_for_its_weights_may_be_those(imported, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "study-0.duckdb").write_bytes(b"x" * 5000)
    (tmp_path / "bad" / "CURRENT").write_text("study-0.duckdb\n\n")
    done = run("lookup", "0" * 16, "--root", tmp_path)
    assert done.returncode == 3
    assert "left out bad" in done.stderr


def test_a_server_is_asked_in_place_of_the_studies_here(imported, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with served_here(create_app(Settings(imported / "root", token=TOKEN))) as (host, port):
        url = f"http://{host}:{port}"
        token = ["--url", f"{url}/", "--token-file", tmp_path / "token"]
        assert holders_of(imported, imported / "lens", *token) == holders_of(
            imported, imported / "lens", "--root", imported / "root"
        )
        done = run("lookup", imported / "lens", *token)
        assert f"{url}/s/mine/lens/features?seed=0" in done.stdout
        assert run("lookup", "0" * 16, *token).returncode == 3
        assert_one_line(run("lookup", "0" * 16, "--url", url), "--token-file")
        refused = run("lookup", "0" * 16, "--url", f"{url}/elsewhere", "--token-file", tmp_path / "token")
        assert_one_line(refused, "status 404")
    assert_one_line(run("lookup", "0" * 16, "--url", url), "no answer from")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["0" * 16, "--url", "ftp://x"], "https://"),
        (["0" * 16, "--url", "http://a:b@c"], "https://"),
        (["0" * 16, "--url", "http://x", "--root", "/elsewhere"], "--root"),
        (["0" * 16, "--token-file", "/dev/null"], "--url"),
        (["0" * 16, "--root", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_looked_up_ends_in_one_line(arguments, says):
    assert_one_line(run("lookup", *arguments), says)


def test_a_path_at_which_there_is_nothing_is_named(imported):
    assert_one_line(run("lookup", "/nowhere/sae", "--root", imported / "root"), "/nowhere/sae")


def test_a_root_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        seedscope.lookup("0" * 16, "/nowhere")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--allow-origin", "example.org"], "SCHEME://HOST"), (["--allow-origin", "*", "--token", TOKEN], "name each"),
     (["--allow-origin", "*", "--host", "0.0.0.0"], "name each")],
)  # fmt: skip
def test_origins_are_checked_before_the_server_starts(imported, arguments, says):
    assert_one_line(run("serve", "--root", imported / "root", *arguments), says)
