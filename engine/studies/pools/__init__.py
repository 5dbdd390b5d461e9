"""Feature pools: the unique features of an ensemble's members as one SAE, and what post-training does to it.

`pool` and `posttrain` compute, `settings`, `training_rows` and `curves` are the steps of `build`, `record` is the file. Refused
are ensembles of one member, groups of features that mean nothing alone, and recipes that would change what members are.
"""
