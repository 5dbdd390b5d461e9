"""Keep the answers of language models on disk, so that no question is paid for twice.

One JSON line per answer, appended and flushed as it comes, so that a stop at any moment costs no line but the one being
written; such a line is left out when the file is read. Questions are kept as digests, keys of servers not at all. Answers
that could not be read and requests that failed are lines too, with the reason: they are asked again.
"""

import json
import os
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Usage:
    """What answers cost, as the server counted it."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0  # answers that came without a count

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        counts = f"{self.answers:,} answers, {self.prompt_tokens:,} tokens in, {self.completion_tokens:,} out"
        return counts + (f" ({self.uncounted:,} answers came without a count)" if self.uncounted else "")


@dataclass(frozen=True)
class Answer:
    """One line of the file."""

    key: str  # digest of all that was asked
    kind: str  # explain, detection, fuzzing
    feature: int
    model: str
    text: str | None  # None where there was no answer
    usage: Usage  # what this line cost
    failure: str | None = None  # why it is not used


class Answers:
    """The answers of one study; the folder's lock is the caller's, as two writers would pay twice."""

    def __init__(self, path: Path) -> None:
        """Read what is there; raises ValueError where the path is no file of answers."""
        self.path = path
        self.n_damaged = 0  # lines that a stop cut short
        self.usage = Usage()  # of all answers ever, the failed ones included
        self._good: dict[str, Answer] = {}
        self._failed: dict[str, Answer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        n_lines = 0
        if path.is_file():  # a device may be written to, yet has no end to read to
            with open(path, "rb") as file:
                for line in file:
                    n_lines += 1
                    self._read(line)
        if n_lines > 1 and self.n_damaged == n_lines:
            raise ValueError(
                f"{path}: found {n_lines} lines of something else, expected answers as SeedScope writes them; move it away"
            )
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # what comes next begins a line of its own

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *raised: object) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        return len(self._good)

    @property
    def failures(self) -> list[Answer]:
        """The last failure of each question that has no answer."""
        return list(self._failed.values())

    def find(self, key: str) -> str | None:
        """The answer to a question, None where it is to be asked."""
        answer = self._good.get(key)
        return None if answer is None else answer.text

    def add(self, answer: Answer) -> None:
        """Append and flush to disk; raises OSError where it cannot be written, and then nothing more should be asked."""
        line = {"key": answer.key, "kind": answer.kind, "feature": answer.feature, "model": answer.model}
        line |= {"text": answer.text, "usage": astuple(answer.usage)}
        if answer.failure is not None:
            line["failure"] = answer.failure
        written = memoryview(json.dumps(line).encode() + b"\n")
        while written:
            written = written[os.write(self._file, written) :]
        os.fsync(self._file)
        self._keep(answer)

    def _keep(self, answer: Answer) -> None:
        self.usage += answer.usage
        if answer.failure is None:
            self._good[answer.key] = answer
            self._failed.pop(answer.key, None)
        elif answer.key not in self._good:
            self._failed[answer.key] = answer

    def _read(self, line: bytes) -> None:
        try:
            fields: dict[str, Any] = json.loads(line)
            usage = Usage(*(int(n) for n in fields.pop("usage")))
            answer = Answer(usage=usage, **fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            self.n_damaged += 1
            return
        self._keep(answer)
