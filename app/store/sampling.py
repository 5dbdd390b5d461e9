"""Which features stand for all of them where reading every one would take too long."""

_SMALL = 2146  # the largest seed whose product with 1,000,003, and any feature index added, is below 2^31


def fixed_sample(n_rows: str) -> str:
    """SQL that ends a selection of features (seed, feature): as many as the parameter `n_rows` says, the same every time.

    Hashes of distinct numbers are as good as random here, and no feature index reaches 1,000,003. Seeds whose product would not
    fit into 32 bits are hashed as they are.
    """
    small = f"hash((least(seed, {_SMALL}) * 1000003 + feature)::INTEGER)"
    hashed = f"CASE WHEN seed <= {_SMALL} THEN {small} ELSE hash(seed::BIGINT, feature) END"
    return f"ORDER BY {hashed}, seed, feature LIMIT ${n_rows}"
