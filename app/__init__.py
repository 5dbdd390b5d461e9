"""The dashboard and the command line. The web process loads no torch: what needs it runs as another process.

Of the engine, all but `cli` import `engine.contract` and `engine.demo` alone.
"""
