"""Whole studies: trained or imported, analysed, pooled and published.

A study is one folder: its catalogue says what it consists of, `parts/` holds what was computed, a store what is published.
Every function here goes on where a stopped one ended, and writes nothing that readers see before it is complete. Refused are
SAEs that are no members of one ensemble, a single SAE without others to compare it with, and what a model or text that is
missing would be needed for.
"""
