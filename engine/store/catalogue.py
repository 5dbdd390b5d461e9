"""The catalogue of a study, `study.json` in its folder: its model, its evaluation tokens, its ensembles and their origins.

`seedscope import` and `seedscope run` write it, `seedscope analyze` reads it. It holds no results: these are in the folder
`parts/` and in the store.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from seedscope.engine.contract.files import write_whole
from seedscope.engine.contract.names import name_problem
from seedscope.engine.contract.stability import EPSILON, THETA

FILE = "study.json"
FORMAT, FORMAT_VERSION = "seedscope.study", 1
MATCHING = "argmax, signed cosine, ties to the lowest index"
YesNo = Literal["yes", "no", "unknown"]
DataOrder = Literal["shared", "independent", "unknown"]

CONTROL = "random-weights"  # suffix of the name of an ensemble that is a control


@dataclass(frozen=True)
class Tokens:
    """The evaluation tokens: which documents, how they are cut, and how many count."""

    source: tuple[str, ...]
    """Files, globs or `hf:NAME`; see engine.activations.documents.documents."""
    n_eval: int | None = None
    """Tokens that are measured, a random choice of windows; all of them if not given."""
    n_ctx: int | None = None
    """Tokens per window, BOS included; the model's longest context, at most 2,048, if not given."""
    bos: Literal["exclude", "include"] = "exclude"
    """Whether activations at BOS count."""
    outliers: Literal["exclude", "include"] = "exclude"
    """Whether tokens count whose activations are far longer than the others'; see engine.activations.outliers."""
    part: Literal["all", "held-out"] = "all"
    """`held-out`: only documents that training in this study does not see."""
    remark: str | None = None
    """For the page: what text this is."""


@dataclass(frozen=True)
class RecordedActivations:
    """Activations that were recorded elsewhere and stand in place of a model and tokens."""

    source: str
    """A file or folder; see engine.activations.recorded."""
    digest: str
    """Over type, width and all numbers."""
    stamp: str
    """Over names, sizes and times of the files: while it is the same they need not be read again for the digest."""
    hookpoint: str | None = None
    """Where they were recorded; None: wherever the study's SAEs read."""
    n_eval: int | None = None
    """Rows that are measured, a random choice; all of them if not given."""
    outliers: Literal["exclude", "include"] = "exclude"
    """As for `Tokens`."""
    remark: str | None = None
    """For the page: what they are."""


@dataclass(frozen=True)
class MemberPlan:
    """One SAE of an ensemble and where its file comes from."""

    seed: int
    digest: str
    source: str | None = None
    library: str | None = None
    trained_on: str | None = None
    remarks: tuple[str, ...] = ()
    facts: dict[str, tuple[str, str]] = field(default_factory=dict)
    """{fact: (value, source)} of an imported SAE; see engine.saes.importers.facts. Empty where it was trained here."""


@dataclass(frozen=True)
class EnsemblePlan:
    """Members that differ only in their seed."""

    name: str
    origin: Literal["trained", "imported"]
    folder: str
    """Of the members' files, relative to the study's folder."""
    members: tuple[MemberPlan, ...]
    """In seed order."""
    variant: str | None = None
    """As its library calls the architecture; what the forward pass is called if not given."""
    hookpoint: str | None = None
    """Where its members read the model."""
    shared_start: YesNo = "unknown"
    data_order: DataOrder = "unknown"
    train_token_digest: str | None = None
    n_train_tokens: int | None = None
    train_tokens: int | None = None
    batch: int | None = None
    lr: float | None = None
    recipe: dict[str, Any] | None = None
    """How it was trained here: the settings that its variant uses, without the seeds; `l0` where l1 was found for it."""
    anchor: int | None = None
    """The seed of the member whose recipe differs from the others', such as a public SAE."""
    remarks: tuple[str, ...] = ()
    control_of: str | None = None
    """The ensemble whose recipe this one repeats on the model with random weights."""
    made_from: str | None = None
    """Digest of the files or the recipe that it was made from: what is unchanged is not made again."""
    transcoder: bool = False
    """Whether members predict activations at another hook point than they read."""
    hookpoint_out: str | None = None
    """Where that is; None for SAEs, and where it is not known."""

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(member.seed for member in self.members)


@dataclass(frozen=True)
class StudyPlan:
    """The content of a catalogue. Raises ValueError for names, theta or epsilon that are out of range."""

    name: str
    model: str | None = None
    """Folder or hub id of a transformers model; without one, results come from decoders alone."""
    tokens: Tokens | None = None
    theta: float = THETA
    epsilon: float = EPSILON
    built_from: str = "catalogue"
    """Line 2 of CURRENT: what a rebuild of the embedded study is decided by."""
    ensembles: tuple[EnsemblePlan, ...] = field(default=())
    activations: RecordedActivations | None = None
    """Rows that activity is measured on, in place of the model and the tokens."""

    def __post_init__(self) -> None:
        require_name("study", self.name, exists=True)  # who makes a new one checks its name
        for each in self.ensembles:
            require_name("ensemble", each.name, exists=True)
        if not -1 <= self.theta <= 1:
            raise ValueError(f"theta is {self.theta}, expected a cosine from -1 to 1")
        if not 0 <= self.epsilon < 0.5:
            raise ValueError(f"epsilon is {self.epsilon}, expected 0 to below 0.5")

    def ensemble(self, name: str) -> EnsemblePlan:
        """An ensemble by name; raises ValueError, which lists the study's ensembles, for any other name."""
        for each in self.ensembles:
            if each.name == name:
                return each
        raise ValueError(f"study {self.name} has no ensemble {name!r}, it has {self._names()}")

    def with_ensemble(self, ensemble: EnsemblePlan) -> "StudyPlan":
        """The same study with this ensemble added, or in the place of the one of the same name; ensembles are sorted by name."""
        others = [each for each in self.ensembles if each.name != ensemble.name]
        return replace(self, ensembles=tuple(sorted([*others, ensemble], key=lambda each: each.name)))

    def _names(self) -> str:
        return ", ".join(each.name for each in self.ensembles) or "none"


def require_name(kind: str, name: str, *, exists: bool = False) -> None:
    """Raise ValueError for a name of a study or ensemble that no address can hold, or that no new one may have."""
    if problem := name_problem(name, exists=exists):
        raise ValueError(f"{kind} name is {name!r}, {problem}")


_STUDY = TypeAdapter(StudyPlan)


def read(folder: Path) -> StudyPlan | None:
    """The catalogue in a study's folder, None where there is none; raises ValueError naming the file if it is damaged."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text())
        header = {key: content.pop(key) for key in ("format", "version")}
        if header != {"format": FORMAT, "version": FORMAT_VERSION}:
            raise ValueError(f"{path} is {header}, expected {FORMAT} version {FORMAT_VERSION}")
        return _STUDY.validate_python(content)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        wrong = f"{type(error).__name__}: {error}"
    raise ValueError(f"{path} is damaged ({wrong}); import the study's ensembles again under another name")


def write(study: StudyPlan, folder: Path) -> None:
    """Write the catalogue into a study's folder, in one step; makes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "version": FORMAT_VERSION} | _STUDY.dump_python(study, mode="json")
    write_whole(folder / FILE, json.dumps(content, indent=1))
