"""Values of a config by their type: what has another type than the library writes is refused, never read as something else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A scale is sqrt(d_in) / mean norm, a mean norm at most a few thousands.
LONGEST_SHOWN = 80  # characters
_SMALLEST, _LARGEST = 1e-6, 1e6


def shown(value: Any) -> str:
    """A value as errors show it: not more than a line of it."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}.."


def flag(config: Mapping[str, Any], name: str, where: Path, *, default: bool = False) -> bool:
    """A setting that is true or false, the default where it is absent or null; raises ValueError for anything else."""
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"{where} has {name} = {shown(value)}, expected true or false")
    return value


def text(config: Mapping[str, Any], name: str, where: Path) -> str | None:
    """A setting that is a word, None where it is absent, null or empty; raises ValueError for anything else."""
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where} has {name} = {shown(value)}, expected text")
    return value or None


def subsettings(config: Mapping[str, Any], name: str, where: Path) -> Mapping[str, Any]:
    """A setting that holds settings, {} where it is absent or null; raises ValueError for anything else."""
    value = config.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{where} has {name} = {shown(value)}, expected an object")
    return value or {}


def positive(value: Any, name: str, where: Path) -> float:
    """A scale or a mean norm; raises ValueError where it is no number in the range that these can have."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _SMALLEST <= value <= _LARGEST:
        raise ValueError(
            f"{where} has {name} = {shown(value)}, expected a positive number ({_SMALLEST:g} to {_LARGEST:g}): inputs are "
            "scaled by it"
        )
    return float(value)
