"""What every page shows around its content: where it stands, the tabs of its ensemble or study, the lens, what was ignored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request

from seedscope.app.lens import PARAMETERS, Lens, read_lens
from seedscope.app.parameters import parameters_of, unknown_parameters, url
from seedscope.engine.contract.tables.study import Ensemble, Study


@dataclass(frozen=True)
class ShellLink:
    """A page that the shell links to."""

    name: str
    address: str
    is_current: bool
    lacks: str | None = None  # why the page has nothing to show yet


@dataclass(frozen=True)
class Shell:
    """The frame of one page; addresses carry the lens."""

    study: ShellLink | None
    ensemble: ShellLink | None
    studies: list[ShellLink]  # to switch to, empty where there is one
    ensembles: list[ShellLink]
    tabs: list[ShellLink]
    tabs_of: str  # the name of the tab row: of the ensemble or of the study
    search: str | None  # address of the feature table that the search box asks; None off ensembles
    search_hint: str
    searches_words: bool  # else only an index can be searched
    lens: Lens
    lens_is_used: bool
    without_lens: str  # this page's address with the settings of the study
    ignored: list[str]  # parameters of the address that mean nothing here


class OpenStudy(Protocol):
    """A study's store, as far as the shell reads it."""

    study: Study
    ensembles: dict[str, Ensemble]
    is_start_grid: bool  # whether its ensembles differ in constraint, start or preprocessing
    compares_sources: bool  # whether they differ in what differs between their members


class OpenStudies(Protocol):
    """All studies of the dashboard."""

    def names(self) -> list[str]:
        """Names of the published studies."""

    def find(self, study: str) -> Any:
        """The `OpenStudy` of that name; None where it cannot be read."""


# Tabs of an ensemble: name, end of the address, other pages that it stands for, the analysis without which it has nothing to show.
_ENSEMBLE_TABS = (
    ("Overview", "", (), None),
    ("Features", "/features", ("/{seed}/{feature}", "/list"), None),
    ("Seeds", "/members", (), None),
    ("Buckets", "/buckets", (), None),
    ("Ablation", "/ablation", (), "ablate"),
    ("Subspaces", "/subspaces", (), "subspaces"),
    ("Spans", "/spans", (), "shared_spans"),
    ("Function", "/function", (), "function"),
    ("Explanations", "/explanations", (), "explain"),
    ("Training", "/trajectory", (), "trajectory"),
    ("Try", "/try", (), None),
)
_COMPARING = {"Seeds", "Buckets", "Subspaces", "Spans", "Function", "Training"}  # what one SAE alone has not
_ENSEMBLE, _STUDY = "/s/{study}/{ensemble}", "/s/{study}"


def shell_of(request: Request, studies: OpenStudies) -> Shell:
    """The frame of the page that a request asks for; of an address that names no study, without tabs."""
    route = getattr(request.scope.get("route"), "path", "").removesuffix(".json")
    names = studies.names()
    study: str | None = request.path_params.get("study")
    store: OpenStudy | None = studies.find(study) if study else None
    row = store.ensembles.get(request.path_params.get("ensemble", "")) if store else None
    lens = read_lens(request.query_params, row.theta if row else None, row.epsilon if row else None)
    carried = lens.parameters
    tabs: list[ShellLink] = []
    if store and row:
        tabs = _tabs_of_ensemble(store, row, route, carried)
    elif store:
        tabs = _tabs_of_study(store, route, carried)
    base = f"/s/{study}/{row.ensemble}" if row else None
    return Shell(
        study=_link(study, f"/s/{study}", carried) if store and study else None,
        ensemble=_link(row.ensemble, base, carried) if row and base else None,
        studies=[_link(name, f"/s/{name}", carried, name == study) for name in names] if len(names) > 1 else [],
        ensembles=_siblings(store, row, route, carried) if store else [],
        tabs=tabs,
        tabs_of=(row.ensemble if row else study or ""),
        search=f"{base}/features" if base else None,
        search_hint=_search_hint(row),
        searches_words=bool(row and {"activity", "explain"} & set(row.computed)),
        lens=lens,
        lens_is_used=set(PARAMETERS) <= set(parameters_of(request)),
        without_lens=url(request.url.path, **{k: v for k, v in request.query_params.items() if k not in PARAMETERS}),
        ignored=[name for name in unknown_parameters(request) if name not in PARAMETERS],
    )


def _tabs_of_ensemble(store: OpenStudy, row: Ensemble, route: str, carried: Mapping[str, Any]) -> list[ShellLink]:
    base = f"/s/{store.study.study}/{row.ensemble}"
    tail = route.removeprefix(_ENSEMBLE)
    places = []
    for name, end, others, analysis in _ENSEMBLE_TABS:
        if name == "Training" and row.origin != "trained":
            continue
        if name == "Try" and (store.study.model is None or row.hookpoint is None or row.control_of is not None):
            continue
        lacks = "not computed yet" if analysis and analysis not in row.computed else None
        if not row.n_comparisons and name in _COMPARING:
            lacks = "needs at least two SAEs"
        is_current = tail == end or any(tail.startswith(start) for start in (end, *others) if start and end)
        places.append(_link(name, base + end, carried, is_current, lacks))
    if store.study.synthetic:
        places.append(_link("True features", f"/s/{store.study.study}/synthetic", carried))
    return places


def _tabs_of_study(store: OpenStudy, route: str, carried: Mapping[str, Any]) -> list[ShellLink]:
    base = f"/s/{store.study.study}"
    ends = {
        "Ensembles": ("", True),
        "Compared": ("/variants", len(store.ensembles) > 1),
        "Starts": ("/starts", store.is_start_grid),
        "Sources": ("/sources", store.compares_sources),
        "True features": ("/synthetic", store.study.synthetic),
        "Pool": ("/pool", True),
    }
    return [_link(name, base + end, carried, route == _STUDY + end) for name, (end, exists) in ends.items() if exists]


def _siblings(store: OpenStudy, row: Ensemble | None, route: str, carried: Mapping[str, Any]) -> list[ShellLink]:
    """The study's ensembles, each at the page that is open now where it has one without an object of its own."""
    if len(store.ensembles) < 2:
        return []
    tail = route.removeprefix(_ENSEMBLE) if row else ""
    tail = "/features" if "{" in tail else tail
    base = f"/s/{store.study.study}"
    return [
        _link(name, f"{base}/{name}{tail}", carried, row is not None and name == row.ensemble)
        for name in store.ensembles
    ]


def _search_hint(row: Ensemble | None) -> str:
    computed = set(row.computed) if row else set()
    return (
        "Token, label, #index" if "explain" in computed else "Top token, #index" if "activity" in computed else "#index"
    )


def _link(
    name: str, path: str, carried: Mapping[str, Any], is_current: bool = False, lacks: str | None = None
) -> ShellLink:
    return ShellLink(name, url(path, **carried), is_current, lacks)
