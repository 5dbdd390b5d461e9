"""What the engine and the dashboard agree on: a store's tables and index, settings, names, files, the live engine's messages.

Both processes import this package, so it imports neither of them, no torch and no web framework; most modules need the
standard library alone. It refuses anything that computes results: definitions of tables and of the bucket rule belong here,
matching, activity and statistics of a study do not.
"""
