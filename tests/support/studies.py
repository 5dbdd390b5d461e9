"""Small studies of any state, made by the real pipeline from dictionaries whose agreement is known."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import torch

from seedscope.engine.activations.harvest import LanguageModel
from seedscope.engine.contract.checksums import write_sums
from seedscope.engine.progress import Progress, Report
from seedscope.engine.saes import sae
from seedscope.engine.store import catalogue
from seedscope.engine.store.evaluation import EVALUATION
from seedscope.engine.studies.analyse import analyse
from seedscope.engine.studies.publish import publish

STUDY, ENSEMBLE = "small", "topk-96"  # the fixture's study
LISTED = ",".join(map(str, range(24)))  # features of every seed, of which the tests make a static site


def members_that_agree(
    *, members: int = 5, d_in: int = 16, d_sae: int = 48, shared: int = 20, undirected: int = 2, seed: int = 0
) -> sae.SAE:
    """Untrained SAEs: `shared` rows are nearly equal in all, as many in some; the first rows of member 0 are zero."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(members, d_sae, d_in))
    common = rng.normal(size=(d_sae, d_in))
    for member in range(members):
        order = rng.permutation(d_sae)[: 2 * shared]
        kept = [i < shared or rng.random() < 0.5 for i in range(2 * shared)]
        rows[member, order[kept]] = (common[: 2 * shared] + 0.3 * rng.normal(size=(2 * shared, d_in)))[kept]
    rows *= rng.uniform(0.5, 2, size=(members, d_sae, 1))
    rows[0, :undirected] = 0
    encoder = rows.transpose(0, 2, 1) + 0.1 * rng.normal(size=(members, d_in, d_sae))
    tensors = [encoder, np.zeros((members, d_sae)), rows, np.zeros((members, d_in))]
    return sae.SAE(*(torch.from_numpy(t.astype(np.float32)) for t in tensors), k=4, seeds=tuple(range(members)))


def publish_study(
    root: Path,
    study: str,
    ensembles: dict[str, tuple[sae.SAE, dict[str, Any]]],
    *,
    origins: Sequence[dict[str, Any]] = (),
    model: LanguageModel | None = None,
    texts: Iterable[tuple[str, str]] | None = None,
    only: tuple[str, ...] = ("match",),
) -> Path:
    """{ensemble: (members, fields of its catalogue entry)} -> a published study; `origins` are fields of the members."""
    folder = root / study
    entries = []
    for name, (members, fields) in ensembles.items():
        place = Path("sae") / name / "0"
        members.save(folder / place)
        held = [
            catalogue.MemberPlan(seed, members.digest(i), **(origins[i] if i < len(origins) else {}))
            for i, seed in enumerate(members.seeds)
        ]
        entries.append(catalogue.EnsemblePlan(name, "imported", str(place), tuple(held), **fields))
    tokens = catalogue.Tokens(("texts",), n_ctx=32, n_eval=2_000)
    plan = catalogue.StudyPlan(
        study, model.name if model else None, tokens if model else None, ensembles=tuple(entries)
    )
    catalogue.write(plan, folder)
    analyse(folder, only=only, loss_tokens=40, model=model, texts=texts, device="cpu", progress=Progress(quiet=True))
    return publish(folder)


def ask(store: Path, sql: str) -> list[tuple]:
    """Rows of a published store, read from a copy: DuckDB lets one process open a file with one configuration only."""
    with TemporaryDirectory() as folder, duckdb.connect(str(shutil.copy(store, folder)), read_only=True) as connection:
        return connection.sql(sql).fetchall()


class Killed(Exception):
    pass


class DiesOncePerStage(Progress):
    """Raises at the end of every stage that is not in `survived`: its work is done, nothing after it has begun."""

    def __init__(self, survived: list[str]) -> None:
        super().__init__(quiet=True)
        self.survived = survived

    @contextmanager
    def stage(self, name: str, unit: str) -> Iterator[Report]:
        with super().stage(name, unit) as report:
            yield report
            if name not in self.survived:
                self.survived.append(name)
                raise Killed


def write_evaluation(study: Path, content: dict[str, Any]) -> None:
    """Make a study's evaluation another one, as after an analysis on other tokens: with its checksum."""
    (study / "parts" / EVALUATION).write_text(json.dumps(content))
    write_sums(study / "parts", EVALUATION)
