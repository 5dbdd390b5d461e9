"""Whose spans are projected: the seeds that an address names, and how many of them a page can wait for."""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, field_validator

from seedscope.app.formats import thousands
from seedscope.app.parameters import is_number
from seedscope.app.routes.address import Filter
from seedscope.app.store.errors import BadValue
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.tables.study import Ensemble

TIME_LIMIT_S = 60.0
MEMBER_WORK = 6e11  # multiply-adds of all members: what a page takes by default, about ten seconds on two cores


class Members(Filter):
    """Whose spans; the filter of the feature table says of which features."""

    members: Annotated[
        str | list[str], Field(description="seeds, with commas or repeated; empty for the usual ones")
    ] = ""

    @field_validator("members")
    @classmethod
    def _numbers(cls, value: str | list[str]) -> str:
        parts = [part.strip() for part in (value if isinstance(value, str) else ",".join(value)).split(",")]
        if not all(is_number(part) for part in parts if part):
            raise ValueError("seeds as numbers with commas between them, such as 0,3; empty for the usual ones")
        return ",".join(map(str, sorted({int(part) for part in parts if part})))

    @property
    def seeds(self) -> list[int]:
        """The seeds asked for; empty for the usual ones."""
        return [int(part) for part in str(self.members).split(",") if part]


def chosen_members(store: StudyStore, row: Ensemble, asked: Members) -> list[int]:
    """The seeds asked for; without any, as many as a page can wait for."""
    seeds = [m.seed for m in store.members(row.ensemble)]
    chosen = asked.seeds
    if [s for s in chosen if s not in seeds]:
        raise BadValue("members", repr(asked.members), "seeds of this ensemble: " + ", ".join(map(str, seeds)))
    usual = seeds[: usual_members(row)]
    if chosen == usual:
        asked.members = ""  # links then say no more than they must
    return chosen or usual


def usual_members(row: Ensemble) -> int:
    """How many members are projected by default: eigendecompositions cost about 10 d^3, products 3 rows d^2, both twice."""
    return max(int(MEMBER_WORK // (2 * row.d_out**2 * (10 * row.d_out + 3 * row.d_sae))), 2)


def known(value: float) -> float | None:
    """A number; None for NaN."""
    return None if math.isnan(value) else float(value)


def span_of(values: Sequence[int]) -> str:
    """The smallest and the largest in words."""
    low, high = min(values), max(values)
    return thousands(low) if low == high else f"{low:,} to {high:,}"
