"""The report of `seedscope doctor`: the machine, packages, device, folders and studies, with what to do where something is wrong.

It only reads: nothing is repaired or removed.
"""

import fcntl
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

from seedscope.engine.contract import sockets
from seedscope.engine.contract.cores import usable_cores
from seedscope.engine.contract.names import name_problem
from seedscope.engine.contract.published import names_store, published
from seedscope.engine.contract.tables.study import Ensemble, Member
from seedscope.engine.matching.cuda import choice
from seedscope.engine.store import catalogue, database

FORMAT, FORMAT_VERSION = "seedscope.doctor", 1
SECTIONS = ("machine", "packages", "device", "places", "studies")
LITTLE_MEMORY = LITTLE_SPACE = 2 * 2**30  # bytes; the embedded study takes 1.8 GB of memory and half a GB of disk
# {optional package: (what it is for, how it is installed)}
OPTIONAL = {
    "datasets": ("token sources hf:NAME", "pip install 'seedscope[hub]'"),
    "openai": ("explanations by language models", "pip install 'seedscope[llm]'"),
    "mcp": ("seedscope mcp, for coding agents", "pip install 'seedscope[mcp]'"),
    "anywidget": ("ensemble.table() in notebooks", "pip install 'seedscope[notebook]'"),
    "pandas": ("seedscope.from_saelens", "pip install 'seedscope[notebook]'"),
    "ray": ("--executor ray", "pip install 'seedscope[ray]'"),
    "submitit": ("--executor slurm", "pip install 'seedscope[slurm]'"),
    "triton": ("the fused CUDA kernel; on Linux", "pip install triton"),
    "faiss-cpu": ("a peer in seedscope bench", "pip install 'seedscope[bench]'"),
}
# Files and folders that an interrupted run leaves in a study's folder, relative to it.
LEFTOVERS = (
    "scratch",
    "checkpoints",
    "*.tmp",
    "*.tmp.wal",
    "sae/.*-unfinished",
    "sae/**/*.tmp",
    "parts/**/unfinished",
    "parts/**/*.tmp",
)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    section: str  # one of SECTIONS
    name: str
    value: str
    fine: bool = True  # False: something does not work, or an interrupted run left something
    remark: str = ""  # what that means, and what to do


def examine(root: Path, device: str = "auto") -> list[Finding]:
    """All findings, section by section; raises nothing, and takes seconds, mostly to load torch.

    `device` is the option of `seedscope serve` and of commands that compute: auto, cpu or cuda.
    """
    findings: list[Finding] = []
    for section, look in (
        ("machine", _machine), ("packages", _packages), ("device", lambda: _device(device)),
        ("places", lambda: _places(root)), ("studies", lambda: _studies(root)),
    ):  # fmt: skip
        findings += _guarded(section, "examination", look)
    return findings


def as_json(findings: Iterable[Finding]) -> dict[str, Any]:
    """The report with the name and version of its format, findings by section."""
    findings = list(findings)
    sections: dict[str, list[dict]] = {section: [] for section in SECTIONS}
    for finding in findings:
        line = asdict(finding)
        sections[line.pop("section")].append(line)
    head = {"format": FORMAT, "version": FORMAT_VERSION, "seedscope": version("seedscope")}
    return head | {"fine": all(finding.fine for finding in findings), "sections": sections}


def _guarded(section: str, name: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of one examination; an unexpected error in it becomes a finding, too."""
    findings = []
    try:
        for finding in look():
            findings.append(finding)  # one by one, to keep those before an error
    except Exception as error:  # whatever is broken, there is a report
        findings.append(Finding(section, name, "failed", False, f"{type(error).__name__}: {str(error)[:200]}"))
    return findings


# -- machine and packages --------------------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "Python", f"{platform.python_version()} ({platform.python_implementation()})")
    yield Finding("machine", "platform", platform.platform())
    yield Finding("machine", "cores", f"{usable_cores()} of {os.cpu_count()}, {torch.get_num_threads()} threads")
    available, total = _memory()
    if available is None:
        yield Finding("machine", "memory", f"{_size(total)}, free memory is not known here")
        return
    remark = "" if available >= LITTLE_MEMORY else "little: building the embedded study takes 1.8 GB"
    yield Finding("machine", "memory", f"{_size(available)} available of {_size(total)}", not remark, remark)


def _memory() -> tuple[int | None, int]:
    """(available, total) bytes, within the limit of a container; available memory is None where it is not known (macOS)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        line = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None, total
    if line is None:
        return None, total
    available = int(line[1]) * 1024
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no container, or one without a limit
        return available, total
    return min(available, max(limit - used, 0)), min(total, limit)


def _packages() -> Iterator[Finding]:
    yield Finding("packages", "seedscope", version("seedscope"))
    for requirement in requires("seedscope") or []:
        if "extra ==" in requirement:
            continue
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        installed = _version(name)
        remark = "" if installed else f"is required; pip install '{requirement.split(';')[0].strip()}'"
        yield Finding("packages", name, installed or "not installed", bool(installed), remark)
    for name, (purpose, command) in OPTIONAL.items():
        installed = _version(name)
        yield Finding(
            "packages",
            name,
            installed or "not installed",
            True,
            f"optional: {purpose}" + ("" if installed else f"; {command}"),
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# -- device ----------------------------------------------------------------------------------------------------------


def _device(name: str) -> Iterator[Finding]:
    has_cuda = torch.cuda.is_available()
    build = (
        f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for the CPU alone"
    )
    if name == "cuda" and not has_cuda:
        yield Finding(
            "device", "device", "cuda was asked for, there is none", False, f"{build}; use --device auto or cpu"
        )
        return
    device = torch.device("cuda" if has_cuda and name != "cpu" else "cpu")
    idle = device.type == "cpu" and not has_cuda and _has_nvidia()
    remark = (
        f"there is an NVIDIA driver, and {build}: pytorch.org/get-started names the build for it" if idle else build
    )
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    yield Finding("device", "device", f"{device.type} ({model})", not idle, remark)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        yield Finding("device", "device memory", f"{_size(free)} free of {_size(total)}")
    kernel, reason = choice(device)
    yield Finding("device", "kernel for best cosines", kernel, True, reason)


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


# -- places ----------------------------------------------------------------------------------------------------------


def _places(root: Path) -> Iterator[Finding]:
    nearest = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    problem = _write_problem(nearest) if nearest.is_dir() else f"{nearest} is a file, expected a folder"
    remark = f"{problem}; choose another folder with --root DIR" if problem else ""
    missing = "" if nearest == root.absolute() else ", made when a study is built"
    yield Finding("places", "root", f"{root}{missing}", not problem, remark)
    free = shutil.disk_usage(nearest).free
    remark = "" if free >= LITTLE_SPACE else "little: a run keeps 2 bytes per token and number of its activations"
    yield Finding("places", "free space there", _size(free), not remark, remark)
    folder = (address := sockets.address(root)).parent
    try:
        sockets.make_folder(folder)
        problem = _write_problem(folder)
    except OSError as error:
        problem = error.strerror or str(error)
    state = "running" if _locked(address.with_suffix(".lock")) else "not running; it starts when first asked"
    remark = f"{problem}: live pages cannot answer; mend or remove that folder" if problem else f"live engine {state}"
    yield Finding("places", "live engine's folder", str(folder), not problem, remark)


def _write_problem(folder: Path) -> str:
    """Why no file can be written into a folder, "" where one can."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-probe-"):
            return ""
    except OSError as error:
        return f"no file can be written there ({error.strerror})"


def _locked(lock: Path) -> bool:
    """Whether another process holds a lock file."""
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file
        return False
    return False


# -- studies ---------------------------------------------------------------------------------------------------------


def _studies(root: Path) -> Iterator[Finding]:
    folders = sorted(each for each in root.iterdir() if each.is_dir() and _is_study(each)) if root.is_dir() else []
    if not folders:
        yield Finding("studies", "studies", "none", True, "build the embedded one: seedscope demo; or seedscope import")
    for folder in folders:
        yield from _guarded("studies", folder.name, partial(_study, folder))


def _is_study(folder: Path) -> bool:
    marks = (catalogue.FILE, "sae", "scratch", "checkpoints", "parts")
    return names_store(folder) or any((folder / mark).exists() for mark in marks) or any(folder.glob("study-*"))


def _study(folder: Path) -> Iterator[Finding]:
    name, size = folder.name, _size(_bytes(folder))
    building = _locked(folder / ".lock")
    if problem := name_problem(name, exists=True):
        yield Finding("studies", name, f"no name of a study, {size}", False, f"{problem}; rename the folder")
    value, fine, remark = _state(folder)
    if building:
        remark = "; ".join(filter(None, ("a run is changing it right now", remark)))
    yield Finding("studies", name, f"{value}, {size}", fine, remark)
    leftovers = sorted({path for pattern in LEFTOVERS for path in folder.glob(pattern)})
    outer = [path for path in leftovers if not any(parent in leftovers for parent in path.parents)]
    if outer and not building:
        names = ", ".join(str(path.relative_to(folder)) for path in outer[:3]) + (", .." if len(outer) > 3 else "")
        yield Finding("studies", f"{name}: leftovers", f"{names}, {_size(sum(map(_bytes, outer)))}", False,
                      "of a run that was interrupted: the same command goes on from them; removing them is safe")  # fmt: skip


def _state(folder: Path) -> tuple[str, bool, str]:
    """(state of a study in words, whether that is fine, what to do)."""
    try:
        plan = catalogue.read(folder)
    except ValueError as error:
        return "its catalogue is damaged", False, str(error)
    store = published(folder)
    if store:
        return _published(folder, folder / store.name, plan)
    if names_store(folder):
        return "damaged, its store is gone", False, _publish_again(folder, plan)
    if plan:
        return f"imported, not analysed: {_planned(plan)}", True, _publish_again(folder, plan)
    return "nothing published", False, "a run was interrupted: the same command goes on; or remove the folder"


def _published(folder: Path, path: Path, plan: catalogue.StudyPlan | None) -> tuple[str, bool, str]:
    try:
        with database.StoreReader(path) as reader:
            ensembles = {row.ensemble: row for row in reader.rows(Ensemble)}
            members = reader.rows(Member)
    except database.OtherSchemaError as error:
        return (
            f"of another schema{f': {_planned(plan)}' if plan else ''}",
            False,
            f"{error}: {_publish_again(folder, plan)}",
        )
    except Exception:  # DuckDB's errors, whose classes engine.store.database alone imports
        return f"damaged, {path.name} cannot be read", False, _publish_again(folder, plan)
    value = ", ".join(
        f"{name} ({row.n_members} x {row.d_sae:,}: {', '.join(row.computed)})" for name, row in ensembles.items()
    )
    files = [folder / ensembles[row.ensemble].folder / f"seed-{row.seed}.safetensors" for row in members]
    if lost := sum(not file.is_file() for file in files):
        return value, False, f"{lost} of {len(files)} SAE files are gone, so live pages cannot answer; build it again"
    waiting = [each.name for each in plan.ensembles if each.name not in ensembles] if plan else []
    remark = f"imported, not analysed: {', '.join(waiting)}; {_publish_again(folder, plan)}" if waiting else ""
    return value, True, remark


def _planned(plan: catalogue.StudyPlan) -> str:
    return ", ".join(f"{each.name} ({len(each.members)} SAEs)" for each in plan.ensembles)


def _publish_again(folder: Path, plan: catalogue.StudyPlan | None) -> str:
    """What to run so that missing results are computed and published."""
    return (
        f"run: seedscope analyze {folder.name}" if plan else "build it again; the embedded study with: seedscope demo"
    )


def _bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; files that disappear meanwhile count as 0."""
    paths = [path] if path.is_file() else path.rglob("*")
    total = 0
    for each in paths:
        try:
            total += 0 if each.is_symlink() or each.is_dir() else each.stat().st_size
        except OSError:
            continue
    return total


def _size(n_bytes: int) -> str:
    """A number of bytes as text, in the largest unit below it."""
    size, units = float(n_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "bytes" or size >= 100 else f"{size:.1f} {units[0]}"
