"""SeedScope in a notebook: published studies, read-only, with the numbers that the pages show.

    import seedscope

    study = seedscope.open("seedscope-data")["pystdlib"]
    ensemble = study["topk-512"]
    ensemble.features(bucket="stable").to_pandas()      # a pyarrow table; polars.from_arrow(..) likewise
    feature = ensemble.feature(seed=0, index=17)
    feature.stability, feature.matches, feature.contexts
    ensemble.decoder(seed=0)                            # (d_sae, d_in), NumPy

Loads neither torch nor a server; DuckDB and pyarrow are loaded by `open`.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seedscope.notebook import Studies

__all__ = ["open"]


def open(root: str | os.PathLike[str] | None = None) -> "Studies":
    """The published studies under a folder, by default `$SEEDSCOPE_ROOT`, else `./seedscope-data`.

    Raises FileNotFoundError where the folder is not there.
    """
    from seedscope.notebook import Studies

    return Studies(root)
