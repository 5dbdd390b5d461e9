"""The analyses of one ensemble, one a file: each measures what is missing and keeps it as a part of the study.

They take an EnsembleRun, and read and write parts alone; what they measure with is in matching, features, geometry and training.
"""
