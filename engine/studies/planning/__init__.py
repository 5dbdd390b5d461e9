"""What a study file would cost: work of every stage, from sizes alone, times constants that a machine was measured by.

Nothing is loaded and nothing is computed. What is assumed says so; GPUs are planned from their makers' figures, not measured.
"""
