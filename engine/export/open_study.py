"""Opens a published study for exports: rows block by block, the plan, and SAE files checked against their digests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from seedscope.engine.contract.names import inside, name_problem
from seedscope.engine.contract.published import folders_with_store, published
from seedscope.engine.contract.tables.features import Context, Feature, Match
from seedscope.engine.contract.tables.study import Document, Ensemble, Member, Study, Token
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from seedscope.engine.store.database import StoreReader

CONTEXTS_EACH = 50  # that a feature has at most, near enough


class SaeFile(NamedTuple):
    """One SAE's own file."""

    ensemble: str
    seed: int
    digest: str
    source: str | None  # the path that it was imported from
    file: str  # relative to the study's folder


class FeatureBlock(NamedTuple):
    """Consecutive features of one member."""

    ensemble: Ensemble
    member: Member
    others: np.ndarray  # seeds of the comparisons, in the order of every list column
    features: pa.Table
    matches: pa.Table

    @property
    def numbers(self) -> range:
        """The features' indices."""
        first = self.features["feature"][0].as_py()
        return range(first, first + len(self.features))


@dataclass(frozen=True)
class Opened:
    """One published study, held open."""

    folder: Path
    store_name: str
    built_from: str
    plan: catalogue.StudyPlan | None
    store: StoreReader

    @cached_property
    def study(self) -> Study:
        return self.store.rows(Study)[0]

    @cached_property
    def ensembles(self) -> list[Ensemble]:
        """All rows; raises ValueError for a name or a folder that would lead out of an export: paths are made of them."""
        rows = self.store.rows(Ensemble)
        for row in rows:
            catalogue.require_name("ensemble", row.ensemble, exists=True)
            inside(row.folder)
        return rows

    @cached_property
    def members(self) -> dict[str, list[Member]]:
        """{ensemble: members in seed order}."""
        return {row.ensemble: self.store.rows(Member, ensemble=row.ensemble) for row in self.ensembles}

    @property
    def n_members(self) -> int:
        return sum(len(members) for members in self.members.values())

    @cached_property
    def texts(self) -> pa.Array:
        """The text of every token id."""
        tokens = self.store.table(Token)
        texts = np.full(max(tokens["id"].to_pylist(), default=-1) + 1, "", object)
        texts[tokens["id"].to_numpy()] = tokens["text"].to_pylist()
        return pa.array(texts, pa.string())

    @cached_property
    def documents(self) -> dict[int, str]:
        return {row.id: row.name for row in self.store.rows(Document)}

    def parts(self, ensemble: Ensemble, member: Member, *, n_rows: int) -> Iterator[FeatureBlock]:
        """A member's features in order, as many at a time as have about `n_rows` comparisons and contexts."""
        step = max(n_rows // (ensemble.n_comparisons + CONTEXTS_EACH), 1)
        others = [other.seed for other in self.members[ensemble.ensemble] if other != member]
        for first in range(0, ensemble.d_sae, step):
            where: dict[str, Any] = {
                "ensemble": ensemble.ensemble,
                "seed": member.seed,
                "feature": range(first, first + step),
            }
            features, matches = (self.store.table(table, **where) for table in (Feature, Match))
            yield FeatureBlock(ensemble, member, np.array(others, np.int64), features, matches)

    def contexts(self, part: FeatureBlock) -> pa.Table:
        """The contexts of a part's features."""
        where: dict[str, Any] = {"ensemble": part.ensemble.ensemble, "seed": part.member.seed, "feature": part.numbers}
        return self.store.table(Context, **where)

    def saes(self, ensemble: Ensemble) -> list[SaeFile]:
        """The SAEs of an ensemble, in seed order."""
        return [
            SaeFile(ensemble.ensemble, m.seed, m.sae_digest, m.source, sae_file(ensemble.folder, m.seed))
            for m in self.members[ensemble.ensemble]
        ]

    def all_saes(self) -> list[SaeFile]:
        """Every SAE that the store names, and then those that the plan alone names."""
        by_file = {one.file: one for row in self.ensembles for one in self.saes(row)}
        for each in self.plan.ensembles if self.plan else ():
            for m in each.members:
                file = sae_file(each.folder, m.seed)
                by_file.setdefault(file, SaeFile(each.name, m.seed, m.digest, m.source, file))
        return list(by_file.values())

    def read_sae(self, sae_file: SaeFile) -> sae.SAE:
        """One SAE; raises ValueError where its file is missing or is not the one that the study was computed on."""
        return read_sae(self.folder, sae_file)


def read_sae(study: Path, sae_file: SaeFile) -> sae.SAE:
    """One SAE of the study in a folder; raises ValueError where its file is missing or not the one of the digest."""
    path = study / inside(sae_file.file)
    member, _ = sae.read(path)
    if member.digest(0) != sae_file.digest:
        raise ValueError(
            f"{path} has the digest {member.digest(0)}, the study was computed on {sae_file.digest}; put the former file "
            f"back, or compute the study again with: seedscope analyze {study.name}"
        )
    return member


def sae_file(folder: str, seed: int) -> str:
    """The path of a member's SAE within its study."""
    return f"{folder}/seed-{seed}.safetensors"


@contextmanager
def opened(root: Path, study: str) -> Iterator[Opened]:
    """The published study of a name; raises ValueError naming those there are, and what is wrong with this one."""
    folder = root / study
    current = None if name_problem(study, exists=True) else published(folder)
    if current is None:
        studies = sorted(path.name for path in folders_with_store(root))
        studies = [name for name in studies if not name_problem(name, exists=True)]  # not what is being imported
        if not name_problem(study, exists=True) and (folder / catalogue.FILE).is_file():
            raise ValueError(
                f"study {study} has no results yet; compute them with: seedscope analyze {study} (--format saelens needs none)"
            )
        raise ValueError(
            f"found no study {study!r} under {root}, there is {', '.join(studies) or 'none; build one with: seedscope demo'}"
        )
    plan = catalogue.read(folder)
    with StoreReader(folder / current[0]) as store:
        yield Opened(folder, *current, plan, store)
