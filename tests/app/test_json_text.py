"""JSON in pieces is the same JSON."""

import pytest
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st

from seedscope.app import json_text
from seedscope.app.json_text import PiecewiseJSONResponse

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
KEYS = st.text(max_size=5) | st.integers() | st.none() | st.booleans()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(KEYS, inner, max_size=5) | st.tuples(inner, inner),
    max_leaves=40,
)


@given(value=VALUES)
def test_the_bytes_are_those_of_one_call(value):
    with pytest.MonkeyPatch.context() as patch:
        for most in (1, 3, 4096):
            patch.setattr(json_text, "AT_ONCE", most)
            assert PiecewiseJSONResponse(value).body == JSONResponse(value).body


def test_no_call_encodes_many_values(monkeypatch):
    encoded = []
    text = json_text._text
    monkeypatch.setattr(json_text, "_text", lambda value: encoded.append(json_text._weight(value)) or text(value))
    rows = [{"feature": i, "cosines": [0.5] * 95} for i in range(2000)]
    body = PiecewiseJSONResponse({"rows": rows, "all": list(range(500_000)), "deep": [[list(range(30_000))]]}).body
    assert len(body) > 2_000_000
    assert max(encoded) <= json_text.AT_ONCE + 1


def test_what_json_has_no_word_for_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        PiecewiseJSONResponse({"a": [[float("nan")]] * 5000})
