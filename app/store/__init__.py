"""Published studies -> frozen rows. All SQL of the dashboard stands in this package; DuckDB is opened read-only."""
