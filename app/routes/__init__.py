"""Pages: each module reads an address, asks the store, and returns one context that is a page, a fragment or JSON.

`address` holds what addresses can say, `routers` every router in order. Refuses: SQL, statistics and markup.
"""
