"""The command line, the dashboard and the notebook's face.

Only `cli` may start computations in its own process; all else imports engine.contract and engine.demo, nothing else of the
engine, so that the web process never loads torch.
"""
