"""Settings of a study's ensembles, and sweeps: sets of ensembles that differ in one setting alone. Standard library only."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seedscope.engine.contract.places import respelled
from seedscope.engine.contract.recipe import VARIANTS, TrainConfig
from seedscope.engine.contract.tables.study import Ensemble

_BLOCK = re.compile(r"(.*?)(\d+)(\D*)")  # the last number of a hook point is its layer
_NAMES = {"n_tokens": "tokens"}
PLACES = ("site", "hookpoint")


@dataclass(frozen=True)
class Factor:
    """One sweep: ensembles that differ in one setting, and are equal in all others."""

    name: str
    points: tuple[tuple[int | float | str, str], ...]  # (value, ensemble) in the order of values
    rest: dict[str, Any]  # settings in which it differs from the other sweeps of the same setting, equal within it


def settings(row: Ensemble) -> dict[str, Any]:
    """{setting: value} of how an ensemble was made, as far as that is known.

    Where an L0 was prescribed, the l1 that was found for it is a result and no setting.
    """
    recipe = json.loads(row.recipe) if row.recipe else {}
    if recipe and row.variant in VARIANTS:  # what a recipe does not name has its default
        plain = TrainConfig(variant=row.variant)
        recipe = {name: getattr(plain, name) for name in plain.uses if name != "seeds"} | recipe
    if "l0" in recipe:
        recipe.pop("l1", None)
    values = {_NAMES.get(name, name): value for name, value in recipe.items()}
    columns = {
        "variant": row.variant,
        "d_sae": row.d_sae,
        "k": row.k,
        "tokens": row.train_tokens,
        "members": row.n_members,
    }
    values |= {name: value for name, value in columns.items() if name not in values or name == "variant"}
    values |= _place(row.hookpoint)
    return {name: value for name, value in values.items() if value is not None}


def _place(hookpoint: str | None) -> dict[str, Any]:
    """Layer and site, the same for a place in the spellings of several libraries; the hook point where it has no layer."""
    if named := respelled(hookpoint or ""):
        return {"layer": named.layer, "site": f"blocks.N.{named.site}"}
    match = _BLOCK.fullmatch(hookpoint or "")
    return {"layer": int(match[2]), "site": match[1] + "N" + match[3]} if match else {"hookpoint": hookpoint}


def value_of(row: Ensemble, name: str) -> int | float | str | None:
    """One setting of an ensemble, lists and objects as JSON text; None where the ensemble does not have it."""
    value = settings(row).get(name)
    return json.dumps(value) if isinstance(value, list | dict) else value


def factors(rows: Sequence[Ensemble]) -> dict[str, list[Factor]]:
    """{setting: its sweeps}, for settings that are numbers and for hook points.

    Controls are left out, and so are ensembles with an anchor, whose members do not share one recipe.
    """
    by_ensemble = {row.ensemble: settings(row) for row in rows if row.control_of is None and row.anchor is None}
    names = list(
        dict.fromkeys(name for one in by_ensemble.values() for name in one if name in PLACES or _is_number(one[name]))
    )
    sweeps: dict[str, list[Factor]] = {}
    for name in names:
        groups: dict[str, list[tuple[Any, str]]] = {}
        for ensemble, one in by_ensemble.items():
            if name in one:
                rest = {key: value for key, value in one.items() if key != name}
                groups.setdefault(json.dumps(rest, sort_keys=True), []).append((one[name], ensemble))
        sets = [(json.loads(rest), points) for rest, points in groups.items()]
        sets = [(rest, points) for rest, points in sets if len({json.dumps(value) for value, _ in points}) > 1]
        if not sets:
            continue
        differing = {
            key for rest, _ in sets for key in rest if any(rest.get(key) != other.get(key) for other, _ in sets)
        }
        sweeps[name] = [
            Factor(name, _ordered(points), {key: rest[key] for key in sorted(differing) if key in rest})
            for rest, points in sets
        ]
    return sweeps


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ordered(points: list[tuple[Any, str]]) -> tuple[tuple[int | float | str, str], ...]:
    """(value, ensemble) sorted by value; values that are no numbers are written as text, so that they compare."""
    numbers = all(_is_number(value) for value, _ in points)
    comparable = (
        points
        if numbers
        else [(value if isinstance(value, str) else json.dumps(value), name) for value, name in points]
    )
    return tuple(sorted(comparable))
