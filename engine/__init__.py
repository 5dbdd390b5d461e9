"""Everything that computes: activations, SAEs, matching, features, training, geometry, explanations, whole studies.

Knows nothing of the web. Importing this package, or `contract` inside it, loads no torch.
"""
