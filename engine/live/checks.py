"""Checks of queries before the live engine computes them; each raises ValueError that says what was expected."""

from seedscope.engine.contract.queries import MAX_K, SPACES, LiveQuery
from seedscope.engine.live.neighbours import Resident


def check(name: str, value: object, fits: bool, expected: str) -> None:
    """Raise ValueError, naming a field of a query and what was expected of it, unless its value fits."""
    if not fits:
        raise ValueError(f"{name} is {value!r:.80}, expected {expected}")


def check_ensemble(query: LiveQuery) -> None:
    """Raise ValueError for seeds or a space that no ensemble has."""
    check("seeds", query.seeds, len(query.seeds) == len(set(query.seeds)) > 0, "at least one, each once")
    check("by", query.by, query.by in SPACES, " or ".join(SPACES))


def check_neighbours(query: LiveQuery, resident: Resident) -> None:
    """Raise ValueError for a `neighbours` query that the resident rows cannot answer."""
    seeds, expected = resident.seeds, f"one of {', '.join(map(str, resident.seeds)):.200}"
    for seed in (query.seed, *query.members):
        check("seed", seed, seed in seeds, expected)
    check("members", query.members, len(query.members) == len(set(query.members)), "each seed once")
    check("k", query.k, 1 <= query.k <= MAX_K, f"1 to {MAX_K}")
    check("feature", query.feature, 0 <= query.feature < resident.d_sae, f"0 to {resident.d_sae - 1}")
    row = seeds.index(query.seed) * resident.d_sae + query.feature
    if row in resident.without:
        raise ValueError(
            f"feature {query.feature} of seed {query.seed} has no direction: its row is zero or not finite"
        )
