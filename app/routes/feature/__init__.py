"""Pages of one feature: the permalink in sections, its neighbours, its exact loss, its projection, its scored contexts.

Refuses: whatever needs more than one feature and its counterparts.
"""
