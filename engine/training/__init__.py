"""Train the members of an ensemble in lockstep on one stream of activations, and follow them while they train.

`ensemble.train_ensemble` is the entry. Its parts: variants and their steps (variants, topk_step, entry_gradients,
sparse_codes), starts and decoder parametrisations (starts, decoders), preprocessing, batches, AuxK, checkpoints, memory, and
the search for an l1 (calibrate). What is followed: a trace of scalars (trace, summary) and whole members at some steps
(snapshots, trajectory); `rows` writes both as rows of the contract.

Refuses activations that are not finite, trainings that do not fit into memory or diverge, and starts of another shape or
convention. Members never exchange anything: one trained alone has the same weights up to rounding.
"""
