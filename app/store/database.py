"""One published study as read-only tables: what there is, and statements on it. DuckDB's configuration is locked."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seedscope.app.store.byte_cache import ByteCache
from seedscope.app.store.errors import BadValue, NotFound, OneMember
from seedscope.app.store.feature_index import FeatureIndex
from seedscope.app.store.missing import Missing, missing
from seedscope.engine.contract import schema
from seedscope.engine.contract.former_stores import UnknownSchemaError, complete
from seedscope.engine.contract.index.layout import ABOUT, ensemble_folder
from seedscope.engine.contract.index.opening import open_index_apart
from seedscope.engine.contract.store_file import mended_by, open_store, reading
from seedscope.engine.contract.tables.study import Document, Ensemble, Member, Study, Token

_REBUILDING = threading.Lock()


def file_state(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced, by another of the same name as well."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


class Database:
    """A study's ensembles, members, tokens and rules, read once; rows and columns on demand. Safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = file_state(path)
        try:
            self._connection, _ = complete(open_store(path), path)
        except UnknownSchemaError as error:
            expected = f"schema {error.found} in the file, {error.reads} is read; {mended_by(path.parent)}"
            raise NotFound("study of this version", path.parent.name, expected) from None
        # Addresses and commands name a study by its folder, which people copy and rename.
        self.study: Study = replace(self.rows(Study)[0], study=path.parent.name)
        self.ensembles: dict[str, Ensemble] = {e.ensemble: e for e in self.rows(Ensemble)}
        self._members: dict[str, list[Member]] = {
            name: self.rows(Member, "ensemble = ?", [name]) for name in self.ensembles
        }
        self.tokens: list[str] = [row.text for row in self.rows(Token)]
        self.documents: dict[int, str] = {row.id: row.name for row in self.rows(Document)}
        self._rules = {
            name: tuple(row[0] for row in self.fetch("SELECT DISTINCT rule FROM Pair WHERE ensemble = ?", [name]))
            for name in self.ensembles
        }
        for name, row in self.ensembles.items():
            if not row.n_comparisons:  # no pair was matched by any rule; pages judge by the default one
                self._rules[name] = (row.rule,) if row.rule in schema.RULES else ("argmax",)
        self._with_logits = {
            name for name in self.ensembles if self.fetch("SELECT 1 FROM Logit WHERE ensemble = ? LIMIT 1", [name])
        }
        self._cache = ByteCache()
        self._indexes: dict[str, FeatureIndex] = {}
        self._predicted = {name for (name,) in self.fetch("SELECT DISTINCT ensemble FROM Prediction")}
        self._with_snapshots = {name for (name,) in self.fetch("SELECT DISTINCT ensemble FROM Checkpoint")}

    def close(self) -> None:
        """Let go of the file; answers that are under way end as they began."""
        self._connection.close()

    # -- what there is -------------------------------------------------------------------------------------------

    def ensemble(self, name: str) -> Ensemble:
        """An ensemble's row; raises NotFound naming the ensembles there are."""
        if name not in self.ensembles:
            raise NotFound("ensemble", name, ", ".join(self.ensembles))
        return self.ensembles[name]

    def members(self, ensemble: str) -> list[Member]:
        """All members in seed order."""
        return self._members[ensemble]

    def member(self, ensemble: str, seed: str | int) -> Member:
        """The member with a seed; raises NotFound naming the seeds there are."""
        by_seed = {str(m.seed): m for m in self._members[ensemble]}
        if str(seed) not in by_seed:
            raise NotFound("seed", seed, "seeds " + ", ".join(by_seed))
        return by_seed[str(seed)]

    def other_seeds(self, ensemble: str, seed: int) -> list[int]:
        """The seeds of an anchor's comparisons, in the order of every list column."""
        return [m.seed for m in self._members[ensemble] if m.seed != seed]

    def other(self, ensemble: str, seed: int, other: int) -> int:
        """A comparison of an anchor; raises NotFound naming the seeds there are."""
        seeds = self.other_seeds(ensemble, seed)
        if other not in seeds:
            raise NotFound("comparison", other, "seeds " + ", ".join(map(str, seeds)))
        return other

    def dead(self, ensemble: str, seed: int) -> np.ndarray:
        """(d_sae,) whether each of a member's features is known to be dead."""
        sql = "SELECT dead IS TRUE AS dead FROM Feature WHERE ensemble = $ensemble AND seed = $seed ORDER BY feature"
        return self.arrow(sql, {"ensemble": ensemble, "seed": seed}).column("dead").to_numpy()

    def missing(self, ensemble: str) -> dict[str, Missing]:
        """What an ensemble lacks, and what adds it; see the function of the same name."""
        folder, seed = self.path.parent.absolute() / self.ensembles[ensemble].folder, self._members[ensemble][0].seed
        return missing(
            self.study, self.ensembles[ensemble], self._rules[ensemble], logits=ensemble in self._with_logits,
            snapshots=ensemble in self._with_snapshots, predicted=ensemble in self._predicted,
            file=folder / f"seed-{seed}.safetensors",
        )  # fmt: skip

    def has(self, ensemble: str, analysis: str) -> bool:
        """Whether an analysis (schema.ANALYSES) of an ensemble was computed."""
        return analysis in self.ensembles[ensemble].computed

    def is_predicted(self, ensemble: str) -> bool:
        """Whether a predictor was asked for the stability of an ensemble's one SAE, and answered."""
        return ensemble in self._predicted

    def has_tokens(self, ensemble: str) -> bool:
        """Whether an ensemble's activity knows the tokens that features fire on: recorded activations come without."""
        return self.has(ensemble, "activity") and not self.study.recorded

    def rules(self, ensemble: str) -> list[str]:
        """The matching rules that were computed for all pairs of an ensemble."""
        return [rule for rule in schema.RULES if rule in self._rules[ensemble]]

    def check_rule(self, ensemble: str, rule: str) -> None:
        """Raise BadValue where a rule was not computed for an ensemble."""
        if rule not in self._rules[ensemble]:
            computed = ", ".join(self.rules(ensemble))
            way_out = f"{computed}; for all pairs of {ensemble} no other was computed"
            result = {"live": "live", "active": "function"}.get(rule)
            if result:
                raise BadValue("rule", repr(rule), f"{way_out}: {self.missing(ensemble)[result]}")
            raise BadValue("rule", repr(rule), f"{way_out}, single pairs are matched on demand on the page of seeds")

    def require_comparisons(self, ensemble: str) -> None:
        """Raise OneMember where an ensemble has no two members to compare."""
        if not self.ensembles[ensemble].n_comparisons:
            raise OneMember(self.study.study, ensemble, [self.missing(ensemble)["stability"]])

    def index(self, ensemble: str) -> FeatureIndex:
        """The columns of an ensemble's features; made from the store where it was written without them."""
        found = self._indexes.get(ensemble)
        if found is not None and not found.is_damaged:
            found.release_if_large()
            return found
        with _REBUILDING:
            if found is not None:  # a file of it could not be read: it is derived, and made again
                with suppress(OSError):
                    (found.folder.parent / ABOUT).unlink()
            folder = open_index_apart(self.path)
        self._indexes[ensemble] = FeatureIndex(ensemble_folder(folder, ensemble), self._cache)
        return self._indexes[ensemble]

    # -- SQL -----------------------------------------------------------------------------------------------------

    def rows(self, table: type, where: str = "true", parameters: Any = None) -> list[Any]:
        """Rows of one table in the order of its keys."""
        names = ", ".join(f'"{f.name}"' for f in fields(table))
        order = ", ".join(f'"{key}"' for key in schema.SORT_KEYS[table])
        sql = f"SELECT {names} FROM {table.__name__} WHERE {where} ORDER BY {order}"
        return [table(*row) for row in self.fetch(sql, parameters)]

    def rows_at(self, table: type, ensemble: str, places: list[tuple[int, int]], more: str = "") -> list[Any]:
        """Rows of a few (seed, feature): their row ids from the two key columns, then the wide columns of those alone."""
        where = (
            f"rowid IN (SELECT t.rowid FROM {table.__name__} t JOIN (SELECT unnest($seeds::BIGINT[]) AS seed, "
            f"unnest($features::INTEGER[]) AS feature) USING (seed, feature) WHERE ensemble = $ensemble {more})"
        )
        seeds, features = ([int(place[i]) for place in places] for i in (0, 1))
        return self.rows(table, where, {"seeds": seeds, "features": features, "ensemble": ensemble})

    def fetch(self, sql: str, parameters: Any = None) -> list[tuple]:
        """All rows of a statement."""
        with reading(self.path):
            return self._connection.cursor().execute(sql, parameters or []).fetchall()

    def batches(self, sql: str, parameters: Any, n_rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """Rows of a statement some at a time, in memory that does not grow with them."""
        with reading(self.path):
            yield from self._connection.cursor().sql(sql, params=parameters).to_arrow_reader(n_rows)

    def arrow(self, sql: str, parameters: Any) -> pa.Table:
        """All rows of a statement as an Arrow table."""
        with reading(self.path):
            return self._connection.cursor().sql(sql, params=parameters).to_arrow_table()
