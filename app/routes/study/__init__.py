"""Pages of a whole study: its ensembles beside each other, starts, known true features, feature pools.

Refuses: what is about one ensemble alone.
"""
