"""The `[executor]` table of a study file, and the same settings as a command line gives them: KEY=VALUE."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seedscope.engine.executors.settings import EVERYWHERE, KINDS, SETTINGS_OF, ExecutorSettings
from seedscope.engine.studies.studyfile import values
from seedscope.engine.studies.studyfile.toml import Check, Problems, Table, Unfit, any_of

TABLE = "executor"


def executor_in(top: Table, folder: Path, homes: Mapping[str, str]) -> ExecutorSettings:
    """Where a study file lets units run; in this process where it does not say."""
    table = top.table(TABLE)
    if table is None:
        return ExecutorSettings()
    with table.alone(homes):
        return _settings(table, folder)


def executor_named(kind: str | None, options: Sequence[str], file: ExecutorSettings | None = None) -> ExecutorSettings:
    """The executor of a command line: of a `kind`, with settings KEY=VALUE, in the place of what a study file says.

    A file's settings stay where the kind is its own. Raises ValueError for a setting that is none.
    """
    before = file or ExecutorSettings()
    kept = vars(before) if kind in (None, before.kind) else {"kind": kind}
    given: dict[str, Any] = {}
    for option in options:
        key, is_there, value = option.partition("=")
        if not is_there or not key.isidentifier():
            raise ValueError(f"--executor-option is {option!r}, expected KEY=VALUE, such as cpus=2")
        given[key] = _value(value)
    problems = _Listed()
    table = Table({"kind": kind or before.kind} | given, (TABLE,), problems)
    with table.alone({}):
        settings = _settings(table, Path.cwd())
    problems.raise_any()
    return ExecutorSettings(**dict(kept) | {key: getattr(settings, key) for key in ("kind", *given)})


class _Listed(Problems):
    """Problems of a command line, which has no lines."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, place: tuple[str | int, ...], problem: str) -> None:
        self._texts.append(f"--executor-option {place[-1]} {problem}")

    def raise_any(self) -> None:
        if self._texts:
            raise ValueError("; ".join(self._texts))


def _value(text: str) -> Any:
    """A value as TOML reads it; a bare word is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _settings(table: Table, folder: Path) -> ExecutorSettings:
    kind = table.take("kind", values.one_of(KINDS), "local", required=f"one of {any_of(KINDS)}")
    checks: dict[str, Check] = {
        "cpus": values.whole(1), "members": values.whole(1), "retries": values.whole(0), "workers": values.whole(1),
        "address": values.text, "gpus": values.whole(0), "memory": values.number("GB above 0", lambda v: v > 0),
        "partition": values.text, "array": values.whole(1), "time": values.whole(1), "logs": _folder_in(folder),
    }  # fmt: skip
    allowed = (*EVERYWHERE, *SETTINGS_OF[kind])
    given = {key: table.take(key, check) for key, check in checks.items() if key in allowed}
    for key in checks:
        if key in table and key not in allowed:
            table.allow(key)
            homes = any_of([each for each, settings in SETTINGS_OF.items() if key in settings])
            table.wrong(key, f'is a setting of {homes}, and kind = "{kind}"; leave it out, or choose that kind')
    return ExecutorSettings(kind, **{key: value for key, value in given.items() if value is not None})


def _folder_in(folder: Path) -> Check:
    def check(value: Any) -> Path:
        path = folder / Path(values.text(value)).expanduser()
        if path.exists() and not path.is_dir():
            raise Unfit("expected a folder that all nodes share; this is a file")
        return path

    return check
