"""Pages of one ensemble: stability, buckets, members, spans and their map, explanations, training, a text of one's own.

Refuses: what compares ensembles (study) and what is about one feature (feature).
"""
