"""The plan of a synthetic study, `synthetic.json` in its folder: how its samples are drawn and its SAEs trained."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from seedscope.engine.contract.files import write_whole
from seedscope.engine.contract.recipe import TrainConfig
from seedscope.engine.studies.synthetic.generator import SyntheticConfig
from seedscope.engine.studies.synthetic.phase_map import CellSettings, map_cells

NAME = "ground-truth"  # of the study, unless another is given; `synthetic` is a page
FILE = "synthetic.json"
CELLS = "cells"  # folder of the map, beside it
HOOKPOINT = "samples"  # what the SAEs read
EVALUATED = 65_536
MAP_MEMBERS, MAP_SAMPLES = 4, 200_000
SAMPLES = SyntheticConfig()
RECIPE = TrainConfig(d_sae=160, k=8, n_tokens=600_000, batch=512, silent_after=50_000)
MAP_RECIPE = replace(RECIPE, seeds=tuple(range(MAP_MEMBERS)), n_tokens=MAP_SAMPLES)


@dataclass(frozen=True)
class SyntheticPlan:
    """A synthetic study: the defaults are the regime in which low-rank features are found as a span and not one by one."""

    samples: SyntheticConfig = SAMPLES
    """What samples are made of."""
    recipe: TrainConfig = RECIPE
    """The ensemble's."""
    map_recipe: TrainConfig = MAP_RECIPE
    """That of every cell of the map: the same with fewer members and samples."""
    n_evaluated: int = EVALUATED
    """Samples that activity is measured on, none of which was trained on."""

    def __post_init__(self) -> None:
        for recipe in (self.recipe, self.map_recipe):
            if len(recipe.seeds) < 2:
                raise ValueError(
                    f"seeds are {list(recipe.seeds)}, expected at least 2: the stability of a single SAE is undefined"
                )
        if self.n_evaluated < 1:
            raise ValueError(f"n_evaluated is {self.n_evaluated}, expected at least 1 sample")

    def cells(self, theta: float, epsilon: float) -> list[CellSettings]:
        """The cells of its map."""
        return map_cells(self.samples, self.map_recipe, theta=theta, epsilon=epsilon)


_PLAN = TypeAdapter(SyntheticPlan)


def read(study: Path) -> SyntheticPlan | None:
    """What a study's folder says; None for a study that is not synthetic. Raises ValueError for a damaged file."""
    path = study / FILE
    try:
        return _PLAN.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ValueError(
            f"{path} is damaged ({error.errors()[0]['msg']}), expected what `seedscope synthetic` wrote; run it again"
        ) from None


def write(plan: SyntheticPlan, study: Path) -> None:
    """Replace what the folder says in one step."""
    study.mkdir(parents=True, exist_ok=True)
    write_whole(study / FILE, json.dumps(_PLAN.dump_python(plan, mode="json"), indent=1))
