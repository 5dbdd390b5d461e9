"""Exports of a published study in the formats of other tools and in one that holds everything, and the way back.

An export is one folder, complete or not there, with a manifest of its files and their digests. Refused are SAEs whose files are
not those that the results were computed from, and what a format cannot express.
"""
