"""SeedScope in a notebook: published studies, read-only, with the numbers that the pages show.

    import seedscope

    study = seedscope.open("seedscope-data")["pystdlib"]
    ensemble = study["topk-512"]
    ensemble.features(bucket="stable").to_pandas()      # a pyarrow table; polars.from_arrow(..) likewise
    feature = ensemble.feature(seed=0, index=17)
    feature.stability, feature.matches, feature.contexts
    ensemble.decoder(seed=0)                            # (d_sae, d_in), NumPy
    seedscope.lookup("7aea5a0d015caa81")                # which studies know these weights, by an SAE's digest

    seedscope.from_saelens([sae_a, sae_b, sae_c])       # SAEs in memory: a DataFrame, without a study

Loads neither torch nor a server; DuckDB and pyarrow are loaded by `open`, torch by `from_saelens`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from seedscope.app.store.lookup import SaeSummary
    from seedscope.notebook import Studies

__all__ = ["from_saelens", "lookup", "open"]


def open(root: str | os.PathLike[str] | None = None) -> "Studies":
    """The published studies under a folder, by default `$SEEDSCOPE_ROOT`, else `./seedscope-data`.

    Raises FileNotFoundError where the folder is not there.
    """
    from seedscope.notebook import Studies

    return Studies(root)


def lookup(sae_digest: str, root: str | os.PathLike[str] | None = None) -> "list[SaeSummary]":
    """What each study under a folder says of the SAE of a digest; empty where none knows it.

    The one with the most comparisons comes first. Buckets with counts and shares, mean and median stability, how features are
    judged, chance beside it: the fields of `/stability/SAE_DIGEST`. `seedscope lookup FILE` tells a file's digest. Raises
    FileNotFoundError where the folder is not there.
    """
    from seedscope.notebook import look_up

    return look_up(sae_digest, root)


def from_saelens(
    saes: Sequence[Any] | Mapping[int, Any],
    *,
    theta: float = 0.7,
    epsilon: float = 0.05,
    rule: str = "argmax",
    shared_start: str | None = None,
    force: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> "pandas.DataFrame":
    """Stability of SAEs of SAELens in memory, a row per member and feature; without a study or files.

    `saes` differ in their seed alone: a list, or {seed: sae}. They are read as `seedscope import` reads their files (folded
    scales, decoder norms, training SAEs as they are exported), checked as members of one ensemble and matched as a study is.
    Columns: `member`, `seed`, `feature`; `stability` = n_matched / n_comparisons with `stability_low` and `stability_high` (95
    %, Clopper-Pearson), `p_stable`, `p_unstable`, `bucket`; `mean_best_cosine` over the other seeds and `cosine_seed_N` in
    each, NaN where the rule forms no pair; `chance_haar` and `chance_second_moment`, the share of matches in random
    dictionaries. `attrs` hold theta, epsilon, rule, digests, seeds and remarks, and what a direction that all rows share does
    to cosines (`mean_direction`).

    `rule` is argmax, mutual, hungarian or both; `shared_start` says what you know of their starts (yes, no). Activity is not
    measured: dead are rows without a direction alone. Raises ValueError for SAEs that cannot be compared, the same one twice,
    fewer than two; `force` lets another model, hook point or training setting pass. Warns where members share a start.
    """
    from seedscope.in_memory import data_frame

    return data_frame(
        saes,
        theta=theta,
        epsilon=epsilon,
        rule=rule,
        shared_start=shared_start,
        force=force,
        device=device,
        quiet=quiet,
    )
