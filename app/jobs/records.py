"""What is known of the jobs of a root, as it lies on the disk: read again where a record changed."""

import os
import re
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from seedscope.app.jobs.kinds import Job, JobRefusedError, checked

ID_PATTERN = r"[0-9a-f]{16}"
JOB = TypeAdapter(Job)


class Records:
    """The jobs of a folder. Every page asks for them, so a record is parsed once for each of its contents."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parsed: dict[str, tuple[tuple[int, int, int], Job | None]] = {}  # {id: (state of its file, the job)}

    def read(self) -> dict[str, Job]:
        """{id: job}; what cannot be read, or asked for by this version, is not there."""
        parsed: dict[str, tuple[tuple[int, int, int], Job | None]] = {}
        for path in self._folder.glob("*/job.json"):
            id = path.parent.name
            with suppress(OSError):
                status = os.stat(path)
                state = (status.st_ino, status.st_mtime_ns, status.st_size)
                before = self._parsed.get(id)
                parsed[id] = before if before and before[0] == state else (state, _parse(path))
        self._parsed = parsed  # in one step: several threads may read at once
        return {id: job for id, (_, job) in parsed.items() if job is not None}


def _parse(path: Path) -> Job | None:
    with suppress(ValidationError, JobRefusedError):
        job = JOB.validate_json(path.read_bytes())
        is_known = checked(job.kind, job.study, job.parameters) == job.parameters
        if is_known and re.fullmatch(ID_PATTERN, job.id) and job.id == path.parent.name:
            return job
    return None
