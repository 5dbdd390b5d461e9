"""The kinds of jobs that may be asked for, the record of a job, and the `seedscope` command that each runs."""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from seedscope.engine.contract.environment import MODEL, URL
from seedscope.engine.contract.names import name_problem
from seedscope.engine.contract.progress_files import StageProgress
from seedscope.engine.contract.schema import ANALYSES
from seedscope.engine.demo import stdlib

MOST_POOLED = 100_000_000  # tokens that a pool is trained on
MOST_EXPLAINED = 100_000  # features of each ensemble, by a language model


class JobRefusedError(Exception):
    """A job that cannot be started or cancelled: the name of what is wrong, what was found, what was expected."""

    def __init__(self, name: str, found: str, expected: str, status: int = 422) -> None:
        super().__init__(f"{name} is {found}, expected {expected}")
        self.name, self.found, self.expected, self.status = name, found, expected, status


@dataclass(frozen=True)
class Job:
    """A command that was asked for; times are Unix seconds."""

    id: str
    kind: str  # of KINDS
    study: str
    parameters: dict[str, str]
    asked: float
    state: Literal["queued", "running", "done", "failed", "cancelled"] = "queued"
    begin: float | None = None
    end: float | None = None
    pid: int | None = None  # of the process and its group
    cancelling: bool = False  # was asked to end
    exit_code: int | None = None  # negative: the signal that ended it
    reason: str | None = None  # why it failed
    republished: bool | None = None  # whether the study's results are others than before; None unless it is done
    stage: StageProgress | None = None  # the last one that was begun

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("queued", "running")

    @property
    def fields(self) -> dict[str, str]:
        """What a request for the same job says."""
        return {"kind": self.kind, "study": self.study} | self.parameters

    @property
    def command(self) -> str:
        """The same as users type it."""
        return " ".join(["seedscope", *words(self)])

    @property
    def share(self) -> float | None:
        """Share of the stage that is done, None before that is known."""
        return min(self.stage.done / self.stage.total, 1.0) if self.stage and self.stage.total else None

    @property
    def left_s(self) -> float | None:
        """Seconds left of the stage at the rate so far."""
        stage = self.stage
        if stage is None or stage.total is None or not (self.share and stage.rate):
            return None
        return (stage.total - stage.done) / stage.rate

    @property
    def took_s(self) -> float | None:
        """Seconds since it began, or that it took."""
        return None if self.begin is None else (self.end or time.time()) - self.begin


# -- kinds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A command that may be asked for, and what may be said to it: nothing else of a request reaches a command line.

    Where a command reaches out to (addresses, keys, files) is the server's to know and never a parameter.
    """

    parameters: dict[
        str, Callable[[str], str]
    ]  # {name: the value as the command takes it}; ValueError says what it takes
    _: KW_ONLY
    places: tuple[str, ...] = ()  # parameters that stand behind the study, without a name; they must be given
    is_joined: bool = False  # the study and the place behind it are one word, STUDY/ENSEMBLE
    words: tuple[str, ...] = ()  # what the command line says instead of the study's name and the device
    study: str | None = None  # the only one that it is for
    added: tuple[str, ...] = ()  # what the command line says besides
    problem: Callable[[Mapping[str, str], Mapping[str, str]], JobRefusedError | None] = lambda parameters, environment: (
        None
    )


def _some_of(names: tuple[str, ...]) -> Callable[[str], str]:
    def check(given: str) -> str:
        asked = given.split(",")
        if set(asked) - set(names):
            raise ValueError(f"some of {','.join(names)}")
        return ",".join(name for name in names if name in asked)

    return check


def _one_of(*names: str) -> Callable[[str], str]:
    def check(given: str) -> str:
        if given not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return given

    return check


def _count(most: int, *, least: int = 1) -> Callable[[str], str]:
    def check(given: str) -> str:
        if not re.fullmatch(r"[0-9]{1,12}", given) or not least <= int(given) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return str(int(given))

    return check


def _name(given: str) -> str:
    if problem := name_problem(given, exists=True):
        raise ValueError(problem.removeprefix("expected "))
    return given


def _ensemble_of_study(given: str) -> str:
    parts = given.split("/")
    if len(parts) != 2 or any(name_problem(part, exists=True) for part in parts):
        raise ValueError("STUDY/ENSEMBLE")
    return given


def _predicting_problem(parameters: Mapping[str, str], environment: Mapping[str, str]) -> JobRefusedError | None:
    """Why a stability cannot be predicted like that."""
    if "from" not in parameters:
        return JobRefusedError("from", "not given", "STUDY/ENSEMBLE, the ensemble that the predictor is trained on")
    return None


def language_model(environment: Mapping[str, str] = os.environ) -> str | None:
    """The language model that this server was told of; None without one."""
    return environment.get(MODEL) if environment.get(URL) else None


def _explaining_problem(parameters: Mapping[str, str], environment: Mapping[str, str]) -> JobRefusedError | None:
    """Why this server cannot have features explained like that: it alone knows which language model is asked."""
    if parameters.get("explainer", "tokens") == "tokens":
        if "limit" in parameters:
            return JobRefusedError("limit", repr(parameters["limit"]), "none: token rules explain every feature")
        return None
    if lacks := [name for name in (URL, MODEL) if not environment.get(name)]:
        return JobRefusedError(
            "explainer",
            "'openai', and this server was told of no language model",
            f"{' and '.join(lacks)} in the environment of `seedscope serve`, with SEEDSCOPE_LLM_KEY where it needs a key; or "
            "tokens",
        )
    if "limit" not in parameters:
        return JobRefusedError("limit", "not given", f"1 to {MOST_EXPLAINED}: every feature costs requests")
    return None


KINDS = {
    "demo": Kind({}, words=("--control", "--no-serve"), study=stdlib.STUDY.name),
    "analyze": Kind({"only": _some_of(ANALYSES), "rule": _one_of("argmax", "hungarian"), "loss_tokens": _count(2**20)}),
    "predict": Kind(
        {"ensemble": _name, "from": _ensemble_of_study},
        places=("ensemble",),
        is_joined=True,
        problem=_predicting_problem,
    ),
    "explain": Kind(
        {"explainer": _one_of("tokens", "openai"), "limit": _count(MOST_EXPLAINED)},
        added=("--yes",),
        problem=_explaining_problem,
    ),
    "pool": Kind(
        {"ensemble": _name, "tokens": _count(MOST_POOLED, least=0), "loss_tokens": _count(2**20, least=0)},
        places=("ensemble",),
        added=("--replace",),  # of another pool, whose results nobody sees any more
    ),
}


def checked(kind: str, study: str, given: dict[str, str]) -> dict[str, str]:
    """The parameters as the command takes them; raises JobRefusedError. Empty values count as absent."""
    if kind not in KINDS:
        raise JobRefusedError("kind", repr(kind), f"one of {', '.join(KINDS)}")
    if problem := name_problem(study, exists=True):
        raise JobRefusedError("study", repr(study), problem.removeprefix("expected "))
    if KINDS[kind].study not in (None, study):
        raise JobRefusedError("study", repr(study), f"{KINDS[kind].study}, the study that {kind} builds")
    takes = KINDS[kind].parameters
    if unknown := sorted(set(given) - set(takes)):
        raise JobRefusedError(unknown[0], "an unknown parameter", f"one of {', '.join(takes)}")
    parameters = {}
    for name, check in takes.items():
        if value := given.get(name):
            try:
                parameters[name] = check(value)
            except ValueError as error:
                raise JobRefusedError(name, repr(value), str(error)) from None
    if lacks := [name for name in KINDS[kind].places if name not in parameters]:
        raise JobRefusedError(lacks[0], "not given", f"a name: {kind} is of one {lacks[0]}")
    return parameters


def require_ready(kind: str, parameters: Mapping[str, str]) -> None:
    """Raise JobRefusedError where parameters do not go together, or this server cannot do what they ask for."""
    if problem := KINDS[kind].problem(parameters, os.environ):
        raise problem


def words(job: Job) -> list[str]:
    """What stands behind `seedscope` on a command line."""
    if fixed := KINDS[job.kind].words:
        return [job.kind, *fixed]
    places = KINDS[job.kind].places
    subject = [job.study, *(job.parameters[name] for name in places)]
    if KINDS[job.kind].is_joined:
        subject = ["/".join(subject)]
    named = {name: value for name, value in job.parameters.items() if name not in places}
    options = [word for name, value in named.items() for word in (f"--{name.replace('_', '-')}", value)]
    return [job.kind, *subject, *options, *KINDS[job.kind].added]
