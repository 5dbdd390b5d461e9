"""What differs between the members of an ensemble: their start, their data order, their data sample. Standard library only.

Ensembles that are alike in all else show where the variance between seeds comes from [definition of this project].
"""

from collections.abc import Mapping, Sequence
from typing import Any

from seedscope.engine.contract.recipe import TrainConfig

PARTS = ("start", "order", "sample")
# {cause: the parts that differ between members}; what does not differ is that of seed 0.
CAUSES: dict[str, tuple[str, ...]] = {
    "start": ("start",),
    "order": ("order",),
    "sample": ("sample",),
    "all": PARTS,
}
MODEL = "model"  # the cause that members read language models of their own, and begin apart
# Parts that differ there: a sample holds what one model makes of the tokens that all read. One start for all would be found again
# in every member, whatever their models share.
OF_MODELS = ("start", "sample")
MODELS = "models"  # key of a recipe: one digest per member, of the model that it reads
_SETTINGS = {  # {part: (setting of a recipe, its value where the part differs, its value where it does not)}
    "start": ("start", "random", "random-shared"),
    "order": ("data_order", "independent", "shared"),
    "sample": ("data_sample", "independent", "shared"),
}
FREE = (*(setting for setting, *_ in _SETTINGS.values()), "data_samples")


def settings_of(differing: Sequence[str], n_members: int) -> dict[str, Any]:
    """The settings of a recipe under which these PARTS differ; rows are dealt into a sample for each member whether or not."""
    settings = {
        setting: differs if part in differing else alike for part, (setting, differs, alike) in _SETTINGS.items()
    }
    return settings | {"data_samples": n_members}


def differing(recipe: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The PARTS that differ between members of a recipe, or MODEL alone; None where no recipe says, or other starts are used."""
    if recipe is None or "centroids" in recipe:
        return None
    if recipe.get(MODELS):
        return (MODEL,)
    found = []
    for part, (setting, differs, alike) in _SETTINGS.items():
        value = recipe.get(setting, getattr(TrainConfig, setting))
        if value not in (differs, alike):
            return None
        found += [part] if value == differs else []
    return tuple(found)


def begins_apart(recipe: Mapping[str, Any] | None) -> bool:
    """Whether members of a recipe that has a cause begin at rows of their own."""
    return bool((recipe or {}).get("start", TrainConfig.start) == _SETTINGS["start"][1])


def cause_of(recipe: Mapping[str, Any] | None) -> str | None:
    """The differing parts as one name: of CAUSES, MODEL, or joined by +; None as `differing`, and where nothing differs."""
    parts = differing(recipe)
    if not parts:
        return None
    return next((name for name, own in CAUSES.items() if own == parts), "+".join(parts))
