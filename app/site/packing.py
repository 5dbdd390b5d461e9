"""Data files that pages read themselves: JSON, compressed, in a script that hands it to static/site-data.js.

Browsers refuse `fetch` on pages opened as files, but load scripts. Compressed bytes stand in them as base 85, a quarter longer.
"""

import base64
import gzip
import json
from typing import Any

import numpy as np

_EXACT = 2**53  # whole numbers below it are the same to every reader of JSON
_LARGEST_SINGLE = float(np.finfo(np.float32).max)
_SIGNIFICANT = 9  # digits of what was computed in double precision


def data_file(name: str, value: Any) -> bytes:
    """A script that hands over a JSON value under a name of letters, digits, slashes and hyphens."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = base64.b85encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
    return f'siteData("{name}","{packed}");\n'.encode()


def shortened(value: Any) -> Any:
    """A JSON value with its floats as short as they can be, at every depth; whole ones as integers.

    What the store holds in single precision is the same when it is read as such, and a number rounded to fewer decimals than it
    has left is the same: orders, thresholds and what pages show stay the dashboard's.
    """
    if isinstance(value, float):
        if value.is_integer() and abs(value) < _EXACT:
            return int(value)
        single = np.float32(value) if abs(value) <= _LARGEST_SINGLE else np.float32(0)
        nine = f"{value:.{_SIGNIFICANT}g}"  # which tell singles apart
        for short in (str(single) if float(single) == value else nine, nine):
            if float(short) == value or not _ends_in_five(short):
                return float(short)
        return value
    if isinstance(value, dict):
        return {name: shortened(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(each) for each in value]
    return value


def _ends_in_five(number: str) -> bool:
    """Whether a number's last digit is a 5: where it was rounded to that, it may be on the other side of a half."""
    return number.partition("e")[0].endswith("5")
