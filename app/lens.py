"""The lens: theta, epsilon, match rule and the policy on dead features that an address asks for, carried by every link.

An address holds only what differs from the ensemble's own settings. Pages read it through their query classes
(`app.routes.address`), which refuse values that do not exist; what is read here is for links and for what is said of the lens
on every page, also on those that do not use it, so a value that does not exist counts as absent.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from seedscope.engine.contract.schema import DECODER_RULES, RULES

Theta = Annotated[
    float,
    Field(
        ge=-1,
        le=1,
        description="a cosine of at least theta is a match; under the rule `active` a correlation of activations",
    ),
]
Epsilon = Annotated[float, Field(ge=0, lt=0.5, description="stable: p >= 1 - epsilon, unstable: p <= epsilon")]

PARAMETERS = ("theta", "epsilon", "rule", "dead")
RULE_NAMES = {
    "argmax": "nearest",
    "live": "nearest active",
    "mutual": "mutual nearest",
    "hungarian": "one-to-one",
    "both": "decoder and encoder",
    "active": "fires alike",
}

_NUMBERS: dict[str, TypeAdapter[float]] = {"theta": TypeAdapter(Theta), "epsilon": TypeAdapter(Epsilon)}


def measure_of(rule: str) -> str:
    """What theta is compared with under a match rule, in one word."""
    return "cosine" if rule in DECODER_RULES else "correlation"


@dataclass(frozen=True)
class Lens:
    """What an address changes in how features are judged: the parameters of its links, and each in words."""

    parameters: dict[str, Any]  # a subset of PARAMETERS, in the order there

    @property
    def says(self) -> list[str]:
        """Each change in words, such as 'θ 0.80'."""
        words = {
            "theta": lambda value: f"θ {value:.2f}" if round(value, 2) == value else f"θ {value:g}",
            "epsilon": lambda value: f"ε {value:g}",
            "rule": lambda value: f"match rule: {RULE_NAMES[value]}",
            "dead": lambda value: "dead features counted",
        }
        return [words[name](value) for name, value in self.parameters.items()]


def read_lens(query: Mapping[str, str], theta: float | None = None, epsilon: float | None = None) -> Lens:
    """The lens of an address; `theta` and `epsilon` are the ensemble's own, None on pages of no ensemble.

    Values out of range or of another type count as absent.
    """
    values: dict[str, Any] = {}
    for name, own in (("theta", theta), ("epsilon", epsilon)):
        with suppress(ValidationError):
            value = _NUMBERS[name].validate_python(query.get(name))
            if value != own:
                values[name] = value
    if query.get("rule") in RULES and query["rule"] != RULES[0]:
        values["rule"] = query["rule"]
    if query.get("dead") == "count":
        values["dead"] = "count"
    return Lens(values)
