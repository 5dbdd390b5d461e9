"""How DuckDB opens a published store. Standard library only."""

# A connection that only reads: no file but the store itself can be reached, and no statement can change that. DuckDB opens
# a file once per process with one configuration, so every reader in a process must use these very settings.
READ_ONLY: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "lock_configuration": "true",
}
