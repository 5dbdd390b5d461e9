"""Which features stand for all of them where reading every one would take too long: the first of a fixed random order."""

_SMALL = 2146  # the largest seed whose product with 1,000,003, and any feature index added, is below 2^31
_SMALL_HASH = f"hash((least(seed, {_SMALL}) * 1000003 + feature)::INTEGER)"

# SQL of the order of features (seed, feature), the same every time. Hashes of distinct numbers are as good as random here, and no
# feature index reaches 1,000,003. Seeds whose product would not fit into 32 bits are hashed as they are.
SAMPLE_ORDER = f"CASE WHEN seed <= {_SMALL} THEN {_SMALL_HASH} ELSE hash(seed::BIGINT, feature) END, seed, feature"


def fixed_sample(n_rows: str) -> str:
    """SQL that ends a selection of features (seed, feature): as many as the parameter `n_rows` says, the same every time."""
    return f"ORDER BY {SAMPLE_ORDER} LIMIT ${n_rows}"
