"""The columns of every table of a store: one dataclass per table, one field per column, one module per family of tables.

`engine.contract.schema` lists the tables with their sort keys. Standard library only; no SQL, no validation and no defaults
that stand for a value that was not computed: such a column is None, or an empty list.
"""
