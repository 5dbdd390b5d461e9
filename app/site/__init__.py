"""A study as a folder of plain files: the dashboard's own pages, asked in process, and data that the pages read themselves.

Writes no study, starts no engine, opens no port. What a page says is the dashboard's: addresses change, and what needs a server is
left out.
"""
