"""Storage that fsspec reaches with the user's own packages: sources are fetched into a cache below the root, exports put there.

`engine.contract.urls` says which names are URLs. Credentials are the packages' own: none is read, kept or passed on here.
"""
