"""Hooks of schemathesis: most addresses that it makes name the tests' small study, the others anything."""

import os
import zlib
from typing import Any

import schemathesis

from support.studies import ENSEMBLE, STUDY

NAMES = {
    "study": [STUDY],
    "ensemble": [ENSEMBLE],
    "seed": ["0", "3"],
    "feature": ["0", "5", "95"],
    "page": ["commands"],
    "sae_digest": [os.environ["FUZZED_DIGEST"]],
}


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Known names for those parts of an address that have one; which one, and when none, follows from what was made."""

    def name_of(part: str, made: Any) -> Any:
        choices = NAMES.get(part, [made])
        chosen = zlib.crc32(repr(made).encode())
        return made if chosen % 8 == 0 else choices[chosen % len(choices)]

    return path_parameters and {part: name_of(part, made) for part, made in path_parameters.items()}
