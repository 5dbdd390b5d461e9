"""Recipes of a study file: the settings of `train`, and the combinations of them that a `sweep` asks for."""

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Any, NamedTuple, get_args

from seedscope.engine.contract.names import name_problem
from seedscope.engine.contract.recipe import (
    VARIANTS,
    Centroids,
    DataOrder,
    DataSample,
    DecoderBias,
    Preprocessing,
    Start,
    TrainConfig,
)
from seedscope.engine.studies.studyfile.toml import Check, Table, any_of
from seedscope.engine.studies.studyfile.values import (
    AT_LEAST_0,
    FRACTION,
    POSITIVE,
    comparisons,
    hookpoint,
    members,
    one_of,
    several,
    shares,
    whole,
)

MOST_COMBINATIONS = 64
# The keys of a recipe beside its variant: every other field of TrainConfig is one, and `l0`, which is none.
KEYS: dict[str, Check] = {
    "d_sae": whole(1), "k": whole(1), "seeds": members, "tokens": whole(1), "batch": whole(1), "lr": POSITIVE,
    "data_order": one_of(get_args(DataOrder)), "data_sample": one_of(get_args(DataSample)), "data_samples": whole(1),
    "warmup_frac": FRACTION, "decay_frac": FRACTION,
    "aux_coefficient": AT_LEAST_0, "aux_k": whole(1), "silent_after": whole(1), "l1": AT_LEAST_0,
    "l0_coefficient": AT_LEAST_0, "bandwidth": POSITIVE, "sparsity_warmup_frac": FRACTION, "group_fracs": shares,
    "centroids": one_of(get_args(Centroids)), "delta": AT_LEAST_0, "start": one_of(get_args(Start)),
    "preprocessing": one_of(get_args(Preprocessing)), "decoder_bias": one_of(get_args(DecoderBias)), "l0": POSITIVE,
    "encoder_scale": POSITIVE,
}  # fmt: skip
FIELD = {"tokens": "n_tokens"}  # of TrainConfig, where it is not the key
# Those that comparisons of an anchor have of their own.
OF_COMPARISONS = {"seeds": comparisons} | {
    key: KEYS[key] for key in ("tokens", "batch", "lr", "data_order", "warmup_frac", "decay_frac")
}
SWEPT = {"variant": one_of(VARIANTS), "hookpoint": hookpoint} | {
    key: check for key, check in KEYS.items() if key not in ("seeds", "group_fracs")
}


class Recipe(NamedTuple):
    """What an ensemble is trained by."""

    config: TrainConfig
    l0: float | None = None  # that l1 is to be found for; None: l1 stands as it is, or nothing depends on it


class Misfit(NamedTuple):
    """A setting that does not go with the others."""

    key: str  # empty where several are meant
    problem: str


def settings_in(table: Table) -> dict[str, Any]:
    """The settings of a recipe that are valid on their own, by key."""
    taken = {"variant": table.take("variant", one_of(VARIANTS))}
    taken |= {key: table.take(key, check) for key, check in KEYS.items()}
    return {key: value for key, value in taken.items() if value is not None}


def recipe_from(settings: Mapping[str, Any]) -> tuple[Recipe, list[Misfit]]:
    """The recipe of some settings, or the default one with what is wrong with them."""
    variant = settings.get("variant", VARIANTS[0])
    uses = TrainConfig(variant=variant).uses
    misfits = [*_unused(settings, variant, uses)]
    fields = {
        FIELD.get(key, key): value for key, value in settings.items() if FIELD.get(key, key) in (*uses, "variant")
    }
    l0 = settings.get("l0")
    if l0 is not None and (twin := "k" if "k" in uses else "l1") in settings:
        misfits.append(Misfit("l0", f"stands beside {twin}, expected one of them: it says the same; leave one out"))
    elif l0 is not None and "k" in uses:
        if l0 % 1:
            misfits.append(Misfit("l0", f"= {l0:g}, expected a whole number: of {variant} it is k"))
        fields["k"] = int(l0)
        l0 = None
    misfits = misfits or [*_misfits(settings, vars(TrainConfig()) | fields, uses)]
    if misfits:
        return Recipe(TrainConfig()), misfits
    try:
        return Recipe(TrainConfig(**fields), l0), []
    except ValueError as error:  # what several settings say together
        return Recipe(TrainConfig()), [Misfit("", f"does not fit together: {error}")]


def _unused(settings: Mapping[str, Any], variant: str, uses: tuple[str, ...]) -> Iterator[Misfit]:
    for key in settings:
        field = FIELD.get(key, key)
        if field in uses or key in ("variant", "l0"):
            continue
        others = [each for each in VARIANTS if field in TrainConfig(variant=each).uses]
        yield Misfit(key, f"is a setting of {any_of(others)}, expected those of {variant}; leave it out or set variant")


def _misfits(settings: Mapping[str, Any], whole: Mapping[str, Any], uses: tuple[str, ...]) -> Iterator[Misfit]:
    n_active, sets_k = (whole["k"], "l0" if "l0" in settings else "k") if "k" in uses else (settings.get("l0", 0), "l0")
    if n_active > whole["d_sae"]:
        key, other = (sets_k, "d_sae") if sets_k in settings else ("d_sae", sets_k)
        relation, values = (
            ("at most", (n_active, whole["d_sae"])) if key != "d_sae" else ("at least", (whole["d_sae"], n_active))
        )
        yield Misfit(
            key, f"= {values[0]:g}, expected {relation} {other} ({values[1]:g}); lower {sets_k} or raise d_sae"
        )
    elif whole["n_tokens"] < whole["batch"]:
        key = "tokens" if "tokens" in settings else "batch"
        sizes = f"with tokens {whole['n_tokens']} and batch {whole['batch']}"
        yield Misfit(key, f"leaves no step {sizes}, expected at least one batch of tokens; raise tokens or lower batch")


class Combination(NamedTuple):
    """One value of every key of a sweep."""

    name: str  # of its ensemble
    settings: dict[str, Any]


def combinations(table: Table, name: str) -> list[Combination]:
    """All that a sweep asks for, in its order: the last key changes fastest. None where anything is wrong with it."""
    values_of = {key: table.take(key, several(check)) for key, check in SWEPT.items()}
    keys = [key for key in table if values_of.get(key) is not None]
    if not [*table]:
        table.wrong("", "is empty, expected lists of values, such as k = [4, 8]; or leave it out")
    if not keys or len(keys) < len([*table]):
        return []
    n = prod(len(values_of[key]) for key in keys)
    if n > MOST_COMBINATIONS:
        sizes = " x ".join(f"{len(values_of[key])} of {key}" for key in keys)
        table.wrong("", f"makes {n} ensembles ({sizes}), expected at most {MOST_COMBINATIONS}; sweep fewer values")
        return []
    swept = [dict(zip(keys, values, strict=True)) for values in product(*(values_of[key] for key in keys))]
    named = [Combination("-".join([name, *(_part(*each) for each in one.items())]), one) for one in swept]
    for each in named:
        if problem := name and name_problem(each.name):
            table.wrong("", f"makes an ensemble {each.name!r}, {problem}; shorten its name or sweep other values")
            return []
    return named


def _part(key: str, value: Any) -> str:
    """A value as a part of a name: texts as they are, numbers behind their key."""
    if isinstance(value, str):
        return value
    return (
        f"{key}{'-' if key[-1].isdigit() else ''}{value:g}".replace("e+", "e") if value < 1e6 else f"{key}{value:.0f}"
    )


def sweep_recipes(base: Mapping[str, Any], swept: list[Combination], table: Table) -> list[tuple[Combination, Recipe]]:
    """The recipe of every combination; each problem is reported once, with the combinations that have it."""
    problems: dict[str, list[str]] = {}
    recipes = []
    for each in swept:
        settings = {key: value for key, value in each.settings.items() if key != "hookpoint"}
        recipe, misfits = recipe_from({**base, **settings})
        recipes.append((each, recipe))
        for misfit in misfits:
            problems.setdefault(f"{misfit.key} {misfit.problem}".strip(), []).append(each.name)
    for problem, names in problems.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        table.wrong("", f"makes {names[0]}{others}, whose {problem}")
    return recipes
