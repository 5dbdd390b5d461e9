"""Who may ask, what a browser may do with the answer, and what a hostile store or address can do: nothing."""

import re
import shutil
import subprocess
from urllib.parse import quote, urljoin, urlsplit

import duckdb
import httpx2
import pytest
from starlette.testclient import TestClient

from seedscope.app.main import create_app
from seedscope.app.security import is_loopback, new_token, token_problem
from seedscope.app.settings import Settings
from support.commands import COMMAND, CWD, run

LOCAL, TOKEN = "http://127.0.0.1", "a-long-secret"
EVIL = "<script>alert(1)</script>"


def browse(root, base_url: str = LOCAL, **settings: object) -> TestClient:
    return TestClient(create_app(Settings(root, **settings)), base_url=base_url, follow_redirects=False)


@pytest.fixture
def guarded(study_root) -> TestClient:
    return browse(study_root, token=TOKEN)


def policy(answer) -> dict[str, list[str]]:
    """{directive: sources} of the Content-Security-Policy."""
    directives = (part.split() for part in answer.headers["content-security-policy"].split(";"))
    return {name: sources for name, *sources in directives}


# -- Host --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9999", "LOCALHOST:1", "127.0.0.1:8765", "[::1]:8765", "[::1]"]
)
def test_loopback_names_are_served_on_any_port(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.168.1.7",
        "",
        "[::1",
        "a b",
    ],
)
def test_any_other_host_is_refused_with_those_that_are_served(client, host):
    """A name that an attacker points at this machine must not reach it (DNS rebinding)."""
    answer = client.get("/healthz", headers={"Host": host})
    assert answer.status_code == 403
    assert "127.0.0.1" in answer.text
    assert "localhost" in answer.text


@pytest.mark.parametrize("allowed", ["box.local", "Box.Local"])
def test_a_name_that_was_allowed_is_served_and_no_other(study_root, allowed):
    client = browse(study_root, allowed_hosts=(allowed,))
    assert client.get("/", headers={"Host": "box.local:8765"}).status_code == 200
    assert client.get("/", headers={"Host": "otherbox.local"}).status_code == 403


def test_beyond_loopback_addresses_are_served_and_unknown_names_are_not(study_root):
    client = browse(study_root, host="0.0.0.0", token=TOKEN)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/", headers=bearer | {"Host": "192.168.1.7:8765"}).status_code == 200
    assert client.get("/", headers=bearer | {"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.2", False), ("example.org", False), ("", False)],
)  # fmt: skip
def test_only_loopback_counts_as_this_machine(host, expected):
    assert is_loopback(host) == expected


# -- token -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/s/small", "/s/small.json", "/static/app.css", "/openapi.json", "/nope"])
def test_without_the_token_nothing_is_shown(guarded, path):
    answer = guarded.get(path)
    assert answer.status_code == 401
    assert "seedscope serve" in answer.text
    assert TOKEN not in answer.text


def test_health_needs_no_token(guarded):
    assert guarded.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "attempt",
    [
        {"params": {"token": "wrong"}},
        {"params": {"token": ""}},
        {"params": {"token": TOKEN[:-1]}},
        {"params": {"token": "é☃"}},
        {"headers": {"Authorization": "Bearer wrong"}},
        {"headers": {"Authorization": "Bearer "}},
        {"headers": {"Authorization": b"Bearer \xff"}},
        {"headers": {"Cookie": "seedscope_token=wrong"}},
        {"headers": {"Cookie": "seedscope_token="}},
        {"headers": {"Cookie": f"other={TOKEN}"}},
    ],
    ids=str,
)
def test_a_wrong_token_is_refused_in_every_form(guarded, attempt):
    answer = guarded.get("/", **attempt)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_the_token_in_an_address_becomes_a_cookie_and_leaves_the_address(guarded):
    answer = guarded.get("/s/small/topk-96/features", params={"bucket": "stable", "token": TOKEN, "q": "a b"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/s/small/topk-96/features?bucket=stable&q=a+b"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert guarded.get(answer.headers["location"]).status_code == 200
    assert guarded.get("/static/app.css").status_code == 200


def test_the_token_is_taken_as_a_bearer_header(guarded):
    assert guarded.get("/s/small.json", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_cookies_of_other_programs_on_this_host_do_not_stand_in_the_way(guarded):
    """Cookies are shared by all ports of a host, and not every program names its own by the standard."""
    cookies = f'a@b=1; c/d=2; e="; seedscope_token={TOKEN}'
    assert guarded.get("/", headers={"Cookie": cookies}).status_code == 200


@pytest.mark.parametrize("path", ["//evil.example/", "///evil.example", "/%2f/evil.example/", "/\\evil.example"])
def test_the_redirect_after_a_token_stays_on_this_site(guarded, path):
    answer = guarded.get(f"{LOCAL}{path}?token={TOKEN}")
    target = urljoin(f"{LOCAL}/", answer.headers.get("location", "/").replace("\\", "/"))
    assert urlsplit(target).netloc == "127.0.0.1"


# -- Origin ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:9999", "http://[", "127.0.0.1"]
)
def test_a_write_from_elsewhere_is_refused(client, method, origin):
    headers = {} if origin is None else {"Origin": origin}
    assert client.request(method, "/", headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8765", "[::1]:8765"])
def test_a_write_from_this_site_passes_the_origin_check(client, host):
    assert client.post("/", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 405


def test_a_write_needs_the_token_too(guarded):
    assert guarded.post("/", headers={"Origin": LOCAL}).status_code == 401


# -- what a browser may do ---------------------------------------------------------------------------------------

ANSWERS = [
    "/",
    "/s/small/topk-96",
    "/s/small/topk-96/0/5",
    "/s/small.json",
    "/static/app.css",
    "/s/nope",
    "/s/small/topk-96?theta=9",
]


@pytest.mark.parametrize("path", ANSWERS)
def test_every_answer_forbids_foreign_and_inline_scripts_sniffing_and_framing(client, path):
    answer = client.get(path)
    allowed = policy(answer)
    assert allowed["default-src"] == ["'none'"]
    assert allowed["script-src"] == ["'self'"]
    assert "'unsafe-inline'" not in allowed["style-src"]
    assert "'unsafe-eval'" not in answer.headers["content-security-policy"]
    assert allowed["base-uri"] == ["'none'"]
    assert allowed["form-action"] == ["'self'"]
    assert allowed["frame-ancestors"] == ["'none'"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("answer", ["refused host", "no token"])
def test_refusals_carry_the_same_headers(study_root, answer):
    host = {"refused host": "evil.example", "no token": "127.0.0.1"}[answer]
    refused = browse(study_root, token=TOKEN).get("/", headers={"Host": host})
    assert refused.status_code in (401, 403)
    assert policy(refused)["script-src"] == ["'self'"]


def test_only_a_page_that_was_asked_for_embedding_may_be_framed(client):
    path = "/s/small/topk-96/0/5"
    assert policy(client.get(f"{path}?embed=true"))["frame-ancestors"] == ["*"]
    assert policy(client.get(f"{path}?embed=false"))["frame-ancestors"] == ["'none'"]
    assert policy(client.get(f"{path}?embed=true"))["script-src"] == ["'self'"]


@pytest.mark.parametrize("path", ["/", "/docs", "/methods", "/s/small", "/s/small/topk-96", "/s/small/topk-96/features",
                                  "/s/small/topk-96/0/5", "/s/nope"])  # fmt: skip
def test_pages_hold_no_inline_script_handler_or_style_element(client, path):
    page = client.get(path).text
    assert not re.findall(r"<script(?![^>]*\bsrc=)", page)
    assert not re.findall(r"<[a-z][^>]*\son[a-z]+=", page)
    assert "<style" not in page
    assert "javascript:" not in page
    linked = re.sub(r"<a\s[^>]*>", "", page)  # a link to a paper may lead elsewhere; nothing is loaded from there
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', linked)


# -- hostile content ---------------------------------------------------------------------------------------------


def hostile_root(study_root, tmp_path):
    """The small study with markup in every text that a page shows."""
    folder = tmp_path / "small"
    folder.mkdir()
    name = (study_root / "small" / "CURRENT").read_text().split()[0]
    for file in ("CURRENT", name):
        shutil.copy(study_root / "small" / file, folder)
    with duckdb.connect(str(folder / name)) as connection:
        for table, columns in {
            "Token": ["text"], "Document": ["name"],
            "Study": ["model", "token_policy", "corpus_remark", "device", "precision"],
            "Ensemble": ["hookpoint", "variant", "shared_start", "data_order"],
        }.items():  # fmt: skip
            for column in columns:
                connection.execute(f"UPDATE {table} SET {column} = ?", [f"\"'>{EVIL}&lt;{column}"])
    return tmp_path


def test_markup_in_tokens_and_names_is_shown_and_never_run(study_root, tmp_path):
    client = browse(hostile_root(study_root, tmp_path))
    for path in ("/", "/s/small", "/s/small/topk-96", "/s/small/topk-96/features", "/s/small/topk-96/0/5"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert EVIL not in answer.text, path
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text, path
        assert client.get(path, headers={"HX-Request": "true"}).text.find(EVIL) == -1
    data = client.get("/s/small/topk-96/0/5.json")
    assert EVIL in data.json()["hookpoint"]
    assert data.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "path",
    [
        "/s/{}", "/s/small/{}", "/s/small/topk-96/{}/0", "/s/small/topk-96/0/{}", "/s/small/topk-96/features?q={}",
        "/s/small/topk-96/features?bucket={}", "/s/small/topk-96/features?{}=1", "/s/small/topk-96/features?after={}",
        "/s/small/topk-96/0/5?q={}", "/s/small/topk-96/0/5?v={}", "/s/small/topk-96?theta={}", "/{}",
    ],
)  # fmt: skip
def test_markup_in_an_address_is_never_run(client, path):
    for hostile in (EVIL, f'">{EVIL}', f"'>{EVIL}", f"--></title>{EVIL}"):
        assert EVIL not in client.get(path.format(quote(hostile, safe=""))).text


def test_quotes_in_a_search_search_for_quotes(client):
    whole = client.get("/s/small/topk-96/features.json").json()["total"]
    for q in ("' OR 1=1 --", "'; DROP TABLE Feature; --", "%"):
        found = client.get("/s/small/topk-96/features.json", params={"q": q, "limit": 500}).json()
        assert found["total"] < whole
        assert all(any(q.lower() in t.lower() for t in row["top_tokens"]) for row in found["rows"])
    assert client.get("/s/small/topk-96/features.json").json()["total"] == whole


@pytest.mark.parametrize(
    "path",
    [
        "/static/../pyproject.toml",
        "/static/%2e%2e/pyproject.toml",
        "/static//etc/passwd",
        "/static/..%2f..%2fetc/passwd",
    ],
)
def test_files_outside_the_static_folder_are_not_served(client, path):
    assert client.get(f"{LOCAL}{path}").status_code == 404


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM Feature",
        "UPDATE Study SET model = 'x'",
        "CREATE TABLE t (i INTEGER)",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "COPY Study TO '/tmp/seedscope-leak.csv'",
        "ATTACH '/tmp/seedscope-other.duckdb'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET threads = 1",
    ],
)
def test_the_web_process_can_neither_write_nor_read_files_nor_reconfigure_its_database(client, statement):
    connection = client.app.state.studies.get("small")._connection
    with pytest.raises(duckdb.Error):
        connection.cursor().execute(statement).fetchall()


# -- where a token comes from and goes to ------------------------------------------------------------------------


def test_health_says_no_more_than_ok_without_the_token(guarded):
    assert guarded.get("/healthz").json() == {"status": "ok"}
    assert guarded.get("/healthz", headers={"Authorization": "Bearer wrong"}).json() == {"status": "ok"}
    assert guarded.get("/healthz", headers={"Authorization": f"Bearer {TOKEN}"}).json()["studies"] == ["small"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_cookie_is_for_https_alone_where_the_address_is(study_root, scheme):
    client = TestClient(create_app(Settings(study_root, token=TOKEN)), base_url=f"{scheme}://127.0.0.1")
    answer = client.get("/", params={"token": TOKEN}, follow_redirects=False)
    assert answer.status_code == 303
    assert ("; Secure" in answer.headers["set-cookie"]) == (scheme == "https")


@pytest.mark.parametrize("token", ["é", "日本", "two words", "semi;colon", "", "x" * 257, 'quo"te', "line\nbreak"])
def test_a_token_that_no_cookie_can_hold_is_refused(token):
    assert "expected" in token_problem(token)
    assert token_problem(new_token()) is None


def test_such_a_token_ends_the_start_with_one_line_that_does_not_hold_it(study_root, tmp_path):
    (tmp_path / "token").write_text("日本\n")
    for arguments in (["--token", "two words"], ["--token-file", str(tmp_path / "token")]):
        done = run("serve", "--root", str(study_root), *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "two words" not in done.stderr
        assert "日本" not in done.stderr


def served_with(root, *arguments: str, given: str = "") -> tuple[str, list[tuple[int, str]]]:
    """What a server said, and (status, cookie) of requests without the token, with it, and with it by way of a proxy."""
    command = [*COMMAND, "serve", "--root", str(root), "--port", "0", "--workers", "1", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=CWD, **pipes) as process:
        process.stdin.write(given)
        process.stdin.close()
        said = ""
        while "SeedScope is at" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        address = re.search(r"http://\S+?/", said)[0]
        answers = []
        for query, headers in (("", {}), (f"?token={TOKEN}", {}), (f"?token={TOKEN}", {"X-Forwarded-Proto": "https"})):
            with httpx2.Client(trust_env=False) as client:
                answer = client.get(f"{address}{query}", headers=headers)
            answers.append((answer.status_code, answer.headers.get("set-cookie", "")))
        process.terminate()
        said += process.stdout.read()
    return said, answers


def test_a_token_from_a_file_or_standard_input_is_printed_nowhere(study_root, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    for arguments, given in (
        (["--token-file", str(tmp_path / "token")], ""),
        (["--token-file", "-", "--log-format", "json"], f"{TOKEN}\n"),
    ):
        said, answers = served_with(study_root, *arguments, given=given)
        assert TOKEN not in said
        assert [status for status, _ in answers] == [401, 303, 303]
        assert not [cookie for _, cookie in answers if "Secure" in cookie]  # nobody is believed who is not named


def test_a_named_proxy_says_whether_it_was_asked_by_https(study_root):
    _, answers = served_with(study_root, "--token", TOKEN, "--proxy-headers", "127.0.0.0/8")
    assert ["; Secure" in cookie for _, cookie in answers] == [False, False, True]
    refused = run("serve", "--root", str(study_root), "--proxy-headers", "proxy.example")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
