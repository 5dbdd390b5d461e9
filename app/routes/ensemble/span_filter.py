"""The address of the page of spans and of its map: a rank, and the filter of the feature table that greys the map."""

from typing import Annotated, Any, Literal

from pydantic import Field

from seedscope.app.routes.address import MAX_INDEX, Filter
from seedscope.app.store.feature_query import FeatureQuery
from seedscope.app.store.study import StudyStore
from seedscope.engine.contract.schema import TRIGGERS

_SHOWN = ("rank", "matrix", "colour")  # what the pages show; the rest is the feature table's


class SpanFilter(Filter):
    """What the page shows, and which features its map shows in colour."""

    rank: (
        Annotated[int, Field(ge=1, le=MAX_INDEX, description="directions of each span; the nearest computed")] | None
    ) = None
    matrix: Annotated[Literal["overlap", "angle", "energy"], Field(description="what seeds are compared by")] = (
        "overlap"
    )
    colour: Annotated[Literal["bucket", "seed"], Field(description="what colours mean on the map")] = "bucket"

    def judges(self, ensemble: str) -> FeatureQuery:
        """How all features are judged, whether the filter finds them or not."""
        dead = "count" if self.dead == "count" else None
        return FeatureQuery(ensemble, self.theta, self.epsilon, self.rule, dead=dead)

    def table(self) -> dict[str, Any]:
        """The part of `parameters` that the feature table understands."""
        return self.parameters(**dict.fromkeys(_SHOWN))

    @property
    def is_filtered(self) -> bool:
        """Whether features are chosen, beyond how they are judged."""
        judging = {"theta", "epsilon", "rule", "sort", "dir", "view"} | ({"dead"} if self.dead == "count" else set())
        return bool(self.table().keys() - judging)


def choices(store: StudyStore, ensemble: str) -> dict[str, Any]:
    """What the form beside the map can ask for."""
    activity = store.has(ensemble, "activity")
    return {
        "seeds": [member.seed for member in store.members(ensemble)],
        "triggers": list(TRIGGERS) if store.has_tokens(ensemble) else [],
        "density": activity,
        "words": store.has_tokens(ensemble) or store.has(ensemble, "explain"),
    }
