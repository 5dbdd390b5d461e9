"""What a search for features means: a part of a token, a whole token in quotes, or words of an explanation."""

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from seedscope.app.formats import shown_on_one_line

Hit = Literal["token", "explanation"]
HITS: tuple[str, ...] = get_args(Hit)  # what a search can find a feature by


def literal_token(q: str) -> str | None:
    """The token that a search in quotes names, spaces included; None for a search without quotes."""
    return q[1:-1] if len(q) > 1 and q[0] == q[-1] == '"' else None


def token_matcher(q: str) -> Callable[[str], bool]:
    """Whether a token is what a search means.

    `" return"` is that token alone, in the same case; one that holds line breaks or other signs that cannot be typed may be
    given as pages show it (`"⏎"`). A quote that is still open means tokens that begin so. Anything else is a part of the token
    in any case.
    """
    literal = literal_token(q)
    if literal is not None:
        return lambda text: literal in (text, shown_on_one_line(text))
    part = q.lower()
    if len(q) > 1 and q[0] == '"':
        begin = q[1:]
        return lambda text: text.startswith(begin) or part in text.lower()
    return lambda text: part in text.lower()


def found_by(q: str, hit: str | None, tokens: Sequence[str]) -> tuple[str, dict[str, object]]:
    """SQL of the features that a search finds, and its parameters beside `ensemble`.

    Columns are seed, feature, by_token, by_explanation (whether it was found so) and hit_firings: how often the feature fires on
    those of its top tokens that the search means. `hit` leaves one of the two ways. Of words the last may be the beginning of one,
    unless a space stands behind it.
    """
    parts: list[str] = []
    parameters: dict[str, object] = {}
    if hit != "explanation":
        matches = token_matcher(q)
        parameters["token_ids"] = [i for i, text in enumerate(tokens) if matches(text)]
        # Lists taken apart and joined: a twentieth of the time of asking every list.
        apart = (
            "SELECT seed, feature, unnest(top_token_ids) AS token, unnest(top_token_counts) AS firings FROM Feature "
            "WHERE ensemble = $ensemble"
        )
        parts.append(
            f"SELECT seed, feature, firings, false AS told FROM ({apart}) "
            "WHERE token IN (SELECT unnest($token_ids::INTEGER[]))"
        )
    words = [] if hit == "token" or literal_token(q) is not None else re.findall(r"\w+", q.lower())
    if words:
        # The inverted table is sorted by word, so each word reads its own stretch of it.
        whole = words if q[-1:].isspace() else words[:-1]
        conditions = [f"word = $word_{i}" for i in range(len(whole))]
        parameters |= {f"word_{i}": word for i, word in enumerate(whole)}
        if len(whole) < len(words):
            conditions.append("word >= $word_from AND word < $word_to")
            parameters |= {"word_from": words[-1], "word_to": words[-1] + chr(0x10FFFF)}
        places = " INTERSECT ".join(
            f"SELECT seed, feature FROM Word WHERE ensemble = $ensemble AND {each}" for each in conditions
        )
        parts.append(f"SELECT seed, feature, 0 AS firings, true AS told FROM ({places})")
    found = " UNION ALL ".join(parts) or "SELECT seed, feature, 0 AS firings, true AS told FROM Feature WHERE false"
    sql = (
        "SELECT seed, feature, bool_or(NOT told) AS by_token, bool_or(told) AS by_explanation, "
        f"sum(firings)::DOUBLE AS hit_firings FROM ({found}) GROUP BY seed, feature"
    )
    return sql, parameters


# Features found by a token: the share of their firings on it, above 0. Behind them those found by their explanation alone, by
# its score less one: from -1 to 0.
RELEVANCE = (
    "(CASE WHEN by_token THEN coalesce(hit_firings / nullif(n_active, 0), 0) ELSE coalesce(score, 0)::DOUBLE - 1 END)"
)
