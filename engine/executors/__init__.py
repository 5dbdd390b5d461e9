"""Where units of work run: in this process, in processes of this machine, on Ray, or on a SLURM cluster.

A unit is a module-level function that takes paths and plain values and writes its result, whole, to one path. What is finished is
judged by that path, so it is never repeated, and a unit that was lost is repeated alone. Ray and submitit are imported where they
are chosen.
"""
