"""Published studies -> frozen rows. All SQL of the dashboard stands in this package; DuckDB is opened read-only.

Refuses: statistics and verdicts (findings), words and pictures (routes, figures), and writing.
"""
