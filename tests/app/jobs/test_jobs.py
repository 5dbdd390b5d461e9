"""Jobs: real `seedscope` processes started, watched and cancelled over real HTTP, and what outlives a server."""

import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
import uvicorn

from seedscope.app.jobs.kinds import Job, JobRefusedError
from seedscope.app.jobs.queue import Jobs
from seedscope.app.main import create_app
from seedscope.app.settings import Settings
from seedscope.engine.demo import stdlib
from seedscope.engine.studies.publish import publish
from support.paths import ROOT
from support.reading import parsed, text_of

CWD = ROOT
LOSS = {"kind": "analyze", "study": "small", "only": "loss"}  # minutes: it measures on the whole embedded corpus
MATCH = {"kind": "analyze", "study": "small", "only": "match"}  # seconds: nothing is missing
TOKEN = "a-long-secret"
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def whole_root(study_root: Path, tmp_path: Path) -> Path:
    """A copy of the small study with everything it was made from, published without the loss."""
    root = tmp_path / "whole"
    shutil.copytree(study_root, root)
    for part in (root / "small" / "parts").glob("*/loss"):
        shutil.rmtree(part)
    publish(root / "small")
    return root


@contextmanager
def site(root: Path, **settings: object) -> Iterator[httpx2.Client]:
    """A client of a real server, which says where it comes from as a browser does."""
    listener = socket.create_server(("127.0.0.1", 0))
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(create_app(Settings(root, **settings)), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx2.Client(base_url=base, trust_env=False, headers={"Origin": base}, timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def started(client: httpx2.Client, fields: dict[str, str]) -> str:
    """The id of the job that a form starts."""
    answer = client.post("/jobs", data=fields)
    assert answer.status_code == 303, answer.text
    return re.fullmatch(r"/jobs#job-([0-9a-f]{16})", answer.headers["location"])[1]


def until(ready: Callable[[], object], limit_s: float = 120) -> object:
    """What `ready` returns once it is true."""
    end = time.monotonic() + limit_s
    while not (found := ready()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def is_ended(jobs: Jobs, id: str) -> Callable[[], Job | None]:
    return lambda: None if (job := jobs.get(id)).is_active else job


def is_running(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# -- a job's life ------------------------------------------------------------------------------------------------


def test_a_job_publishes_what_it_computed_and_says_how_far_it_was(whole_root):
    folder = whole_root / "small"
    for part in (folder / "parts").glob("*/ablate"):
        shutil.rmtree(part)
    before = (folder / "CURRENT").read_text()
    with site(whole_root) as client:
        id = started(client, MATCH)
        seen = []

        def ended() -> dict | None:
            seen.append(client.get(f"/jobs/{id}.json").json()["job"])
            return seen[-1] if seen[-1]["state"] not in ("queued", "running") else None

        job = until(ended)
        assert (job["state"], job["exit_code"], job["republished"]) == ("done", 0, True), job
        assert (job["stage"]["stage"], job["stage"]["done"], job["stage"]["total"]) == ("publishing", 4, 4)
        assert (folder / "CURRENT").read_text() != before
        assert (
            client.get("/s/small.json").json()["ensembles"][0]["ev"] is None
        )  # the new store is the one that is shown
        assert "running" in {each["state"] for each in seen}
        page = client.get(f"/jobs/{id}").text
        assert "publishing: 4 seeds" in text_of(page)
        assert "Reload this page" in text_of(page)
        again = until(lambda id=started(client, MATCH): None if (
            each := client.get(f"/jobs/{id}.json").json()["job"])["state"] in ("queued", "running") else each)  # fmt: skip
        assert (again["state"], again["republished"]) == ("done", False)
        assert "nothing new" in text_of(client.get(f"/jobs/{again['id']}").text)
        assert [each["id"] for each in client.get("/jobs.json").json()["jobs"]] == [again["id"], id]
    held = json.loads((whole_root / "jobs" / id / "job.json").read_text())
    assert held["begin"] < held["end"]
    assert sorted(os.listdir(whole_root / "jobs" / id)) == ["job.json", "log"]


def test_the_same_request_gives_the_same_job_and_cancelling_leaves_nothing_half_done(whole_root):
    before = (whole_root / "small" / "CURRENT").read_text()
    with site(whole_root) as client:
        page = client.get("/s/small").text
        form = parsed(page).select_one("form.compute[method=post][action='/jobs']")
        fields = {field["name"]: field["value"] for field in form.select("[name][value]")}
        assert fields == LOSS
        id = started(client, fields)
        assert started(client, fields) == id
        waiting = started(client, MATCH)
        assert waiting != id
        until(lambda: client.get(f"/jobs/{id}.json").json()["job"]["stage"])
        page = client.get("/s/small").text
        assert f'id="job-{id}"' in page  # the work stands where its button was
        assert 'class="compute"' not in page
        assert re.search(r'href="/jobs">Jobs <span class="count"[^>]*>2<', page)
        assert client.post(f"/jobs/{waiting}/cancel").status_code == 303
        group = client.get(f"/jobs/{id}.json").json()["job"]["pid"]
        part = client.post(f"/jobs/{id}/cancel", headers={"HX-Request": "true"})
        assert part.status_code == 200
        assert "<html" not in part.text
        job = until(lambda: (found := client.get(f"/jobs/{id}.json").json()["job"])["state"] == "cancelled" and found)
        assert job["exit_code"] == -signal.SIGTERM
        assert not is_running(group)
        assert client.post(f"/jobs/{id}/cancel").status_code == 303  # as it was
        jobs = {each["id"]: each for each in client.get("/jobs.json").json()["jobs"]}
        assert (jobs[waiting]["state"], jobs[waiting]["begin"]) == ("cancelled", None)
        assert jobs[id]["state"] == "cancelled"
        assert "Try again" in text_of(client.get("/jobs").text)
        assert client.get("/s/small").status_code == 200
    assert (whole_root / "small" / "CURRENT").read_text() == before


def test_a_job_that_fails_says_why_in_its_log_which_is_never_run(own_root):
    """The copy holds a store and no catalogue, so there is nothing to analyse."""
    with site(own_root) as client:
        id = started(client, LOSS)
        job = until(lambda: (found := client.get(f"/jobs/{id}.json").json()["job"])["state"] == "failed" and found)
        assert (job["reason"], job["exit_code"], job["republished"]) == ("exit 1", 1, None)
        page = client.get("/jobs").text
        assert "found no study small" in text_of(page)
        assert {f'name="{name}" value="{value}"' for name, value in LOSS.items()} <= set(
            re.findall(r'name="\w+" value="[^"]*"', page)
        )
        part = client.get(f"/jobs/{id}", headers={"HX-Request": "true"}).text
        assert "Try again" in text_of(part)
        another = started(client, LOSS)
        while client.get(f"/jobs/{another}.json").json()["job"]["state"] in ("queued", "running"):
            ids = re.findall(r' id="([^"]*)"', client.get("/jobs").text)
            assert len(ids) == len(set(ids))
        with open(own_root / "jobs" / id / "log", "a") as log:
            log.writelines(f"line {i}\n" for i in range(300))
            log.write(f"\x1b[31m{EVIL}\x1b[0m\nhalf\rwhole\n")
        shown = client.get(f"/jobs/{id}.json").json()["log"]
        assert (len(shown), shown[0], shown[-2:]) == (200, "line 102", [EVIL, "whole"])
        for path in (f"/jobs/{id}", "/jobs"):
            page = client.get(path).text
            assert EVIL not in page
            assert html.escape(EVIL) in page


# -- who may start what ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/jobs", "/jobs/0123456789abcdef/cancel"])
@pytest.mark.parametrize(
    "headers",
    [{"Origin": ""}, {"Origin": "null"}, {"Origin": "http://evil.example"}, {"Origin": "http://127.0.0.1:1"},
     {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "none"}],
    ids=str,
)  # fmt: skip
def test_other_sites_cannot_write(own_root, path, headers):
    with site(own_root) as client:
        answer = client.post(path, data=LOSS, headers=headers)
        assert answer.status_code == 403
        assert "may not write here" in answer.text
        assert str(client.base_url).rstrip("/") in answer.text
    assert not (own_root / "jobs").exists()


def test_a_write_without_any_origin_is_refused_and_a_get_starts_nothing(own_root):
    with site(own_root) as client:
        del client.headers["origin"]
        assert client.post("/jobs", data=LOSS).status_code == 403
        assert client.get("/jobs", params=LOSS).status_code == 200
        assert client.get("/jobs.json").json()["jobs"] == []
        assert client.get("/jobs/0123456789abcdef/cancel").status_code in (404, 405)
    assert not (own_root / "jobs").exists()


def test_where_a_token_is_asked_for_jobs_need_it_too(own_root):
    with site(own_root, token=TOKEN) as client:
        assert client.post("/jobs", data=LOSS).status_code == 401
        assert client.get("/jobs").status_code == 401
        client.post(f"/jobs?token={TOKEN}", data=LOSS, follow_redirects=True)  # opens the door, starts nothing
        assert client.get("/jobs.json").json() == {"jobs": [], "training": {}}
        assert client.post("/jobs", data=LOSS).status_code == 303


def test_nothing_that_starts_work_can_be_framed(whole_root):
    with site(whole_root) as client:
        for path in ("/jobs?embed=true", "/jobs/0123456789abcdef?embed=true"):
            assert "frame-ancestors 'none'" in client.get(path).headers["content-security-policy"]
        for path in ("/s/small", "/s/small/topk-96", "/s/small/topk-96/ablation"):
            assert "Compute now" in client.get(path).text
            framed = client.get(f"{path}?embed=true")
            assert "frame-ancestors *" in framed.headers["content-security-policy"]
            assert 'method="post"' not in framed.text
            assert "/jobs" not in framed.text


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"kind": "sh"}, "analyze"), ({"kind": ""}, "analyze"), ({"study": "../small"}, "small"), ({"study": "other"}, "small"),
     ({"study": "--debug"}, "small"), ({"only": "everything"}, "match,activity"), ({"only": "loss --model evil"}, "match,activity"),
     ({"only": "loss,"}, "match,activity"), ({"rule": "best"}, "argmax, hungarian"), ({"loss_tokens": "0"}, "1048576"),
     ({"loss_tokens": "-5"}, "1048576"), ({"loss_tokens": "1e3"}, "1048576"), ({"loss_tokens": "9" * 30}, "1048576"),
     ({"kind": "predict", "only": ""}, "one of ensemble, from"),
     ({"kind": "predict", "only": "", "ensemble": "topk-96", "from": "small/topk-96"}, "one SAE"),
     ({"model": "evil"}, "loss_tokens"), ({"root": "/"}, "loss_tokens"), ({"--debug": "1"}, "loss_tokens")],
    ids=str,
)  # fmt: skip
def test_what_no_kind_takes_is_refused_with_what_it_takes(own_root, changed, said):
    with site(own_root) as client:
        as_form = client.post("/jobs", data=LOSS | changed)
        as_json = client.post("/jobs", json=LOSS | changed)
        assert (as_form.status_code, as_json.status_code) == (422, 422)
        assert said in text_of(as_form.text)
        assert client.get("/jobs.json").json() == {"jobs": [], "training": {}}


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [(b"kind=analyze&study=small&study=small", "application/x-www-form-urlencoded", 422),
     (b"kind=analyze&study=small&only=" + 5_000 * b"x", "application/x-www-form-urlencoded", 413),
     (b"kind=analyze&study=%ff", "application/x-www-form-urlencoded", 422), (b"\xff\xfe", "application/x-www-form-urlencoded", 422),
     (b'{"kind": "analyze", "study": ["small"]}', "application/json", 422), (b"{", "application/json", 422),
     (b"[]", "application/json", 422), (b"[" * 4_000, "application/json", 422), (b"kind=analyze&study=small", "text/plain", 415),
     (b"kind=analyze&study=small", "", 415), (b"", "multipart/form-data; boundary=x", 415)],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(own_root, content, kind, status):
    with site(own_root) as client:
        answer = client.post("/jobs", content=content, headers={"Content-Type": kind})
        assert answer.status_code == status
        assert "Traceback" not in answer.text
        assert client.get("/jobs.json").json() == {"jobs": [], "training": {}}


def test_json_is_answered_with_json_and_unknown_ids_with_404(own_root):
    with site(own_root) as client:
        answer = client.post("/jobs", json=LOSS | {"loss_tokens": 40})
        assert answer.status_code == 202
        assert answer.json()["parameters"] == {"only": "loss", "loss_tokens": "40"}
        assert answer.headers["location"] == f"/jobs/{answer.json()['id']}"
        assert client.post("/jobs/0123456789abcdef/cancel").status_code == 404
        assert client.get("/jobs/0123456789abcdef").status_code == 404
        for id in ("x", "..%2f..", "0123456789ABCDEF", "0123456789abcdef0"):
            assert client.get(f"/jobs/{id}").status_code in (404, 422)
            assert client.post(f"/jobs/{id}/cancel").status_code in (404, 422)


def test_an_empty_list_says_how_to_begin(own_root):
    with site(own_root) as client:
        page = client.get("/jobs").text
        assert "Compute now" in text_of(page)
        assert 'href="/s/small#not-computed"' in page
        assert client.get("/healthz").json() == {"status": "ok", "studies": ["small"]}
    assert not (own_root / "jobs").exists()  # looking changes nothing


# -- the queue ---------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(own_root: Path) -> Iterator[Jobs]:
    """Over a study without a catalogue: every job fails within a second or two."""
    jobs = Jobs(own_root)
    yield jobs
    jobs.close()


def asked_for(jobs: Jobs, n: int) -> list[str]:
    return [jobs.start("analyze", "small", {"loss_tokens": str(i + 1)}).id for i in range(n)]


def test_jobs_run_one_after_the_other_in_the_order_they_were_asked_for(jobs):
    ids = asked_for(jobs, 3)
    ended = [until(is_ended(jobs, id)) for id in ids]
    assert [job.state for job in ended] == ["failed"] * 3
    for before, after in pairwise(ended):
        assert before.begin < before.end <= after.begin
    assert [job.id for job in jobs.all()] == ids[::-1]


def test_a_full_queue_takes_no_more(jobs):
    with pytest.raises(JobRefusedError, match="jobs waiting") as refused:
        asked_for(jobs, 40)
    assert refused.value.status == 429
    assert jobs.n_active < 40


def test_only_the_last_fifty_are_kept_and_none_that_waits_is_lost(jobs, own_root):
    first = jobs.start("analyze", "small", {})
    until(is_ended(jobs, first.id))
    jobs.close()
    held = json.loads((own_root / "jobs" / first.id / "job.json").read_text())
    for i in range(60):
        folder = own_root / "jobs" / f"{i:016x}"
        folder.mkdir()
        (folder / "job.json").write_text(json.dumps(held | {"id": folder.name, "asked": 1000.0 + i}))
    later = Jobs(own_root)
    later.resume()
    try:
        new = later.start("analyze", "small", {"only": "match"})
        kept = [job.id for job in later.all()]
        assert kept == [new.id, first.id, *(f"{i:016x}" for i in range(59, 11, -1))]
        assert sorted(path.name for path in (own_root / "jobs").glob("*/")) == sorted(kept)
    finally:
        later.close()


def test_one_server_runs_the_jobs_of_a_root_and_the_others_show_them(jobs, own_root):
    (id,) = asked_for(jobs, 1)
    other = Jobs(own_root)
    other.resume()
    assert [job.id for job in other.all()] == [id]
    with pytest.raises(JobRefusedError) as refused:
        other.start("analyze", "small", {})
    assert refused.value.status == 409
    with pytest.raises(JobRefusedError):
        other.cancel(id)
    until(is_ended(jobs, id))
    jobs.close()
    assert other.start("analyze", "small", {}).study == "small"
    other.close()


@pytest.mark.parametrize(
    "changed",
    [{"parameters": {"model": "evil"}}, {"kind": "sh"}, {"study": "../x"}, {"id": "../../x"}, {"state": "odd"}, {"asked": "now"}],
    ids=str,
)  # fmt: skip
def test_a_record_that_this_version_would_not_take_is_not_run(jobs, own_root, changed):
    (id,) = asked_for(jobs, 1)
    until(is_ended(jobs, id))
    jobs.close()
    file = own_root / "jobs" / id / "job.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"state": "queued", "begin": None, "end": None} | changed)
    )
    said = (own_root / "jobs" / id / "log").read_text()
    later = Jobs(own_root)
    later.resume()
    assert later.all() == []
    later.close()
    assert (own_root / "jobs" / id / "log").read_text() == said


def test_a_root_that_cannot_be_written_to_is_named_as_the_reason(own_root):
    (own_root / "jobs").touch()  # a file where the folder should be
    jobs = Jobs(own_root)
    with pytest.raises(JobRefusedError, match="a root that can be written to"):
        jobs.start("analyze", "small", {})
    assert jobs.all() == []
    jobs.close()


# -- the server ends ---------------------------------------------------------------------------------------------


def test_a_server_that_stops_ends_its_job_and_the_next_runs_what_waited(whole_root):
    jobs = Jobs(whole_root)
    running, waiting = (jobs.start("analyze", "small", {"only": only}) for only in ("loss", "match"))
    group = until(lambda: (job := jobs.get(running.id)).stage and job.pid)
    jobs.close()
    assert not is_running(group)
    assert (jobs.get(running.id).state, jobs.get(running.id).reason) == ("failed", "the server stopped")
    assert jobs.get(waiting.id).state == "queued"
    with pytest.raises(JobRefusedError):
        jobs.start("analyze", "small", {})
    later = Jobs(whole_root)
    later.resume()
    assert until(is_ended(later, waiting.id)).state == "done"
    later.close()


def test_what_a_killed_server_left_running_is_ended_by_the_next(whole_root):
    command = [sys.executable, "-m", "seedscope.app.cli", "serve", "--root", str(whole_root), "--port", "0"]
    with subprocess.Popen(command, cwd=CWD, stdout=subprocess.PIPE, text=True) as server:
        base = re.search(r"http://[\d.:]+", server.stdout.readline())[0]
        with httpx2.Client(base_url=base, trust_env=False, headers={"Origin": base}, timeout=30) as client:
            id = started(client, LOSS)
            group = until(lambda: (job := client.get(f"/jobs/{id}.json").json()["job"])["stage"] and job["pid"])
        server.send_signal(signal.SIGKILL)
    assert is_running(group)
    jobs = Jobs(whole_root)
    assert jobs.get(id).state == "running"  # as far as anybody knows
    jobs.resume()
    job = jobs.get(id)
    assert (job.state, job.reason, job.pid) == ("failed", "the server stopped", group)
    assert job.stage
    until(lambda: not is_running(group), 10)  # its new parent takes note
    jobs.close()


def test_the_demo_explains_measures_the_loss_and_trains_a_control_as_jobs(tmp_path):
    folder = tmp_path / stdlib.STUDY.name
    folder.mkdir()
    (folder / "study-0.duckdb").touch()
    (folder / "CURRENT").write_text(f"study-0.duckdb\n{stdlib.built_from()}\n")
    command = [sys.executable, "-m", "seedscope.app.cli", "demo", "--root", str(tmp_path), "--port", "0", "--no-open"]
    with subprocess.Popen(command, cwd=CWD, stdout=subprocess.PIPE, text=True) as server:
        said = server.stdout.readline()
        assert "/jobs" in said
        base = re.search(r"http://[\d.:]+", server.stdout.readline())[0]
        with httpx2.Client(base_url=base, trust_env=False, timeout=30) as client:
            jobs = client.get("/jobs.json").json()["jobs"][::-1]  # the newest first
        server.send_signal(signal.SIGINT)
        assert server.wait(20) in (0, 130)
    *further, loss, control = jobs
    assert [(job["kind"], job["parameters"]) for job in further] == [
        ("analyze", {"only": analysis}) for analysis in ("explain", "subspaces", "function", "predictor")
    ]
    assert (loss["kind"], loss["study"], loss["parameters"]) == ("analyze", stdlib.STUDY.name, {"only": "loss"})
    assert (control["kind"], control["study"], control["parameters"]) == ("demo", stdlib.STUDY.name, {})


def test_a_demo_is_built_under_its_own_name_alone(client, study_root):
    refused = client.post("/jobs", data={"kind": "demo", "study": "small"}, headers={"origin": "http://127.0.0.1"})
    assert refused.status_code == 422
    assert stdlib.STUDY.name in refused.text
