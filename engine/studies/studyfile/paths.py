"""Checks of the models, texts and SAE files that a study file names; relative paths start from the folder of the file."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from natsort import natsorted

from seedscope.engine.activations.documents import OPTIONS, documents
from seedscope.engine.activations.recorded import open_recorded
from seedscope.engine.contract.patterns import matches
from seedscope.engine.contract.urls import on_this_machine, url_in
from seedscope.engine.demo import stdlib
from seedscope.engine.saes.importers import registry
from seedscope.engine.saes.importers.hub import PREFIX
from seedscope.engine.studies.studyfile.toml import Check, Unfit, shown
from seedscope.engine.studies.studyfile.values import text, texts
from seedscope.engine.urls.cache import each_of, require_there
from seedscope.engine.urls.storage import is_pattern

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def model_in(folder: Path) -> Check:
    """A transformers model: a folder, or a hub id that is left alone."""

    def check(value: Any) -> str:
        name = text(value)
        local = folder / Path(name).expanduser()
        if local.is_dir():
            if not (local / "config.json").is_file():
                raise Unfit(f"expected a folder of a transformers model, found no config.json in {local}")
            return str(local)
        if local.exists() or not _HUB_ID.fullmatch(name):
            what = "which is a file" if local.exists() else "which does not exist"
            raise Unfit(f"expected a folder, or a hub id such as EleutherAI/pythia-70m; it reads as {local}, {what}")
        return name

    return check


def models_in(folder: Path) -> Check:
    """Two or more transformers models, each once."""

    def check(value: Any) -> tuple[str, ...]:
        one = model_in(folder)
        names = tuple(one(each) for each in texts(value))
        if len(set(names)) < max(len(names), 2):
            raise Unfit(f"expected at least two models, each once, found {shown(value)}")
        return names

    return check


def sources_in(folder: Path) -> Check:
    """{token source as written: as it is used}, local ones relative to a folder; their first document must be readable."""

    def check(value: Any) -> dict[str, str]:
        if stdlib.SOURCE in (named := texts(value)) and len(named) > 1:
            raise Unfit(f"expected {stdlib.SOURCE} by itself: it has a train and a held-out part of its own")
        return {each: _source_in(folder, each) for each in named}

    return check


def _source_in(folder: Path, source: str) -> str:
    if source == stdlib.SOURCE:
        return source
    if (url := _behind_url(source, "documents")) is not None:
        return url
    if source.startswith(PREFIX):
        if find_spec("datasets") is None:
            raise Unfit("expected the datasets library for it, which is missing; pip install 'seedscope[hub]'")
        return source
    local = str(folder / Path(on_this_machine(source)).expanduser())
    try:
        next(documents(local))
    except (ValueError, OSError) as error:
        raise Unfit(f"expected documents that can be read: {error}") from None
    return local


def activations_in(folder: Path) -> Check:
    """Recorded activations: a file or a folder of files whose heads say that they are some."""

    def check(value: Any) -> str:
        if (url := _behind_url(text(value), "recorded activations")) is not None:
            return url
        path = folder / Path(on_this_machine(text(value))).expanduser()
        try:
            open_recorded(path)
        except (ValueError, OSError) as error:
            raise Unfit(f"expected recorded activations: {error}") from None
        return str(path)

    return check


def paths_in(folder: Path) -> Check:
    """Files and folders of SAEs: names first, patterns second; the matches of a pattern in natural order."""

    def check(value: Any) -> tuple[Path, ...]:
        paths: list[Path] = []
        for pattern in texts(value):
            if pattern.startswith(registry.PREFIX):
                paths.append(_in_registry(pattern))
                continue
            if pattern.startswith(PREFIX):
                paths.append(_on_hub(pattern))
                continue
            if (behind := _saes_behind_url(pattern)) is not None:
                paths += behind
                continue
            named = folder / Path(on_this_machine(pattern)).expanduser()
            if not (names := matches(named)):
                raise Unfit(f"expected SAE files or folders, {pattern!r} matches none{_what_there_is(named)}")
            paths += map(Path, natsorted(names))  # seed2 before seed10
        if twice := sorted({str(path) for path in paths if paths.count(path) > 1}):
            raise Unfit(f"expected every SAE once, {twice[0]} is matched twice; narrow the patterns")
        return tuple(paths)

    return check


def _behind_url(source: str, what: str) -> str | None:
    """The URL that a source is, where something lies there, which is not fetched; None for other sources."""
    try:
        if url := url_in(source):
            require_there(OPTIONS.sub(r"\g<source>", url))
        return url
    except ValueError as error:
        raise Unfit(f"expected {what}: {error}") from None


def _saes_behind_url(pattern: str) -> list[Path] | None:
    """The SAEs that a URL names or its pattern matches, as paths that engine.importers fetches; None for other names."""
    try:
        if (url := url_in(pattern)) is None:
            return None
        if not is_pattern(url):
            require_there(url)
        return [Path(each) for each in each_of(url)]
    except ValueError as error:
        raise Unfit(f"expected SAE files or folders: {error}") from None


def _in_registry(name: str) -> Path:
    """A name of SAELens' registry as a path, which engine.importers looks up."""
    try:
        registry.lookup(name)
    except ValueError as error:
        raise Unfit(f"expected {registry.PREFIX}RELEASE/SAE_ID: {error}") from None
    return Path(name)


def _on_hub(name: str) -> Path:
    """A name on a hub as a path, which engine.importers downloads."""
    if not re.fullmatch(rf"{PREFIX}[\w.-]+/[\w.-]+(@[\w./-]+)?(/[^/]+)*/?", name):
        raise Unfit(f"expected {PREFIX}OWNER/REPO or {PREFIX}OWNER/REPO/FOLDER, found {shown(name)}")
    return Path(name)


def _what_there_is(path: Path) -> str:
    """The content of the nearest folder on the way to a path that does not exist."""
    folder = next(each for each in path.parents if each.is_dir())
    try:
        names = natsorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    except OSError as error:
        return f"; {folder} cannot be listed ({error.strerror})"
    return f"; {folder} holds {', '.join(names[:4]) or 'nothing'}{', ..' if len(names) > 4 else ''}"
