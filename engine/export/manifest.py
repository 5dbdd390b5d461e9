"""manifest.json: what an export was made from, by what and when, and the size and SHA-256 of every file in it."""

import hashlib
import json
import subprocess
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from seedscope.engine.contract.files import write_whole
from seedscope.engine.contract.names import inside
from seedscope.engine.contract.schema import READABLE, SCHEMA_VERSION
from seedscope.engine.contract.tables.study import Ensemble
from seedscope.engine.export.open_study import Opened, SaeFile

FILE = "manifest.json"
FORMAT, FORMAT_VERSION = "seedscope.export", 1
BLOCK = 2**22  # bytes that are hashed at once
LONGEST_LINE = 200  # characters of what a study was built from
UNTIL_S = 10  # for git to name the commit


@dataclass(frozen=True)
class File:
    """What a file of an export must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Named:
    """Of the study's row, its name."""

    study: str


@dataclass(frozen=True)
class Manifest:
    """What reading an export needs of its manifest."""

    kind: str  # the format that was asked for
    study: Named
    store: str  # name of the store that was exported
    built_from: str
    files: dict[str, File]  # by path
    schema_version: int
    completed: bool = False  # the store was of a former schema, and its digest is not that of these tables


_MANIFEST = TypeAdapter(Manifest)


def write(folder: Path, study: Opened, kind: str, left_out: dict[str, str]) -> None:
    """Describe all files in a folder; `left_out` says what the export does not hold, and why."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    published = {row.ensemble: study.saes(row) for row in study.ensembles}
    planned = [one for one in study.all_saes() if one not in published.get(one.ensemble, [])]
    content = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "kind": kind,
        "schema_version": SCHEMA_VERSION,
        "seedscope": version("seedscope"),
        "commit": commit(),
        "times": {"exported": datetime.now(UTC).isoformat(timespec="seconds"), "published": None},
        "store": study.store_name,
        "completed": study.store.is_former,
        "built_from": study.built_from,
        "study": asdict(study.study),
        "ensembles": [
            _ensemble(row) | {"saes": [_sae(one, files) for one in published[row.ensemble]]} for row in study.ensembles
        ],
        "not_analysed": [{"ensemble": one.ensemble} | _sae(one, files) for one in planned],
        "left_out": left_out,
        "files": {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()},
    }
    write_whole(folder / FILE, json.dumps(content, indent=1, allow_nan=False))


def _sae(sae_file: SaeFile, files: Collection[str]) -> dict[str, Any]:
    """One SAE with its file, None where this export does not hold it."""
    file = sae_file.file if sae_file.file in files else None
    return {"seed": sae_file.seed, "digest": sae_file.digest, "source": sae_file.source, "file": file}


def _ensemble(row: Ensemble) -> dict[str, Any]:
    """An ensemble's row with the matching spelled out."""
    columns = {
        name: value for name, value in asdict(row).items() if name not in ("rule", "theta", "epsilon", "convention")
    }
    return columns | {"convention": json.loads(row.convention), "matching": matching(row)}


def matching(row: Ensemble) -> dict[str, Any]:
    """How features of an ensemble are matched and judged; `directions` of transcoders alone."""
    rule, sign, ties = [*row.rule.split(", "), None, None][:3]
    dead = "never active on the evaluation tokens, or without a direction; a bucket of its own"
    unknown = "known of features without a direction alone: activity was not measured; a bucket of its own"
    settings = {
        "rule": rule,
        "sign": sign,
        "ties": ties,
        "theta": row.theta,
        "epsilon": row.epsilon,
        "dead_policy": dead if "activity" in row.computed else unknown,
    }
    if row.directions:
        settings["directions"] = row.directions
    return settings


def commit() -> str | None:
    """The commit that this code stands at, with `-dirty` where files were changed since; None where nobody knows."""
    checkout = Path(__file__).parents[2]
    try:
        if (checkout / ".git").exists():
            command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=UNTIL_S, check=True)
            return done.stdout.strip() or None
        url = json.loads(distribution("seedscope").read_text("direct_url.json") or "{}")  # written by pip
        return url.get("vcs_info", {}).get("commit_id")
    except (OSError, subprocess.SubprocessError, PackageNotFoundError, ValueError, AttributeError):
        return None


def sha256(path: Path) -> str:
    """Over a file's bytes, in hex."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read(folder: Path) -> Manifest:
    """The manifest of an export; raises ValueError where there is none, or one that this version does not read."""
    path = folder / FILE
    way_out = "export the study again: seedscope export STUDY DIR"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        named = {name: content[name] for name in ("format", "version", "schema_version", "seedscope")}
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"found no {FILE} in {folder}, expected an export of SeedScope; {way_out}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); copy it again, or {way_out}") from None
    for name, allowed in (("format", (FORMAT,)), ("version", (FORMAT_VERSION,)), ("schema_version", READABLE)):
        if named[name] not in allowed:
            reads = repr(allowed[0]) if len(allowed) == 1 else f"{allowed[0]} to {allowed[-1]}"
            raise ValueError(
                f"{path} has {name} {named[name]!r}, this version reads {reads}; it was written by seedscope "
                f"{named['seedscope']}: import it with that version, or {way_out} with this one"
            )
    try:
        manifest = _MANIFEST.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is damaged ({place}: {first['msg']}); copy it again, or {way_out}") from None
    for name in manifest.files:
        inside(name)
    if not manifest.built_from.isprintable() or len(manifest.built_from) > LONGEST_LINE:
        raise ValueError(
            f"{path} is damaged (built_from is {manifest.built_from[:40]!r}.., expected a line of at most {LONGEST_LINE} "
            f"characters); copy it again, or {way_out}"
        )
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise ValueError naming the first file that is missing, not a plain one in the folder, or not what was exported."""
    way_out = "copy the export again, or make it again: seedscope export STUDY DIR"
    top = folder.resolve()
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(top):
            raise ValueError(f"{path} is a link that leads out of its folder, expected a file; {way_out}")
        if not path.is_file():
            raise ValueError(f"found no {path}, which {FILE} lists; {way_out}")
        if (size := path.stat().st_size) != expected.bytes:
            raise ValueError(
                f"{path} has {size:,} bytes, expected {expected.bytes:,}: it is truncated or changed; {way_out}"
            )
        if sha256(path) != expected.sha256:
            raise ValueError(f"{path} does not hold what was exported (its SHA-256 differs from {FILE}); {way_out}")
