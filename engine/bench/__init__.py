"""Benchmarks: what this project's heavy work takes, against the limit of the machine and against other programs.

A section yields `report.BenchLine`s (products, assignment, live, pages; harvest; geometry; training); `run` lists the
sections and writes their lines. peers.py and trainers.py run inside the interpreters of other programs and import nothing
of this one (outside asks them).

Refuses to report what was not measured: a missing device or peer is named as such. Checks no results: that is for tests.
"""
