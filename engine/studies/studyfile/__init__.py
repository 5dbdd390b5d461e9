"""Study files in TOML: read and checked as a whole, every problem with its line, before any work begins.

No model is loaded, and of a text the first document alone is read. Unknown keys are refused with the nearest known one.
"""
