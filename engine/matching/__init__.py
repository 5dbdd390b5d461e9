"""Which feature of one SAE matches which of another, and how often chance alone would match it.

`kernels` and `cuda` find best cosines, `assignment` one-to-one matchings, `match` combines them into the matching rules and the
nulls, `pair` matches two SAEs without a study, `buckets` turns counts of matches into buckets. It refuses thresholds: cosines
are kept, so that theta can change without matching again.
"""
