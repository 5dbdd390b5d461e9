"""Long work that the dashboard starts: `seedscope` commands as processes of their own, queued, watched and ended.

Refuses: doing the work itself.
"""
