"""The command line: one command a file, named as the command; shared options in `options` and `study_options`.

Refuses: computing anything itself, and imports at the top of a file that `--help` would have to wait for.
"""
