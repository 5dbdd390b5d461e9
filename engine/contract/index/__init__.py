"""The index beside a published store: its features column by column, in files that pages map into memory.

`layout` names the files, `build` writes them from a store. An index holds nothing that the store does not: it may be removed,
and is made again when the store is opened.
"""
