"""A small OpenAI-compatible server: `python chat_server.py PORT LOG` answers /v1/chat/completions by a simple token rule.

It explains a feature by the marked token that is marked most often, and tells contexts by that token. POST /control sets
{fault, when, of, delay_s, die_after}; LOG holds a JSON line per request, and outlives the server.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = ("slow", "429", "429-late", "500", "quota", "401", "404", "400-echo", "not-json", "no-choices", "malformed", "wrong-json",
          "cut", "says-key", "no-usage")  # fmt: skip
KINDS = {'"explanation"': "explain", '"active"': "detection", '"right"': "fuzzing"}


def answer(kind: str, asked: str) -> str:
    """What a model that knows one token would say."""
    if kind == "explain":
        active = asked.split("Silent:")[0]
        marked = Counter(re.findall(r"<<(.*?)>>", active))
        return json.dumps({"explanation": f"the token [{marked.most_common(1)[0][0].strip()}]"})
    word = re.search(r"the token \[(.*)\]", asked)[1]
    alone = rf"(?<!\w){re.escape(word)}(?!\w)"
    contexts = re.findall(r"^\d+\. (.*)$", asked.split("\n\n", 1)[1], re.MULTILINE)
    if kind == "detection":
        return json.dumps({"active": [int(bool(re.search(alone, context))) for context in contexts]})
    return json.dumps({"right": [int(word in [m.strip() for m in re.findall(r"<<(.*?)>>", c)]) for c in contexts]})


class Chat(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    control: dict[str, Any] = {"fault": None, "when": "always", "of": None, "delay_s": 0.01, "die_after": None}  # noqa: RUF012
    seen: set[str] = set()  # noqa: RUF012
    lock = threading.Lock()
    at_once = most_at_once = n_requests = 0
    log: Path

    def do_GET(self) -> None:
        self._send(200, {"most_at_once": Chat.most_at_once})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/control":
            Chat.control = Chat.control | json.loads(body)
            with Chat.lock:
                Chat.seen.clear()
                Chat.most_at_once = 0
            self._send(200, {})
            return
        with Chat.lock:
            Chat.at_once += 1
            Chat.n_requests += 1
            Chat.most_at_once = max(Chat.most_at_once, Chat.at_once)
            if Chat.n_requests == Chat.control["die_after"]:
                os._exit(1)
        try:
            self._chat(body)
        finally:
            with Chat.lock:
                Chat.at_once -= 1

    def _chat(self, body: bytes) -> None:
        asked = json.loads(body)
        digest = hashlib.sha256(json.dumps(asked["messages"][:2]).encode()).hexdigest()
        kind = next(kind for word, kind in KINDS.items() if word in asked["messages"][0]["content"])
        with Chat.lock:
            is_first = digest not in Chat.seen
            Chat.seen.add(digest)
        control = Chat.control
        hit = control["of"] in (None, kind) and (is_first or control["when"] == "always")
        fault = control["fault"] if hit else None
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        with Chat.lock, open(Chat.log, "a") as log:
            headers = sorted(name.lower() for name in self.headers)
            line = {"digest": digest, "kind": kind, "fault": fault, "key": key, "headers": headers, "asked": asked}
            log.write(json.dumps(line) + "\n")
        time.sleep(2.0 if fault == "slow" else control["delay_s"])
        said = answer(kind, asked["messages"][1]["content"])
        match fault:
            case "429":
                return self._send(429, {"error": {"message": "too fast"}}, {"Retry-After": "0.3"})
            case "429-late":
                return self._send(429, {"error": {"message": "come back tomorrow"}}, {"Retry-After": "86400"})
            case "500":
                return self._send(500, {"error": {"message": "the\x00 GPU\n is lost"}})
            case "quota":
                return self._send(429, {"error": {"message": "no money", "code": "insufficient_quota"}})
            case "401" | "404":
                return self._send(int(fault), {"error": {"message": f"not with {key}"}})
            case "400-echo":
                return self._send(400, {"error": {"message": f"too long for {key}"}})
            case "not-json":
                return self._send(200, '{"choices": [')
            case "no-choices":
                return self._send(200, {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 0}})
            case "malformed":
                said = f"I think it is {said}"
            case "wrong-json":
                said = json.dumps({"explanation": "", "active": [2], "right": "all"})
            case "says-key":
                said = json.dumps({"explanation": f"the token [cat] {key}"}) if kind == "explain" else said
        choice = {"index": 0, "message": {"role": "assistant", "content": said}}
        choice["finish_reason"] = "length" if fault == "cut" else "stop"
        counted = {"prompt_tokens": len(body) // 4, "completion_tokens": len(said) // 4}
        self._send(200, {"choices": [choice]} | ({} if fault == "no-usage" else {"usage": counted}))

    def _send(self, status: int, content: dict[str, Any] | str, headers: dict[str, str] | None = None) -> None:
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has gone
            self.send_response(status)
            fixed = {"Content-Type": "application/json", "Content-Length": str(len(body))}
            for name, value in (fixed | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


class ChatServer:
    """A server of this kind in a process of its own; `with ChatServer(folder) as server`."""

    def __init__(self, folder: Path) -> None:
        self._log, self._process, self._port = folder / "requests.jsonl", None, 0

    def __enter__(self) -> "ChatServer":
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Start, at the port of before where there was one."""
        if self._process is not None:
            self.__exit__()
        command = [sys.executable, __file__, str(self._port), self._log]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._port = int(self._process.stdout.readline())

    def control(self, **settings: Any) -> None:
        """Set what goes wrong from now on."""
        body = json.dumps(settings).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/control", body, method="POST")
        urllib.request.urlopen(request).close()

    def most_at_once(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/") as answer:
            return json.load(answer)["most_at_once"]

    def requests(self) -> list[dict[str, Any]]:
        """All that was ever asked, restarts included."""
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []


if __name__ == "__main__":
    Chat.log = Path(sys.argv[2])

    class Server(ThreadingHTTPServer):
        """Listens to many at once, and takes a port again at once."""

        request_queue_size = 128
        daemon_threads = True

        def handle_error(self, *arguments: object) -> None:
            """Clients go away without a word."""

    server = Server(("127.0.0.1", int(sys.argv[1])), Chat)
    print(server.server_port, flush=True)
    server.serve_forever()
