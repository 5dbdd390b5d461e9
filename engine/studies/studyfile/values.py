"""Checks of single values in a study file: texts, numbers, seeds, hook points; each returns the value as it is used."""

import math
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from seedscope.engine.activations.hookpoints import EMBEDDING, SITES, TRANSFORMER_LENS
from seedscope.engine.contract.names import name_problem
from seedscope.engine.studies.studyfile.toml import Check, Unfit, any_of, shown

MOST_MEMBERS = 1000
_MODULE_PATH = re.compile(r"\w+(\.\w+)*")


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise Unfit("expected a text in quotes that is not empty")
    return value


def name(value: Any) -> str:
    """A name that addresses can hold."""
    if problem := name_problem(text(value)):
        raise Unfit(problem)
    return value


def truth(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise Unfit("expected true or false, without quotes")
    return value


def number(expected: str, fits: Callable[[float], bool]) -> Check:
    """A number of the kind that `expected` names."""

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
            raise Unfit(f"expected {expected}")
        return float(value)

    return check


def whole(least: int) -> Check:
    """A whole number; 5e7, which TOML reads as a float, is how many tokens are often written."""

    def check(value: Any) -> int:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value != value // 1 or value < least:
            raise Unfit(f"expected a whole number of at least {least}")
        return int(value)

    return check


def one_of(allowed: Sequence[str], otherwise: str = "") -> Check:
    """One of some words; `otherwise` ends the message where none is near."""

    def check(value: Any) -> str:
        if value not in allowed:
            near = get_close_matches(value, allowed, n=1) if isinstance(value, str) else []
            raise Unfit(f"expected {any_of(allowed)}{f'; did you mean {near[0]}?' if near else otherwise}")
        return value

    return check


def some_of(allowed: Sequence[str]) -> Check:
    """Some of some words, each once, in the order of these."""
    single = one_of(allowed)

    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise Unfit(f"expected a list of some of {', '.join(allowed)}")
        for each in value:
            try:
                single(each)
            except Unfit as unfit:
                raise Unfit(f"holds {shown(each)}, {unfit}") from None
        return tuple(each for each in allowed if each in value)

    return check


def texts(value: Any) -> list[str]:
    """One text, or a list of them."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(each, str) and each.strip() for each in values):
        raise Unfit("expected a text in quotes, or a list of them in [ ]")
    return values


def several(single: Check) -> Check:
    """A list of values, each once, that all pass a check."""

    def check(value: Any) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise Unfit("expected a list of values in [ ], such as [4, 8]")
        checked: list[Any] = []
        for each in value:
            try:
                checked.append(single(each))
            except Unfit as unfit:
                raise Unfit(f"holds {shown(each)}, {unfit}") from None
            if checked[-1] in checked[:-1]:
                raise Unfit(f"holds {shown(each)} twice, expected every value once")
        return checked

    return check


def seeds(value: Any) -> tuple[int, ...]:
    """Seeds, each once."""
    if not isinstance(value, list) or not value or not all(type(each) is int and each >= 0 for each in value):
        raise Unfit("expected a list of whole numbers of at least 0, such as [0, 1, 2]")
    if twice := sorted({seed for seed in value if value.count(seed) > 1}):
        raise Unfit(f"expected every seed once, found {', '.join(map(str, twice))} more than once")
    return tuple(value)


def members(value: Any) -> tuple[int, ...]:
    """The seeds of an ensemble to be trained, or how many."""
    n = value if type(value) is int else len(given_seeds := seeds(value))
    if not 2 <= n <= MOST_MEMBERS:
        raise Unfit(f"expected 2 to {MOST_MEMBERS} members: the stability of a single SAE is undefined")
    return tuple(range(n)) if type(value) is int else given_seeds


def comparisons(value: Any) -> tuple[int, ...]:
    """The seeds of an anchor's comparisons, or how many; seed 0 is the anchor's."""
    given_seeds = members(value)
    if type(value) is int:
        return tuple(seed + 1 for seed in given_seeds)
    if 0 in given_seeds:
        raise Unfit("expected seeds of at least 1: seed 0 is the anchor's")
    return given_seeds


def shares(value: Any) -> tuple[float, ...]:
    """Shares of a whole."""
    numbers = isinstance(value, list) and all(isinstance(each, int | float) and each is not True for each in value)
    if not numbers or not value or min(value) <= 0 or not math.isclose(sum(value), 1, rel_tol=1e-6):
        raise Unfit("expected a list of numbers above 0 whose sum is 1, such as [0.1, 0.3, 0.6]")
    total = sum(value)
    return tuple(each / total for each in value)


def hookpoint(value: Any) -> str:
    """A hook point in a spelling that is known; whether the model has it is seen when the model is."""
    name = text(value)
    if name == EMBEDDING or TRANSFORMER_LENS.fullmatch(name) or (_MODULE_PATH.fullmatch(name) and "hook_" not in name):
        return name
    block = re.match(r"(blocks\.\d+)\.(.+)", name)
    near = get_close_matches(block[2], SITES, n=1) if block else []
    nearest = f"; did you mean {block[1]}.{near[0]}?" if block and near else ""
    raise Unfit(
        f"expected blocks.LAYER. with {any_of(SITES)} behind it, {EMBEDDING}, or a module's path such as "
        f"transformer.h.6{nearest}"
    )


POSITIVE = number("a number above 0", lambda v: 0 < v < float("inf"))
AT_LEAST_0 = number("a number of at least 0", lambda v: 0 <= v < float("inf"))
FRACTION = number("a share from 0 to 1", lambda v: 0 <= v <= 1)
