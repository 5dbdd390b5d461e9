"""Where a feature comes from: its study, its member's weights, and what is known of how they were made."""

from dataclasses import dataclass

from seedscope.app.formats import recipe_remark
from seedscope.engine.contract.tables.features import Feature
from seedscope.engine.contract.tables.study import Ensemble, Member


@dataclass(frozen=True)
class Origin:
    """A feature's address and its member's origin; what an import cannot know is None."""

    study: str
    ensemble: str
    seed: int
    feature: int
    digest: str
    sae_digest: str
    library: str | None
    source: str | None
    trained_on: str | None
    remarks: list[str]
    anchor: bool  # whether its recipe is not the others', as that of a public SAE among comparisons trained for it
    shared_start: str
    data_order: str


def origin_of(study: str, row: Ensemble, member: Member, feature: Feature) -> Origin:
    """A feature's origin; where one recipe did not make all members, the first remark says so."""
    differs = recipe_remark(row.anchor, row.n_comparisons, member.seed)
    return Origin(
        study=study,
        ensemble=row.ensemble,
        seed=member.seed,
        feature=feature.feature,
        digest=row.digest,
        sae_digest=member.sae_digest,
        library=member.library,
        source=member.source,
        trained_on=member.trained_on,
        remarks=[*([differs] if differs else []), *member.remarks],
        anchor=member.seed == row.anchor,
        shared_start=row.shared_start,
        data_order=row.data_order,
    )
