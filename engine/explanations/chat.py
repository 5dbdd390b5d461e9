"""Ask questions of any OpenAI-compatible server: concurrency, retries, waiting, reading of replies and counting of tokens.

The key is read from the environment alone and kept out of everything that is written: SEEDSCOPE_LLM_KEY goes to whichever
server is named, OPENAI_API_KEY to api.openai.com alone, so that a key never reaches a server that it was not made for. Local
servers need none, and then no Authorization header is sent.
"""

import asyncio
import hashlib
import json
import os
import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from seedscope.engine.contract.environment import KEY, OPENAI_KEY
from seedscope.engine.explanations.answer_log import Answer, Answers, Usage
from seedscope.engine.explanations.prompts import PROMPT_VERSION, Message, ask_again

NOT_ASKED = "not asked: "  # how the reason of a question begins that was never put
OPENAI_HOST = "api.openai.com"
SHORTEST_KEY = 8  # characters; shorter ones are the "none" and "EMPTY" of local servers, and words of answers too
LONGEST_REASON = 240  # characters of what a server says


class Refused(ValueError):
    """The server takes no question at all: its address, the key or the model is wrong, or the account is empty."""


class Prices(NamedTuple):
    """Money per million tokens, in any currency."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where questions go, and how patiently; raises ValueError for an address that no key should be sent to."""

    base_url: str  # up to and with the version: http://localhost:11434/v1
    model: str
    concurrency: int = 8  # requests under way at once
    timeout_s: float = 120.0  # of one request, from its first byte to the answer's last
    retries: int = 5  # after timeouts, lost connections and HTTP 408, 409, 429 and 5xx
    unreadable_retries: int = 2  # after answers that are not of the form asked for; each is paid for
    first_wait_s: float = (
        1.0  # before the first retry; doubled before each further one, then shortened by up to half at random
    )
    longest_wait_s: float = 90.0  # also of what a server may ask for in Retry-After
    give_up_after: int = 16  # questions in a row without an answer: then nothing more is asked
    drain_s: float = 20.0  # after Ctrl-C, wait so long for answers under way: they are paid for
    temperature: float | None = 0.0  # None leaves it out, for models that refuse it
    max_tokens: int = 1000  # of one answer, thinking included

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"the server's address is {_without_secrets(self.base_url)!r}, expected one such as "
                "http://localhost:11434/v1 or https://api.openai.com/v1"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                f"the server's address {_without_secrets(self.base_url)!r} holds a name, a password or a query, "
                f"expected none: a key goes into the environment variable {KEY}"
            )
        if not self.model:
            raise ValueError("found no name of a model, expected one that the server knows")
        if (
            min(self.concurrency, self.give_up_after, self.max_tokens) < 1
            or min(self.retries, self.unreadable_retries) < 0
        ):
            raise ValueError(
                f"concurrency is {self.concurrency}, give_up_after {self.give_up_after}, max_tokens {self.max_tokens}, retries "
                f"{self.retries} and {self.unreadable_retries}; expected at least 1, 1, 1, 0 and 0"
            )
        if min(self.timeout_s, self.first_wait_s, self.longest_wait_s) <= 0:
            raise ValueError("found a time of zero seconds or less, expected timeouts and waits above zero")

    @property
    def explainer(self) -> str:
        """The name that explanations by this model carry."""
        return f"openai:{self.model}"


class Question(NamedTuple):
    """One request, and how its answer is read."""

    kind: str  # explain, detection, fuzzing
    feature: int
    about: str  # digest of what the question is about: SAE, feature and the contexts shown
    messages: list[Message]
    read: Callable[[str], Any]  # raises ValueError saying what is wrong with an answer

    def key(self, server: Server) -> str:
        """What answers are kept under: an address may change, a model or a word may not."""
        content = [self.about, self.kind, PROMPT_VERSION, server.model, server.temperature, self.messages]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


class Answered(NamedTuple):
    """What became of a question: a value, or the reason why there is none."""

    value: Any
    failure: str | None = None


class _Reply(NamedTuple):
    """A server's answer to one request: a text, or the reason why there is none."""

    text: str
    usage: Usage
    failure: str | None = None

    @property
    def answer(self) -> str | None:
        """The text as it is kept: None where there is none."""
        return self.text if self.failure is None else None


class _Fault(Exception):
    """A request without an answer."""

    def __init__(self, reason: str, *, again: bool, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.again, self.wait_s = reason, again, wait_s


class Asker:
    """`async with Asker(server, answers) as asker: await asker.ask(question)`, from any number of tasks of one loop."""

    def __init__(self, server: Server, answers: Answers) -> None:
        """Raises ValueError where the openai library is missing, or the key is no key."""
        self._openai = _library()
        self._key = read_key(server.base_url)
        self._server, self._answers = server, answers
        self.usage = Usage()  # of this run
        self.n_reused = 0
        self._in_row = 0
        self._stopped: str | None = None  # why nothing more is asked
        self._not_before = 0.0  # by the loop's clock, as the server asked
        self._random = random.Random()

    async def __aenter__(self) -> "Asker":
        omit = self._openai.Omit()
        self._places = asyncio.Semaphore(self._server.concurrency)
        self._n_under_way, self._idle = 0, asyncio.Event()
        self._idle.set()
        self._headers = {} if self._key else {"Authorization": omit}
        if not _is_openai(self._server.base_url):  # the environment's organization is no other server's business
            self._headers |= {"OpenAI-Organization": omit, "OpenAI-Project": omit}
        self._client = self._openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=self._server.base_url, max_retries=0, timeout=self._server.timeout_s
        )
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._client.close()

    def stop(self, why: str) -> None:
        """Ask nothing more; what is under way goes on."""
        self._stopped = self._stopped or why

    async def drained(self) -> None:
        """Wait until no request is under way."""
        await self._idle.wait()

    async def ask(self, question: Question) -> Answered:
        """The answer, from disk where there is one; every answer that was paid for is on disk when this returns.

        Raises Refused where no question can succeed, OSError where an answer cannot be written.
        """
        key = question.key(self._server)
        text = self._answers.find(key)
        if text is not None:
            with suppress(ValueError):  # a stricter reading than then: ask again
                value = question.read(text)
                self.n_reused += 1
                return Answered(value)
        messages, n_faults, n_unreadable = question.messages, 0, 0
        while True:
            try:
                reply = await self._send(messages)
            except _Fault as fault:
                n_faults += 1
                if fault.again and n_faults <= self._server.retries and not self._stopped:
                    await self._wait(n_faults, fault.wait_s)
                    continue
                return self._record_failure(question, key, fault.reason)
            if reply is None:
                return Answered(None, f"{NOT_ASKED}{self._stopped}")
            value, failure = None, reply.failure
            if failure is None:
                try:
                    value = question.read(reply.text)
                except ValueError as error:
                    failure = str(error)
            self._keep(question, key, reply, failure)
            if failure is None:
                return Answered(value)
            n_unreadable += 1
            if n_unreadable > self._server.unreadable_retries:
                return Answered(None, f"unreadable {n_unreadable} times, the last time: {failure}")
            messages = question.messages if reply.failure else ask_again(question.messages, reply.text, failure)

    def _keep(self, question: Question, key: str, reply: _Reply, failure: str | None) -> None:
        self._in_row = 0
        self.usage += reply.usage
        self._answers.add(
            Answer(key, question.kind, question.feature, self._server.model, reply.answer, reply.usage, failure)
        )

    def _record_failure(self, question: Question, key: str, reason: str) -> Answered:
        """Remember a question that got no answer, and whether there is still a point in asking."""
        self._in_row += 1
        if self._in_row >= self._server.give_up_after:
            self.stop(f"{self._in_row} questions in a row had no answer, the last one: {reason}")
        self._answers.add(Answer(key, question.kind, question.feature, self._server.model, None, Usage(), reason))
        return Answered(None, reason)

    async def _wait(self, n_faults: int, wait_s: float | None) -> None:
        if wait_s is not None:  # holds for everybody: the server counts all requests
            self._not_before = max(self._not_before, asyncio.get_running_loop().time() + wait_s)
            return
        longest = min(self._server.longest_wait_s, self._server.first_wait_s * 2 ** (n_faults - 1))
        await asyncio.sleep(longest * self._random.uniform(0.5, 1.0))

    async def _send(self, messages: Sequence[Message]) -> _Reply | None:
        """One request; None where nothing more is asked. Raises _Fault where there is no answer."""
        async with self._places:
            loop = asyncio.get_running_loop()
            while (left := self._not_before - loop.time()) > 0 and not self._stopped:
                await asyncio.sleep(min(left, 1.0))
            if self._stopped:
                return None
            self._n_under_way += 1
            self._idle.clear()
            try:
                async with asyncio.timeout(self._server.timeout_s):
                    raw = await self._client.chat.completions.with_raw_response.create(
                        model=self._server.model, messages=messages, extra_headers=self._headers, **self._settings()
                    )
                    return self._read(raw.text)
            except (TimeoutError, self._openai.APITimeoutError):
                raise _Fault(f"no answer within {self._server.timeout_s:g} s", again=True) from None
            except self._openai.APIStatusError as error:
                raise self._status_fault(error) from None
            except self._openai.APIConnectionError as error:
                said = self._clean(str(error.__cause__ or error))
                raise _Fault(f"no connection to {self._server.base_url} ({said})", again=True) from None
            except self._openai.OpenAIError as error:
                raise _Fault(self._clean(str(error)), again=False) from None
            finally:
                self._n_under_way -= 1
                if not self._n_under_way:
                    self._idle.set()

    def _settings(self) -> dict[str, Any]:
        limit = "max_completion_tokens" if _is_openai(self._server.base_url) else "max_tokens"
        heat = {} if self._server.temperature is None else {"temperature": self._server.temperature}
        return heat | {limit: self._server.max_tokens}

    def _read(self, body: str) -> _Reply:
        """A server's whole answer, which may be anything."""
        try:
            completion = json.loads(body)
            completion = completion if isinstance(completion, dict) else {}
        except (ValueError, RecursionError):
            return _Reply(
                "", Usage(answers=1, uncounted=1), f"found {self._clean(body)!r}, expected a chat completion as JSON"
            )
        usage = _usage(completion.get("usage"))
        choices = completion.get("choices")
        if not isinstance(choices, list) or not choices:
            return _Reply("", usage, "found no choices in the answer, expected one")
        choice = choices[0] if isinstance(choices[0], dict) else {}
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if choice.get("finish_reason") == "length":
            return _Reply("", usage, f"the answer was cut at max_tokens = {self._server.max_tokens}")
        if not isinstance(text, str):
            refusal = message.get("refusal") if isinstance(message, dict) else None
            said = f": {self._clean(refusal)}" if isinstance(refusal, str) else ""
            return _Reply("", usage, f"found no text in the answer, expected some{said}")
        return _Reply(self._redact(text), usage)

    def _status_fault(self, error: Any) -> _Fault:
        status, said = error.status_code, self._clean(_message(error.body) or error.response.text)
        summary = f"HTTP {status}" + (f": {said}" if said else "")
        exhausted = isinstance(error.body, dict) and error.body.get("code") == "insufficient_quota"
        if status == 401:
            had = f"the key in the environment, {KEY} or {OPENAI_KEY}, is not one of this server's"
            if not self._key:
                had = f"there is no key for it in the environment; set {KEY}"
            raise Refused(f"{self._server.base_url} refuses to answer ({summary}): {had}") from None
        if status in (402, 404) or exhausted:
            raise Refused(
                f"{self._server.base_url} cannot answer as {self._server.model!r} ({summary}); expected an account with credit and "
                "a model that the server knows at an address that ends like /v1"
            ) from None
        again = status in (408, 409, 429) or status >= 500
        wait_s = retry_after(error.response.headers) if again else None
        if wait_s is not None and wait_s > self._server.longest_wait_s:
            reason = f"{summary}; the server asks to wait {wait_s:,.0f} s, more than {self._server.longest_wait_s:g} s"
            return _Fault(reason, again=False)
        return _Fault(summary, again=again, wait_s=wait_s)

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) >= SHORTEST_KEY else text

    def _clean(self, text: str) -> str:
        """What a server said, on one line, without the key."""
        text = " ".join("".join(" " if unicodedata.category(c)[0] == "C" else c for c in self._redact(text)).split())
        return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "…"


def read_key(base_url: str, environment: Mapping[str, str] = os.environ) -> str:
    """The key for a server, empty where there is none; raises ValueError for what cannot be one, without repeating it."""
    name = KEY if environment.get(KEY, "").strip() or not _is_openai(base_url) else OPENAI_KEY
    key = environment.get(name, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{name} holds blanks, line breaks or letters that no key has; copy the key again")
    return key


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, None where it does not say: as a number or as a date."""
    with suppress(ValueError):
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(float(milliseconds) / 1000, 0.0)
    value = headers.get("retry-after")
    if value is None:
        return None
    with suppress(ValueError):
        return max(float(value), 0.0)
    with suppress(ValueError, TypeError):
        return max(parsedate_to_datetime(value).timestamp() - time(), 0.0)
    return None


def _library() -> ModuleType:
    try:
        import openai
    except ModuleNotFoundError:
        raise ValueError(
            "asking a language model needs the openai library; install it with: pip install 'seedscope[llm]'"
        ) from None
    return openai


def _is_openai(base_url: str) -> bool:
    parts = urlsplit(base_url)
    return parts.scheme == "https" and parts.hostname == OPENAI_HOST


def _without_secrets(address: str) -> str:
    """An address as an error may show it."""
    return address.split("?", 1)[0].split("#", 1)[0].rsplit("@", 1)[-1]


def _usage(counts: Any) -> Usage:
    """The tokens of one answer, uncounted where the server's field of that name is not as the protocol has it."""
    if isinstance(counts, dict):
        n_in, n_out = counts.get("prompt_tokens"), counts.get("completion_tokens")
        if type(n_in) is int and type(n_out) is int and min(n_in, n_out) >= 0:
            return Usage(1, n_in, n_out)
    return Usage(answers=1, uncounted=1)


def _message(body: Any) -> str:
    """What an error's body says, as OpenAI and those who copy it write it; empty where it says nothing."""
    if isinstance(body, dict):
        inner = body.get("error", body.get("message"))
        inner = inner.get("message") if isinstance(inner, dict) else inner
        return inner if isinstance(inner, str) else ""
    return body if isinstance(body, str) else ""
