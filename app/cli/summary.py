"""The lines that a command prints about a study when it is done."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seedscope.app.findings.ceiling import Ceiling


def summary(root: Path, study: str) -> None:
    """One line per ensemble, and how to look at it."""
    from seedscope.app.store.ceiling import ceiling
    from seedscope.app.store.feature_query import FeatureQuery
    from seedscope.app.store.studies import Studies
    from seedscope.engine.contract.directions import NO_OUTPUT, WAY_OUT
    from seedscope.engine.contract.stability import ALONE

    store = Studies(root).get(study)
    for name, row in store.ensembles.items():
        shares: dict[str, int] = {}
        for _, bucket, _, n in store.features(FeatureQuery(name, row.theta, row.epsilon)).matched_counts():
            shares[bucket] = shares.get(bucket, 0) + n
        judged = sum(n for bucket, n in shares.items() if bucket != "dead") or 1
        parts = [f"{bucket} {shares.get(bucket, 0) / judged:.1%}" for bucket in ("stable", "middle", "unstable")]
        parts = parts if row.n_comparisons else [ALONE]
        if "dead" in shares:
            parts.append(f"{shares['dead']:,} dead")
        if beside := ceiling(store, FeatureQuery(name, row.theta, row.epsilon)):
            print(f"{study}/{name}: {_beside(beside)}")
        print(
            f"{study}/{name}: {row.n_members} × {row.d_sae:,} features{f' ({row.directions})' if row.directions else ''}, "
            f"{', '.join(parts)}; computed: {', '.join(row.computed)}"
        )
        if row.undefined:
            way_out = f"; give it with {WAY_OUT}" if row.undefined == NO_OUTPUT else ""
            print(f"{study}/{name}: reconstruction, ablation, loss, direct logits: {row.undefined}{way_out}")
    print(f"look at it with: seedscope serve --root {root}")


def _beside(found: "Ceiling") -> str:
    """An anchor's stability beside what its comparisons reach among themselves, on one line."""
    parts = [
        f"{name} mean p {level.mean:.3f}, stable {level.stable:.1%}, unstable {level.unstable:.1%} of {level.n_features:,}"
        for name, level in (("the anchor", found.of_anchor), ("comparisons among themselves", found.of_comparisons))
    ]
    return f"recipe differs, seed {found.anchor} is a public SAE: {'; '.join(parts)} (over {found.n_comparisons} comparisons)"
