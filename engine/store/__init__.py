"""A study on disk: its catalogue, the parts that analyses left, and the DuckDB store that pages read.

`catalogue` holds the plan, `parts` the arrays of each analysis, `database` writes the store and reads it again. It refuses to
compute: rows are validated, sorted and digested here, and nothing else happens to them. Half-written results are never
visible, because everything takes its name in one step.
"""
