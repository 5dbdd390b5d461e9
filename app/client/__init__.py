"""SeedScope in a notebook: published studies, read-only, with the numbers that the pages show.

    import seedscope

    study = seedscope.open("seedscope-data")["pystdlib"]
    ensemble = study["topk-512"]
    ensemble.features(bucket="stable").to_pandas()      # a pyarrow table; polars.from_arrow(..) likewise
    feature = ensemble.feature(seed=0, index=17)
    feature.stability, feature.matches, feature.contexts
    ensemble.decoder(seed=0)                            # (d_sae, d_in), NumPy
    seedscope.lookup("7aea5a0d015caa81")                # which studies know these weights, by an SAE's digest

Loads neither torch nor a server; DuckDB and pyarrow are loaded by `open`.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seedscope.app.store.lookup import SaeSummary
    from seedscope.notebook import Studies

__all__ = ["lookup", "open"]


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
