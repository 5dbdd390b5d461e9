"""Checks everything that a study has on disk against its digests: store, index, catalogue, SAEs, parts, evaluation, pools.

An index that is damaged is made again, because it is derived from the store; everything else is named with the command that mends
it. Nothing else is written.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from seedscope.engine.activations.tokens import KEPT
from seedscope.engine.contract.checksums import damaged_file, has_sums
from seedscope.engine.contract.index.build import build_index
from seedscope.engine.contract.index.layout import index_folder
from seedscope.engine.contract.names import name_problem
from seedscope.engine.contract.published import names_store, published
from seedscope.engine.contract.store_file import mending_command
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import OtherSchemaError, StoreReader
from seedscope.engine.store.evaluation import read_evaluation
from seedscope.engine.store.parts import Parts
from seedscope.engine.studies.pools.record import FOLDER, RECORD
from seedscope.engine.studies.pools.record import read as read_pool
from seedscope.engine.studies.synthetic import plan as synthetic
from seedscope.engine.training.trace import read as read_trace


@dataclass(frozen=True)
class Verified:
    """One thing of a study that was checked."""

    what: str
    wrong: str | None = None  # None: it is as it was written
    mends: str | None = None  # what to do about it
    mended: bool = False  # it was made again here


def studies(root: Path) -> list[str]:
    """Names of the studies under a root, published or imported, sorted."""
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return sorted(
        path.name
        for path in folders
        if (names_store(path) or (path / catalogue.FILE).is_file()) and not name_problem(path.name, exists=True)
    )


def verify(study: Path, *, report: Callable[[str], None] = lambda what: None) -> Iterator[Verified]:
    """Check all files of a study, one thing after another; reads all of them. `report` is called before each with its name.

    Raises ValueError where there is no such study.
    """
    if not names_store(study) and not (study / catalogue.FILE).is_file():
        raise ValueError(f"found no study {study.name} under {study.parent}")
    report("catalogue")
    plan = None
    try:
        plan = catalogue.read(study)
        if plan or not names_store(study):
            yield Verified(catalogue.FILE)
    except ValueError as error:
        yield Verified(catalogue.FILE, str(error), "import the study's ensembles again under another name")
    yield from _store(study, report)
    for ensemble in plan.ensembles if plan else ():
        yield from _saes(study, ensemble, report)
    analyse = mending_command(study)
    for folder in sorted((study / "parts").glob("*/")):
        report(f"parts of {folder.name}")
        for path, wrong in Parts(study, folder.name).all():
            yield Verified(str(path.relative_to(study)), wrong, wrong and analyse)
    if (study / "parts").is_dir():
        yield _checked("parts/evaluation.json", lambda: read_evaluation(study), analyse)
        if name := damaged_file(study / "parts", beginning=KEPT):
            yield Verified(f"parts/{name}", "its checksum is another one", analyse)
    for folder in sorted((study / FOLDER).glob("*/")):
        yield _pool(study, folder)
    if (study / synthetic.FILE).is_file():
        yield _checked(synthetic.FILE, lambda: synthetic.read(study), "run again: seedscope synthetic")


def _store(study: Path, report: Callable[[str], None]) -> Iterator[Verified]:
    analyse = mending_command(study) or "build the study again"
    if not names_store(study):
        return
    store = published(study)
    if store is None:
        yield Verified("CURRENT", "it names no store that is there", analyse)
        return
    path = study / store.name
    report(store.name)
    try:
        with StoreReader(path) as reader:
            if path.stem != (found := f"study-{reader.digest()}"):
                yield Verified(store.name, f"its content has the name {found}", analyse)
                return
            contradictions = reader.contradictions()
    except OtherSchemaError as error:
        yield Verified(store.name, str(error), analyse)
        return
    except ValueError as error:
        yield Verified(store.name, str(error), analyse)
        return
    yield Verified(store.name, contradictions[0] if contradictions else None, analyse if contradictions else None)
    index = index_folder(path)
    if not index.is_dir():
        return
    report(index.name)
    wrong = damaged_file(index) if has_sums(index) else "it has no checksums, as an earlier version made it"
    if wrong is None:
        yield Verified(index.name)
        return
    says = wrong if " " in wrong else f"{wrong} is not as it was written"
    try:
        build_index(path)
    except (ValueError, OSError) as error:
        yield Verified(index.name, says, f"it cannot be made again: {error}")
        return
    yield Verified(index.name, says, "made again from the store", mended=True)


def _saes(study: Path, ensemble: catalogue.EnsemblePlan, report: Callable[[str], None]) -> Iterator[Verified]:
    """The members' files against the catalogue's digests, and what training left beside them against its checksums."""
    folder = study / ensemble.folder
    for member in ensemble.members:
        file = folder / f"seed-{member.seed}.safetensors"
        what = str(file.relative_to(study))
        report(what)
        try:
            one, _ = sae.read(file)
            found = one.digest(0)
            wrong = None if found == member.digest else f"digest {found}, expected {member.digest}"
        except ValueError as error:
            wrong = str(error)
        way_out = "put the former file back, import the ensemble again with --replace, or train it again"
        yield Verified(what, wrong, wrong and way_out)
    for name, mends in (("along", "train the ensemble again"), ("trace.json", "train the ensemble again")):
        if damaged := damaged_file(folder, beginning=name):
            yield Verified(str((folder / damaged).relative_to(study)), "its checksum is another one", mends)
    if (folder / "trace.json").is_file():
        yield _checked(f"{ensemble.folder}/trace.json", lambda: read_trace(folder), "train the ensemble again")


def _pool(study: Path, folder: Path) -> Verified:
    what, mends = f"{FOLDER}/{folder.name}", f"seedscope pool {study.name} {folder.name} --replace"
    if damaged := damaged_file(folder):
        return Verified(what, f"{damaged} is not as it was written", mends)
    if (folder / RECORD).is_file() and read_pool(folder) is None:
        return Verified(what, f"{RECORD} cannot be read", mends)
    return Verified(what)


def _checked(what: str, read: Callable[[], object], mends: str | None) -> Verified:
    try:
        read()
    except (ValueError, OSError, json.JSONDecodeError) as error:
        return Verified(what, str(error), mends)
    return Verified(what)
