"""What `seedscope.from_saelens` gives: stability of SAEs in memory as a pandas DataFrame. Loads torch when it is called."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

WAY_OUT = "pip install 'seedscope[notebook]'"


def data_frame(saes: Sequence[Any] | Mapping[int, Any], **settings: Any) -> "pandas.DataFrame":
    """See `seedscope.from_saelens`."""
    try:
        import pandas
    except ImportError:
        raise ImportError(f"from_saelens gives a DataFrame and needs pandas; install it with: {WAY_OUT}") from None
    from seedscope.engine.studies.in_memory import measure  # torch, a second

    measured = measure(saes, **settings)
    if measured.about["shared_start"] == "yes":
        warnings.warn(
            f"{measured.about['remarks'][0] if measured.about['remarks'] else 'the members share a start'}: read their numbers as "
            "agreement, not as stability",
            stacklevel=3,
        )
    frame = pandas.DataFrame(measured.columns)
    frame["bucket"] = pandas.Categorical(frame["bucket"], ["stable", "middle", "unstable", "dead"])
    frame.attrs.update(measured.about)
    return frame
