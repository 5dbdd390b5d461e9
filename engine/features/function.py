"""What one member's counterparts of every kind do, as arrays: whether they fire alike, and whether they substitute."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from seedscope.engine.contract.schema import NO_MATCH
from seedscope.engine.contract.tables.function import COUNTERPART_KINDS


class OfKind(NamedTuple):
    """Counterparts of one kind of one member's features: arrays (d_sae, comparisons)."""

    partner: np.ndarray  # int32, -1: none; its other entries are 0 then, and the cosine NO_MATCH
    cosine: np.ndarray  # float32, as is all that follows
    correlation: np.ndarray
    jaccard: np.ndarray
    raw: np.ndarray  # NaN where it is undefined, for the whole feature
    scaled: np.ndarray
    beside: np.ndarray  # as scaled, with the feature still in its place

    @classmethod
    def none(cls, d_sae: int, n_comparisons: int) -> "OfKind":
        """No counterparts, to be filled in."""
        zeros = np.zeros((len(cls._fields), d_sae, n_comparisons), np.float32)
        zeros[cls._fields.index("cosine")] = NO_MATCH
        return cls(np.full((d_sae, n_comparisons), -1, np.int32), *zeros[1:])


class MemberFunction(NamedTuple):
    """All kinds of one member that were computed, and which of its features living features are."""

    kinds: Mapping[str, OfKind]
    living: np.ndarray  # (d_sae,)

    @property
    def active_partner(self) -> np.ndarray:
        """(d_sae, comparisons) partners under the rule `active`."""
        return self.kinds["active"].partner

    @property
    def active_correlation(self) -> np.ndarray:
        """(d_sae, comparisons) what theta is compared with under the rule `active`; NO_MATCH without a partner."""
        return np.where(self.active_partner >= 0, self.kinds["active"].correlation, np.float32(NO_MATCH))

    @property
    def mean_correlation(self) -> np.ndarray:
        """(d_sae,) correlation with the nearest row, mean over the comparisons that have one; NaN for dead features."""
        of_kind = self.kinds["argmax"]
        has = of_kind.partner >= 0
        n = has.sum(1)
        total = np.where(has, of_kind.correlation, 0).sum(1, dtype=np.float64)
        return np.where(self.living & (n > 0), total / np.maximum(n, 1), np.nan).astype(np.float32)

    @property
    def median_substitution(self) -> np.ndarray:
        """(d_sae,) raw score of the nearest row, median over the same; NaN where it is undefined."""
        of_kind = self.kinds["argmax"]
        defined = self.living & (of_kind.partner >= 0).any(1) & ~np.isnan(of_kind.raw).any(1)
        scores = np.where(of_kind.partner >= 0, of_kind.raw, np.nan)
        medians = np.full(len(scores), np.nan, np.float32)
        medians[defined] = np.nanmedian(scores[defined], axis=1)
        return medians

    def as_arrays(self) -> dict[str, Any]:
        """As named arrays of a part."""
        arrays = {
            f"{kind}_{name}": array for kind, each in self.kinds.items() for name, array in each._asdict().items()
        }
        return arrays | {"living": self.living}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> MemberFunction:
    """What `MemberFunction.as_arrays` gave."""
    kinds = {
        kind: OfKind(*(arrays[f"{kind}_{name}"] for name in OfKind._fields))
        for kind in COUNTERPART_KINDS
        if f"{kind}_partner" in arrays
    }
    return MemberFunction(kinds, arrays["living"])
