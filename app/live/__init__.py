"""Asking the live engine: its process, questions in flight, whose turn it is, and routes that wait for an answer.

Waiting takes no thread and no turn of a page: an engine that hangs or dies holds up nobody who does not ask it.
"""
