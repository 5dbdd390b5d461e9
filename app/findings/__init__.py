"""What results say: comparisons, verdicts and their tests, from arrays; NumPy and SciPy, no SQL.

Refuses: DuckDB, FastAPI, torch, and anything of `app.store`; what a verdict needs is handed in as arrays or rows of the
contract.
"""
