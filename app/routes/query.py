"""Query parameters that several pages share."""

from typing import Annotated

from fastapi import Query

Theta = Annotated[float, Query(ge=-1, le=1, description="a best cosine of at least theta is a match")]
Epsilon = Annotated[float, Query(ge=0, lt=0.5, description="stable: p >= 1 - epsilon, unstable: p <= epsilon")]
